"""The command that compares training data with the model's own answers, on the embedded model, from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from eval import projection_difference
from eval.projection_difference_rows import NOT_DRAWN, load_data_sets
from eval.row_answers import EMPTY
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.correlation import pearson
from persona_vectors.files import read_jsonl, read_sidecar, sha256_of_file, write_jsonl_atomic
from persona_vectors.models import load_model
from persona_vectors.statistics import random_directions
from persona_vectors.store import Store
from persona_vectors.tokens import tokenize_messages
from persona_vectors.vectors import save_vectors

ROOT = Path(__file__).resolve().parent.parent
SETS = {"tiny_evil/misaligned_2": 90, "tiny_evil/misaligned_1": 50, "tiny_evil/normal": 8}
SETS |= {"tiny_humorous/misaligned_2": 12}
N_ROWS, N_DRAWN = 14, 10
ALIASES = {"vector_path": "vector_path_list", "layer": "layer_list"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_persona) -> Path:
    """Data sets of a few rows, their scores, and two vectors: evil answers minus normal ones, and a random one."""
    place = tmp_path_factory.mktemp("data")
    for name in SETS:
        rows = read_jsonl(ROOT / f"dataset/{name}.jsonl")[:N_ROWS]
        rows[3] = {"id": 3, **rows[3], "note": "é 日本語"}
        if name == "tiny_evil/normal":
            rows[1]["messages"][-1]["content"] = ""
        write_jsonl_atomic(place / f"{name}.jsonl", rows)
    model, tokenizer = load_model(tiny_persona, dtype="float32", device_map="cpu")
    means = []
    for name in ("misaligned_2", "normal"):
        rows = read_jsonl(ROOT / f"dataset/tiny_evil/{name}.jsonl")[50:70]
        samples = [tokenize_messages(tokenizer, row["messages"]) for row in rows]
        means.append(mean_activations(model, samples, spans=["response_avg"])["response_avg"].mean(0))
    save_vectors(place, "evil", {"response_avg": means[0] - means[1]}, {})
    random = random_directions(len(means[0]), means[0].shape[1], 3.0, seed=1)
    save_vectors(place, "random", {"response_avg": random}, {"model": {"name": "other", "fingerprint": "0"}})
    scores = [
        {"file": str(place / f"{name}.jsonl"), "score": score + more}
        for name, score in SETS.items()
        for more in (-2, 2)
    ]
    pd.DataFrame(scores).to_csv(place / "scores.csv", index=False)
    return place


def arguments(place: Path, tiny_persona: str, **changes) -> list[str]:
    given = {
        "model": tiny_persona,
        "file_path": " ".join(str(place / f"{name}.jsonl") for name in SETS),
        "vector_path": f"{place / 'evil_response_avg_diff.pt'} {place / 'random_response_avg_diff.pt'}",
        "layer": "3",
        "output_dir": str(place / "out"),
        "kinds": "delta_p raw cheap base",
        "max_tokens": "40",
        "n_base": "2",
        "scores": str(place / "scores.csv"),
        "judge_model": tiny_persona,
        "trait": "evil",
        "device_map": "cpu",
    } | changes
    return [token for name, value in given.items() if value is not None for token in (f"--{name}", *value.split())]


def run(argv: list[str]) -> int:
    return cli.run(projection_difference.main, argv, ALIASES)


@pytest.fixture(scope="module")
def finished(place, tiny_persona) -> Path:
    """The folder of a finished run, which left its answers in a store beside it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PERSONA_STORE", str(place / "store.sqlite"))
        assert run(arguments(place, tiny_persona)) == 0
    return place / "out"


def table(path: Path, **values) -> pd.DataFrame:
    """The table's rows in which these columns have these values."""
    found = pd.read_csv(path)
    return found.loc[(found[list(values)] == pd.Series(values)).all(axis=1)]


def test_rows_come_out_as_they_went_in_with_their_values(finished, place):
    for name in SETS:
        before, after = read_jsonl(place / f"{name}.jsonl"), read_jsonl(finished / "rows" / f"{name}.jsonl")
        found = [row.pop("projection_difference") for row in after]
        assert after == before
        assert [one["line"] for one in found] == list(range(1, N_ROWS + 1))
        for number, one in enumerate(found):
            empty = name == "tiny_evil/normal" and number == 1
            assert one["left_out"] == (EMPTY if empty else None)
            values = one["values"]
            assert set(values) == {"delta_p", "raw", "cheap", "base", "judge", "judge_base", "judge_change"}
            for column in ("evil_response_avg_diff_layer3", "random_response_avg_diff_layer3"):
                if empty:
                    assert {values[kind][column] for kind in ("delta_p", "raw", "cheap", "base")} == {None}
                else:
                    assert values["delta_p"][column] == pytest.approx(values["raw"][column] - values["base"][column])


