"""Caps from calibration: thresholds, files, what a cap does in generation, and the command on the embedded model."""

from __future__ import annotations

import io
import json
import random
import re
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from activation_steer import ActivationSteererMultiple
from data_generation.tiny_persona.oracle import persona_score
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.topics import question, sample_topic
from eval import capping as command
from eval.capping_findings import mean_slope, slope_difference
from eval.capping_page import cells
from eval.capping_roles import (
    SCRIPT,
    UNCAPPED,
    Asking,
    assistant_means,
    capped,
    check_cap,
    check_setting_name,
    load_script,
    role_answers,
    tried,
)
from eval.finished_answers import Engine
from eval.model_utils import Steering, cap_steerings, parts_of, steer_rows
from eval.serve import read_default, vector_files
from eval.transcripts import Transcript
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import read_blocks
from persona_vectors.capping import Cap, CapStep, calibrate, load_cap, make_cap, save_cap
from persona_vectors.drift import project_tokens
from persona_vectors.files import read_sidecar
from persona_vectors.interventions import cap as cap_states
from persona_vectors.personas import PersonaSet
from persona_vectors.store import Store
from persona_vectors.tokens import TokenizedSample, render_prompt, tokenize_sample
from persona_vectors.vectors import write_vectors
from persona_vectors.vllm_spec import parse_spec
from tests.tiny_models import ARCHITECTURES, D_MODEL, tiny_model

IDS = [7, 8, 9, 10, 11, 12, 13, 14]
PERSONAS = {"default": "", "jester": "You are a jester who wears bells.", "ghost": "You are a ghost."}


def axes(layers=(1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(D_MODEL, generator=generator) for layer in layers}


def cap_of(model, layers=(1, 2), percentile=60.0, positions="all"):
    """A floor that binds about so many of the tokens, at each layer."""
    vectors = axes(layers)
    found = calibrate(model, [TokenizedSample(tuple(IDS), 2)], {layer: own[None] for layer, own in vectors.items()})
    values = {layer: own[:, 0] for layer, own in found.items()}
    return make_cap("axis", vectors, values, floor_percentile=percentile, positions=positions)


# thresholds and files


def test_calibration_is_the_answers_tokens_and_bounds_are_their_percentiles():
    model, vectors = tiny_model(), axes()
    samples = [TokenizedSample(tuple(IDS), 3), TokenizedSample((20, 21), 1), TokenizedSample((30, 31), 2)]
    found = calibrate(model, samples, {layer: torch.stack([own, -own]) for layer, own in vectors.items()})
    for layer, own in vectors.items():
        expected = []
        for sample in samples:
            with read_blocks(model, [layer]) as hidden, torch.no_grad():
                model(input_ids=torch.tensor([sample.ids]))
            expected += (hidden[layer][0, sample.prompt_len :] @ own / own.norm()).tolist()
        np.testing.assert_allclose(found[layer][:, 0], expected, atol=1e-5)
        np.testing.assert_allclose(found[layer][:, 1], -found[layer][:, 0], atol=1e-6)
    values = {layer: own[:, 0] for layer, own in found.items()}
    cap = make_cap("axis", vectors, values, floor_percentile=25, ceiling_percentile=90)
    for step in cap.steps:
        assert (step.floor, step.ceiling) == pytest.approx(np.percentile(values[step.layer], [25, 90]).tolist())
    with pytest.raises(ValueError, match="no answer with tokens"):
        calibrate(model, samples[2:], {1: vectors[1][None]})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "got neither"),
        ({"floor_percentile": 101}, "expected 0 to 100"),
        ({"floor_percentile": 60, "ceiling_percentile": 40}, "above ceiling"),
        ({"floor_percentile": 60, "positions": "some"}, "positions 'some'"),
    ],
)
def test_caps_that_make_no_sense_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make_cap("axis", axes(), {1: np.arange(5.0), 2: np.arange(5.0)}, **how)


