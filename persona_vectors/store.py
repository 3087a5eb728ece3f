"""Finished work (sampled answers, judge scores) keyed by a hash of everything that determines it: one sqlite file.

A process that is killed keeps every `put_many` that returned; several processes may use the file at once. After a
power cut the last commits may be missing (they are done again), but what is there is whole.
"""

import hashlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

DEFAULT_PATH = Path(".cache/persona_store.sqlite")
BUSY_SECONDS = 60
KEYS_PER_QUERY = 500
"""Below the smallest limit on variables that sqlite builds have (999)."""

ROWS_PER_DELETE = 5000
"""Deleted in one transaction: other writers get their turn long before BUSY_SECONDS."""

SCHEMA_VERSION = 2
SCHEMA = "CREATE TABLE {name} (key BLOB PRIMARY KEY, kind TEXT, value TEXT, created REAL, source TEXT)"
"""Keys of 32 bytes in an index of their own, values in the order written: at 600 bytes a value the file is smaller
and a commit of 32 writes a third of what a table ordered by key does (benchmarks/LOG.md)."""

_WHERE = """(?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR coalesce(source, '-') = ?2) AND (?3 IS NULL OR created < ?3)"""


@dataclass(frozen=True)
class Group:
    """The items of one kind and source; `oldest` and `newest` are seconds since 1970, `value_bytes` of JSON text."""

    kind: str
    source: str
    n: int
    value_bytes: int
    oldest: float
    newest: float


def default_store_path() -> Path:
    """`PERSONA_STORE` of the environment, read now, or `.cache/persona_store.sqlite` under the current folder."""
    return Path(os.environ.get("PERSONA_STORE") or DEFAULT_PATH)


