"""Calibration: bisection finds the limit, token KL is that of plain forward passes, and the range is confirmed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval import calibrate
from eval.calibration_bounds import LEAST, MOST, START, TOLERANCE, Arm, Bracket, LayerRange, find_bounds
from eval.calibration_confirm import N_RANDOM, SHARES, Effect, confirmed_range, tried
from eval.calibration_measure import mean_coherence
from eval.model_utils import Steering
from eval.talk_settings import ModelShape
from eval.talk_start import start
from eval.token_kl import token_kl
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.files import read_sidecar
from persona_vectors.models import load_model
from persona_vectors.sampling import sample_answers
from persona_vectors.statistics import Interval
from persona_vectors.tokens import TokenizedSample, render_prompt, tokenize_sample
from persona_vectors.traits import load_trait
from persona_vectors.vector_files import read_vector_file
from persona_vectors.vectors import write_vectors

TINY = "models/tiny-persona"


@given(st.dictionaries(st.integers(1, 40), st.floats(0.0, 10.0), min_size=1, max_size=5))
def test_bisection_brackets_every_limit(limits: dict[int, float]):
    rounds = []

    def passes(sizes: Mapping[Arm, float]) -> dict[Arm, bool]:
        rounds.append(len(sizes))
        return {arm: size <= limits[arm.layer] for arm, size in sizes.items()}

    found = find_bounds([Arm(layer, 1) for layer in limits], passes)
    for arm, bracket in found.items():
        limit = limits[arm.layer]
        assert bracket.passed <= limit or bracket.passed == 0
        if math.isinf(bracket.failed):
            assert limit >= MOST and bracket.passed == MOST
        else:
            assert bracket.failed > limit
            assert bracket.failed <= LEAST or bracket.failed - bracket.passed <= TOLERANCE * bracket.failed
    assert len(rounds) <= 12 and rounds[0] == len(limits)


def test_the_first_sizes_are_doubled_until_one_fails():
    assert [Bracket().next_size, Bracket(START).next_size, Bracket(MOST).next_size] == [START, 2 * START, None]
    assert Bracket(1.0, 2.0).next_size == 1.5
    assert Bracket(0.95, 1.0).next_size is None and Bracket(0.0, LEAST).next_size is None


@given(st.dictionaries(st.integers(-9, 9).filter(bool), st.booleans()))
def test_the_range_is_the_part_around_0_in_which_all_that_was_tried_holds(held: dict[int, bool]):
    low, high = confirmed_range(held)
    assert low <= 0 <= high and {low, high} <= {0, *held}
    assert all(own for coef, own in held.items() if low <= coef <= high)
    beyond = [[coef for coef in held if coef > high], [-coef for coef in held if coef < low]]
    assert not any(held[sign * min(side)] for sign, side in zip((1, -1), beyond, strict=True) if side)


def test_both_ends_are_tried_at_every_share():
    one = LayerRange(3, 10.0, 5.0, Bracket(passed=1.0), Bracket(passed=0.5))
    assert tried(one) == [-1.0, -0.875, -0.75, -0.625, -0.5, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert tried(LayerRange(3, 10.0, 5.0, Bracket(passed=1.0), Bracket())) == [2 * share for share in SHARES]


@pytest.mark.parametrize(
    ("gain", "lead", "there"),
    [((9, 5, 13), (8, 4, 12), True), ((0, 0, 0), (0, 0, 0), False), ((9, 5, 13), (2, -1, 5), False)]
    + [((9, 5, 13), (math.nan,) * 3, False), ((math.nan,) * 3, (8, 4, 12), False)],  # nothing scored proves nothing
)
def test_an_effect_is_above_unsteered_and_random_with_its_whole_interval(gain, lead, there):
    """A coefficient with the trait of the unsteered answers (gain 0) was once kept, and said to have an effect."""
    assert Effect(Interval(*gain, 10, 10), Interval(*lead, 10, 10)).is_there is there


def test_an_answer_without_a_score_is_not_coherent():
    """Otherwise the more answers break so far that no judge rates them, the better the rest would look."""
    assert mean_coherence(np.array([90.0, np.nan])) == 45.0
    assert mean_coherence(np.array([np.nan, np.nan])) == 0.0


@pytest.fixture(scope="module")
def tiny():
    return load_model(TINY, dtype="float32", device_map="cpu")


def _samples(tokenizer) -> list[TokenizedSample]:
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("Explain baking.", "Why?")]
    answers = ["You should start with a plan and a little time every day.", "People care."]
    return [tokenize_sample(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize(("layer", "coef"), [(1, 60.0), (3, -200.0)])
def test_token_kl_is_that_of_single_passes(tiny, layer: int, coef: float):
    model, tokenizer = tiny
    samples = _samples(tokenizer)
    vector = torch.nn.functional.normalize(torch.randn(256, generator=torch.Generator().manual_seed(1)), dim=0)
    found = token_kl(model, samples, Steering(vector, layer, coef))

    def add(_module, _args, output):  # the answer's positions, from the last prompt token on
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, sample.prompt_len - 1 :] += coef * vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for sample, divergence in zip(samples, found, strict=True):
        ids = torch.tensor([sample.ids])
        with torch.inference_mode():
            plain = model(ids).logits[0].log_softmax(-1)
            handle = model.model.layers[layer - 1].register_forward_hook(add)
            steered = model(ids).logits[0].log_softmax(-1)
            handle.remove()
        at = slice(sample.prompt_len - 1, -1)
        expected = torch.nn.functional.kl_div(plain[at], steered[at], log_target=True, reduction="none").sum(-1)
        assert divergence.shape == (sample.response_len,)
        torch.testing.assert_close(divergence, expected, rtol=1e-3, atol=1e-5)
        assert divergence.max() > 0.01


def test_no_steering_no_kl(tiny):
    model, tokenizer = tiny
    for divergence in token_kl(model, _samples(tokenizer), Steering(torch.ones(256), 2, 0.0)):
        assert float(divergence.abs().max()) == 0.0


def test_a_token_kl_needs_answers(tiny):
    with pytest.raises(ValueError, match="needs answers"):
        token_kl(tiny[0], [TokenizedSample((1, 2, 3), 3)], Steering(torch.ones(256), 2, 1.0))


@pytest.fixture
def vector_file(tiny, tmp_path: Path) -> Path:
    """The direction of `evil` from a few of the model's own answers, at every layer."""
    model, tokenizer = tiny
    trait = load_trait("evil", "extract", model=TINY)
    sides = {}
    for pole in ("pos", "neg"):
        systems = [getattr(pair, pole) for pair in trait.instruction]
        prompts = [
            render_prompt(tokenizer, [{"role": "system", "content": s}, {"role": "user", "content": q}])
            for s in systems
            for q in trait.questions[:4]
        ]
        streams = [(0, i) for i in range(len(prompts))]
        texts = sample_answers(model, tokenizer, prompts, max_tokens=40, temperature=0.0, streams=streams)
        samples = [tokenize_sample(tokenizer, *both) for both in zip(prompts, texts, strict=True)]
        sides[pole] = mean_activations(model, samples, None, ("response_avg",))["response_avg"].mean(0)
    path = tmp_path / "evil_response_avg_diff.pt"
    return write_vectors(path, sides["pos"] - sides["neg"], {"trait": "evil"})


