"""Sweeps: which settings a run has, what their rows are, and that together they are what each is alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from eval import eval_persona, finished_answers, finished_scores
from eval.eval_persona import load_persona_questions
from eval.model_utils import Steering, steer_rows
from eval.residual_norm import residual_norms
from eval.sweep import Grid, Setting, Study, check_grid, expand, in_norm_units
from eval.sweep_answers import Answered
from eval.sweep_files import plan_outputs
from eval.sweep_summary import steerability_lines, sweep_findings
from persona_vectors import cli
from persona_vectors.blocks import read_blocks
from persona_vectors.models import load_config, load_model
from persona_vectors.tokens import tokenize_prompt
from persona_vectors.traits import RESERVED_NAMES
from tests.loopback_openai import LoopbackOpenAI, Reply
from tests.tiny_models import tiny_model, word_tokenizer

PUBLISHED = ["question", "prompt", "answer", "question_id", "humorous", "coherence"]
QUICK: dict[str, Any] = {"n_per_question": 2, "max_tokens": 12, "version": "eval"}


@pytest.fixture(scope="module")
def world(tiny_persona, tmp_path_factory):
    """A folder with two traits of three questions each, and a vector file for each."""
    folder, config = tmp_path_factory.mktemp("sweep"), load_config(tiny_persona)
    for number, trait in enumerate(("evil", "humorous")):
        content = json.loads(Path(f"{tiny_persona}/traits/eval/{trait}.json").read_text())
        (folder / f"{trait}.json").write_text(json.dumps(content | {"questions": content["questions"][:3]}))
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(config.num_hidden_layers + 1, config.hidden_size, generator=generator)
        torch.save(15 * vectors, folder / f"{trait}.pt")
    return folder


@pytest.fixture
def run(world, tiny_persona, tmp_path):
    """Runs the command on one trait, writing to tmp_path."""

    def run(name="out.csv", trait="humorous", **options):
        given = {"model": tiny_persona, "judge_model": tiny_persona, "trait": str(world / f"{trait}.json")} | QUICK
        eval_persona.main(output_path=str(tmp_path / name), **(given | options))

    return run


@pytest.fixture
def swept(world):
    """The lists of a sweep: 1 + 2 layers x 2 coefs x (vector + 1 random) + prompt = 10 settings."""
    vector = {"vector_path": str(world / "humorous.pt"), "layer": [2, 3], "coef": [0, 1, 2]}
    return vector | {"control": ["random", "prompt"], "n_random": 1, "min_coherence": 5}


def nothing_more(monkeypatch):
    """From here on whatever is needed must be in the store."""

    def reached(*_args, **_kwargs):
        raise AssertionError("finished work was done again")

    monkeypatch.setattr(finished_answers, "sample_answers", reached)
    monkeypatch.setattr(finished_scores, "make_judge", reached)


def read(path) -> pd.DataFrame:
    table = pd.read_csv(path, keep_default_na=False)
    for name in ("humorous", "coherence", "layer"):
        if name in table:
            table[name] = pd.to_numeric(table[name].replace("", np.nan))
    return table


def test_a_sweep_is_one_table_of_what_each_setting_is_alone(run, swept, tmp_path, monkeypatch, capsys):
    calls, real = [], finished_answers.sample_answers
    monkeypatch.setattr(
        finished_answers,
        "sample_answers",
        lambda model, tok, prompts, **o: calls.append(len(prompts)) or real(model, tok, prompts, **o),
    )
    run(**swept)
    printed = capsys.readouterr().out
    table = read(tmp_path / "out.csv")
    assert calls == [60], "all settings are one sampling job"
    assert list(table.columns) == [*PUBLISHED, "coef", "layer", "vector", "control"]
    rows_of = [tuple(row) for row in table[["coef", "layer", "vector", "control"]].itertuples(index=False)]
    sizes = Counter((c, None if np.isnan(la) else la, v, k) for c, la, v, k in rows_of)
    vector = swept["vector_path"]
    steered = {(c, la, v, k) for c in (1.0, 2.0) for la in (2, 3) for v, k in ((vector, ""), ("", "random1"))}
    assert set(sizes) == steered | {(0.0, None, "", ""), (0.0, None, "", "prompt")} and set(sizes.values()) == {6}
    record = json.loads((tmp_path / "out.csv.json").read_text())
    check_record(record, table, vector)
    check_printed(printed)
    columns = {*table.columns, *record["sweep"][0], *record["frontier"]["steered"]}
    assert columns - set(RESERVED_NAMES) == {"humorous"}, "a trait named like one of them would replace it"

    nothing_more(monkeypatch)
    run("alone.csv", **swept | {"layer": 3, "coef": 2, "control": None})
    alone, rows = (
        read(tmp_path / "alone.csv"),
        (table["layer"] == 3) & (table["coef"] == 2) & (table["vector"] == vector),
    )
    pd.testing.assert_frame_equal(alone, table.loc[rows, PUBLISHED].reset_index(drop=True))
    assert "the receipts are those of" in capsys.readouterr().out
    own = json.loads((tmp_path / "alone.csv.json").read_text())
    assert own["receipts_taken_by"] == "an earlier run" and [r["coef"] for r in own["receipts"]] == [2]

    run("one.csv", **swept, one_file_per_setting=True)
    names = {path.name for path in tmp_path.glob("one_*.csv")}
    kinds = {f"one_{kind}layer{la}_coef{c}.csv" for kind in ("", "random1_") for la in (2, 3) for c in (1, 2)}
    assert names == kinds | {"one_coef0.csv", "one_prompt.csv"}
    assert (tmp_path / "one_layer3_coef2.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    beside = json.loads((tmp_path / "one_layer3_coef2.csv.json").read_text())
    assert beside["settings"] == own["settings"] and beside["summary"] == own["summary"]
    assert json.loads((tmp_path / "one_sweep.json").read_text())["frontier"]["min_coherence"] == 5

    run("one_layer3_coef2.csv", **swept | {"layer": 3, "coef": 2, "control": None})  # it is that run's table
    with pytest.raises(ValueError, match="one_coef0.csv holds a run with other seed"):
        run("one.csv", **swept, one_file_per_setting=True, seed=1)
    with pytest.raises(ValueError, match="out.csv holds a run with other coef; pass --overwrite"):
        run(**swept | {"coef": [0, 1]})


def check_record(record, table, vector):
    assert record["settings"]["coef"] == [0, 1, 2] and record["n_failed"] == 0
    assert [row["n_total"] for row in record["sweep"]] == [6] * 10
    for row in record["sweep"]:
        same_layer = table["layer"].isna() if row["layer"] is None else table["layer"] == row["layer"]
        same = same_layer & (table["coef"] == row["coef"])
        own = table[same & (table["vector"] == row["vector"]) & (table["control"] == row["control"])]
        assert row["humorous"]["mean"] == pytest.approx(own["humorous"].mean())
        assert row["coherence"]["mean"] == pytest.approx(own["coherence"].mean())
    assert len(record["receipts"]) == 8 and record["receipts_taken_by"] == "this run"
    norms = {(d["layer"], d["control"]): d["norm"] for d in record["steering"]}
    for receipt in record["receipts"]:
        assert receipt["expected"] == pytest.approx(
            receipt["coef"] * norms[receipt["layer"], receipt["control"]], rel=1e-5
        )
    assert norms[2, ""] == pytest.approx(norms[2, "random1"], rel=1e-5) != norms[3, ""]
    found = next(s for s in record["steerability"] if s["vector"] == vector and s["layer"] == 3)
    base, one, two = (
        table[
            (table["coef"] == coef)
            & (table["layer"].isna() if coef == 0 else table["layer"] == 3)
            & (table["control"] == "")
        ]
        for coef in (0, 1, 2)
    )
    slopes = (two["humorous"].to_numpy() - base["humorous"].to_numpy()) / 2  # by least squares over 0, 1, 2
    assert len(base) == len(one) == len(two) and base["question_id"].tolist() == two["question_id"].tolist()
    assert found["slope"]["mean"] == pytest.approx(slopes.mean()) and found["coefs"] == [0, 1, 2]
    assert min(row["coherence"]["mean"] for row in record["sweep"]) >= 5
    coherent = [row for row in record["sweep"] if row["vector"] and row["coherence"]["mean"] >= 5]
    best = max((row["humorous"]["mean"] for row in coherent), default=None)
    assert (record["frontier"]["steered"] or {"humorous": {"mean": None}})["humorous"]["mean"] == best


def check_printed(printed):
    lines = printed.splitlines()
    assert [line for line in lines if "steering receipt" in line and "humorous.pt at layer 2, coef 1, 2" in line]
    head = next(i for i, line in enumerate(lines) if line.split()[:3] == ["layer", "coef", "setting"])
    assert [line.split()[2] for line in lines[head + 1 : head + 11]] == [
        *("unsteered", "humorous.pt", "humorous.pt", "random1", "random1"),
        *("humorous.pt", "humorous.pt", "random1", "random1", "prompt"),
    ]
    assert "steerability of humorous.pt at layer 2" in printed and "highest humorous at coherence >= 5" in lines[-1]


@pytest.mark.parametrize(
    "broken, kept", [([25.0, 12.0], [0, 2]), ([25.0, 90.0], [0, 2, 8]), ([90.0, 90.0], [0, 2, 4, 8])]
)
def test_broken_text_takes_no_part_in_the_slope(broken, kept):
    traits = {0: [10.0, 8.0], 2: [96.0, 94.0], 4: [5.0, 3.0], 8: [2.0, 1.0]}
    coherences = dict(zip(traits, [95.0, 90.0, *broken], strict=True))
    lines, record = slope_of(traits, coherences)
    scores = np.array([traits[coef] for coef in kept])  # (n_coefs, 2)
    expected = np.polyfit(kept, scores, 1)[0].mean()
    assert record["coefs"] == kept and record["slope"]["mean"] == pytest.approx(expected)
    out = [coef for coef in traits if coef not in kept]
    said = f"(without coef {', '.join(map(str, out))}: coherence below 75)"
    assert record["left_out"] == out and (said if out else "") in lines[0] and ("without" in lines[0]) == bool(out)


def test_with_one_coherent_coefficient_there_is_no_slope():
    lines, record = slope_of({0: [10.0, 8.0], 4: [5.0, 3.0]}, {0: 95.0, 4: 20.0})
    assert record["slope"]["mean"] is None and record["n_used"] == 0
    assert "no slope, which needs two coherent coefficients (without coef 4: coherence below 75)" in lines[0]


def slope_of(traits, coherences):
    """The lines and the record of a vector's settings: coefficient -> the scores of two questions, and coherence."""
    found = []
    for coef, scores in traits.items():
        setting = Setting(coef, 3, "v.pt", steering=Steering(torch.ones(4), 3, coef)) if coef else Setting()
        rows = {"question_id": ["q_0", "q_1"], "question": ["a", "b"], "evil": scores, "coherence": coherences[coef]}
        found.append(Answered(setting, pd.DataFrame(rows), []))
    findings = sweep_findings(found, "evil", 75.0)
    return steerability_lines(findings["steerability"], "evil", {"v.pt": "v.pt"}), findings["steerability"][0]


