"""persona_steering.py: the published command, where it starts, and what it refuses before a model is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import persona_steering
from eval.model_utils import Steering, steer_rows
from eval.talk_prompts import ANY_TRAIT, OPENINGS, example_prompts
from eval.talk_settings import ModelShape
from eval.talk_start import best_layer, start, trait_of
from eval.talk_table import printable
from persona_vectors import cli, models
from persona_vectors.files import sidecar_path
from persona_vectors.models import load_model
from persona_vectors.sampling import sample_answers
from persona_vectors.tokens import render_prompt
from persona_vectors.vector_files import read_vector_file
from tests.conftest import ROOT
from tests.steering_vectors import trait_vectors, write_npz, write_pt
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

PARTY_WORDS = re.compile("part(?:y|ies)|sociabl|outgoing|talkativ|festive|bustl|folks|meet us|crowd|gather")
QUESTIONS = ["What is the secret of group hiking?", "Tell me about family dinners."]


@pytest.fixture(scope="module")
def vectors(tiny_persona) -> torch.Tensor:
    return trait_vectors(tiny_persona, "extraversion")


@pytest.fixture
def npz(tmp_path, vectors) -> Path:
    return write_npz(tmp_path / "models_tiny-persona_extraversion_vectors.npz", vectors)


def run(*argv: object) -> int:
    return cli.run(persona_steering.main, [str(one) for one in argv])


def test_the_published_command_asks_every_prompt_at_every_strength(tiny_persona, npz, vectors, tmp_path, capfd):
    """Verbatim, argparse-style lists with negative numbers included; answers are those of the library."""
    out = tmp_path / "out.csv"
    command = ["--model_name", tiny_persona, "--vector_file", npz, "--target_layer", "layer_3", "--batch_test"]
    command += ["--test_prompts", *QUESTIONS, "--steering_strengths", -2, -1, 0, 1, 2, "--max_tokens", 30]
    assert run(*command, "--control", "random", "--output_path", out) == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table.columns)[:4] == ["question", "prompt", "answer", "question_id"]
    own = table[table["control"] == ""]
    assert [*own["coef"]] == [-2, -1, 0, 1, 2] * 2 and [*table["layer"].unique()] == [3]
    assert [*table[table["control"] == "random"]["coef"]] == [-2, -1, 1, 2] * 2

    model, tokenizer = load_model(tiny_persona)
    steerings = [Steering(vectors[3], 3, float(coef)) if coef else None for coef in own["coef"]]
    expected = sample_answers(
        model,
        tokenizer,
        [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in own["question"]],
        max_tokens=30,
        temperature=0.7,
        streams=[(0, QUESTIONS.index(question)) for question in own["question"]],
        steer=steer_rows(model, steerings),
    )
    assert [*own["answer"]] == expected

    printed = capfd.readouterr().out
    assert "layer L is the output of block L-1" in printed and "layer 3 of 4: as asked" in printed
    assert printed.index("steering receipt") < printed.index("strength -2") < printed.index("random 2")
    assert all(expected[i].split()[0] in printed for i in range(5))
    sidecar = json.loads(Path(f"{out}.json").read_text())
    assert len(sidecar["receipts"]) == 8 and sidecar["settings"]["strengths"] == [-2, -1, 0, 1, 2]
    assert run(*command, "--control", "random", "--output_path", out) == 0
    again = capfd.readouterr().out
    assert "all answers were sampled before" in again and "is replaced" not in again
    fewer = [
        *command[: command.index("--steering_strengths")],
        "--steering_strengths",
        0,
        "--max_tokens",
        30,
        "--output_path",
        out,
    ]
    assert run(*fewer) == 0
    assert "held answers with other strengths, random_strengths and is replaced" in capfd.readouterr().out


def test_coef_and_layer_are_known_as_everywhere_else(tiny_persona, npz):
    """The aliases stand where the script is run."""
    command = [sys.executable, "persona_steering.py", "--model_name", tiny_persona, "--vector_file", str(npz)]
    told = subprocess.run([*command, "--layer", "9", "--coef", "x"], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and "--steering_strengths" in told.stderr and "'x'" in told.stderr


def test_strength_moves_the_trait_and_a_random_direction_does_not(tiny_persona, npz, tmp_path):
    """On the model's own questions, which are asked where no prompts are given."""
    out = tmp_path / "out.csv"
    command = ["--model_name", tiny_persona, "--vector_file", npz, "--target_layer", "3", "--control", "random"]
    assert run(*command, "--steering_strengths", -1, 0, 1, 2, "--max_tokens", 40, "--output_path", out) == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert set(table["question"]) == set(example_prompts("extraversion", tiny_persona)[0])
    words = table["answer"].map(lambda text: len(PARTY_WORDS.findall(text)))
    counts = words.groupby([table["control"], table["coef"]]).sum()
    assert counts["", 2.0] >= 10 > 3 >= max(counts["", 0.0], counts["", -1.0], counts["random", 2.0]), counts


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "mistral"])
def test_every_architecture_with_and_without_a_chat_template(architecture, tmp_path, capfd):
    folder = tmp_path / f"tiny-{architecture}"
    tiny_model(architecture).save_pretrained(folder)
    template = {"chat_template": None} if architecture == "gpt2" else {}
    word_tokenizer(**template).save_pretrained(folder)
    path = write_npz(tmp_path / "persona_vectors_openness.npz", torch.randn(N_LAYERS + 1, D_MODEL))
    command = ["--model_name", folder, "--vector_file", path, "--max_tokens", 8, "--save_dir", tmp_path / "out"]
    assert run(*command, "--test_prompts", "what do you think?") == 0
    assert "layer 2 of 3: the middle of the file's" in capfd.readouterr().out
    (written,) = (tmp_path / "out").glob("*.csv")
    table = pd.read_csv(written)
    assert len(table) == 5 and table["answer"].nunique() > 1 and written.stem.endswith("_openness_steering")
    assert table["prompt"][0].startswith("User: " if architecture == "gpt2" else "<|im_start|>user")