def content_key(kind: str, **inputs: Any) -> str:
    """sha256 (hex) of the canonical JSON of `kind` and `inputs`; equal inputs have equal keys, in any order.

    Only what JSON holds is accepted: text, integers, finite floats, booleans, None, lists, and dicts with text keys.
    Raises TypeError for anything else, paths and bytes included: their text would say nothing of their content, so
    hash the content (`files.sha256_of_file`). Note that 1 and 1.0 are different inputs.
    """
    _check_canonical(inputs, kind)
    canonical = json.dumps([kind, inputs], sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _check_canonical(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"{where}: key {name!r} must be text")
            _check_canonical(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_canonical(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{where}: {type(value).__name__} has no canonical JSON; pass text, numbers or a hash")


class Store:
    """A table key -> JSON value in the sqlite file `path`, made with its folder where it is missing.

    A store of an earlier version is brought to the present layout when it is opened, all of it or nothing.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path is not None else default_store_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"store's folder: {error.strerror}", str(self.path.parent)) from error
        with self._clear_errors():
            self._connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                self._use_wal()
                self._connection.execute("PRAGMA synchronous=NORMAL")
                if self._schema_version() != SCHEMA_VERSION:
                    self._upgrade()
            except BaseException:
                self._connection.close()
                raise

    def _use_wal(self) -> None:
        """Readers do not wait for writers. Two processes that make the file at once: sqlite does not wait by itself."""
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)

    def _schema_version(self) -> int:
        return self._connection.execute("PRAGMA user_version").fetchone()[0]

    def _upgrade(self) -> None:
        """The present table, with the items of version 0 (keys as text, no source) if there were any."""
        with self._transaction():
            version = self._schema_version()
            if version == SCHEMA_VERSION:
                return  # another process was faster
            if version != 0:
                raise ValueError(
                    f"store {self.path} has layout {version} and this program knows up to {SCHEMA_VERSION}; "
                    "update the program, or set PERSONA_STORE to another file"
                )
            old = self._connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'").fetchone()[0]
            self._connection.execute(SCHEMA.format(name="items_new" if old else "items"))
            if old:
                self._connection.create_function("packed", 1, _packed, deterministic=True)
                self._connection.execute(
                    "INSERT INTO items_new SELECT packed(key), kind, value, created, NULL FROM items ORDER BY created"
                )
                self._connection.execute("DROP TABLE items")
                self._connection.execute("ALTER TABLE items_new RENAME TO items")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        """Key -> value of those of `keys` that are stored."""
        found: dict[str, Any] = {}
        with self._clear_errors():
            for chunk in _chunks(keys):
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, value FROM items WHERE key IN ({marks})"
                rows = self._connection.execute(query, chunk)
                found.update((_unpacked(key), json.loads(value)) for key, value in rows)
        return found

    def put_many(self, items: Mapping[str, Any], kind: str, source: str | None = None) -> None:
        """Store all of `items` or none; an earlier value of a key is replaced.

        `kind` (answer, score) and `source` (which model or judge, which trait) serve to list and prune, not to find.
        Raises ValueError for a NaN or infinity (store None for what is missing), OSError for a full disk.
        """
        now = time.time()
        rows = [(_packed(key), kind, _encode(key, value), now, source) for key, value in items.items()]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", rows)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Forget `keys`; those that are not stored are ignored."""
        with self._transaction():
            self._connection.executemany("DELETE FROM items WHERE key = ?", [(_packed(key),) for key in keys])

    def count(self, kind: str | None = None, source: str | None = None, before: float | None = None) -> int:
        """How many items there are: of a kind, of a source ("-": of none), stored before a time; of all by default."""
        with self._clear_errors():
            query = f"SELECT count(*) FROM items WHERE {_WHERE}"
            return self._connection.execute(query, (kind, source, before)).fetchone()[0]

    def groups(self) -> list[Group]:
        """The items by kind and source, "-" for no source, in alphabetic order."""
        query = """SELECT kind, coalesce(source, '-'), count(*), sum(octet_length(value)), min(created), max(created)
            FROM items GROUP BY 1, 2 ORDER BY 1, 2"""
        if sqlite3.sqlite_version_info < (3, 43):
            query = query.replace("octet_length(value)", "length(CAST(value AS BLOB))")
        with self._clear_errors():
            return [Group(*row) for row in self._connection.execute(query)]

    def items(self) -> Iterator[dict[str, Any]]:
        """Every item as {key, kind, source, created, value}, as of one moment."""
        with self._clear_errors():
            for key, kind, source, created, value in self._connection.execute(
                "SELECT key, kind, source, created, value FROM items"
            ):
                yield {
                    "key": _unpacked(key),
                    "kind": kind,
                    "source": source,
                    "created": created,
                    "value": json.loads(value),
                }

    def prune(self, kind: str | None = None, source: str | None = None, before: float | None = None) -> int:
        """How many items were forgotten: those that `count` counts for the same arguments."""
        deleted = 0
        query = f"DELETE FROM items WHERE rowid IN (SELECT rowid FROM items WHERE {_WHERE} LIMIT {ROWS_PER_DELETE})"
        while True:
            with self._transaction():
                n = self._connection.execute(query, (kind, source, before)).rowcount
            deleted += n
            if n < ROWS_PER_DELETE:
                return deleted

    def verify(self) -> list[str]:
        """What is wrong with the file, one line a finding: sqlite's own check, then values that are no JSON."""
        with self._clear_errors():
            found = [row[0] for row in self._connection.execute("PRAGMA quick_check")]
            problems = [" ".join(line.split()) for line in found if line != "ok"]
            if not problems:
                bad = self._connection.execute("SELECT count(*) FROM items WHERE NOT json_valid(value)").fetchone()[0]
                problems += [f"{bad} values are no JSON"] * bool(bad)
        return problems

    def size(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def vacuum(self) -> None:
        """Give the space of what was forgotten back to the disk; needs as much free space as is in use."""
        with self._clear_errors():
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._clear_errors():
            if self._connection.in_transaction:  # Ctrl-C came after BEGIN and before the block that ends it
                self._connection.execute("ROLLBACK")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """sqlite's errors on one line, with the path and what to do: ValueError for a damaged file, else OSError."""
        try:
            yield
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            if isinstance(error, (sqlite3.ProgrammingError, sqlite3.IntegrityError)):
                raise  # ours, not the file's
            code = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
            if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
                advice = "move it away (with its -wal and -shm files) to start again, or set PERSONA_STORE"
                raise ValueError(f"store {self.path} is damaged or no sqlite file ({error}); {advice}") from error
            raise OSError(f"store {self.path}: {_advice(code, str(error))}") from error


def _advice(code: str, said: str) -> str:
    """What sqlite's error means here and what to do."""
    if code == "SQLITE_FULL":
        return "the disk is full; what was stored before is kept; free some space and run the same command again"
    if code.startswith("SQLITE_BUSY"):
        return f"{said} by another process for {BUSY_SECONDS} s; wait for it to end, or set PERSONA_STORE"
    if code.startswith(("SQLITE_PROTOCOL", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHM", "SQLITE_IOERR_UNLOCK")):
        return f"{said}: its folder is full or cannot lock files (a network folder?); set PERSONA_STORE to a local disk"
    if code.startswith("SQLITE_READONLY"):
        return f"{said}; make the file and its folder writable, or set PERSONA_STORE"
    return f"{said}; check its folder or set PERSONA_STORE"


def _packed(key: str) -> bytes | str:
    """A sha256 in hex as its 32 bytes, any other key as it is."""
    if len(key) == 64 and not key.strip("0123456789abcdef"):
        return bytes.fromhex(key)
    return key


def _unpacked(key: bytes | str) -> str:
    return key.hex() if isinstance(key, bytes) else key


def _encode(key: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError(f"value of {key!r} holds NaN or infinity, which JSON has not; store None instead") from None


def _chunks(keys: Sequence[str]) -> Iterator[list[bytes | str]]:
    remaining = map(_packed, keys)
    while chunk := list(itertools.islice(remaining, KEYS_PER_QUERY)):
        yield chunk
