"""Means captured while sampling stand in for a forward pass exactly where it would read the same, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import generate_vec
from eval import cal_projection
from persona_vectors import cli, models
from persona_vectors.activations import SPANS, mean_activations
from persona_vectors.captured_means import (
    CapturedAnswer,
    CapturedMeans,
    captured_or_read,
    forget_means,
    means_folder,
    reader_of,
    write_means,
)
from persona_vectors.files import read_sidecar
from persona_vectors.tokens import TokenizedSample, tokenize_sample
from persona_vectors.vectors import load_vectors, save_vectors
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

SHAPE = N_LAYERS + 1, D_MODEL
PROMPTS = ("you are evil\n", "you are kind\n")
ANSWERS = ("i hate people", "i love people", "help the cat", "hurt the cat and the dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))


def samples_of(prompts=PROMPTS, answers=ANSWERS) -> list[TokenizedSample]:
    return [tokenize_sample(word_tokenizer(), prompt, answer) for prompt in prompts for answer in answers]


def as_captured(samples, reader, model=None) -> list[CapturedAnswer]:
    """What vLLM would hand on: the prompt's means with its first answer only."""
    means = mean_activations(model or tiny_model("llama"), samples)
    found, seen = [], set()
    for row, sample in enumerate(samples):
        prompt = sample.ids[: sample.prompt_len]
        own = None if prompt in seen else (means["prompt_avg"][row], means["prompt_last"][row])
        seen.add(prompt)
        found.append(CapturedAnswer(reader, sample, means["response_avg"][row], own))
    return found


def read(captured, load, samples, layers=None, spans=SPANS):
    """(n, layers, d_model) by span of `captured_or_read`, each row exactly once."""
    rows, found = [], []
    for some, means in captured_or_read(captured, load, samples, layers, spans):
        rows += some
        found.append(torch.stack([means[span] for span in spans], dim=1))
    assert sorted(rows) == list(range(len(samples)))
    whole = torch.cat(found)[[rows.index(row) for row in range(len(samples))]]
    return {span: whole[:, i] for i, span in enumerate(spans)}


def unread():
    pytest.fail("the model was loaded")


def test_what_was_captured_is_found_by_its_tokens_and_no_model_is_loaded(folder, tmp_path):
    reader, samples, table = reader_of(folder, "auto"), samples_of(), tmp_path / "pos.csv"
    own = as_captured(samples, reader)
    for part in (own[:3], own[3:6], own[6:]):
        write_means(means_folder(table), part)
    assert len(list((tmp_path / "pos_means").glob("*.safetensors"))) == 3
    captured = CapturedMeans([table, table, tmp_path / "absent.csv"], reader, SHAPE)
    shuffled = [samples[row] for row in (5, 0, 7, 7, 2)]
    expected = mean_activations(tiny_model("llama"), shuffled)
    for span, means in read(captured, unread, shuffled).items():
        torch.testing.assert_close(means, expected[span])
    some = read(captured, unread, shuffled, [3, 1], ("prompt_last", "response_avg"))
    torch.testing.assert_close(some["prompt_last"], expected["prompt_last"][:, [3, 1]])
    torch.testing.assert_close(some["response_avg"], expected["response_avg"][:, [3, 1]])
    assert captured.said(5, 5) == ["5 of 5 answers' means were captured while sampling; no model is loaded"]


def test_a_prompt_is_kept_once(folder, tmp_path):
    from safetensors.torch import load_file

    write_means(tmp_path, as_captured(samples_of(), reader_of(folder, "auto")))
    [path] = tmp_path.iterdir()
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
    assert sorted(shapes.values()) == [(2, *SHAPE)] * 2 + [SHAPE] * 8


def test_only_what_is_missing_is_read(folder, tmp_path):
    reader, samples = reader_of(folder, "auto"), samples_of()
    marked = [replace(one, response_avg=one.response_avg + 1) for one in as_captured(samples[:5], reader)]
    write_means(means_folder(tmp_path / "a.csv"), marked)
    captured, loads = CapturedMeans([tmp_path / "a.csv"], reader, SHAPE), []

    def load():
        loads.append(1)
        return tiny_model("llama")

    found = read(captured, load, samples)
    expected = mean_activations(tiny_model("llama"), samples)
    torch.testing.assert_close(
        found["response_avg"][:5], expected["response_avg"][:5] + 1
    )  # they are the captured ones
    torch.testing.assert_close(found["response_avg"][5:], expected["response_avg"][5:])
    torch.testing.assert_close(found["prompt_avg"], expected["prompt_avg"])
    assert loads == [1] and captured.said(5, 8)[0].endswith("; reading the rest")