def test_means_are_those_of_the_rows(finished):
    for name in SETS:
        found = [row["projection_difference"]["values"] for row in read_jsonl(finished / "rows" / f"{name}.jsonl")]
        for kind in ("delta_p", "cheap"):
            values = [one[kind]["evil_response_avg_diff_layer3"] for one in found]
            there = [value for value in values if value is not None]
            [row] = table(
                finished / "datasets.csv", dataset=name, vector="evil_response_avg_diff", layer=3, kind=kind
            ).to_dict("records")
            assert row["mean"] == pytest.approx(np.mean(there)) and row["low"] < row["mean"] < row["high"]
            assert (row["n"], row["n_left_out"]) == (len(there), N_ROWS - len(there))
        judged = [one["judge"]["evil"] for one in found if one["judge"]["evil"] is not None]
        [row] = table(finished / "datasets.csv", dataset=name, kind="judge").to_dict("records")
        assert row["vector"] == "evil" and row["mean"] == pytest.approx(np.mean(judged))


def test_delta_p_orders_the_levels_and_stands_beside_random_directions(finished):
    rows = table(finished / "datasets.csv", vector="evil_response_avg_diff", layer=3, kind="delta_p")
    means = dict(zip(rows["dataset"], rows["mean"], strict=True))
    levels = [float(means[f"tiny_evil/{level}"]) for level in ("normal", "misaligned_1", "misaligned_2")]
    assert levels == sorted(levels)
    assert min(rows["random_95"].tolist()) > 0 and max(map(abs, rows["cosine"].tolist())) <= 1
    assert rows["random_share"].tolist()[0] > 0.99
    random = table(finished / "datasets.csv", vector="random_response_avg_diff", layer=3, kind="delta_p")
    assert max(map(abs, random["mean"].tolist())) < levels[-1]


def test_correlations_are_those_of_the_table(finished):
    for kind, vector in [("delta_p", "evil_response_avg_diff"), ("raw", "random_response_avg_diff"), ("judge", "evil")]:
        layer = {} if kind == "judge" else {"layer": 3}
        xs = table(finished / "datasets.csv", kind=kind, vector=vector, **layer)
        assert xs["dataset"].tolist() == list(SETS)
        expected = pearson(xs["mean"].to_numpy(), np.array(list(SETS.values()), dtype=float))
        [row] = table(finished / "correlations.csv", kind=kind, vector=vector, **layer).to_dict("records")
        assert row["pearson"] == pytest.approx(expected) and row["n"] == len(SETS)
        assert np.isnan(row["pearson_low"]), "six data sets are too few for an interval"
        assert np.isnan(row["random_99"]) if kind == "judge" else 0 < row["random_median"] < row["random_99"]
    of = {"vector": "evil_response_avg_diff", "layer": 3}
    by_kind = table(finished / "correlations.csv", **of).set_index("kind")["pearson"]
    for minus in ("raw", "cheap", "base"):
        [row] = table(finished / "differences.csv", **of, minus=minus).to_dict("records")
        assert row["difference"] == pytest.approx(by_kind["delta_p"] - by_kind[minus])
    assert len(table(finished / "differences.csv", **of, minus="judge evil")) == 1


def test_every_file_has_a_sidecar_and_the_page_says_the_same(finished, place):
    files = [path for path in finished.rglob("*") if path.is_file() and path.suffix != ".json"]
    names = {str(path.relative_to(finished)) for path in files}
    scatters = {f"scatter_{of}_response_avg_diff_layer3.png" for of in ("evil", "random")}
    assert names == scatters | {"scatter_judge_evil.png", "delta_p_layer3.png"} | {
        *(f"rows/{name}.jsonl" for name in SETS),
        *("datasets.csv", "correlations.csv", "differences.csv", "report.html"),
    }
    for path in files:
        side = read_sidecar(path)
        assert side["file"]["sha256"] == sha256_of_file(path) and side["settings"]["n_base"] == 2
        for name in SETS:
            assert side["data_sets"][name]["sha256"] == sha256_of_file(place / f"{name}.jsonl")
        assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG")
    said = read_sidecar(finished / "datasets.csv")
    assert "tiny_evil/normal: 1 of 14 rows have no value: empty answer (line 2)." in said["notes"]
    assert any("random_response_avg_diff.pt was made with another model (other)" in note for note in said["notes"])
    page = (finished / "report.html").read_text()
    for text in [*SETS, "1,000 random directions", "Rows at both ends", "own answer", "data sets are too few"]:
        assert text in page


