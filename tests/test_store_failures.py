"""The store when things go wrong for real: a full disk, a torn log, a truncated file, many processes, an old layout."""

import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from persona_vectors import store as store_module
from persona_vectors.store import Store, content_key

ROOT = Path(store_module.__file__).parent.parent
BATCH = 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mounted(["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]) != 0:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mounted(arguments: list[str]) -> int:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 1


def keys_of(batch: int) -> list[str]:
    return [content_key("x", batch=batch, i=i) for i in range(BATCH)]


def put_until_full(path: Path) -> tuple[int, str]:
    """How many batches were stored until one failed, and what the failure said."""
    with Store(path) as store:
        for batch in range(10_000):
            try:
                store.put_many({key: [batch, "x" * 300] for key in keys_of(batch)}, kind="answer")
            except OSError as error:
                return batch, str(error)
    raise AssertionError("the disk did not fill")


def assert_holds(store: Store, n_batches: int) -> None:
    """Every batch that was reported as stored is there, and no part of a later one."""
    assert store.verify() == []
    found = store.get_many([key for batch in range(n_batches) for key in keys_of(batch)])
    assert len(found) == n_batches * BATCH == store.count()
    assert all(found[key] == [batch, "x" * 300] for batch in range(n_batches) for key in keys_of(batch))


def test_a_disk_that_is_really_full_loses_nothing_and_goes_on_when_there_is_space(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    n, said = put_until_full(small_disk / "s")
    assert n > 10
    assert "s: the disk is full; what was stored before is kept" in said and "\n" not in said
    ballast.unlink()
    with Store(small_disk / "s") as store:
        assert_holds(store, n)
        store.put_many(dict.fromkeys(keys_of(n), [n, "x" * 300]), kind="answer")
        assert_holds(store, n + 1)


def test_a_disk_that_is_full_before_the_store_is_made(small_disk):
    ballast = small_disk / "ballast"
    with pytest.raises(OSError):
        ballast.write_bytes(b"x" * 2_000_000)
    with open(ballast, "ab") as file, pytest.raises(OSError):
        file.write(b"x" * 2_000_000)
    with pytest.raises(OSError, match="store .*s: .*full"):
        put_until_full(small_disk / "s")
    ballast.unlink()
    with Store(small_disk / "s") as store:
        store.put_many({"a": 1}, kind="x")
        assert store.count() == 1


def test_a_limit_on_the_size_of_files_is_said_and_loses_nothing(tmp_path):
    """The same without root: a process whose files may not grow."""
    code = f"""
        import resource, signal
        from pathlib import Path
        from tests.test_store_failures import put_until_full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        print(*put_until_full(Path({str(tmp_path / "s")!r})), sep="\\n")
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    n, said = result.stdout.strip().split("\n")
    assert int(n) > 10 and "store " in said and ("full" in said or "disk I/O" in said)
    with Store(tmp_path / "s") as store:
        assert_holds(store, int(n))


def log_of_a_killed_process(folder: Path, n_batches: int) -> Path:
    """A store whose last commits are in its -wal file only, as a killed process leaves it."""
    with Store(folder / "alive") as store:
        for batch in range(n_batches):
            store.put_many({key: [batch, "x" * 300] for key in keys_of(batch)}, kind="answer")
        path = folder / "s"
        for ending in ("", "-wal"):
            Path(f"{path}{ending}").write_bytes(Path(f"{store.path}{ending}").read_bytes())
    assert Path(f"{path}-wal").stat().st_size > 20_000
    return path


@pytest.mark.parametrize("seed", range(8))
def test_a_torn_log_keeps_every_batch_before_the_tear(seed, tmp_path):
    path = log_of_a_killed_process(tmp_path, 30)
    log = Path(f"{path}-wal")
    content, rng = log.read_bytes(), random.Random(seed)
    cut = rng.randrange(len(content) // 2, len(content))
    log.write_bytes(content[:cut] + (b"" if seed % 2 else rng.randbytes(rng.randrange(1, 9000))))
    with Store(path) as store:
        assert store.count() % BATCH == 0
        assert 0 < store.count() < 30 * BATCH
        assert_holds(store, store.count() // BATCH)
        store.put_many({key: [99, ""] for key in keys_of(99)}, kind="answer")
    with Store(path) as store:
        assert len(store.get_many(keys_of(99))) == BATCH


def test_garbage_after_a_whole_log_loses_nothing(tmp_path):
    path = log_of_a_killed_process(tmp_path, 30)
    with open(f"{path}-wal", "ab") as log:
        log.write(random.Random(0).randbytes(5000))
    with Store(path) as store:
        assert_holds(store, 30)


@pytest.mark.parametrize("cut", [0.3, 0.77])
def test_a_truncated_file_is_said_and_left_as_it_is(cut, tmp_path):
    path = tmp_path / "s"
    with Store(path) as store:
        for batch in range(100):
            store.put_many({key: [batch, "x" * 300] for key in keys_of(batch)}, kind="answer")
    content = path.read_bytes()
    truncated = content[: int(len(content) * cut)]
    path.write_bytes(truncated)
    with pytest.raises(ValueError, match="s is damaged or no sqlite file .*; move it away .* to start again"):
        with Store(path) as store:
            store.get_many([key for batch in range(100) for key in keys_of(batch)])
    assert path.read_bytes() == truncated


def test_a_folder_that_cannot_be_written(small_disk):
    with Store(small_disk / "s") as store:
        store.put_many({"a": 1}, kind="x")
    if mounted(["-o", "remount,ro", str(small_disk)]) != 0:
        pytest.skip("cannot remount")
    with pytest.raises(OSError, match="store .*s: .*(writable|check its folder).* set PERSONA_STORE") as error:
        with Store(small_disk / "s") as store:
            store.put_many({"b": 1}, kind="x")
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="check its folder or set PERSONA_STORE"):
        Store(small_disk / "new")


@pytest.mark.parametrize("code", ["SQLITE_PROTOCOL", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHMMAP"])
def test_a_folder_that_cannot_lock_is_said(code):
    assert "a network folder?" in store_module._advice(code, "locking protocol")


def many_at_once(path: Path, name: int, start) -> None:
    start.wait()
    with Store(path) as store:
        for batch in range(20):
            store.put_many({key: [batch, "x" * 300] for key in keys_of(batch)}, kind="answer", source="same")
            store.put_many({f"{name}-{batch}": batch}, kind="score", source=f"writer {name}")
            assert len(store.get_many(keys_of(batch))) == BATCH


def test_processes_that_make_the_store_at_once_and_finish_the_same_keys(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(5)
    processes = [context.Process(target=many_at_once, args=(tmp_path / "s", n, start)) for n in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    with Store(tmp_path / "s") as store:
        assert {group.source: group.n for group in store.groups()} == {
            "same": 20 * BATCH,
            **{f"writer {name}": 20 for name in range(5)},
        }
        assert store.verify() == []


def old_store(path: Path, items: dict[str, str]) -> None:
    """A store as the first release made it."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE items (key TEXT PRIMARY KEY, kind TEXT, value TEXT, created REAL) WITHOUT ROWID"
        )
        rows = [(key, "answer", value, 1.7e9) for key, value in items.items()]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    connection.close()


def test_an_old_store_is_brought_up_with_everything_in_it(tmp_path):
    keys = [*keys_of(0), "plain", "AB" * 32]
    old_store(tmp_path / "s", {key: '"old"' for key in keys})
    with Store(tmp_path / "s") as store:
        assert store.get_many(keys) == dict.fromkeys(keys, "old")
        assert [(g.kind, g.source, g.n, g.oldest) for g in store.groups()] == [("answer", "-", 12, 1.7e9)]
        store.put_many({keys[0]: "new"}, kind="answer", source="m")
        assert store.count() == 12
    with Store(tmp_path / "s") as store:
        assert store.get_many(keys[:2]) == {keys[0]: "new", keys[1]: "old"}


def open_old(path: Path, start) -> None:
    start.wait()
    with Store(path) as store:
        assert store.count() == 2000


def test_two_processes_that_find_an_old_store_upgrade_it_once(tmp_path):
    old_store(tmp_path / "s", {content_key("x", i=i): "1" for i in range(2000)})
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=open_old, args=(tmp_path / "s", start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0


def test_an_old_store_that_does_not_fit_twice_is_kept(small_disk):
    path = small_disk / "s"
    old_store(path, {content_key("x", i=i): '"' + "x" * 500 + '"' for i in range(700)})
    before = path.read_bytes()
    with pytest.raises(OSError, match="full"):
        Store(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone()[0] == 700
    connection.close()
    assert len(before) > 350_000


def test_a_layout_of_the_future_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="has layout 7 and this program knows up to 2; update the program"):
        Store(tmp_path / "s")


def test_forty_thousand_items(tmp_path):
    keys = [content_key("x", i=i) for i in range(40_000)]
    with Store(tmp_path / "s") as store:
        for start in range(0, len(keys), 5000):
            store.put_many({key: start for key in keys[start : start + 5000]}, kind="score", source="judge")
        assert store.count() == 40_000
        assert len(store.get_many(keys[::10])) == 4_000
        store.vacuum()
        assert store.size() / 40_000 < 130  # bytes an item: 32 of key, twice
        assert store.prune(source="judge", kind="answer") == 0
        assert store.prune(kind="score") == 40_000
        store.vacuum()
        assert store.size() < 50_000
    assert os.path.getsize(tmp_path / "s") < 50_000