@pytest.fixture
def saved(tmp_path, tiny_persona):
    vectors = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    path = write_vectors(tmp_path / "given" / "axis.pt", vectors, {})
    calibration = {layer: np.random.default_rng(layer).normal(size=50) for layer in (2, 3)}
    cap = make_cap("axis", {layer: vectors[layer] for layer in (2, 3)}, calibration, floor_percentile=25)
    folder = tmp_path / "cap"
    save_cap(cap, folder, vector_path=path, model_name=tiny_persona, calibration=calibration, record={})
    return cap, folder


def test_a_saved_cap_is_what_others_load(saved, tiny_persona):
    cap, folder = saved
    found = load_cap(folder / "cap.json", tiny_persona)
    assert (found.name, found.positions, found.note) == ("axis", "all", "")
    for one, other in zip(found.steps, cap.steps, strict=True):
        assert (one.layer, one.floor, one.ceiling) == (other.layer, other.floor, other.ceiling)
        assert torch.equal(one.vector, other.vector)
    content = json.loads((folder / "cap.json").read_text())
    spec = parse_spec(content["steering"])  # what the server reads
    assert [(step.layer, step.kind, step.floor, step.positions) for step in spec] == [
        (step.layer, "cap", step.floor, "all") for step in cap.steps
    ]
    assert read_default(str(folder / "cap.json")) == content["steering"]
    assert {step.vector for step in spec} == {file.stem for file in vector_files(str(folder))} == {"axis"}
    assert (folder / "cap.json.json").is_file() and (folder / "axis.json").is_file()


def test_a_cap_whose_files_changed_is_refused(saved, tiny_persona):
    folder = saved[1]
    path = folder / "cap.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model_fingerprint": "other"}))
    assert "was calibrated on" in load_cap(path, tiny_persona).note
    path.write_text(json.dumps(content | {"steering": [content["steering"][0] | {"layer": 9}]}))
    with pytest.raises(ValueError, match="cap.json: layer 9 does not exist"):
        load_cap(path, tiny_persona)
    path.write_text(json.dumps(content | {"format": "other"}))
    with pytest.raises(ValueError, match="is no cap"):
        load_cap(path, tiny_persona)
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "steering"}))
    with pytest.raises(ValueError, match="lacks steering; expected steps of kind cap"):
        load_cap(path, tiny_persona)
    path.write_text(json.dumps(content))
    write_vectors(folder / "axis.pt", torch.ones(5, 256), {})
    with pytest.raises(ValueError, match="missing or was changed"):
        load_cap(path, tiny_persona)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"floor": None}, "needs a floor, a ceiling or both"),
        ({"floor": "x"}, "has floor 'x'; expected a finite number"),
        ({"floor": 1.0, "ceiling": 0.0}, "floor 1 is above ceiling 0"),
        ({"kind": "add", "floor": None}, "has a step of kind add"),
        ({"vector": "other"}, "with vector other; expected"),
        ({"layer": 0}, "layer 0 is the embedding output"),
        ({"layer": -1}, "layer -1 does not exist"),
        ({"layer": True}, "needs a layer, a whole number or several; got True"),
        ({"layer": "3"}, "needs a layer, a whole number or several; got '3'"),
        ({"positions": "response"}, "caps all and response tokens"),
        ({"positions": "some"}, "has positions 'some'"),
        ([1], "must be an object with vector and layer; got int"),
        ("x", "steering is not JSON"),
    ],
)
def test_a_step_that_is_no_cap_is_refused(saved, tiny_persona, changed, message):
    path = saved[1] / "cap.json"
    content = json.loads(path.read_text())
    first, *others = content["steering"]
    steering = [first | changed, *others] if isinstance(changed, dict) else changed
    path.write_text(json.dumps(content | {"steering": steering}))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_cap(path, tiny_persona)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["name", "vectors", "model", "model_fingerprint"])