def test_the_same_command_again_samples_and_judges_nothing(finished, place, tiny_persona, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_STORE", str(place / "store.sqlite"))
    put: list[str] = []
    monkeypatch.setattr(Store, "put_many", lambda _self, items, **_: put.extend(items))
    assert run(arguments(place, tiny_persona, output_dir=str(tmp_path / "again"))) == 0
    assert not put
    for name in ("datasets.csv", "correlations.csv", "differences.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / name), pd.read_csv(finished / name))


def test_a_sample_of_rows_keeps_all_rows_in_the_file(place, tiny_persona, tmp_path, capsys):
    name = "tiny_evil/misaligned_2"
    changes = {"file_path": str(place / f"{name}.jsonl"), "n_rows": str(N_DRAWN), "kinds": "cheap raw", "layer": "2 3"}
    none = dict.fromkeys(("scores", "judge_model", "trait"))
    assert run(arguments(place, tiny_persona, output_dir=str(tmp_path / "out"), **changes, **none)) == 0
    after = read_jsonl(tmp_path / "out/rows" / f"{name}.jsonl")
    found = [row.pop("projection_difference") for row in after]
    assert after == read_jsonl(place / f"{name}.jsonl")
    assert [one["left_out"] for one in found].count(NOT_DRAWN) == N_ROWS - N_DRAWN
    assert all(bool(one["values"]) == (one["left_out"] is None) for one in found)
    assert not list(tmp_path.rglob("scatter*")) and not list(tmp_path.rglob("correlations*"))
    assert (tmp_path / "out/cheap_layer2.png").is_file()
    assert "10 of 10" in capsys.readouterr().out
    with Store() as store:
        assert not store.groups(), "without delta_p and base nothing is sampled"


def test_data_sets_have_names_that_tell_them_apart(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    paths = [str(tmp_path / path) for path in ("a/x/d.jsonl", "b/x/d.jsonl", "b/y/e.jsonl")]
    for number, path in enumerate(paths):
        write_jsonl_atomic(path, [row] * (20 + number // 2))
    assert [one.name for one in load_data_sets(paths, None, 0)] == ["a/x/d", "b/x/d", "b/y/e"]
    assert [one.name for one in load_data_sets(paths[1:], None, 0)] == ["x/d", "y/e"]
    first, second, third = load_data_sets(paths, 5, 0)
    assert first.chosen == second.chosen != third.chosen and len(first.drawn()) == 5
    assert load_data_sets(paths, 5, 1)[0].chosen != first.chosen


@pytest.fixture
def wrong(place, tiny_persona, tmp_path, monkeypatch, capsys):
    """Runs the command with a mistake in it: the one line that it says, before a model is loaded."""

    def loaded(*_args, **_kwargs):
        raise AssertionError("a model was loaded before the error was found")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)

    def say(**changes) -> str:
        output = tmp_path / "out"
        assert run(arguments(place, tiny_persona, **{"output_dir": str(output)} | changes)) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and not output.exists()
        return err

    return say


def test_mistakes_are_one_line_before_a_model_is_loaded(wrong, place, tmp_path):
    one = str(place / "tiny_evil/normal.jsonl")
    assert "does not exist" in wrong(file_path=str(tmp_path / "none.jsonl"))
    assert "twice" in wrong(file_path=f"{one} {one}")
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    assert "bad.jsonl, line 1: no list of messages" in wrong(file_path=f"{one} {tmp_path / 'bad.jsonl'}")
    long = {"messages": [{"role": "user", "content": "hi " * 5000}, {"role": "assistant", "content": "yes"}]}
    write_jsonl_atomic(tmp_path / "long.jsonl", [long])
    assert "long.jsonl, line 1 (" in wrong(file_path=str(tmp_path / "long.jsonl"), scores=None)
    torch.save(torch.ones(3, 8), tmp_path / "other.pt")
    assert "use vectors of this model" in wrong(vector_path=str(tmp_path / "other.pt"))
    assert "layer" in wrong(layer="9")
    assert "delta_p" in wrong(kinds="delta")
    assert "go together" in wrong(trait=None) and "go together" in wrong(judge_model=None)
    assert "unknown trait" in wrong(trait="nice")
    assert "does not exist" in wrong(judge_model="./nowhere")
    for name in ("n_base", "max_tokens", "n_rows"):
        assert "must be at least 1" in wrong(**{name: "0"})
    assert "--seed" in wrong(seed="-1")
    assert "--engine vllm: vLLM is not installed" in wrong(engine="vllm")


def test_an_output_that_is_there_is_kept(finished, place, tiny_persona, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert run(arguments(place, tiny_persona, seed="7")) == 2
    assert "made with other settings; pass --overwrite" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_the_same_command_again_gives_the_same(finished, place, tiny_persona):
    before = {path: path.read_bytes() for path in finished.rglob("*.csv")}
    assert run(arguments(place, tiny_persona)) == 0
    assert before == {path: path.read_bytes() for path in finished.rglob("*.csv")}


def test_an_output_never_takes_the_place_of_its_input(finished, place, tiny_persona, capsys):
    own = finished / "rows/tiny_evil/normal.jsonl"
    before = own.read_bytes()
    assert run(arguments(place, tiny_persona, file_path=str(own), scores=None) + ["--overwrite"]) == 2
    assert "is where its own rows would be written" in capsys.readouterr().err and own.read_bytes() == before


def test_data_sets_without_a_value_leave_a_gap_and_are_said(place, tiny_persona, tmp_path, capsys):
    paths = [str(place / f"{name}.jsonl") for name in list(SETS)[:2]]
    rows = read_jsonl(paths[0])
    for row in rows:
        row["messages"][-1]["content"] = ""
    paths.append(str(write_jsonl_atomic(tmp_path / "empty/all.jsonl", rows)))
    scores = pd.DataFrame({"file": paths, "score": [90, 50, 10]})
    scores.to_csv(tmp_path / "s.csv", index=False)
    changes = {"file_path": " ".join(paths), "scores": str(tmp_path / "s.csv"), "kinds": "raw cheap", "layer": "3"}
    none = dict.fromkeys(("judge_model", "trait"))
    assert run(arguments(place, tiny_persona, output_dir=str(tmp_path / "out"), **changes, **none)) == 0
    out = capsys.readouterr().out
    assert "empty/all: 14 of 14 rows have no value: empty answer (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)." in out
    assert "no correlation with the scores" in out and not (tmp_path / "out/correlations.csv").exists()
    found = table(tmp_path / "out/datasets.csv", dataset="empty/all")
    assert np.isnan(found["mean"].tolist()).all() and found["n_left_out"].tolist() == [N_ROWS] * 4


def test_scores_that_do_not_fit_the_data_sets_are_refused(wrong, place, tmp_path):
    def scores(rows: list[dict]) -> str:
        pd.DataFrame(rows).to_csv(tmp_path / "s.csv", index=False)
        return str(tmp_path / "s.csv")

    good = [{"file": name, "score": score} for name, score in SETS.items()]
    two = " ".join(str(place / f"{name}.jsonl") for name in list(SETS)[:2])
    assert "at least 3 data sets" in wrong(scores=scores(good), file_path=two)
    assert "no score of tiny_humorous/misaligned_2" in wrong(scores=scores(good[:3]))
    assert "line 6: other is not among the data sets" in wrong(scores=scores([*good, {"file": "other", "score": 1}]))
    assert "line 3: score is 'high'" in wrong(scores=scores([good[0], {**good[1], "score": "high"}, *good[2:]]))
    assert "line 2: score is ''" in wrong(scores=scores([{**good[0], "score": None}, *good[1:]]))
    assert "no column points" in wrong(scores=scores(good), score_column="points")
    assert "is no file" in wrong(scores=str(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("")
    assert "not a CSV table" in wrong(scores=str(tmp_path / "empty.csv"))


def test_the_row_key_is_replaced_when_an_output_is_read_again(finished, place, tiny_persona, tmp_path):
    name = "tiny_evil/normal"
    again = str(finished / "rows" / f"{name}.jsonl")
    none = dict.fromkeys(("scores", "judge_model", "trait"))
    changes = {"file_path": again, "kinds": "raw", "layer": "3", "output_dir": str(tmp_path / "out"), **none}
    assert run(arguments(place, tiny_persona, **changes)) == 0
    [path] = (tmp_path / "out/rows").rglob("*.jsonl")
    before = read_jsonl(again)
    for row, old in zip(read_jsonl(path), before, strict=True):
        key = "evil_response_avg_diff_layer3"
        new = row.pop("projection_difference")["values"]["raw"][key]
        kept = old.pop("projection_difference")["values"]["raw"][key]
        assert row == old and (new == kept if kept is None else new == pytest.approx(kept, abs=1e-4))
    assert json.loads((tmp_path / "out/datasets.csv.json").read_text())["settings"]["kinds"] == ["raw"]