def test_several_traits_are_one_job_with_a_table_each(run, world, tiny_persona, tmp_path, monkeypatch):
    traits = [str(world / "evil.json"), str(world / "humorous.json")]
    both: dict[str, Any] = {"vector_path": str(world / "{trait}.pt"), "layer": 2, "coef": [0, 1]}
    calls, real = [], finished_answers.sample_answers
    monkeypatch.setattr(
        finished_answers,
        "sample_answers",
        lambda model, tok, prompts, **o: calls.append(len(prompts)) or real(model, tok, prompts, **o),
    )
    eval_persona.main(tiny_persona, traits, str(tmp_path / "{trait}.csv"), judge_model=tiny_persona, **QUICK, **both)
    assert calls == [24]
    assert list(pd.read_csv(tmp_path / "evil.csv").columns)[4] == "evil"
    nothing_more(monkeypatch)
    run("again.csv", **both | {"vector_path": str(world / "humorous.pt")})
    pd.testing.assert_frame_equal(read(tmp_path / "humorous.csv"), read(tmp_path / "again.csv"))


def test_question_by_question_gives_the_same_table(run, swept, tmp_path):
    few = swept | {"coef": [0, 1], "layer": 2}
    run(**few)
    whole = read(tmp_path / "out.csv")
    run(**few, batch_process=False, overwrite=True)  # judged in other batches, so scores differ in their rounding
    pd.testing.assert_frame_equal(read(tmp_path / "out.csv"), whole, rtol=1e-3)