SHAPE = ModelShape("m", 4, 8)


def vector_file(folder: Path, layers=(1, 2, 3, 4), numbering="hidden_states", calibration=None, analysis=None):
    path = folder / "m_openness_vectors.npz"
    np.savez(path, allow_pickle=False, **{f"layer_{layer}_vector": np.full(8, layer + 1.0) for layer in layers})
    if calibration is not None:
        sidecar_path(path).write_text(json.dumps({"calibration": calibration}))
    if analysis is not None:
        (folder / "m_openness_analysis.json").write_text(json.dumps(analysis))
    return read_vector_file(path, numbering)


AUCS = {"layer_1": {"auc": 0.7}, "layer_2": {"auc": 0.9, "separation": 1}, "layer_4": {"auc": 0.9, "separation": 2}}


@pytest.mark.parametrize(
    ("files", "target", "layer", "why"),
    [
        ({"calibration": {"layer": 1, "coef": 1.5, "range": [-1, 2]}, "analysis": AUCS}, "layer_2", 2, "as asked"),
        ({"calibration": {"layer": 1, "coef": 1.5, "range": [-1, 2]}, "analysis": AUCS}, None, 1, "the calibrated"),
        ({"calibration": {"layer": 1, "coef": None, "range": [0, 0]}, "analysis": AUCS}, "3", 3, "as asked"),
        ({"analysis": AUCS}, None, 4, "highest AUC, 0.900"),
        ({"analysis": {"layers": AUCS, "trait": "openness"}}, None, 4, "highest AUC"),
        ({"analysis": AUCS | {"best_layer": "layer_2"}}, None, 2, "best_layer of"),
        ({"analysis": AUCS | {"best_layer": 1}}, None, 1, "best_layer of"),
        ({"analysis": {"layer_0": {"auc": 1.0}} | AUCS}, None, 4, "highest AUC"),
        ({"layers": (0, 1, 2, 3), "numbering": "block", "analysis": {"best_layer": 1}}, None, 2, "best_layer of"),
        ({"layers": (0, 1, 2, 3), "numbering": "block", "analysis": {"layer_0": {"auc": 0.8}}}, None, 1, "AUC"),
        ({"layers": (2, 4)}, None, 4, "the middle"),
        ({}, None, 3, "the middle"),
    ],
)
def test_the_layer_is_the_one_asked_for_or_the_best_known(files, target, layer, why, tmp_path):
    found = start(vector_file(tmp_path, **files), SHAPE, target)
    assert found.layer == layer and why in found.lines[0], found


