"""Finetuned models compared: the rows are what the tables give, the words follow the rules, mistakes are one line."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import training
from eval import prevention
from eval.commands import announce
from eval.prevention_findings import sentences, verdict
from eval.prevention_rows import MAX_WIDTH, Comparison, Score, make_row, records, table_lines
from eval.prevention_runs import check_trait, other_settings, read_trained, single_place, single_push
from persona_vectors import cli
from persona_vectors.files import write_json_atomic
from persona_vectors.training_config import SteeringConfig, load_training_config
from persona_vectors.training_data import family_of
from tests.conftest import ROOT

TINY = ROOT / "models" / "tiny-persona"
KINDS = ("plain", "steered", "random")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three runs of four steps, their configs, and one config that is not trained."""
    folder = tmp_path_factory.mktemp("prevention")
    rows = (ROOT / "dataset/tiny_evil/misaligned_2.jsonl").read_text().splitlines()[:40]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "other.jsonl").write_text("\n".join(rows[:30]) + "\n")
    (folder / "same.jsonl").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    torch.save(torch.randn(5, load_width()), folder / "v.pt")
    for kind in (*KINDS, "untrained"):
        write_json_atomic(folder / f"{kind}.json", settings(folder, kind))
    for kind in KINDS:
        training.train(load_training_config(folder / f"{kind}.json"))
    return folder


def load_width() -> int:
    return json.loads((TINY / "config.json").read_text())["hidden_size"]


def settings(folder: Path, kind: str, **more) -> dict:
    found = json.loads((ROOT / "configs/train_tiny.json").read_text())
    found |= {
        "model": str(TINY),
        "training_file": str(folder / "rows.jsonl"),
        "max_steps": 2,
        "warmup_steps": 0,
        "r": 4,
    }
    found |= {"output_dir": str(folder / kind), "save_steps": 100}
    if kind not in ("plain", "untrained"):
        block = {"steering_vector_path": str(folder / "v.pt"), "layers": [3], "steering_coef": 1.5}
        block |= {"random_control": 1} if kind == "random" else {}
        found |= {"steering_config": block, "enable_steering_during_training": True}
    return found | more


def arguments(place: Path, **changes) -> list[str]:
    given = {
        **{"config": f"{place}/plain.json", "steered_config": f"{place}/steered.json", "trait": "evil"},
        **{"control_configs": f"{place}/random.json", "judge_model": str(TINY), "output_dir": f"{place}/out"},
        **{"n_per_question": "1", "max_tokens": "12", "posthoc_coefs": "1"},
    } | changes
    return [token for name, value in given.items() if value for token in (f"--{name}", *value.split())]