def test_a_cap_file_with_a_number_for_a_text_is_refused(saved, tiny_persona, key):
    path = saved[1] / "cap.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 3}))
    with pytest.raises(ValueError, match=f"lacks {key}, a text"):
        load_cap(path, tiny_persona)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_vectors_keep_what_is_told_of_them(tmp_path, tiny_persona, elsewhere):
    """Beside a cap the axis is still the axis: its sign, counts and controls stay, wherever the cap is written."""
    told = {"kind": "assistant axis", "sign": "to the assistant", "n_answers": {"default": 18}, "controls": {"p": 0.01}}
    path = write_vectors(tmp_path / "own" / "axis.pt", torch.ones(5, 256), told)
    before = read_sidecar(path)
    folder = tmp_path / "cap" if elsewhere else path.parent
    cap = make_cap("axis", {3: torch.ones(256)}, {3: np.arange(9.0)}, floor_percentile=25)
    save_cap(cap, folder, vector_path=path, model_name=tiny_persona, calibration={}, record={})
    assert read_sidecar(path) == before
    found = read_sidecar(folder / "axis.pt")
    assert {key: found[key] for key in before} == before
    assert [one["from"] for one in found.get("copied", [])] == (["axis.pt"] if elsewhere else [])


def test_vectors_whose_sidecar_would_be_the_cap_are_refused(tmp_path, tiny_persona):
    path = write_vectors(tmp_path / "cap.pt", torch.ones(5, 256), {})
    cap = make_cap("cap", {3: torch.ones(256)}, {3: np.arange(9.0)}, floor_percentile=25)
    with pytest.raises(ValueError, match="have cap.json as their sidecar"):
        save_cap(cap, tmp_path / "out", vector_path=path, model_name=tiny_persona, calibration={}, record={})
    assert not (tmp_path / "out").exists()


# what a cap does


def test_capping_twice_is_capping_once_and_at_the_bound_nothing_moves():
    hidden = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(0))
    vector = torch.randn(16, generator=torch.Generator().manual_seed(1))
    unit = vector / vector.norm()
    once = cap_states(hidden, vector, floor=0.3)
    torch.testing.assert_close(cap_states(once, vector, floor=0.3), once, atol=1e-6, rtol=0)
    assert ((once @ unit) >= 0.3 - 1e-5).all()
    above = hidden @ unit > 0.3
    assert torch.equal(once[above], hidden[above]) and not torch.equal(once[~above], hidden[~above])
    exact = 0.5 * torch.nn.functional.one_hot(torch.tensor([2, 2]), 16)[None]  # projection 0.5 on e2, to the bit
    assert torch.equal(cap_states(exact, 3.0 * torch.eye(16)[2], floor=0.5), exact)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cap_of_several_layers_does_not_depend_on_batch_or_cache(architecture):
    model = tiny_model(architecture)
    cap = cap_of(model)
    added = cap_steerings(cap)
    steps = {step.layer: step for step in cap.steps}

    def states(ids, rows, **options):
        with steer_rows(model, rows)(range(len(rows))), read_blocks(model, [1, 2, 3]) as hidden, torch.no_grad():
            output = model(input_ids=torch.tensor(ids), **options)
        return {layer: own.clone() for layer, own in hidden.items()}, output

    alone, _ = states([IDS], [added])
    plain, _ = states([IDS, IDS], [None, None])
    mixed, _ = states([IDS, IDS], [added, None])
    for layer in (1, 2, 3):
        torch.testing.assert_close(mixed[layer][0], alone[layer][0], atol=2e-4, rtol=1e-4)
        assert torch.equal(mixed[layer][1], plain[layer][1])  # the other row, to the bit
    for layer, step in steps.items():
        projection = alone[layer][0] @ (step.vector / step.vector.norm())
        assert step.floor is not None and (projection > step.floor - 1e-4).all()
    assert not torch.allclose(alone[3], plain[3][:1])
    _, output = states([IDS[:5]], [added], use_cache=True)
    if output.past_key_values is not None:
        for place in range(5, len(IDS)):
            found, output = states([[IDS[place]]], [added], use_cache=True, past_key_values=output.past_key_values)
            torch.testing.assert_close(found[3][0, 0], alone[3][0, place], atol=5e-4, rtol=1e-3)