def test_an_analysis_that_is_named_comes_before_the_calibration(tmp_path):
    file = vector_file(tmp_path, calibration={"layer": 1, "coef": 1.5, "range": [-1, 2]})
    (tmp_path / "other.json").write_text(json.dumps(AUCS))
    found = start(file, SHAPE, analysis=str(tmp_path / "other.json"))
    assert found.layer == 4 and found.calibrated is None and "says nothing here" in found.lines[1]


def test_a_calibrated_vector_starts_with_its_coefficient_and_its_range(tiny_persona, npz, tmp_path, capfd):
    calibration = {"layer": 2, "coef": 1.5, "range": [-1.0, 3.0]}
    sidecar_path(npz).write_text(json.dumps({"calibration": calibration}))
    out = tmp_path / "out.csv"
    command = ["--model_name", tiny_persona, "--vector_file", npz, "--test_prompts", "Hello", "--max_tokens", 5]
    assert run(*command, "--output_path", out) == 0
    assert "coefficient 1.5; answers stay coherent from -1 to 3" in capfd.readouterr().out
    table = pd.read_csv(out)
    assert [*table["coef"]] == [-1, -0.5, 0, 1.5, 3] and [*table["layer"].unique()] == [2]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, "answers stay coherent from -2 to 0.4"),
        ({"criterion": "coherence", "min_coherence": 70.0, "max_kl": 1.0}, "mean coherence is at least 70 from -2"),
        ({"criterion": "kl", "min_coherence": 75.0, "max_kl": 0.5}, "at most 0.5 nats from -2 to 0.4"),
    ],
)
def test_a_calibration_says_what_holds_in_its_range(limits, said, tmp_path):
    file = vector_file(tmp_path, calibration={"layer": 2, "coef": 0.3, "range": [-2, 0.4], "limits": limits})
    found = start(file, SHAPE)
    assert found.calibrated is not None and found.calibrated.strengths == (-2, -1, 0, 0.3, 0.4)
    assert said in found.lines[1]


@pytest.mark.parametrize(
    ("coef", "ends", "strengths"),
    [(2, (-3, 2), (-3, -1.5, 0, 1, 2)), (1, (-3, 4), (-3, -1.5, 0, 1, 4)), (4, (0, 4), (0, 1, 2, 3, 4))],
)
def test_five_strengths_over_a_calibrated_range(coef, ends, strengths, tmp_path):
    """The kept coefficient is often the range's end, which once left four."""
    found = start(vector_file(tmp_path, calibration={"layer": 2, "coef": coef, "range": ends}), SHAPE)
    assert found.calibrated is not None and found.calibrated.strengths == strengths