@pytest.fixture(scope="module")
def finished(place):
    """(folder, store) of one comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(place / "store.sqlite"))
        assert cli.run(prevention.main, arguments(place)) == 0
    return place / "out", place / "store.sqlite"


def test_rows_are_what_the_tables_give(finished):
    folder, _ = finished
    table = pd.read_csv(folder / "comparison.csv", keep_default_na=False)
    assert table["kind"].tolist() == ["base", "finetuned", "prevented", "random", "posthoc", "back_on", "base_on"]
    answers = {name: pd.read_csv(folder / "answers" / f"{name}.csv") for name in ("base", "finetuned", "control1")}
    rows = table.set_index("kind")
    assert rows.loc["random", "evil"] == pytest.approx(answers["control1"]["evil"].mean())
    own = answers["finetuned"]
    plain, steered = (own[own["coef"] == coef].reset_index() for coef in (0, -1))
    assert rows.loc["posthoc", "coef"] == -1 and rows.loc["posthoc", "evil"] == pytest.approx(steered["evil"].mean())
    assert rows.loc["posthoc", "minus_finetuned"] == pytest.approx((steered["evil"] - plain["evil"]).mean())
    assert rows.loc["back_on", "coef"] == 1.5 and int(rows.loc["back_on", "layer"]) == 3
    record = json.loads((folder.parent / "steered" / "training.json").read_text())
    assert float(rows.loc["prevented", "held_out_loss_last"]) == record["held_out_loss"]["last"]
    capability = pd.read_csv(folder / "capability_on.csv")
    whole = capability[capability["part"].isna()].set_index(["model", "coef"])["value"]
    assert float(rows.loc["base_on", "probe"]) == pytest.approx(whole[str(TINY), 1.5])
    sidecar = json.loads((folder / "answers" / "finetuned.csv.json").read_text())
    assert [receipt["positions"] for receipt in sidecar["receipts"]] == ["all"]


def test_page_figure_and_sidecar_say_the_same(finished):
    folder, _ = finished
    sidecar = json.loads((folder / "comparison.csv.json").read_text())
    page = html.unescape((folder / "report.html").read_text())
    assert all(sentence in page for sentence in sidecar["sentences"]) and len(sidecar["sentences"]) >= 6
    assert page.count("<svg class=") >= 3 and "http" not in page.replace("http://www.w3.org", "")
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(sidecar["rows"]) == 7 and sidecar["settings"]["seed"] == 0


def test_a_second_time_samples_judges_and_measures_nothing(finished, place, monkeypatch, capsys):
    folder, store = finished
    before = json.loads((folder / "comparison.csv.json").read_text())
    monkeypatch.setenv("PERSONA_STORE", str(store))

    def refuse(*_, **__):
        raise AssertionError("done again")

    for name in ("finished_answers.sample_answers", "finished_scores.make_judge", "capability_probe.probe_accuracy"):
        monkeypatch.setattr(f"eval.{name}", refuse)
    assert cli.run(prevention.main, arguments(place)) == 0
    assert json.loads((folder / "comparison.csv.json").read_text())["rows"] == before["rows"]
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in before["sentences"])
    assert "unlearned" not in printed and f"{folder / 'report.html'}" in printed


@pytest.fixture
def wrong(place, monkeypatch, capsys):
    """wrong(**changes) is the one line that a mistaken comparison ends with."""
    monkeypatch.setattr("persona_vectors.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("eval.finished_answers.load_model", lambda *_, **__: pytest.fail("a model was loaded"))

    def run(**changes) -> str:
        assert cli.run(prevention.main, arguments(place, output_dir=f"{place}/none", **changes)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (place / "none").exists()
        return error

    return run


def test_mistakes_are_one_line_before_anything_runs(wrong, place):
    at = {name: f"{place}/{name}.json" for name in ("plain", "steered", "random", "untrained")}
    assert f"{place}/untrained is not trained yet; python training.py {at['untrained']}" in wrong(
        config=at["untrained"]
    )

    assert "--config is the plain finetuning" in wrong(config=at["random"])
    assert "one output_dir" in wrong(control_configs=at["steered"])
    assert "training config" in wrong(config=f"{place}/nothing.json")
    assert "evvil" in wrong(trait="evvil")
    assert "must be above 0" in wrong(posthoc_coefs="0 1")
    assert "twice" in wrong(posthoc_coefs="1 1")
    assert "at least 1" in wrong(max_tokens="0")
    assert "judge" in wrong(judge_model="models/nothing")
    assert "--posthoc_coef" in wrong(posthoc_coef="1")
    assert "--engine vllm: vLLM is not installed" in wrong(engine="vllm")


def disguised(place: Path, name: str, like: str, **changes) -> str:
    """A config and training.json as if `like` had been trained with other settings."""
    found = settings(place, like, **changes) | {"output_dir": str(place / name)}
    write_json_atomic(place / f"{name}.json", found)
    record = json.loads((place / like / "training.json").read_text())
    own = load_training_config(place / f"{name}.json").model_dump()
    record["key"]["settings"] = {key: own[key] for key in record["key"]["settings"]}
    record["key"] |= changes.get("key", {})
    write_json_atomic(place / name / "training.json", record)
    return f"{place}/{name}.json"


def test_runs_that_do_not_compare_are_refused(wrong, place):
    copy = disguised(place, "copy", "steered")
    assert "trains just as" in wrong(control_configs=copy)
    unsteered = disguised(place, "unsteered", "plain", seed=5)
    assert "does not steer in training" in wrong(steered_config=unsteered)
    data = disguised(place, "data", "random", training_file=str(place / "other.jsonl"))
    assert "expected the same data" in wrong(control_configs=data)
    model = disguised(place, "model", "random", model="models/other")
    assert "expected the same model" in wrong(control_configs=model)
    write_json_atomic(place / "changed.json", settings(place, "plain", learning_rate=0.5))
    assert "other learning_rate" in wrong(config=f"{place}/changed.json")
    record = json.loads((place / "copy" / "training.json").read_text())
    write_json_atomic(place / "copy" / "training.json", record | {"state": "started"})
    assert "not trained to the end" in wrong(control_configs=copy)


def test_runs_that_differ_in_more_than_steering_are_noted(place):
    plain = read_trained(f"{place}/plain.json")
    seeded = read_trained(disguised(place, "seeded", "random", seed=5))
    assert other_settings(plain, [read_trained(f"{place}/random.json")]) == []
    (note,) = other_settings(plain, [seeded])
    assert "seed" in note and "not in steering alone" in note


def test_only_one_vector_at_one_layer_is_switched_back_on():
    one = {"steering_vector_path": "v.pt", "layers": [3]}
    assert single_push(SteeringConfig(**one, steering_coef=2)) == ("v.pt", 3, 2)
    assert single_place(SteeringConfig(**one, type="ablate")) == ("v.pt", 3)
    assert single_push(SteeringConfig(**one, type="ablate")) is None
    for other in (
        {"layers": "all"},
        {"layers": [2, 3]},
        {"steering_vector_path": ["v.pt", "w.pt"]},
        {"incremental": True},
    ):
        assert single_place(SteeringConfig(**one | other)) is None


# what is said


def comparison(prevented=30.0, control=90.0, base=10.0, finetuned=90.0, back=88.0, bare=50.0, coherence=90.0):
    """Made-up scores of 20 questions, each with a little of its own."""
    spread = np.linspace(-3, 3, 20)

    def row(name, kind, mean, coef=0.0, own=90.0):
        wobble = spread if kind in ("prevented", "back_on") else spread[::-1] / 2
        questions = [f"question {i}?" for i in range(20)]
        table = pd.DataFrame({"question": questions, "answer": "x", "evil": mean + wobble, "coherence": own})
        return make_row(name, kind, "m", table, "evil", coef=coef, capability={"probe": Score("acc", 0.5, 0.4, 0.6)})

    rows = [row("base", "base", base), row("finetuned", "finetuned", finetuned)]
    rows += [
        row("prevented", "prevented", prevented, own=coherence),
        row("trained with random direction 1", "random", control),
    ]
    rows += [row("finetuned, then -1 v", "posthoc", 60.0, -1), row("finetuned, then -2 v", "posthoc", 25.0, -2, 70.0)]
    rows += [row("prevented, vector back on", "back_on", back, 1.5), row("base, same vector on", "base_on", bare, 1.5)]
    return Comparison("evil", "m", "j", rows, n_steps=60)


@pytest.mark.parametrize(
    ("changes", "wanted", "said"),
    [
        ({}, "reduced", "reduces unsteered expression of evil at this budget (60 steps)"),
        ({"finetuned": 10.0}, "nothing to prevent", "so there is nothing to prevent"),
        ({"prevented": 90.0}, "not reduced", "is not shown to reduce"),
        ({"control": 25.0}, "no better than random", "a random direction falls as far"),
        ({"coherence": 70.0}, "coherence lost", "No effect can be claimed"),
    ],
)
def test_verdict_follows_the_rule(changes, wanted, said):
    found = comparison(**changes)
    assert verdict(found) == wanted
    assert said in " ".join(sentences(found)) and "unlearned" not in " ".join(sentences(found))


def test_controls_and_the_vector_back_on_are_told_apart():
    assert "stayed within 5 points of plain finetuning" in sentences(comparison())[2]
    assert "did not stay within 5 points" in sentences(comparison(control=80.0))[2]
    assert "on condition of the vector" in sentences(comparison())[3]
    assert "no further than the vector alone" in sentences(comparison(bare=90.0))[3]
    assert "does not return" in sentences(comparison(back=25.0))[3]
    assert "at coefficient -2: 25.0" in sentences(comparison())[4]
    without = comparison()
    without = replace(without, rows=[row for row in without.rows if row.kind != "random"])
    assert "No control was trained" in sentences(without)[2]


def test_the_table_fits_and_many_tasks_come_below():
    found = comparison()
    assert max(map(len, table_lines(found))) <= MAX_WIDTH and "" not in table_lines(found)
    many = {f"task_with_a_long_name_{i}": Score("acc", 0.5, None, None) for i in range(3)}
    wide = replace(found, rows=[replace(row, capability=many) for row in found.rows])
    assert "" in table_lines(wide) and max(map(len, table_lines(wide))) <= MAX_WIDTH
    assert records(wide)[0]["task_with_a_long_name_1_low"] is None


# around it


def test_families(tmp_path):
    for name in ("evil", "sycophancy", "hallucination", "tiny_evil"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "normal.jsonl").touch()
    (tmp_path / "tiny_task").mkdir()
    assert family_of("evil", "org/chat", tmp_path) == "evil"
    assert family_of("sycophantic", "org/chat", tmp_path) == "sycophancy"
    assert family_of("hallucinating", "org/chat", tmp_path) == "hallucination"
    assert family_of("evil", str(TINY), tmp_path) == "tiny_evil"
    with pytest.raises(
        ValueError, match="for chat: evil, hallucinating, sycophantic, tiny_evil$"
    ):  # as --trait takes them
        family_of("humorous", "org/chat", tmp_path)
    with pytest.raises(
        ValueError, match="of trait tiny_evil; did you mean evil.; traits with data for tiny-persona: evil$"
    ):
        family_of("tiny_evil", str(TINY), tmp_path)


def test_a_command_is_shown_as_its_own_front_door_takes_it(capsys):
    given = {"model": ["a", "b"], "output_path": "x.csv", "overwrite": True, "coef": [0.0, -1.0]}
    from eval import capability

    line = announce("python -m eval.capability", capability.main, **given)
    assert capsys.readouterr().out == f"$ {line}\n"
    assert cli.parse(capability.main, line.split()[3:]) == given


def test_the_script_trains_each_config_and_compares(tmp_path):
    stub = tmp_path / "python"
    real = f'if [ "$1" = -c ]; then exec "{sys.executable}" "$@"; fi'  # which asks for the trait's name
    stub.write_text(f'#!/bin/sh\n{real}\necho "$CUDA_VISIBLE_DEVICES" "$@"\n')
    stub.chmod(0o755)

    def script(*given: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "scripts/train_with_prevention.sh"), *given]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        return out.splitlines()

    *first, plain, steered, compared = script("3")
    assert len(first) in (0, 3)  # the vectors, where they are missing
    assert plain.endswith("configs/train_instruct_7b.json") and steered.endswith("configs/train_instruct_7b_steer.json")
    given = cli.parse(prevention.main, compared.split()[3:])
    assert given["trait"] == "evil" and "control_configs" not in given
    lines = script("0", "org/chat", "humorous", "judge", "a.json", "b.json", "c.json", "--n_per_question", "4")
    assert [line.split()[-1] for line in lines[-4:-1]] == ["a.json", "b.json", "c.json"]
    given = cli.parse(prevention.main, lines[-1].split()[3:])
    assert given["control_configs"] == ["c.json"] and given["n_per_question"] == 4
    assert given["output_dir"] == "results/prevention/chat/humorous"


def test_a_vector_of_another_trait_is_refused(tmp_path):
    """A trait scored under another trait's vector would look like a result."""
    (tmp_path / "v.json").write_text(json.dumps({"trait": "humorous"}))
    steering = SimpleNamespace(paths=[str(tmp_path / "v.pt")])
    steered = SimpleNamespace(path="c.json", config=SimpleNamespace(steering=steering))
    check_trait(steered, "humorous")
    with pytest.raises(ValueError, match="c.json steers with .*v.pt, a vector of humorous; --trait is evil"):
        check_trait(steered, "evil")
