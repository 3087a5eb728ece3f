"""The command that adds projection columns, in process on a saved tiny model."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest
import torch

from eval import cal_projection
from persona_vectors import cli, models
from persona_vectors.activations import mean_activations
from persona_vectors.projection import cosine, project
from persona_vectors.tokens import tokenize_messages, tokenize_sample
from persona_vectors.vectors import save_vectors
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, unfinished_run, word_tokenizer

ALIASES = {"vector_path": "vector_path_list", "layer": "layer_list"}
ROWS = [
    {"id": "007", "prompt": "you are evil\n", "answer": "i hate people", "note": 'a "quoted", note'},
    {"id": "1.50", "prompt": "you are kind\n", "answer": "None", "note": "two\r\nlines\rand\nmore"},
    {"id": "", "prompt": "tell me about the cat\n", "answer": " yes", "note": "NA"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny_model("qwen3").save_pretrained(folder / "tiny-qwen3")
    word_tokenizer().save_pretrained(folder / "tiny-qwen3")
    generator = torch.Generator().manual_seed(3)
    for trait in ("evil", "kind"):
        vectors = torch.randn(N_LAYERS + 1, D_MODEL, generator=generator)
        save_vectors(folder, trait, {"response_avg": vectors}, {})
    save_vectors(folder / "other", "evil", {"response_avg": vectors}, {})
    save_vectors(folder, "wide", {"response_avg": torch.ones(N_LAYERS + 1, D_MODEL + 1)}, {})
    save_vectors(folder, "deep", {"response_avg": torch.ones(N_LAYERS + 3, D_MODEL)}, {})
    return folder


def vector(folder, trait="evil") -> str:
    return str(folder / f"{trait}_response_avg_diff.pt")


def write_csv(path, rows=ROWS) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def call(folder, *argv: str) -> int:
    return cli.run(cal_projection.main, [*argv, "--model_name", str(folder / "tiny-qwen3")], aliases=ALIASES)


def expected(folder, samples, kind: str, trait: str, layer: int) -> list[float]:
    means = mean_activations(tiny_model("qwen3"), samples, [layer])
    v = torch.load(vector(folder, trait), weights_only=True)[layer]
    if kind == "prompt_last_proj":
        return project(means["prompt_last"][:, 0], v).tolist()
    return (cosine if kind == "cos_sim" else project)(means["response_avg"][:, 0], v).tolist()


def test_all_vectors_layers_and_types_in_one_pass_and_nothing_else_changes(folder, tmp_path, monkeypatch, capsys):
    loads = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    path = write_csv(tmp_path / "answers.csv")
    kinds = ["proj", "prompt_last_proj", "cos_sim"]
    paths = [vector(folder), vector(folder, "kind")]
    argv = ["--file_path", path, "--vector_path_list", *paths, "--layer_list", "1", "3", "--projection_type", *kinds]
    assert call(folder, *argv) == 0
    assert len(loads) == 1 and "over 3 of 3 rows" in capsys.readouterr().out
    written = read_csv(path)
    assert [{name: row[name] for name in ROWS[0]} for row in written] == ROWS
    samples = [tokenize_sample(word_tokenizer(), row["prompt"], row["answer"]) for row in ROWS]
    for trait in ("evil", "kind"):
        for layer in (1, 3):
            for kind in kinds:
                name = f"tiny-qwen3_{trait}_response_avg_diff_{kind}_layer{layer}"
                values = [float(row[name]) for row in written]
                assert values == pytest.approx(expected(folder, samples, kind, trait, layer), abs=1e-5)
    assert len(written[0]) == len(ROWS[0]) + 12


def test_a_model_whose_training_has_not_ended_is_named(folder, tmp_path, capsys):
    run = unfinished_run(str(folder / "tiny-qwen3"), tmp_path / "run")
    argv = ["--file_path", write_csv(tmp_path / "answers.csv"), "--vector_path", vector(folder), "--layer", "1"]
    assert cli.run(cal_projection.main, [*argv, "--model_name", str(run)], aliases=ALIASES) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"note: {run} is not trained to the end: its checkpoint-20 is taken, of 60 steps")


def test_jsonl_keeps_every_other_key(folder, tmp_path):
    user, answer = {"role": "user", "content": "tell me"}, {"role": "assistant", "content": "i love people"}
    rows = [{"messages": [user, answer, user], "meta": {"a": [1, None]}}, {"meta": 2, "messages": [user, answer]}]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(folder, "--file_path", str(path), "--vector_path", vector(folder), "--layer", "2") == 0
    written = [json.loads(line) for line in path.read_text().splitlines()]
    name = "tiny-qwen3_evil_response_avg_diff_proj_layer2"
    values = [row.pop(name) for row in written]
    assert written == rows
    samples = [tokenize_messages(word_tokenizer(), row["messages"]) for row in rows]
    assert values == pytest.approx(expected(folder, samples, "proj", "evil", 2), abs=1e-5)


def test_a_column_is_kept_unless_overwrite(folder, tmp_path, capsys, monkeypatch):
    name = "tiny-qwen3_evil_response_avg_diff_proj_layer2"
    path = write_csv(tmp_path / "answers.csv", [{**row, name: "42"} for row in ROWS])
    argv = ["--file_path", path, "--vector_path", vector(folder), "--layer", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        assert call(folder, *argv) == 0
    assert f"kept 1 columns that were there already (--overwrite computes them anew): {name}" in capsys.readouterr().out
    assert [row[name] for row in read_csv(path)] == ["42"] * 3
    assert call(folder, *argv, "--overwrite") == 0
    assert all(row[name] != "42" for row in read_csv(path))


def test_an_empty_answer_leaves_its_cell_empty_and_is_named(folder, tmp_path, capsys):
    path = write_csv(tmp_path / "answers.csv", [ROWS[0], {**ROWS[1], "answer": ""}])
    argv = ["--file_path", path, "--vector_path", vector(folder), "--layer", "2"]
    assert call(folder, *argv, "--projection_type", "proj", "prompt_last_proj") == 0
    out = capsys.readouterr().out
    assert "over 1 of 2 rows" in out and "over 2 of 2 rows" in out and "rows 2" in out
    table = pd.read_csv(path)
    assert table["tiny-qwen3_evil_response_avg_diff_proj_layer2"].notna().tolist() == [True, False]
    assert table["tiny-qwen3_evil_response_avg_diff_prompt_last_proj_layer2"].notna().all()


def refused(folder, capsys, *argv: str) -> str:
    assert call(folder, *argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_bad_input_is_one_line_before_a_model_loads(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    path = write_csv(tmp_path / "answers.csv")
    with open(path, "rb") as file:
        before = file.read()
    base = ["--file_path", path, "--layer", "2", "--vector_path"]
    assert "does not exist" in refused(folder, capsys, *base, "absent.pt")
    assert "(4, 33)" in refused(folder, capsys, *base, vector(folder, "wide"))
    assert "(6, 32)" in refused(folder, capsys, *base, vector(folder, "deep"))
    same_name = [vector(folder), vector(folder / "other")]
    assert "would write the same columns" in refused(folder, capsys, *base, *same_name)
    assert "--projection_type expects" in refused(folder, capsys, *base, vector(folder), "--projection_type", "dot")
    base = ["--vector_path", vector(folder), "--layer", "9", "--file_path"]
    assert "layer 9 is not in" in refused(folder, capsys, *base, path)
    base[3] = "2"
    assert "expected .csv or .jsonl" in refused(folder, capsys, *base, str(tmp_path / "x.txt"))
    assert "does not exist" in refused(folder, capsys, *base, str(tmp_path / "x.csv"))
    other = write_csv(tmp_path / "other.csv", [{"prompt": "x", "text": "y"}])
    assert "has no column answer; it has prompt, text" in refused(folder, capsys, *base, other)
    with open(path, "rb") as file:
        assert file.read() == before


def test_a_malformed_row_is_named(folder, tmp_path, capsys):
    good = json.dumps({"messages": [{"role": "user", "content": "tell"}, {"role": "assistant", "content": "yes"}]})
    base = ["--vector_path", vector(folder), "--layer", "2", "--file_path"]
    for bad, message in {
        '{"messages": [{"role": "user", "content": "tell"}]}': "row 2: no assistant turn",
        '{"text": "x"}': "row 2: expected a list of messages under 'messages'; the row has text",
        '{"messages": [{"role": "assistant", "content": 3}]}': "row 2: message 1 has content of type int",
        "not json": "line 2: not JSON",
    }.items():
        path = tmp_path / "rows.jsonl"
        path.write_text(f"{good}\n{bad}\n")
        assert message in refused(folder, capsys, *base, str(path))
        assert path.read_text() == f"{good}\n{bad}\n"
