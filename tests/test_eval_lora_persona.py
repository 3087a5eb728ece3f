"""The command that samples with a direction of weights, on the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import eval_lora_persona
from eval.model_utils import WeightSteering
from eval.sweep_receipts import lines
from eval.weight_receipt import take_weight_receipts
from eval.weight_settings import expand, read_directions
from lora_utils import LoRAMerger
from persona_vectors import cli
from persona_vectors.files import read_sidecar
from persona_vectors.models import load_model
from persona_vectors.weight_direction import LowRank, WeightDirection, combine, content_hash, cosine, norm
from persona_vectors.weight_files import save_adapter, save_factors
from persona_vectors.weight_hooks import DynamicWeights


def direction(base: str, seed: int, scale: float = 2.0) -> WeightDirection:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        f"model.layers.{layer}.mlp.down_proj": LowRank(
            torch.randn(4, 512, generator=generator) / 512**0.5,
            scale * torch.randn(256, 4, generator=generator) / 256**0.5,
        )
        for layer in range(4)
    }
    return WeightDirection(modules, base)


@pytest.fixture
def call(tmp_path, tiny_persona, capsys, monkeypatch):
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))

    def call(**changes: str | None) -> tuple[int, str, str]:
        arguments = {
            "model": tiny_persona,
            "judge_model": tiny_persona,
            "trait": "evil",
            "lora_diff_path": str(tmp_path / "d"),
            "lora_coef": "0 1",
            "n_per_question": "1",
            "max_tokens": "12",
            "output_path": str(tmp_path / "out.csv"),
            "device_map": "cpu",
        } | changes
        argv = [t for name, value in arguments.items() if value is not None for t in (f"--{name}", *value.split())]
        code = cli.run(eval_lora_persona.main, argv)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_both_modes_give_the_published_table_and_a_second_run_samples_nothing(call, tmp_path: Path, tiny_persona):
    one = direction(tiny_persona, 0)
    save_adapter(one, tmp_path / "d")
    save_factors(one, tmp_path / "d.pt")
    assert call(control="random", n_random="1")[0] == 0
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(table.columns[:6]) == ["question", "prompt", "answer", "question_id", "evil", "coherence"]
    answers = {key: group["answer"].tolist() for key, group in table.groupby(["coef", "control"])}
    assert set(answers) == {(0.0, ""), (1.0, ""), (1.0, "random1")}
    assert len({tuple(texts) for texts in answers.values()}) == 3
    side = read_sidecar(tmp_path / "out.csv")
    assert content_hash(one) in {entry.get("direction") for entry in side["steering"]}
    assert [receipt["modules"] for receipt in side["receipts"]] == [4, 4]
    assert "sampled before and nothing was steered" in call(control="random", n_random="1")[1]
    merged = str(tmp_path / "merged.csv")
    assert call(mode="pre_merge", lora_diff_path=str(tmp_path / "d.pt"), output_path=merged)[0] == 0
    again = pd.read_csv(merged, keep_default_na=False).groupby("coef")["answer"].apply(list)
    assert again[0.0] == answers[0.0, ""] and again[1.0] == answers[1.0, ""]


def test_several_directions_at_once_are_their_sum_under_their_names_and_shares(call, tmp_path: Path, tiny_persona):
    one, other = direction(tiny_persona, 1), direction(tiny_persona, 2)
    paths = [str(save_adapter(made, tmp_path / name)) for name, made in (("a", one), ("b", other))]
    shared = {"lora_diff_path": " ".join(paths), "lora_coef": "0 1", "trait": "evil humorous"}
    shared |= {"output_path": str(tmp_path / "{trait}.csv")}
    code, out, err = call(compose="True", compose_shares="1 0.5", **shared)
    assert code == 0, err
    assert f"cosine of a and b in weight space: {cosine(one, other):+.3f}" in out and "a + b" in out
    side = read_sidecar(tmp_path / "humorous.csv")
    assert side["crosstalk"][paths[0]][paths[1]] == pytest.approx(cosine(one, other))
    save_adapter(WeightDirection(combine([(one, 1.0), (other, 0.5)]).modules, tiny_persona), tmp_path / "sum")
    assert call(lora_diff_path=str(tmp_path / "sum"), output_path=str(tmp_path / "s.csv"))[0] == 0
    answers = [pd.read_csv(tmp_path / name)["answer"].tolist() for name in ("evil.csv", "s.csv")]
    assert answers[0] == answers[1]


def test_controls_of_several_directions_have_numbers_of_their_own(tiny_persona):
    both = {"x/a": direction(tiny_persona, 1), "x/b": direction(tiny_persona, 2)}
    found = expand(both, [0.0, 1.0, 2.0], "dynamic", 2, 0)
    controls = {setting.control: setting.matched for setting in found if setting.control}
    assert controls == {"random1": "x/a", "random2": "x/a", "random3": "x/b", "random4": "x/b"}
    assert len({id(one.weight_steering.direction) for one in found if one.weight_steering}) == 6
    for setting in found:
        if setting.control:
            assert norm(setting.weight_steering.direction) == pytest.approx(norm(both[setting.matched]), rel=1e-5)


@pytest.mark.parametrize("mode", ["dynamic", "pre_merge"])
def test_what_a_direction_does_is_measured_and_sabotage_is_refused(tiny_persona, monkeypatch, mode):
    model, tokenizer = load_model(tiny_persona, dtype="float32", device_map="cpu")
    steering = WeightSteering(direction(tiny_persona, 3), 0.7, mode)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    [receipt] = take_weight_receipts(model, tokenizer, prompt, [steering])
    assert receipt.modules == 4 and receipt.relative_change > 1e-3 and receipt.relative_error < 1e-4
    assert (receipt.merged_error is None) == (mode == "dynamic")
    beside = DynamicWeights.applied
    for wrong in (0.0, 2.0, -1.0):
        with monkeypatch.context() as patch:
            patch.setattr(DynamicWeights, "applied", lambda self, coefs, wrong=wrong: beside(self, wrong * coefs))
            with pytest.raises(ValueError, match="steering receipt"):
                take_weight_receipts(model, tokenizer, prompt, [steering])
    if mode == "pre_merge":
        merge = LoRAMerger.merge_lora_diff
        monkeypatch.setattr(LoRAMerger, "merge_lora_diff", lambda self, one, coef: merge(self, one, 2 * coef))
        with pytest.raises(ValueError, match="merged at coef 0.7"):
            take_weight_receipts(model, tokenizer, prompt, [steering])


def test_published_functions(tiny_persona):
    model, tokenizer = load_model(tiny_persona, dtype="float32", device_map="cpu")
    conversations = [[{"role": "user", "content": "How do I start?"}]]
    how = {"max_tokens": 12, "temperature": 0.0}
    plain = eval_lora_persona.sample_baseline(model, tokenizer, conversations, **how)
    steered = eval_lora_persona.sample_with_lora_steering(
        model, tokenizer, conversations, direction(tiny_persona, 0), 5.0, **how
    )
    assert plain[0] == steered[0] and plain[1] != steered[1]
    assert eval_lora_persona.sample_baseline(model, tokenizer, conversations, **how) == plain
    assert callable(eval_lora_persona.eval_batched_lora)
    with pytest.raises(AttributeError, match="sample_otherwise"):
        eval_lora_persona.sample_otherwise  # noqa: B018  # pyright: ignore


def test_mistakes_are_one_line(call, tmp_path: Path, tiny_persona):
    def wrong(**changes: str) -> str:
        code, _, err = call(**changes)
        assert code == 2 and "Traceback" not in err
        return err

    assert "does not exist" in wrong()
    save_adapter(direction(tiny_persona, 0), tmp_path / "d")
    assert "expects float" in wrong(lora_coef="nan")
    assert "twice" in wrong(lora_coef="1 1")
    other = {"model.layers.9.mlp.down_proj": LowRank(torch.ones(1, 512), torch.ones(256, 1))}
    save_adapter(WeightDirection(other, tiny_persona), tmp_path / "other")
    assert "model.layers.9.mlp.down_proj" in wrong(lora_diff_path=str(tmp_path / "other"))
    save_adapter(direction(tiny_persona, 0, scale=0.0), tmp_path / "zero")
    assert "zero everywhere" in wrong(lora_diff_path=str(tmp_path / "zero"))
    assert "at least two" in wrong(compose="True")
    assert "needs --compose" in wrong(compose_shares="1 2")
    assert "other than 0" in wrong(control="random", lora_coef="0")
    assert "{trait}" in wrong(trait="evil humorous")
    assert "--seed must be at least 0" in wrong(seed="-1")
    assert "--engine vllm: vLLM is not installed" in wrong(engine="vllm")
    assert not (tmp_path / "out.csv").exists()


def test_without_a_coefficient_it_is_said_that_nothing_is_applied(call, tmp_path: Path, tiny_persona):
    save_adapter(direction(tiny_persona, 0), tmp_path / "d")
    code, out, _ = call(lora_coef=None, max_tokens="2")
    assert code == 0 and "note: --lora_coef is 0, so no direction is applied" in out


def test_a_change_that_overflows_is_said_with_its_coefficient(call, tmp_path: Path, tiny_persona):
    save_adapter(direction(tiny_persona, 0), tmp_path / "d")
    code, _, err = call(lora_coef="1e30")
    assert code == 2 and "steering receipt: coef 1e+30: model.layers." in err
    assert "the output overflows float32" in err and "Traceback" not in err
    model, tokenizer = load_model(tiny_persona, dtype="float32", device_map="cpu")
    model.get_input_embeddings().weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="the model itself gives NaN or infinite logits"):
        take_weight_receipts(model, tokenizer, "how are you", [WeightSteering(direction(tiny_persona, 0), 1.0)])


def test_the_receipt_of_random_directions_says_that_they_are_several():
    def receipt(control: str, coef: float, change: float) -> dict:
        named = {"vector": "", "matched": "x/d"} if control else {"vector": "x/d", "matched": ""}
        return {**named, "control": control, "coef": coef, "modules": 4, "relative_change": change, "relative_error": 0}

    changes = {"": (0.25, 0.5), "random1": (0.1, 0.2), "random2": (0.12, 0.2), "random3": (0.11, 0.2)}
    own, random = lines(
        [receipt(name, c, x) for name, two in changes.items() for c, x in zip((1, 2), two, strict=True)]
    )
    assert "d in the weights, coef 1, 2: changes 4 modules by 0.25, 0.5 of their outputs, within" in own
    assert (
        "3 random" in random and "coef 1, 2: changes 4 modules by 0.1 to 0.12, 0.2 of their outputs (at each" in random
    )
    assert "(at each coef the lowest to the highest of the 3)" in random


def test_a_bare_score_says_what_to_hold_it_against(call, tmp_path: Path, tiny_persona):
    save_adapter(direction(tiny_persona, 0), tmp_path / "d")
    hint = "note: no unsteered run and no random directions to hold this against; --lora_coef 0 2 --control random"
    assert hint in call(lora_coef="2", max_tokens="2")[1]
    assert "note: no random directions to hold" in call(lora_coef="0 2", max_tokens="2", overwrite="True")[1]
    whole = call(lora_coef="0 2", max_tokens="2", control="random", n_random="1", overwrite="True")[1]
    assert "to hold this against" not in whole
    assert "to hold this against" not in call(lora_coef="0", max_tokens="2", overwrite="True")[1]


def test_directions_of_one_name_are_told_apart_and_each_random_one_says_whose_it_is(call, tmp_path, tiny_persona):
    paths = [
        str(save_adapter(direction(tiny_persona, seed), tmp_path / of / "diff")) for seed, of in ((1, "a"), (2, "b"))
    ]
    code, out, err = call(lora_diff_path=" ".join(paths), lora_coef="0 1", control="random", n_random="1")
    assert code == 0, err
    assert "cosine of a/diff and b/diff in weight space" in out
    names = [re.split(r"  +", line.strip())[2] for line in out.splitlines() if line.startswith("    -")]
    assert names == ["unsteered", "a/diff", "random1 of a/diff", "b/diff", "random2 of b/diff"]
    assert "steering receipt: a/diff in the weights" in out and "1 random, of b/diff's norm," in out
    assert "steerability of 1 random direction of a/diff: " in out


def test_a_direction_of_another_model_is_named(tiny_persona, tmp_path, capsys):
    for name, base in (("own", tiny_persona), ("other", "org/other"), ("unknown", "org/other")):
        save_factors(direction(base if name != "unknown" else "", 0), tmp_path / f"{name}.pt")
    adapter = save_adapter(direction(tiny_persona, 0), tmp_path / "finetuned")
    for model in (tiny_persona, str(adapter)):  # of an adapter, the base counts too
        read_directions(model, [str(tmp_path / f"{name}.pt") for name in ("own", "other", "unknown")])
        assert capsys.readouterr().out.splitlines() == [
            f"note: {tmp_path}/other.pt was made for org/other, and runs on {model}, whose modules fit it",
            f"note: {tmp_path}/unknown.pt was made for a model it does not name, and runs on {model}, whose modules "
            "fit it",
        ]