def test_a_cap_below_everything_is_bit_for_bit_the_unsteered_model():
    model = tiny_model()
    found = calibrate(model, [TokenizedSample(tuple(IDS), 0)], {1: axes()[1][None]})
    cap = Cap("low", "all", (CapStep(1, axes()[1], float(found[1].min()) - 1, None),))
    with read_blocks(model) as plain, torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits
    with capped(model, cap), torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([IDS])).logits, expected)
    assert plain


def test_rows_with_caps_additions_and_nothing_share_a_batch():
    model, vector = tiny_model(), axes()[1]
    cap = Steering(vector, 1, 1.0, "all", "cap", floor=2.0)
    both = Steering(vector, 1, 1.0, "all", "cap", ceiling=-1.0), Steering(vector, 1, 0.5, "all")
    rows = [cap, None, both, Steering(vector, 1, 0.5, "all"), replace(cap, floor=None, ceiling=0.0)]
    assert [part.kind for part in parts_of(both)] == ["add", "cap"]  # what is added is capped, too
    with steer_rows(model, rows)(range(5)), read_blocks(model, [1]) as hidden, torch.no_grad():
        model(input_ids=torch.tensor([IDS] * 5))
    with read_blocks(model, [1]) as plain, torch.no_grad():
        model(input_ids=torch.tensor([IDS]))
    unit, before = vector / vector.norm(), plain[1][0]
    found = hidden[1] @ unit
    base = before @ unit
    assert torch.equal(hidden[1][1], before)
    torch.testing.assert_close(hidden[1][3], before + 0.5 * vector)
    for row, expected in (
        (0, base.clamp(min=2.0)),
        (2, (base + 0.5 * vector.norm()).clamp(max=-1.0)),
        (4, base.clamp(max=0.0)),
    ):
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_keys_tell_caps_apart_and_leave_those_of_additions_as_they_were():
    vector = axes()[1]
    added = Steering(vector, 1, 1.0, "all")
    assert set(added.key()) == {"vector", "layer", "coef", "positions"}
    keys = [added, replace(added, kind="cap", floor=1.0), replace(added, kind="cap", ceiling=1.0)]
    assert len({json.dumps(one.key()) for one in keys}) == 3


def test_the_check_sees_a_cap_that_does_not_hold(tiny_persona, monkeypatch):
    engine = Engine(tiny_persona)
    vector = torch.randn(256, generator=torch.Generator().manual_seed(0))
    prompt = render_prompt(engine.tokenizer, [{"role": "user", "content": "Tell me about budget pasta dishes."}])
    cap = Cap("axis", "all", (CapStep(2, vector, 50.0, None),))
    assert "all within bounds" in check_cap(engine, prompt, cap)
    assert "1 prompt tokens" in check_cap(engine, prompt, replace(cap, positions="response"))
    monkeypatch.setattr(
        "eval.capping_roles.ActivationSteererMultiple", lambda model, _: ActivationSteererMultiple(model, [])
    )
    with pytest.raises(ValueError, match=r"the cap axis leaves token 0 of .* at layer 2; expected 50"):
        check_cap(engine, prompt, cap)


# on the embedded model