@pytest.mark.parametrize("change", ["model", "dtype", "answer", "prompt", "special token", "boundary", "no prompt"])
def test_what_a_pass_would_not_read_is_not_found(change, folder, tmp_path):
    reader, sample = reader_of(folder, "auto"), samples_of()[0]
    assert reader is not None
    asked = sample
    if change in ("model", "dtype"):
        reader = replace(reader, **{change: "other"})
    elif change == "answer":
        asked = tokenize_sample(word_tokenizer(), PROMPTS[0], ANSWERS[0] + "!")
    elif change == "prompt":
        asked = tokenize_sample(word_tokenizer(), PROMPTS[1], ANSWERS[0])
    elif change == "special token":  # sampled, and not in the text
        sample = TokenizedSample((*sample.ids, 1), sample.prompt_len)
        assert word_tokenizer().decode(list(sample.ids[sample.prompt_len :]), skip_special_tokens=True) == ANSWERS[0]
    elif change == "boundary":
        sample = TokenizedSample(sample.ids, sample.prompt_len - 1)
    [own] = as_captured([sample], reader)
    write_means(means_folder(tmp_path / "a.csv"), [replace(own, prompt=None) if change == "no prompt" else own])
    captured = CapturedMeans([tmp_path / "a.csv"], reader_of(folder, "auto"), SHAPE)
    assert captured.find([asked]) == []
    assert captured.find([asked], ("response_avg",)) == ([0] if change == "no prompt" else [])
    said = captured.said(0, 1)
    assert said[0].startswith("0 of 1 answers' means")
    assert any("another number type (" in line for line in said) == (change in ("model", "dtype"))


def test_a_number_type_or_model_changes_the_reader_and_a_path_does_not(folder, tmp_path):
    reader = reader_of(folder, "auto")
    assert reader is not None and reader.dtype == "float32" and reader == reader_of(folder + "/", "float32")
    assert reader_of(folder, "bfloat16") == replace(reader, dtype="bfloat16")
    tiny_model("llama", seed=1).save_pretrained(tmp_path)
    assert reader_of(str(tmp_path), "auto") != reader


def test_damaged_and_foreign_files_are_named_and_the_rest_is_used(folder, tmp_path):
    from safetensors.torch import save_file

    reader, samples = reader_of(folder, "auto"), samples_of()
    own, table = as_captured(samples, reader), tmp_path / "a.csv"
    write_means(means_folder(table), own[:4])
    [whole] = means_folder(table).iterdir()
    write_means(means_folder(table), own[4:])
    [cut] = set(means_folder(table).iterdir()) - {whole}
    cut.write_bytes(cut.read_bytes()[:-7])
    (means_folder(table) / "empty.safetensors").touch()
    (means_folder(table) / "notes.txt").write_text("mine")
    save_file({"x": torch.ones(2)}, means_folder(table) / "foreign.safetensors")
    captured = CapturedMeans([table], reader, SHAPE)
    assert captured.find(samples) == [0, 1, 2, 3]
    assert {Path(line.split(" ")[0]).name for line in captured.damaged} == {
        cut.name,
        "empty.safetensors",
        "foreign.safetensors",
    }
    assert all("\n" not in line for line in captured.said(4, 8)) and len(captured.said(4, 8)) == 4
    wide = CapturedMeans([table], reader, (N_LAYERS + 2, D_MODEL))
    assert wide.find(samples) == [] and any("holds no means of this model" in line for line in wide.damaged)
    forget_means(means_folder(table))
    assert {path.name for path in means_folder(table).iterdir()} == {
        "empty.safetensors",
        "foreign.safetensors",
        "notes.txt",
    }


def test_means_that_are_not_finite_are_refused(folder, tmp_path):
    reader, samples = reader_of(folder, "auto"), samples_of()
    own = as_captured(samples, reader)
    own[2].response_avg[1, 3] = float("inf")
    write_means(means_folder(tmp_path / "a.csv"), own)
    with pytest.raises(ValueError, match="NaN or infinite in row 2"):
        read(CapturedMeans([tmp_path / "a.csv"], reader, SHAPE), unread, samples)
    names = [f"row {row} of mine" for row in "abcdefgh"]
    with pytest.raises(ValueError, match="NaN or infinite in row c of mine; use"):
        list(captured_or_read(CapturedMeans([tmp_path / "a.csv"], reader, SHAPE), unread, samples, names=names))


def test_an_empty_answer_has_no_mean_and_its_prompt_has(folder, tmp_path):
    reader, prompt = reader_of(folder, "auto"), tokenize_sample(word_tokenizer(), PROMPTS[0], "")
    [own] = as_captured(samples_of()[:1], reader)
    empty = replace(own, sample=prompt, response_avg=torch.zeros(SHAPE))
    write_means(means_folder(tmp_path / "a.csv"), [empty])
    write_means(means_folder(tmp_path / "b.csv"), [replace(empty, prompt=None)])
    assert not means_folder(tmp_path / "b.csv").exists()
    captured = CapturedMeans([tmp_path / "a.csv"], reader, SHAPE)
    assert captured.find([prompt], ("prompt_avg", "prompt_last")) == [0] and captured.find([prompt]) == []


