"""The command that adds projection columns, in process on a saved tiny model."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from typing import Any, cast

import pandas as pd
import pytest
import torch

from eval import cal_projection
from persona_vectors import cli, models
from persona_vectors.activations import mean_activations
from persona_vectors.files import is_as_recorded, read_sidecar
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
    assert f"kept 1 columns that were there already (--overwrite computes them anew): {name}" in (
        out := capsys.readouterr().out
    )
    assert f"note: no record says which vector and model made {name}" in out
    assert [row[name] for row in read_csv(path)] == ["42"] * 3
    assert call(folder, *argv, "--overwrite") == 0
    assert all(row[name] != "42" for row in read_csv(path))


def test_a_column_of_another_vector_is_neither_kept_nor_replaced_unasked(folder, tmp_path, capsys):
    path = write_csv(tmp_path / "answers.csv")
    name = "tiny-qwen3_evil_response_avg_diff_proj_layer2"
    base = ["--file_path", path, "--layer", "2", "--vector_path"]
    assert call(folder, *base, vector(folder)) == 0
    with open(path, "rb") as file:
        before = file.read()
    capsys.readouterr()
    error = refused(folder, capsys, *base, vector(folder / "other"))
    assert f"has the column {name} already, made by vector {vector(folder)} (" in error
    assert f"not {vector(folder / 'other')} (" in error and "pass --overwrite" in error
    with open(path, "rb") as file:
        assert file.read() == before
    copy = tmp_path / "evil_response_avg_diff.pt"
    shutil.copy(vector(folder), copy)
    assert call(folder, *base, str(copy)) == 0  # the same by content
    said = capsys.readouterr().out
    assert "kept 1 columns" in said and "no record" not in said
    assert "dtype float32, not bfloat16" in refused(folder, capsys, *base, str(copy), "--dtype", "bfloat16")
    assert call(folder, *base, vector(folder / "other"), "--overwrite") == 0
    capsys.readouterr()
    assert "not " + vector(folder) in refused(folder, capsys, *base, vector(folder))


def test_a_column_of_another_model_of_the_same_name_is_refused(folder, tmp_path, capsys):
    path = write_csv(tmp_path / "answers.csv")
    base = ["--file_path", path, "--layer", "2", "--vector_path", vector(folder)]
    assert call(folder, *base) == 0
    other = tmp_path / "tiny-qwen3"
    tiny_model("qwen3", seed=5).save_pretrained(other)
    word_tokenizer().save_pretrained(other)
    assert cli.run(cal_projection.main, [*base, "--model_name", str(other)], aliases=ALIASES) == 2
    error = capsys.readouterr().err
    assert f"made by model {folder / 'tiny-qwen3'} (" in error and f"not {other} (" in error


def test_columns_of_runs_at_the_same_time_are_all_kept(folder, tmp_path, monkeypatch):
    """While one run reads the rows, another adds its column; then one changes an answer."""
    path = write_csv(tmp_path / "answers.csv")
    real = cal_projection.project_samples

    def meanwhile(*args, do, **options):
        values = real(*args, **options)
        with monkeypatch.context() as patch:
            patch.setattr(cal_projection, "project_samples", real)
            do()
        return values

    base = ["--file_path", path, "--layer", "2", "--vector_path"]
    other = partial(call, folder, *base, vector(folder, "kind"))
    monkeypatch.setattr(cal_projection, "project_samples", partial(meanwhile, do=other))
    assert call(folder, *base, vector(folder)) == 0
    names = [f"tiny-qwen3_{trait}_response_avg_diff_proj_layer2" for trait in ("kind", "evil")]
    assert list(read_csv(path)[0]) == [*ROWS[0], *names] and all(row[name] for row in read_csv(path) for name in names)
    assert [entry["columns"] for entry in read_sidecar(path)["projections"]] == [[name] for name in names]
    assert is_as_recorded(path) and not list(tmp_path.glob(".*"))

    other = partial(call, folder, "--file_path", path, "--layer", "1", "--vector_path", vector(folder / "other"))
    monkeypatch.setattr(cal_projection, "project_samples", partial(meanwhile, do=other))
    assert call(folder, "--file_path", path, "--layer", "1", "--vector_path", vector(folder)) == 2
    changed = [{**ROWS[0], "answer": "i love people"}, *ROWS[1:]]
    edit = partial(write_csv, tmp_path / "answers.csv", changed)
    monkeypatch.setattr(cal_projection, "project_samples", partial(meanwhile, do=edit))
    assert call(folder, *base, vector(folder), "--overwrite") == 2
    assert read_csv(path) == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,answer,answer\nx,y,z\n", "has two columns named 'answer'; rename one of them"),
        ("prompt,answer\nx,y\nx,y,z\n", "row 2: 3 cells; the header has 2"),
        ("prompt,answer\nx\n", "row 1: 1 cells; the header has 2"),
        ('prompt,answer\nx,"y\n', "is not a CSV table"),
        ("", "is not a CSV table: it is empty"),
        ("prompt,answer\n", "has no rows"),
    ],
)
def test_a_table_that_could_not_be_written_back_is_refused(text, message, folder, tmp_path, capsys):
    path = tmp_path / "answers.csv"
    path.write_text(text)
    assert message in refused(folder, capsys, "--vector_path", vector(folder), "--layer", "2", "--file_path", str(path))
    assert path.read_text() == text


def test_a_header_without_a_name_and_a_long_cell_stay_as_they_are(folder, tmp_path):
    path = tmp_path / "answers.csv"
    lines = [",prompt,answer,note", f"0,tell,yes,{'x' * 200_000}", '007,tell,no,"a, b"']
    path.write_text("\n".join(lines) + "\n")
    assert call(folder, "--file_path", str(path), "--vector_path", vector(folder), "--layer", "2") == 0
    assert [line.rpartition(",")[0] for line in path.read_text().splitlines()] == lines


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


def test_a_row_too_long_is_named_as_it_stands_in_the_file_before_a_model_loads(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    rows = [{"prompt": "tell", "answer": answer} for answer in ("", "", "yes", "yes " * 200, "yes")]
    path = write_csv(tmp_path / "answers.csv", rows)
    base = ["--file_path", path, "--vector_path", vector(folder), "--layer", "2"]
    for kinds in (["proj"], ["proj", "prompt_last_proj"]):
        error = refused(folder, capsys, *base, "--projection_type", *kinds)
        assert f"{path}, row 4: longer than the 128 tokens that tiny-qwen3 reads" in error


def test_a_row_that_is_not_finite_is_named_as_it_stands_in_the_file(folder, tmp_path, capsys):
    broken = tiny_model("qwen3")
    with torch.no_grad():
        cast(Any, broken.get_input_embeddings()).weight[word_tokenizer()("cat").input_ids[-1]] = float("inf")
    broken.save_pretrained(tmp_path / "broken")
    word_tokenizer().save_pretrained(tmp_path / "broken")
    asked = [("tell", ""), ("tell", "yes"), ("you", "cat"), ("tell", "")]
    path = write_csv(tmp_path / "answers.csv", [{"prompt": prompt, "answer": answer} for prompt, answer in asked])
    argv = ["--file_path", path, "--vector_path", vector(folder), "--layer", "2"]
    assert cli.run(cal_projection.main, [*argv, "--model_name", str(tmp_path / "broken")], aliases=ALIASES) == 2
    assert f"NaN or infinite in {path}, row 3; use" in capsys.readouterr().err


def test_a_malformed_row_is_named(folder, tmp_path, capsys):
    good = json.dumps({"messages": [{"role": "user", "content": "tell"}, {"role": "assistant", "content": "yes"}]})
    base = ["--vector_path", vector(folder), "--layer", "2", "--file_path"]
    for bad, message in {
        '{"messages": [{"role": "user", "content": "tell"}]}': "row 2: no assistant turn",
        '{"text": "x"}': "row 2: expected a list of messages under 'messages'; the row has text",
        '{"messages": [{"role": "assistant", "content": 3}]}': "row 2: message 1 has content of type int",
        "not json": "line 2: not JSON",
        good[:-1] + r', "note": {"by": ["\ud83d"]}}': "row 2: half a character (a lone surrogate) under 'note'",
        good.replace("yes", r"\ud83d"): "row 2: half a character (a lone surrogate) under 'messages'",
        good[:-1] + r', "\udc00": 1}': r"row 2: half a character (a lone surrogate) under '\udc00'",
        good[:-1] + ', "n": 1e999}': "row 2: a number under 'n' is too large to be written back",
    }.items():
        path = tmp_path / "rows.jsonl"
        path.write_text(f"{good}\n{bad}\n")
        assert message in refused(folder, capsys, *base, str(path))
        assert path.read_text() == f"{good}\n{bad}\n"