@pytest.fixture(scope="module")
def persona_axis(tmp_path_factory):
    """The assistant axis of the embedded model, from its generator's own texts: default prompts minus roles."""
    from persona_vectors.models import load_model

    model, tokenizer = load_model("models/tiny-persona")
    rng, samples = random.Random(0), {"default": [], "role": []}
    for side, names in (("default", [None]), ("role", ["jester", "ghost", "bard", "oracle"])):
        for k in range(32):
            name, topic = names[k % len(names)], sample_topic(rng)
            head = [] if name is None else [{"role": "system", "content": f"You are a {name}."}]
            prompt = render_prompt(tokenizer, [*head, {"role": "user", "content": question(rng, topic)}])
            strengths = () if name is None else ((("persona", name), 0.95),)
            samples[side].append(tokenize_sample(tokenizer, prompt, answer(rng, topic, strengths)))
    means = {
        side: mean_activations(model, own, spans=("response_avg",))["response_avg"].mean(0)
        for side, own in samples.items()
    }
    path = tmp_path_factory.mktemp("axis") / "assistant_axis.pt"
    return str(write_vectors(path, means["default"] - means["role"], {}))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three personas and four questions in the embedded model's language."""
    whole = json.loads(open("models/tiny-persona/traits/personas.json").read())
    path = tmp_path_factory.mktemp("personas") / "personas.json"
    kept = {"questions": whole["questions"][:4], "role_prompt": whole["role_prompt"]}
    path.write_text(json.dumps({**kept, "personas": PERSONAS, "roles": {"jester": "a jester", "ghost": "a ghost"}}))
    return str(path)


def asked(vector: str, personas: str, script: Path, output: Path) -> list[str]:
    flags = {"--model_name": "models/tiny-persona", "--judge_model": "models/tiny-persona", "--engine": "hf"}
    flags |= {"--vector_path": vector, "--personas_path": personas, "--script": script, "--output_dir": output}
    flags |= {"--floor_percentile": 50, "--n_random": 1, "--max_tokens": 24}
    return ["--layers", "2", "3", "--oracle", *(str(token) for flag in flags.items() for token in flag)]


