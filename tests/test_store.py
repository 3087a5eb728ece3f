"""The store: what was put is there, whole, whoever else writes and however the process ends."""

import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import store as store_module
from persona_vectors.store import Store, content_key, default_store_path

ROOT = Path(store_module.__file__).parent.parent

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def writer(path: Path, name: str, batches: int) -> subprocess.Popen:
    """Another process that puts `batches` times 10 items and reports each batch once it is committed."""
    code = f"""
        from persona_vectors.store import Store
        with Store({str(path)!r}) as store:
            for batch in range({batches}):
                store.put_many({{f"{name}-{{batch}}-{{i}}": [batch, "x" * 200] for i in range(10)}}, kind="answer")
                print(batch, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.uuids().map(str), values, max_size=5))
def test_values_come_back_as_they_were(tmp_path_factory, items):
    with Store(tmp_path_factory.getbasetemp() / "round_trip.sqlite") as store:
        store.put_many(items, kind="x")
        found = store.get_many([*items, "absent"])
    assert json.dumps(found, sort_keys=True) == json.dumps(items, sort_keys=True)


def test_many_keys_replaced_deleted_counted_and_kept(tmp_path):
    path = tmp_path / "new/folder/store.sqlite"
    keys = [f"k{i}" for i in range(2345)]
    with Store(path) as store:
        store.put_many({key: 1 for key in keys}, kind="answer")
        store.put_many({"k7": None}, kind="score")
        store.delete_many([*keys[1000:], "absent"])
        assert (store.count(), store.count("answer"), store.count("score")) == (1000, 999, 1)
        assert store.get_many([]) == {}
    with Store(path) as store:
        found = store.get_many(keys)
    assert found == {key: 1 for key in keys[:1000]} | {"k7": None}


def test_all_or_nothing_and_no_nan(tmp_path):
    with Store(tmp_path / "s") as store:
        with pytest.raises(ValueError, match="value of 'b' holds NaN"):
            store.put_many({"a": 1.0, "b": [float("nan")]}, kind="score")
        with pytest.raises(TypeError):
            store.put_many({"a": 1.0, "b": {1, 2}}, kind="score")
        assert store.count() == 0
        store.put_many({"a": 2.0}, kind="score")  # the failures left no transaction open
        assert store.get_many(["a"]) == {"a": 2.0}


def test_two_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "store.sqlite"
    processes = [writer(path, name, batches=40) for name in ("a", "b")]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    with Store(path) as store:
        assert store.count() == 2 * 40 * 10


def test_a_killed_writer_keeps_every_batch_that_it_committed(tmp_path):
    path = tmp_path / "store.sqlite"
    with writer(path, "a", batches=100_000) as process:
        assert process.stdout is not None
        committed = [int(process.stdout.readline()) for _ in range(30)]
        process.send_signal(signal.SIGKILL)
        committed += [int(line) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    with Store(path) as store:
        present = store.get_many([f"a-{batch}-{i}" for batch in committed for i in range(10)])
        assert len(present) == 10 * len(committed)
        assert store.count() % 10 == 0  # the batch at the kill is there as a whole or not at all


@pytest.mark.parametrize("content", [b"this is no database" * 100, None])
def test_a_damaged_file_is_one_line_with_the_path_and_what_to_do(content, tmp_path):
    path = tmp_path / "store.sqlite"
    if content is None:  # a real store with its pages overwritten
        with Store(path) as store:
            store.put_many({f"k{i}": "x" * 1000 for i in range(100)}, kind="x")
        content = path.read_bytes()[:4096] + b"\x07" * 60_000
    path.write_bytes(content)
    message = "store.sqlite is damaged or no sqlite file.*move it away.*PERSONA_STORE"
    with pytest.raises(ValueError, match=message) as error:
        with Store(path) as store:
            store.get_many([f"k{i}" for i in range(100)])
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content  # nobody's file is destroyed


class Interrupted:
    """A connection on which Ctrl-C comes just after a transaction began."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, query, *arguments):
        found = self.connection.execute(query, *arguments)
        if query.startswith("BEGIN"):
            raise KeyboardInterrupt
        return found


def test_what_is_kept_on_the_way_out_of_an_interrupted_write_is_stored(tmp_path, monkeypatch):
    with Store(tmp_path / "s.sqlite") as store:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_connection", Interrupted(store._connection))
            with pytest.raises(KeyboardInterrupt):
                store.put_many({"a": 1}, kind="answer")
        store.put_many({"b": 2}, kind="answer")
        store._connection.execute("BEGIN IMMEDIATE")  # the block that ends it never ran
        store.put_many({"c": 3}, kind="answer")
        assert store.get_many(["a", "b", "c"]) == {"b": 2, "c": 3}


def test_a_full_disk_is_said_and_what_was_stored_is_kept(tmp_path):
    with Store(tmp_path / "s") as store:
        store.put_many({"early": 1}, kind="x")
        store._connection.execute("PRAGMA max_page_count = 4")
        with pytest.raises(OSError, match="the disk is full; what was stored before is kept"):
            store.put_many({f"k{i}": "x" * 5000 for i in range(100)}, kind="x")
        assert store.get_many(["early", "k0"]) == {"early": 1}


def test_a_path_that_cannot_be_a_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="unable to open database file; check its folder"):
        Store(tmp_path)
    with pytest.raises(OSError, match="store's folder"):
        Store(tmp_path / "file/s")


def test_a_store_that_stays_locked_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with Store(tmp_path / "s") as store:
        other = sqlite3.connect(tmp_path / "s", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert store.get_many(["a"]) == {}  # readers do not wait
        with pytest.raises(OSError, match="database is locked"):
            store.put_many({"a": 1}, kind="x")
        other.close()


def test_the_default_path_is_read_when_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERSONA_STORE", raising=False)
    Store().close()
    assert (tmp_path / ".cache/persona_store.sqlite").exists()
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "mine"))
    assert default_store_path() == tmp_path / "mine"


def test_keys_are_the_content_and_nothing_else():
    messages = [{"role": "user", "content": "é"}]
    key = content_key("answer", model="m", coef=1.0, messages=messages, seed=None)
    assert key == content_key("answer", seed=None, messages=[{"content": "é", "role": "user"}], coef=1.0, model="m")
    assert key == "1169bb7ce868594f88d6e443bc8d3d26e8e395eb807aee35f055df22239bf648"  # stored work stays found
    others = [
        content_key("score", model="m", coef=1.0, messages=messages, seed=None),
        content_key("answer", model="m", coef=1.0000000000000002, messages=messages, seed=None),
        content_key("answer", model="m", coef=1.0, messages=[{"role": "user", "content": "e"}], seed=None),
        content_key("answer", model="m", coef=1.0, messages=messages),
    ]
    assert len({key, *others}) == 5


@settings(deadline=None, max_examples=50)
@given(values, values)
def test_keys_are_equal_only_for_equal_json(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key("x", value=one) == content_key("x", value=other)) == same


@pytest.mark.parametrize("value", [b"bytes", Path("x"), {"a": {1: 2}}, [{"b": {3}}], 1j])
def test_what_has_no_canonical_json_is_refused(value):
    with pytest.raises(TypeError, match="^answer.value"):
        content_key("answer", value=value)


def test_nan_has_no_key():
    with pytest.raises(ValueError, match="JSON"):
        content_key("answer", coef=float("nan"))