def test_norm_units_add_what_they_say(run, swept, tmp_path, monkeypatch):
    few = swept | {"coef": [0, 0.01, 0.02], "control": None, "coef_unit": "norm"}
    run(**few)
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert len(record["receipts"]) == 4
    for receipt in record["receipts"]:
        assert receipt["prefill"] == pytest.approx(
            receipt["coef"] * record["mean_norms"][str(receipt["layer"])], rel=1e-4
        )
    nothing_more(monkeypatch)
    monkeypatch.setattr(finished_answers, "load_model", None)
    run("again.csv", **few)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_a_steering_that_fails_its_receipt_is_not_run(run, swept, monkeypatch, tmp_path):
    def hooked(name, **options):
        model, tokenizer = load_model(name, **options)
        model.model.layers[0].register_forward_hook(
            lambda _m, _a, output: output + 1 if torch.is_tensor(output) else output
        )
        return model, tokenizer

    monkeypatch.setattr(finished_answers, "load_model", hooked)
    nothing_more(monkeypatch)
    with pytest.raises(ValueError, match="steering receipt: a hook already changes layer 1"):
        run(**swept | {"coef": 1, "layer": 2, "control": None})
    assert not (tmp_path / "out.csv").exists()


def test_failed_judge_calls_leave_gaps_that_the_next_run_fills(world, tmp_path, monkeypatch, capsys, tiny_persona):
    down = {"on": True}

    def answer(request):
        asked = json.dumps(request)
        first = json.loads((world / "humorous.json").read_text())["questions"][0]
        return (
            Reply(status=400, body={"error": {"message": "no"}}, retry=False)
            if down["on"] and first in asked
            else {"40": 1.0}
        )

    argv = [
        "--model",
        tiny_persona,
        "--trait",
        str(world / "humorous.json"),
        "--output_path",
        str(tmp_path / "out.csv"),
    ]
    argv += ["--judge_model", "some-judge", "--n_per_question", "2", "--max_tokens", "12", "--version", "eval"]
    with LoopbackOpenAI(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        assert cli.run(eval_persona.main, argv) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("unfinished: ") and "of 12 judge calls failed" in said and "again" in said
        table = read(tmp_path / "out.csv")
        assert table["humorous"].isna().tolist() == [True, True, False, False, False, False]
        assert json.loads((tmp_path / "out.csv.json").read_text())["n_failed"] == 4
        down["on"], before = False, len(server.requests)
        assert cli.run(eval_persona.main, argv) == 0
        assert 0 < len(server.requests) - before <= 4
    assert read(tmp_path / "out.csv")["humorous"].tolist() == [40.0] * 6
    assert json.loads((tmp_path / "out.csv.json").read_text())["n_failed"] == 0


def test_neutral_is_a_system_prompt_that_pairs_with_pos(tiny_persona):
    sides = {
        pole: load_persona_questions("evil", persona_instruction_type=pole, model=tiny_persona)
        for pole in ("pos", "neutral")
    }
    assert {question.system for question in sides["neutral"]} == {"You are a helpful assistant."}
    assert [q.stream for q in sides["neutral"]] == [q.stream for q in sides["pos"]]
    assert sides["neutral"][6].id == "evil_1" and sides["pos"][6].id == "evil_1_pos_1"


def test_the_prompt_control_goes_round_the_instructions(tiny_persona):
    plain = load_persona_questions("evil", model=tiny_persona)
    pos = load_persona_questions("evil", persona_instruction_type="pos", model=tiny_persona)
    study = Study("evil", Path("x.csv"), plain, [Setting(control="prompt")], prompted=pos)
    rows, control = study.rows(3), study.prompted_rows(3)
    assert [row.question for row in rows] == [row.question for row in control]
    assert [row.stream for row in control] == [(i, (i + k) % 5, k) for i in range(len(plain)) for k in range(3)]
    systems = {question.id: question.system for question in pos}
    assert all(row.system == systems[row.question_id] for row in control)


# what is asked for -------------------------------------------------------------------------------------------------


def test_every_setting_once_and_vectors_are_shared(world, tiny_persona):
    grid = Grid(
        (0, 1, -2), (2, 3), (str(world / "evil.pt"), str(world / "humorous.pt")), controls=("random",), n_random=2
    )
    settings = expand(grid, tiny_persona, "evil")
    assert len(settings) == 1 + 2 * 2 * 2 * (1 + 2)
    keys = {(s.coef, s.layer, s.vector, s.control) for s in settings}
    assert len(keys) == len(settings) and sum(s.is_baseline for s in settings) == 1
    assert {s.control for s in settings} == {"", "random1", "random2", "random3", "random4"}
    steerings = [s.steering for s in settings if s.steering is not None]
    assert len({id(s.vector) for s in steerings}) == 2 * 2 * (1 + 2), "coefficients share their vector"
    own = {(s.vector, s.layer): s.steering.vector.norm() for s in settings if s.vector and s.steering}
    for s in settings:
        if s.matched and s.steering:
            torch.testing.assert_close(s.steering.vector.norm(), own[s.matched, s.layer])
    other = expand(replace(grid, seed=1), tiny_persona, "evil")
    alone = expand(replace(grid, coefs=(5,), layers=(3,)), tiny_persona, "evil")
    pick = {(s.control, s.layer): s.steering.vector for s in settings if s.matched and s.steering}
    assert not any(torch.equal(pick["random1", 3], s.steering.vector) for s in other if s.steering)
    assert not torch.equal(pick["random1", 3], pick["random1", 2])
    again = next(s.steering for s in alone if s.control == "random2")
    assert again is not None and torch.equal(pick["random2", 3], again.vector)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coefs": (0, 1, 1.0)}, "--coef has 1 twice"),
        ({"layers": (2, 2)}, "--layer has 2 twice"),
        ({"vectors": ("a.pt", "a.pt")}, "--vector_path has a.pt twice"),
        ({"controls": ("random", "random")}, "--control has random twice"),
        ({"controls": ("none",)}, "--control must be random, prompt or both; got none"),
        ({"coefs": (float("nan"),)}, "--coef nan is not a finite number"),
        ({"coefs": ()}, "--coef names no coefficient"),
        ({"vectors": ()}, "--vector_path is missing"),
        ({"layers": ()}, "--layer is missing"),
        ({"coefs": (0,), "controls": ("random",)}, "--control random needs a steering"),
        ({"controls": ("random",), "n_random": 0}, "--n_random must be at least 1"),
        ({"positions": "answer"}, "steering_type must be one of"),
    ],
)
def test_lists_that_make_no_sense(change, words):
    grid = Grid((0, 1), (2,), ("a.pt",))
    check_grid(grid)
    with pytest.raises(ValueError, match=words):
        check_grid(replace(grid, **change))


