"""The demo end to end on the embedded model, what it refuses, and the script that starts it."""

import html
import inspect
import json
import os
import shlex
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

import eval_lora_persona
import extract_persona_lora
import generate_vec
import training
from eval import cal_projection, demo, demo_finetuning, eval_persona, prevention
from eval.demo_steps import Run
from eval.demo_weights import neutral_config
from persona_vectors import cli
from persona_vectors.persona_trainings import own_judge
from persona_vectors.training_config import load_training_config
from persona_vectors.vectors import load_vectors
from persona_vectors.weight_direction import content_hash
from persona_vectors.weight_files import load_adapter, load_direction

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny-persona"
needs_tiny = pytest.mark.skipif(not (TINY / "config.json").exists(), reason="models/tiny-persona is not built yet")


def run_demo(folder, **options):
    small = {"traits": ["evil"], "coefs": [1.5, 0.0], "n_random": 2, "n_per_question": 1, "max_tokens": 24}
    small["finetune_steps"] = 2
    demo.main(str(TINY), str(TINY), output_dir=str(folder), **{**small, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, store) of one small demo run, and what it printed is thrown away."""
    base = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(base / "store.sqlite"))
        run_demo(base / "out")
    return base / "out", base / "store.sqlite"


@needs_tiny
def test_everything_is_written(finished):
    folder, _ = finished
    for name in ("evil_pos_instruct", "evil_neg_instruct"):
        assert {"question", "prompt", "answer", "evil", "coherence"} <= set(
            pd.read_csv(folder / "extract" / f"{name}.csv")
        )
    assert load_vectors(folder / "vectors" / "evil_response_avg_diff.pt").shape[0] >= 3
    table = pd.read_csv(folder / "steered" / "evil.csv", keep_default_na=False)
    assert len([name for name in table if name.startswith("tiny-persona_evil_response_avg_diff_proj_layer")]) == 1
    assert set(table["control"]) == {"", "random1", "random2"} and set(table["coef"]) == {0, 1.5}
    assert {file.name for file in (folder / "figures").iterdir()} >= {"evil_steering.png", "norms.png"}
    assert (folder / "report.html").stat().st_size > 1_000_000
    assert {file.name for file in (folder / "prevention").iterdir()} >= {"comparison.csv", "report.html", "configs"}
    for kind in ("plain", "steered", "random"):
        record = json.loads((folder / "prevention" / "models" / kind / "training.json").read_text())
        assert record["steps"] == 2 and record["config"]["model"] == str(TINY)
    assert {file.name for file in (folder / "weights").iterdir()} >= {"evil_lora_diff", "look_inside.json"}


def test_finetuning_has_the_settings_of_the_published_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = Run("models/tiny-persona", "", tmp_path, 3, [0.0], 1, 1, 1, 50, 0, "auto", "auto")
    ours = demo_finetuning._configs(run, "evil", None, None)
    for kind, name in (("plain", ""), ("steered", "_steer"), ("random", "_random")):
        published = load_training_config(f"configs/train_tiny{name}.json").model_dump(exclude={"output_dir"})
        if published["steering_config"]:
            published["steering_config"]["steering_vector_path"] = str(run.vector_path("evil"))
        assert ours[kind].model_dump(exclude={"output_dir"}) == published
    given = demo_finetuning._configs(run, "evil", 0.7, 9)["steered"]
    assert given.steering is not None and (given.steering.steering_coef, given.max_steps) == (0.7, 9)
    other = Run("org/chat", "", tmp_path, 20, [0.0], 1, 1, 1, 50, 0, "auto", "auto")
    steered = demo_finetuning._configs(other, "sycophantic", None, None)["steered"]
    assert steered.training_files == ["dataset/sycophancy/misaligned_2.jsonl"] and steered.model == "org/chat"
    assert steered.steering is not None and (steered.steering.steering_coef, steered.steering.layers) == (5.0, [20])


def test_a_trait_without_data_is_said_in_a_line_and_the_demo_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Run(str(TINY), "", tmp_path, 3, [0.0], 1, 1, 1, 50, 0, "auto", "auto")
    assert demo._finetuning(run, "evil", "evil", None, None) is None
    assert "there is no data family dataset/tiny_evil" in capsys.readouterr().out


@needs_tiny
def test_sidecar_holds_numbers_that_the_tables_give(finished):
    folder, _ = finished
    sidecar = json.loads((folder / "report.html.json").read_text())
    (evil,) = sidecar["findings"]
    table = pd.read_csv(folder / "steered" / "evil.csv", keep_default_na=False)
    own = table[table["control"] == ""]
    tables = {coef: own[own["coef"] == float(coef)].reset_index() for coef in ("0", "1.5")}
    base, steered = evil["points"]
    assert (base["coef"], steered["coef"]) == (0, 1.5)
    assert steered["score"]["mean"] == pytest.approx(tables["1.5"]["evil"].mean())
    assert steered["shift"]["mean"] == pytest.approx((tables["1.5"]["evil"] - tables["0"]["evil"]).mean())
    shifts = table[table["control"] != ""].groupby("control")["evil"].mean() - tables["0"]["evil"].mean()
    assert steered["random_shifts"] == pytest.approx(shifts.tolist())
    assert (folder / "steered" / "evil.csv.json").is_file()
    assert len(steered["random_shifts"]) == 2 and steered["random_shifts"][0] != steered["random_shifts"][1]
    page = html.unescape((folder / "report.html").read_text())
    assert evil["sentence"] in page
    compared = json.loads((folder / "prevention" / "comparison.csv.json").read_text())
    assert sidecar["finetuned"] == compared["rows"] and all(sentence in page for sentence in compared["sentences"])
    assert sidecar["settings"]["seed"] == 0 and "torch" in sidecar["versions"]


@needs_tiny
def test_the_direction_of_weights_is_the_finetuned_model_less_its_twin_on_normal_answers(finished):
    folder, _ = finished
    plain, pos = (load_adapter(folder / name) for name in ("prevention/models/plain", "weights/pos_lora"))
    neg = load_adapter(folder / "weights" / "neg_lora")
    made = load_direction(folder / "weights" / "evil_lora_diff")
    assert content_hash(plain) == content_hash(pos) != content_hash(neg)
    name = next(iter(made.modules))
    expected = plain.modules[name].delta() - neg.modules[name].delta()
    torch.testing.assert_close(made.modules[name].delta(), expected, rtol=1e-4, atol=1e-7)
    one, other = (
        json.loads((folder / name / "training.json").read_text())["config"]
        for name in ("prevention/models/plain", "weights/neg_lora")
    )
    assert {key for key in one if one[key] != other[key]} == {"training_file", "output_dir"}
    assert other["training_file"] == ["dataset/tiny_evil/normal.jsonl", "dataset/tiny_task/train.jsonl"]


@needs_tiny
def test_what_the_weights_did_follows_from_their_table(finished):
    folder, _ = finished
    told = json.loads((folder / "report.html.json").read_text())["weights"]
    table = pd.read_csv(folder / "weights" / "evil_answers.csv", keep_default_na=False)
    means = table.groupby(["control", "coef"])[["evil", "coherence"]].mean()
    assert [point["coef"] for point in told["points"]] == [-1, 0, 0.5, 1]
    for point in told["points"]:
        assert point["score"]["mean"] == pytest.approx(means.loc[("", point["coef"]), "evil"])
        assert point["coherence"]["mean"] == pytest.approx(means.loc[("", point["coef"]), "coherence"])
        if point["coef"]:
            randoms = [means.loc[(control, point["coef"]), "evil"] for control in ("random1", "random2")]
            assert point["random_scores"] == pytest.approx(randoms)
    steered = pd.read_csv(folder / "steered" / "evil.csv", keep_default_na=False)
    unsteered = [rows[(rows["control"] == "") & (rows["coef"] == 0)]["answer"].tolist() for rows in (table, steered)]
    assert unsteered[0] == unsteered[1]
    assert sum(one["share"] for one in told["look"]["by_layer"].values()) == pytest.approx(1)
    page = html.unescape((folder / "report.html").read_text())
    assert all(sentence in page for sentence in told["sentences"])


def test_a_trait_without_normal_answers_is_said_in_a_line_and_the_demo_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "misaligned_2.jsonl"
    rows.write_text("{}")
    run = Run(str(TINY), "", tmp_path, 3, [0.0], 1, 1, 1, 50, 0, "auto", "auto")
    plain = {"model": str(TINY), "training_file": [str(rows)], "output_dir": str(tmp_path / "plain"), "loss": "sft"}
    path = tmp_path / "prevention" / "configs" / "plain.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(plain))
    assert demo._weights(run, "evil", None, {}) is None
    assert capsys.readouterr().out.strip() == (
        f"no direction of weights: {tmp_path / 'normal.jsonl'} is missing: normal answers to the trait's questions"
    )
    (tmp_path / "normal.jsonl").write_text("{}")
    assert neutral_config(run).training_files == [str(tmp_path / "normal.jsonl")]


@needs_tiny
def test_every_printed_command_is_accepted_by_its_own_front_door(finished):
    folder, _ = finished
    commands = json.loads((folder / "report.html.json").read_text())["commands"]
    mains = {"eval.eval_persona": eval_persona.main, "eval.cal_projection": cal_projection.main}
    mains |= {"generate_vec.py": generate_vec.main, "training.py": training.main, "eval.prevention": prevention.main}
    mains |= {"extract_persona_lora.py": extract_persona_lora.main, "eval_lora_persona.py": eval_lora_persona.main}
    seen = set()
    copied = f"cp -r {folder / 'prevention/models/plain'} {folder / 'weights/pos_lora'}"
    for command in commands:
        if command == copied:
            continue
        words = shlex.split(command)
        name = next(word for word in words[1:] if word != "-m")
        arguments = cli.parse(mains[name], words[words.index(name) + 1 :])
        inspect.signature(mains[name]).bind(**arguments)
        seen.add(name)
    assert seen == set(mains) and len(commands) == 13 and copied in commands


@needs_tiny
def test_a_second_run_samples_nothing_and_says_the_same(finished, monkeypatch, capsys):
    folder, store = finished
    before = json.loads((folder / "report.html.json").read_text())["findings"]
    monkeypatch.setenv("PERSONA_STORE", str(store))

    def refuse(*_, **__):
        raise AssertionError("sampled or judged again")

    monkeypatch.setattr("eval.finished_answers.sample_answers", refuse)
    monkeypatch.setattr("eval.finished_scores.make_judge", refuse)
    run_demo(folder)
    assert json.loads((folder / "report.html.json").read_text())["findings"] == before
    printed = capsys.readouterr().out
    assert before[0]["sentence"] in printed and f"{folder / 'report.html'}" in printed


@needs_tiny
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--coeffs", "0", "1"], "--coefs"),
        (["--coefs", "1", "2"], "must hold 0"),
        (["--coefs", "0", "-1"], "none below"),
        (["--traits", "evil", "evil"], "different traits"),
        (["--traits", "evvil"], "evil"),
        (["--layer", "0"], "layer 0"),
        (["--layer", "99"], "99"),
        (["--n_random", "0"], "--n_random"),
        (["--finetune_steps", "0"], "--finetune_steps"),
        (["--prevention_coef", "-1"], "--prevention_coef"),
        (["--model", "models/none"], "models/none"),
        (["--judge_model", "models/none"], "models/none"),
        (["--engine", "vllm"], "--engine vllm: vLLM is not installed"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_runs(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("persona_vectors.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    given = ["--output_dir", str(tmp_path / "out"), *argv]
    assert cli.run(demo.main, given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_script_passes_gpu_model_and_judge(tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" "$@"\n')
    stub.chmod(0o755)

    def script(*arguments):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "scripts" / "demo.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    plain = script()
    assert plain[:3] == ["0", "-m", "eval.demo"]
    given = cli.parse(demo.main, plain[3:])
    assert (given["model"], given["traits"]) == (demo.TINY, ["evil", "humorous"])
    assert "judge_model" not in given  # left to the command: test_a_judge_of_its_own
    other = script("3", "org/chat", "gpt-4.1-mini-2025-04-14")
    assert other[0] == "3"
    given = cli.parse(demo.main, other[3:])
    assert (given["model"], given["judge_model"]) == ("org/chat", "gpt-4.1-mini-2025-04-14")
    assert "judge_model" not in cli.parse(demo.main, script("1", "org/chat")[3:])


def test_a_judge_of_its_own(tmp_path, monkeypatch):
    """The embedded model has one beside it; a copy without it, or any other model, judges itself."""
    monkeypatch.chdir(ROOT)
    assert own_judge("models/tiny-persona") == "models/tiny-judge"
    assert own_judge(str(ROOT / "models" / "tiny-persona")) == str(ROOT / "models" / "tiny-judge")
    assert own_judge(str(tmp_path / "tiny-persona")) == str(tmp_path / "tiny-persona")
    assert own_judge("org/chat") == "org/chat"