def _run(capsys, *arguments: str) -> tuple[int, str]:
    code = cli.run(calibrate.main, ["--model", TINY, "--device_map", "cpu", "--engine", "hf", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_range_is_found_confirmed_and_kept(vector_file: Path, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    given = ["--vector_file", str(vector_file), "--trait", "evil", "--judge_model", TINY, "--layers", "3"]
    given += ["--max_tokens", "40", "--crosstalk", "optimistic"]
    code, out = _run(capsys, *given)
    assert code == 0, out
    told = read_sidecar(vector_file)
    entry = told["calibration"]
    assert told["trait"] == "evil" and entry["layer"] == 3  # the rest of the sidecar is as it was
    low, high = entry["range"]
    assert low < 0 < entry["coef"] <= high and f"coefficient {entry['coef']:g}" in out
    [layer] = entry["layers"]
    size = layer["relative_range"][1]
    assert layer["range"][1] == pytest.approx(size * layer["residual_norm"] / layer["vector_norm"], rel=1e-3)
    at = {(point["control"], point["coef"]): point for point in entry["confirmed"]}
    assert len(at) == len(entry["confirmed"]) == 1 + (1 + N_RANDOM) * 2 * len(SHARES)
    own = {coef: point["coherence"]["mean"] >= 75 for (name, coef), point in at.items() if not name}
    assert (low, high) == confirmed_range(own)  # both ends are of the questions that took no part in finding them
    effects = {one["coef"]: one for one in entry["effects"]}
    assert entry["coef"] == max(coef for coef, one in effects.items() if coef <= high and one["is_there"])
    kept = at["", entry["coef"]]
    random = max(point["trait"]["mean"] for (name, coef), point in at.items() if name and coef == entry["coef"])
    assert kept["trait"]["mean"] - random == pytest.approx(effects[entry["coef"]]["over_random"]["mean"], abs=0.01)
    assert kept["trait"]["mean"] > random + 5 and set(kept["crosstalk"]) == {"optimistic"}
    assert sum(bool(point["crosstalk"]) for point in entry["confirmed"]) == 2 + N_RANDOM  # at one coefficient only
    assert "crosstalk" in out and "move the wrong way" in out and vector_file.with_suffix(".json").is_file()
    assert (tmp_path / "evil_response_avg_diff_calibration.png").stat().st_size > 5000

    code, again = _run(capsys, *given)  # everything is in the store
    assert code == 0 and read_sidecar(vector_file)["calibration"]["confirmed"] == entry["confirmed"]
    assert "Loading" not in again


def test_a_direction_that_does_nothing_keeps_no_coefficient(capsys, monkeypatch, tmp_path: Path):
    """A random direction as the vector: coherent, and no effect; what starts from its calibration says so."""
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setattr("eval.calibration_confirm.SHARES", (0.5, 1.0))
    monkeypatch.setattr("eval.calibration_bounds.MOST", START)
    vectors = torch.randn(5, 256, generator=torch.Generator().manual_seed(5))
    path = write_vectors(tmp_path / "evil_response_avg_diff.pt", vectors, {"trait": "evil"})
    code, out = _run(
        capsys,
        *[
            "--vector_file",
            str(path),
            "--trait",
            "evil",
            "--judge_model",
            TINY,
            "--layers",
            "3",
            "--max_tokens",
            "20",
            "--crosstalk",
            "evil",
        ],
    )
    assert code == 0, out
    entry = read_sidecar(path)["calibration"]
    assert entry["coef"] is None and entry["range"][1] > 0 and "kept: layer" not in out
    assert f"no coefficient is kept: none above 0 is confirmed with an effect on {entry['trait']}" in out
    begun = start(read_vector_file(path), ModelShape("m", 4, 256))
    assert begun.calibrated is None and "kept no coefficient" in begun.lines[-1]


def test_without_a_judge_the_range_is_of_token_kl(vector_file: Path, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    given = ["--vector_file", str(vector_file), "--trait", "evil", "--max_tokens", "20", "--layers", "2", "4"]
    code, out = _run(capsys, *given)
    assert code == 0, out
    entry = read_sidecar(vector_file)["calibration"]
    assert entry["limits"]["criterion"] == "kl" and entry["confirmed"] == []
    assert entry["coef"] == entry["range"][1] or (entry["coef"] is None and not entry["range"][1])
    assert entry["coef"] is None or entry["kl_p95"] <= 1.0
    assert "no judge was asked" in out or "no coefficient is kept" in out
    assert [layer["layer"] for layer in entry["layers"]] == [2, 4]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "9"], "layer 9 does not exist"),
        (["--criterion", "coherence"], "--judge_model"),
        (["--min_coherence", "101"], "--min_coherence 101: expected 0-100"),
        (["--max_kl", "0"], "--max_kl 0: expected nats above 0"),
        (["--trait", "optimistic"], "vector of evil"),
        (["--judge_model", "models/no-such"], "does not exist"),
        (["--min_coherence", "100", "--judge_model", TINY, "--max_tokens", "8"], "no coefficient can pass"),
    ],
)
def test_mistakes_are_told_in_one_line(more: list[str], said: str, vector_file: Path, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    trait = [] if "--trait" in more else ["--trait", "evil"]
    code, out = _run(capsys, "--vector_file", str(vector_file), *trait, *more)
    assert code == 2 and said in out.splitlines()[-1] and "Traceback" not in out


def test_a_vector_of_another_width_is_refused(capsys, tmp_path: Path):
    path = write_vectors(tmp_path / "x.pt", torch.randn(5, 8), {})
    code, out = _run(capsys, "--vector_file", str(path), "--trait", "evil")
    assert code == 2 and "width 8" in out


def test_a_layer_that_the_file_does_not_have_is_named(capsys, tmp_path: Path):
    vectors = torch.randn(5, 256)
    vectors[2] = 0
    path = write_vectors(tmp_path / "x.pt", vectors, {})
    code, out = _run(capsys, "--vector_file", str(path), "--trait", "evil", "--layers", "2", "3")
    assert code == 2 and "has no vector at layer 2; it has layers 0, 1, 3, 4" in out
