"""`python -m eval.store`: what it shows of a real store, what it forgets, and what it refuses."""

import json
import re
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest

from eval import store as command
from persona_vectors import cli
from persona_vectors.store import Store, content_key, default_store_path


@pytest.fixture
def run(capsys):
    def call(*argv: str) -> SimpleNamespace:
        code = cli.run(command.main, argv)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def filled():
    """The default store with answers of two models, scores of a judge, and items without a source."""
    with Store() as store:
        store.put_many({content_key("a", i=i): f"answer é {i}" for i in range(30)}, "answer", "tiny evil")
        store.put_many({content_key("b", i=i): "x" for i in range(20)}, "answer", "large evil")
        store.put_many({content_key("s", i=i): i / 2 for i in range(50)}, "score", "gpt-4.1-mini evil")
        store.put_many({f"plain {i}": None for i in range(5)}, "score")
        store._connection.execute("UPDATE items SET created = created - 10 * 86400 WHERE source = 'tiny evil'")
    return default_store_path()


def test_list_shows_where_how_large_and_what(run, filled):
    out = run().out
    lines = out.splitlines()
    assert lines[0].startswith(f"{filled}: ") and lines[0].endswith("on disk, 105 items")
    assert len(lines) == 2 + 4
    for kind, source, n in [("answer", "tiny evil", 30), ("score", "-", 5), ("score", "gpt-4.1-mini evil", 50)]:
        assert any(re.match(rf"{kind} +{re.escape(source)} +{n} ", line) for line in lines), (kind, source, out)
    old, new = (next(line for line in lines if name in line)[-34:] for name in ("tiny evil", "large evil"))
    assert old < new  # dates


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("limits", "n"),
    [
        (["--kind", "answer"], 50),
        (["--source", "gpt-4.1-mini evil"], 50),
        (["--source", "-"], 5),
        (["--older_than", "5"], 30),
        (["--older_than", "0"], 105),
        (["--kind", "score", "--older_than", "5"], 0),
        (["--kind", "answer", "--source", "large evil"], 20),
    ],
)
def test_prune_counts_first_and_forgets_on_apply(run, limits, n):
    assert run("--action", "prune", *limits).out.startswith(f"{n} of 105 items match; nothing was forgotten")
    with Store() as store:
        assert store.count() == 105
    assert run("--action", "prune", *limits, "--apply").out.startswith(f"{n} items forgotten, {105 - n} kept")
    with Store() as store:
        assert store.count() == 105 - n


@pytest.mark.usefixtures("filled")
def test_pruned_in_several_transactions(run, monkeypatch):
    monkeypatch.setattr("persona_vectors.store.ROWS_PER_DELETE", 7)
    assert run("--action", "prune", "--kind", "score", "--apply").out.startswith("55 items forgotten, 50 kept")


def test_vacuum_gives_the_space_back(run):
    with Store() as store:
        store.put_many({f"{i}": "x" * 1000 for i in range(2000)}, kind="answer")
        store.prune(kind="answer")
    before = default_store_path().stat().st_size
    assert re.search(r": [\d.]+ MB -> [\d.]+ kB\n$", run("--action", "vacuum").out)
    assert default_store_path().stat().st_size < before / 10


@pytest.mark.usefixtures("filled")
def test_export_holds_every_item(run, tmp_path):
    out = tmp_path / "all.jsonl"
    assert run("--action", "export", "--output_path", str(out)).out == f"{out}\n"
    items = {item["key"]: item for item in map(json.loads, out.read_text().splitlines())}
    assert len(items) == 105
    with Store() as store:
        assert store.get_many(list(items)) == {key: item["value"] for key, item in items.items()}
    assert items[content_key("a", i=3)]["source"] == "tiny evil" and items["plain 0"]["source"] is None
    assert abs(items["plain 0"]["created"] - time.time()) < 600


def test_verify_finds_a_damaged_page_and_a_damaged_value(run, filled):
    assert run("--action", "verify").out == f"{filled}: ok, 105 items\n"
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE items SET value = '{torn' WHERE key = 'plain 1'")
    connection.close()
    result = run("--action", "verify")
    assert result.code == 2 and "1 values are no JSON" in result.err and result.err.count("\n") == 1

    content = bytearray(filled.read_bytes())
    content[4096 * 2 :] = b"\x07" * (len(content) - 4096 * 2)
    filled.write_bytes(content)
    result = run("--action", "verify")
    assert result.code == 2 and "damaged" in result.err and result.err.count("\n") == 1


@pytest.mark.usefixtures("filled")
def test_every_action_while_a_run_writes(run, tmp_path):
    """A run puts items all the time; nothing that the actions do loses one of them or fails."""
    stop, put = threading.Event(), []

    def write() -> None:
        with Store() as store:
            while not stop.is_set() or len(put) < 5:
                store.put_many({f"w{len(put)}-{i}": i for i in range(10)}, kind="fresh", source="run")
                put.append(None)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for argv in (
            ["--action", "list"],
            ["--action", "verify"],
            ["--action", "prune", "--kind", "answer", "--apply"],
            ["--action", "vacuum"],
            ["--action", "export", "--output_path", str(tmp_path / "x.jsonl")],
        ):
            result = run(*argv)
            assert (result.code, result.err) == (0, ""), argv
    finally:
        stop.set()
        thread.join()
    with Store() as store:
        assert store.count("fresh") == 10 * len(put) and store.count("answer") == 0
        assert store.verify() == []


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--action", "prune"], "prune needs --kind, --source or --older_than"),
        (["--action", "prune", "--older_than", "-1"], "must be a number of days from 0, got -1.0"),
        (["--action", "prune", "--older_than", "nan"], "nan"),
        (["--action", "prune", "--older_than", "soon"], "older_than"),
        (["--kind", "answer"], "--kind is for --action prune, got --action list"),
        (["--action", "vacuum", "--apply"], "--apply is for --action prune"),
        (["--action", "export"], "--output_path is for --action export, which needs it"),
        (["--action", "export", "--output_path", "."], "is a folder"),
        (["--action", "export", "--output_path", "x.csv"], "must end in .jsonl"),
        (["--action", "purge"], "purge"),
        (["--path", "absent.sqlite"], "there is no store at absent.sqlite"),
        (["--path", "text"], "damaged or no sqlite file"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(run, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("this is no store " * 100)
    before = sorted(tmp_path.rglob("*"))
    result = run(*argv)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1 and result.out == ""
    assert sorted(tmp_path.rglob("*")) == before
    with Store() as store:
        assert store.count() == 105


def test_without_a_store_it_says_so_and_makes_none(run):
    result = run()
    assert result.code == 2 and "there is no store at" in result.err
    assert not default_store_path().exists()