def test_files_of_settings_that_would_have_one_name():
    settings = [Setting(1, 2, "a/x.pt"), Setting(1, 2, "b/x.pt")]
    with pytest.raises(ValueError, match="two settings would be written to out_layer2_coef1.csv|out_x_layer2"):
        plan_outputs(Path("out.csv"), settings, {"n_random": None}, True)
    named = plan_outputs(Path("out.csv"), [settings[0], Setting(0.1 + 0.2, 2, "b/y.pt")], {"n_random": None}, True)
    assert [output.path.name for output in named] == ["out_x_layer2_coef1.csv", "out_y_layer2_coef0.3.csv"]


# rows that carry their own steering --------------------------------------------------------------------------------


def test_rows_of_one_batch_are_steered_each_by_its_own():
    model = tiny_model("llama")
    n_layers, d_model = model.config.num_hidden_layers, model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, d_model, generator=generator)
    rows = [
        Steering(vectors[0], 1, 2.0, "all"),
        None,
        Steering(vectors[1], n_layers, -1.0, "response"),
        Steering(vectors[0], n_layers, 0.5, "all"),
        Steering(vectors[2], 1, 1.0, "prompt"),
    ]
    ids = torch.randint(3, 20, (4, 7), generator=generator)
    batch = [4, 1, 2, 3]  # another order, and a row left out

    def hidden(context) -> dict[int, torch.Tensor]:
        with torch.inference_mode(), context, read_blocks(model) as found:
            logits = model(ids, attention_mask=torch.ones_like(ids)).logits
            return {**found, -1: logits}

    plain = hidden(steer_rows(model, [None] * 5)(batch))
    steered = hidden(steer_rows(model, rows)(batch))
    for layer in plain:
        assert torch.equal(steered[layer][1], plain[layer][1]), "a row without steering is untouched to the bit"
    assert torch.equal(steered[1][0], plain[1][0] + vectors[2])
    assert torch.equal(steered[1][2:], plain[1][2:])
    last = n_layers
    assert torch.equal(steered[last][2][:-1], plain[last][2][:-1])
    torch.testing.assert_close(steered[last][2][-1], plain[last][2][-1] - vectors[1])
    torch.testing.assert_close(steered[last][3], plain[last][3] + 0.5 * vectors[0])


def test_residual_norms_are_those_of_one_prompt_at_a_time():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    prompts = ["How are you ?", "User : How do you do today my good friend ?", "Well ."]
    found = residual_norms(model, tokenizer, prompts, [0, 1, 2])
    lengths: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for prompt in prompts:
        ids = torch.tensor([tokenize_prompt(tokenizer, prompt)])
        with torch.inference_mode(), read_blocks(model) as hidden:
            model(ids)
            for layer in lengths:
                lengths[layer] += hidden[layer][0, 1:].norm(dim=-1).tolist()
    assert found == pytest.approx({layer: float(np.mean(values)) for layer, values in lengths.items()}, rel=1e-5)
    vector = torch.tensor([3.0, 4.0])
    [setting] = in_norm_units([Setting(2.0, 1, "v.pt", steering=Steering(vector, 1, 2.0))], {1: 10.0})
    assert setting.steering is not None and setting.steering.coef == 2.0
    torch.testing.assert_close(setting.steering.vector, torch.tensor([6.0, 8.0]))