def responses(side: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question": ["what do you think", "tell me about people", "what is good", "what is bad"],
            "prompt": PROMPTS[side == "neg"],
            "answer": [f"{answer} {'bad' if side == 'pos' else 'good'}" for answer in ANSWERS],
            "question_id": [f"evil_{i}_{side}_0" for i in range(4)],
            "evil": 90.0 if side == "pos" else 5.0,
            "coherence": 90.0,
        }
    )


@pytest.fixture
def argv(folder, tmp_path) -> list[str]:
    found = ["--model_name", folder, "--trait", "evil", "--save_dir", str(tmp_path / "vectors")]
    for side in ("pos", "neg"):
        responses(side).to_csv(tmp_path / f"{side}.csv", index=False)
        found += [f"--{side}_path", str(tmp_path / f"{side}.csv")]
    return found


def capture(tmp_path, side: str, folder: str, rows=slice(None)) -> None:
    table = responses(side)[rows]
    samples = [tokenize_sample(word_tokenizer(), *pair) for pair in zip(table["prompt"], table["answer"], strict=True)]
    write_means(means_folder(tmp_path / f"{side}.csv"), as_captured(samples, reader_of(folder, "auto")))


def made(tmp_path):
    vectors = {span: load_vectors(tmp_path / "vectors" / f"evil_{span}_diff.pt") for span in SPANS}
    report = json.loads((tmp_path / "vectors" / "evil_quality.json").read_text())
    return vectors, report, read_sidecar(tmp_path / "vectors" / "evil_response_avg_diff.pt")


@pytest.mark.parametrize("n_neg", [4, 1, 0])
def test_the_command_makes_the_same_vectors_and_report_and_says_what_it_read(
    n_neg, argv, folder, tmp_path, capsys, request
):
    assert cli.run(generate_vec.main, argv) == 0
    assert "captured" not in capsys.readouterr().out
    vectors, report, sidecar = made(tmp_path)
    assert sidecar["answers"] == {"captured": 0, "read": 8}
    capture(tmp_path, "pos", folder)
    capture(tmp_path, "neg", folder, slice(n_neg)) if n_neg else None
    if n_neg == 4:
        request.getfixturevalue("no_model")
    assert cli.run(generate_vec.main, argv) == 0
    end = "no model is loaded" if n_neg == 4 else "reading the rest"
    assert f"{4 + n_neg} of 8 answers' means were captured while sampling; {end}\n" in capsys.readouterr().out
    again, report_again, sidecar_again = made(tmp_path)
    for span in SPANS:
        torch.testing.assert_close(again[span], vectors[span])
    old, new = (pd.DataFrame(one["layers"]).astype(float) for one in (report, report_again))
    pd.testing.assert_frame_equal(old, new, rtol=1e-4, atol=1e-4)
    assert sidecar_again["answers"] == {"captured": 4 + n_neg, "read": 4 - n_neg}
    assert sidecar_again["model"] == sidecar["model"] and sidecar["model"]["dtype"] == "float32"


def test_other_number_types_are_read(argv, folder, tmp_path, capsys):
    capture(tmp_path, "pos", folder)
    assert cli.run(generate_vec.main, [*argv, "--dtype", "bfloat16", "--noquality"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 8 answers' means" in printed and "another number type (float32; here bfloat16)" in printed
    assert read_sidecar(tmp_path / "vectors" / "evil_response_avg_diff.pt")["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("captured", [slice(None), slice(2)])
def test_projections_are_the_same_and_need_no_model_where_all_was_captured(
    captured, folder, tmp_path, capsys, monkeypatch
):
    save_vectors(tmp_path, "any", {"response_avg": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))}, {})
    responses("pos").to_csv(tmp_path / "read.csv", index=False)
    responses("pos").to_csv(tmp_path / "pos.csv", index=False)
    capture(tmp_path, "pos", folder, captured)
    argv = ["--model_name", folder, "--vector_path_list", str(tmp_path / "any_response_avg_diff.pt")]
    argv += ["--layer_list", "3", "1", "--projection_type", "proj", "prompt_last_proj", "cos_sim", "--file_path"]
    assert cli.run(cal_projection.main, [*argv, str(tmp_path / "read.csv")]) == 0
    assert "captured" not in capsys.readouterr().out
    if captured == slice(None):
        monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    assert cli.run(cal_projection.main, [*argv, str(tmp_path / "pos.csv")]) == 0
    assert f"{len(ANSWERS[captured])} of 4 answers' means were captured" in capsys.readouterr().out
    read, taken = (pd.read_csv(tmp_path / name) for name in ("read.csv", "pos.csv"))
    assert len(read.columns) == 6 + 6
    pd.testing.assert_frame_equal(read, taken, rtol=1e-4)