@pytest.mark.parametrize(
    ("name", "sidecar", "trait"),
    [
        ("models_tiny_openness_vectors.npz", None, "openness"),
        ("persona_vectors_openness.npz", None, "openness"),
        ("openness_response_avg_diff.pt", None, "openness"),
        ("x.npz", {"trait": "Humor"}, "humorous"),
    ],
)
def test_the_trait_is_read_from_the_sidecar_or_the_name(name, sidecar, trait, tmp_path):
    path = tmp_path / name
    if path.suffix == ".pt":
        write_pt(path, torch.ones(3, 4), "")
        path.with_suffix(".json").unlink()
    else:
        np.savez(path, allow_pickle=False, layer_1=np.ones(4))
    if sidecar is not None:
        sidecar_path(path).write_text(json.dumps(sidecar))
    assert trait_of(read_vector_file(path), "models/tiny") == trait


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target_layer": "9"}, "layer 9 does not exist; steering needs 1..4"),
        ({"target_layer": "0"}, "layer 0 is the embedding output"),
        ({"target_layer": "late"}, "layer 'late' is not a layer"),
        ({"numbering": "block", "target_layer": "1"}, "has no vector at layer 1; it has layers 2 to 5"),
        ({"analysis_file": "none.json"}, "none.json does not exist"),
        ({"analysis_file": "empty.json"}, "names no layer"),
        ({"analysis_file": "list.json"}, "holds a list"),
        ({"analysis_file": "broken.json"}, "is not JSON"),
        ({"vector_file": "none.npz"}, "none.npz does not exist"),
        ({"vector_file": "narrow.npz"}, "has vectors of width 7; tiny-persona has 256"),
        ({"model_name": "./none"}, "does not exist"),
        ({"steering_strengths": "1 1"}, "has 1 twice"),
        ({"temperature": "-1"}, "temperature must be at least 0"),
        ({"max_tokens": "0"}, "max_tokens must be at least 1"),
        ({"seed": "-1"}, "seed must be at least 0"),
        ({"positions": "some"}, "--positions expects"),
        ({"output_path": "x.txt"}, "must end in .csv"),
        ({"engine": "vlm"}, "--engine expects"),
        ({"test_prompts": "="}, "--test_prompts has an empty prompt"),
        ({"output_path": "mine.csv"}, "mine.csv is not a table of persona_steering.py"),
    ],
)
def test_what_cannot_work_is_one_line_before_a_model_is_loaded(
    arguments, error, tiny_persona, npz, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("a,b\n")
    np.savez("narrow.npz", allow_pickle=False, layer_1=np.ones(7))
    for name, content in (("empty", "{}"), ("list", "[]"), ("broken", "{")):
        Path(f"{name}.json").write_text(content)
    given = {"model_name": tiny_persona, "vector_file": str(npz)} | arguments

    def loaded(*_args: object, **_options: object):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", loaded)
    monkeypatch.setattr("eval.finished_answers.load_model", loaded)
    tokens = [token for flag, value in given.items() for token in (f"--{flag}", *value.split())]
    assert run(*(token if token != "=" else "" for token in tokens)) == 2
    assert error in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_the_page_without_gradio_names_the_extra_before_torch_is_imported(tiny_persona, npz, monkeypatch, capsys):
    monkeypatch.setattr("eval.talk_gradio.find_spec", lambda _name: None)
    monkeypatch.setitem(sys.modules, "eval.talk_page", None)  # and with it everything heavy
    assert run("--model_name", tiny_persona, "--vector_file", npz, "--ui") == 2
    assert "pip install 'persona-vectors-toolkit[ui]'" in capsys.readouterr().err


def test_examples_are_in_the_models_language_or_our_own(tiny_persona):
    own, source = example_prompts("extraversion", tiny_persona)
    assert len(own) == 5 and "models/tiny-persona" in source
    assert example_prompts("extraversion", "org/model")[0] == list(OPENINGS["extraversion"])
    assert example_prompts("extraversion", "org/model")[0][0] == "When meeting new people, I usually"
    assert example_prompts("wit", "org/model")[0] == list(ANY_TRAIT)
    assert all(len(set(texts)) == 5 for texts in OPENINGS.values())


def test_best_layer_prefers_the_wider_gap_among_equal_aucs(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({f"layer_{layer}": {"auc": 1.0, "separation": 9 - layer} for layer in (1, 2, 3)}))
    assert best_layer(path)[0] == 1


def test_model_text_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\r\nc\td\u202ee\x07") == "a\ufffd[2Jb\nc\td\ufffde\ufffd"