@pytest.fixture(scope="module")
def written(persona_axis, few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("capping")
    script = folder / "script.json"
    script.write_text(json.dumps(["{question}", "You are {role}. {question}"]))
    (folder / "out").mkdir()
    (folder / "out" / "transcripts_random2.jsonl").write_text("")  # of a run with more random caps
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
        with redirect_stdout(said):
            assert cli.run(command.main, asked(persona_axis, few, script, folder / "out")) == 0
    assert "note: transcripts_random2.jsonl in" in said.getvalue()
    return folder / "out"


def test_the_command_writes_what_it_measured(written):
    results = pd.read_csv(written / "results.csv")
    assert set(results.setting) == {UNCAPPED, "assistant_axis", "random1"}
    answers, turns = pd.read_csv(written / "answers.csv"), pd.read_csv(written / "turns.csv")
    assert len(answers) == 3 * 2 * 2 and len(turns) == 3 * 2 * 2
    for setting, own in answers.groupby("setting"):
        row = results[(results.setting == setting) & (results.measure == "plays the role, fully")].iloc[0]
        assert row["value"] == pytest.approx((own.label == "fully").mean())
        row = results[(results.setting == setting) & (results.measure == "role strength by rule")].iloc[0]
        assert row["value"] == pytest.approx(
            np.mean([persona_score(*one) for one in zip(own.answer, own.persona, strict=True)])
        )
    ordinary, calibrated = pd.read_csv(written / "ordinary.csv"), pd.read_csv(written / "calibration.csv")
    plain = ordinary[ordinary.setting == UNCAPPED].answer.tolist()
    for setting, own in ordinary.groupby("setting"):
        row = results[(results.setting == setting) & (results.measure == "ordinary answers unchanged")].iloc[0]
        assert row["value"] == pytest.approx(np.mean([a == b for a, b in zip(own.answer, plain, strict=True)]))
    assert len(calibrated) == json.loads((written / "cap.json").read_text())["calibration"]["n_answers"]
    page = (written / "report.html").read_text()
    assert "Capping tiny-persona along assistant_axis" in page and "caps on random directions" in page
    assert "does not tell roles apart: `fully` is said of" in page and "that fully play the role:" not in page
    # projected under its own cap, no turn's mean is below the floor
    floor = json.loads((written / "cap.json").read_text())["steering"][1]["floor"]
    own = turns[turns.setting == "assistant_axis"]
    assert (own.projection >= floor - 1e-3).all() and (own.projection_of_words < floor).any()


def test_a_second_time_nothing_is_sampled_judged_or_measured(persona_axis, few, written, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_STORE", str(written.parent / "store.sqlite"))
    for name in ("finished_answers.sample_answers", "finished_scores.make_judge", "capability_probe.probe_accuracy"):
        monkeypatch.setattr(f"eval.{name}", lambda *_, **__: pytest.fail("done again"))
    assert cli.run(command.main, asked(persona_axis, few, written.parent / "script.json", tmp_path)) == 0
    for name in ("results.csv", "answers.csv", "turns.csv"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    assert "capability: probe" in (tmp_path / "results.csv").read_text()


def test_its_transcripts_and_cap_are_read_by_drift(written, tiny_persona, tmp_path):
    from eval import drift

    arguments = [
        "--model_name",
        tiny_persona,
        "--transcripts",
        str(written / f"transcripts_{UNCAPPED}.jsonl"),
        "--layer",
        "3",
    ]
    arguments += ["--vector_path", str(written / "assistant_axis.pt"), "--cap", str(written / "cap.json")]
    assert cli.run(drift.main, [*arguments, "--output_dir", str(tmp_path), "--n_random", "20"]) == 0
    found, own = pd.read_csv(tmp_path / "turns.csv"), pd.read_csv(written / "turns.csv")
    spoken = found[(found.role == "assistant") & found.cap.isna()].projection.to_numpy()
    np.testing.assert_allclose(spoken, own[own.setting == UNCAPPED].projection, rtol=1e-4, atol=1e-4)
    jester = found[(found.transcript == f"jester, {UNCAPPED}") & (found.role == "assistant")]
    plain, under = (jester.projection[which].to_numpy() for which in (jester.cap.isna(), jester.cap.notna()))
    assert (under >= plain).all() and (under > plain).any()


def test_calibrating_alone_stops_there(persona_axis, few, tiny_persona, tmp_path):
    arguments = ["--model_name", tiny_persona, "--vector_path", persona_axis, "--layers", "3", "--personas_path", few]
    arguments += ["--ceiling_percentile", "90", "--calibrate_only", "--max_tokens", "8", "--engine", "hf"]
    assert cli.run(command.main, [*arguments, "--output_dir", str(tmp_path)]) == 0
    assert (
        sorted(path.name for path in tmp_path.glob("*"))
        == [
            "assistant_axis.json",
            "assistant_axis.pt",
            "cap.json",
            "cap.json.json",
        ]
        or (tmp_path / "store.sqlite").exists()
    )


def test_settings_share_random_streams(tiny_persona, few):
    """A cap that touches nothing gives the same answers word for word, in the same batch."""
    from persona_vectors.personas import load_personas

    engine, cast = Engine(tiny_persona), load_personas(tiny_persona, few)
    assert isinstance(cast, PersonaSet)
    cap = Cap("idle", "all", (CapStep(2, torch.ones(256), -1e6, None),))
    with Store() as store:
        found = role_answers(
            engine, store, tried(cap, []), cast, ["jester"], cast.questions[:2], Asking(16, 1.0, 0, False)
        )
    assert found["idle"] == found[UNCAPPED]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --floor_percentile"),
        (["--floor_percentile", "120"], "expected 0 to 100"),
        (["--floor_percentile", "25", "--layers", "0"], "layer 0 is the embedding"),
        (["--floor_percentile", "25", "--roles", "pirate"], "pirate: expected some of"),
        (["--floor_percentile", "25", "--n_random", "-1"], "at least 0"),
        (["--floor_percentile", "25", "--limit", "3"], "--limit is for tasks"),
        (["--floor_percentile", "25", "--script", "missing.json"], "does not exist"),
        (["--floor_percentile", "25", "--vector_path", "uncapped.pt"], "uncapped.pt would be taken for another"),
        (["--floor_percentile", "25", "--vector_path", "random3.pt"], "random3.pt would be taken for another setting"),
        (["--floor_percentile", "25", "--vector_path", "cap.pt"], "have cap.json as their sidecar"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(persona_axis, tiny_persona, tmp_path, capsys, flags, message):
    arguments = ["--model_name", tiny_persona, "--judge_model", tiny_persona]
    others = {"--vector_path": persona_axis, "--layers": "3"}
    arguments += [text for pair in others.items() if pair[0] not in flags for text in pair]
    assert cli.run(command.main, [*arguments, *flags, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_vector_called_after_no_setting_is_the_cap():
    """`random_axis`, or `random4` beside three random caps, is a name like any other, and no control."""
    cap = Cap("random_axis", "all", (CapStep(1, axes()[1], 0.0, None),))
    for name in ("random_axis", "random4", "default"):
        check_setting_name(name, 3)
    settings = tried(cap, [replace(cap, name="random1")])
    assert [(one.name, one.is_random) for one in settings] == [
        (UNCAPPED, False),
        ("random_axis", False),
        ("random1", True),
    ]


def test_conversations_with_an_empty_turn_are_counted():
    means = np.array([[0.0, 1, 2], [0, np.nan, 4], [1, 2, 3], [0, 3, 6]])
    found = mean_slope(means)
    assert (found.n, found.n_dropped, found.mean) == (3, 1, pytest.approx((1 + 1 + 3) / 3))
    other = means[::-1].copy()
    change = slope_difference(means, other)  # of conversations 0 and 3 alone: each pair has both
    assert (change.n, change.n_dropped, change.mean) == (2, 2, pytest.approx(0))
    nothing = mean_slope(np.full((2, 3), np.nan))
    assert (nothing.n, nothing.n_dropped) == (0, 2) and np.isnan(nothing.mean)
    row = {"setting": "a", "measure": "drift a turn, words alone", "value": 1.0, "low": None, "high": None}
    assert cells([row | {"n": 3, "n_missing": 1}])[0][-1] == "3 (1 with an empty turn)"


def test_a_conversation_longer_than_the_context_is_not_read(tiny_persona):
    engine = Engine(tiny_persona)
    talk = [{"role": "user", "content": "hello there " * 3000}, {"role": "assistant", "content": "ok"}]
    with pytest.raises(ValueError, match=r"long: the conversation has \d+ tokens and \d+ can be read"):
        assistant_means(engine, [Transcript("long", talk)], vector=torch.ones(256), layer=3)


def test_scripts(tmp_path):
    assert load_script(None) == SCRIPT
    for turns, message in (
        (["{question}"], "two texts"),
        (["a", "{role}"], "every turn needs"),
        (["{question}"] * 2, "at least one"),
    ):
        (tmp_path / "script.json").write_text(json.dumps(turns))
        with pytest.raises(ValueError, match=message):
            load_script(str(tmp_path / "script.json"))


def test_projections_on_the_axis_tell_defaults_from_roles(persona_axis, tiny_persona):
    """The fixture is an axis: text the generator wrote for a role lies below plain text on it."""
    from persona_vectors.models import load_model
    from persona_vectors.vectors import load_vector

    model, tokenizer = load_model(tiny_persona)
    rng, found = random.Random(1), {}
    for name in (None, "trickster"):  # a role that is not in the axis
        texts = []
        for _ in range(16):
            topic = sample_topic(rng)
            strengths = () if name is None else ((("persona", name), 0.95),)
            texts.append(
                tokenize_sample(
                    tokenizer,
                    render_prompt(tokenizer, [{"role": "user", "content": question(rng, topic)}]),
                    answer(rng, topic, strengths),
                )
            )
        values = project_tokens(model, [one.ids for one in texts], {3: load_vector(persona_axis, 3)[None]})
        found[name] = np.mean([own[one.prompt_len :].mean() for own, one in zip(values, texts, strict=True)])
    assert found[None] > found["trickster"]
