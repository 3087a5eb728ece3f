"""Finished work (sampled answers, judge scores) keyed by a hash of everything that determines it: one sqlite file.

A process that is killed keeps every `put_many` that returned; two processes may use the file at once.
"""

import hashlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

DEFAULT_PATH = Path(".cache/persona_store.sqlite")
BUSY_SECONDS = 60
KEYS_PER_QUERY = 500
"""Below the smallest limit on variables that sqlite builds have (999)."""

SCHEMA = "CREATE TABLE IF NOT EXISTS items (key TEXT PRIMARY KEY, kind TEXT, value TEXT, created REAL) WITHOUT ROWID"


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
    """A table key -> JSON value in the sqlite file `path`, made with its folder where it is missing."""

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path is not None else default_store_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"store's folder: {error.strerror}", str(self.path.parent)) from error
        with self._clear_errors():
            self._connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.execute(SCHEMA)
            except sqlite3.Error:
                self._connection.close()
                raise

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        """Key -> value of those of `keys` that are stored."""
        found: dict[str, Any] = {}
        with self._clear_errors():
            for chunk in _chunks(keys):
                marks = ",".join("?" * len(chunk))
                rows = self._connection.execute(f"SELECT key, value FROM items WHERE key IN ({marks})", chunk)
                found.update((key, json.loads(value)) for key, value in rows)
        return found

    def put_many(self, items: Mapping[str, Any], kind: str) -> None:
        """Store all of `items` or none; an earlier value of a key is replaced.

        Raises ValueError for a NaN or infinity (store None for what is missing), OSError for a full disk.
        """
        now = time.time()
        rows = [(key, kind, _encode(key, value), now) for key, value in items.items()]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", rows)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Forget `keys`; those that are not stored are ignored."""
        with self._transaction():
            self._connection.executemany("DELETE FROM items WHERE key = ?", [(key,) for key in keys])

    def count(self, kind: str | None = None) -> int:
        """How many items there are, of one kind or of all."""
        with self._clear_errors():
            query = "SELECT count(*) FROM items WHERE ?1 IS NULL OR kind = ?1"
            return self._connection.execute(query, (kind,)).fetchone()[0]

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
            self._connection.execute("BEGIN IMMEDIATE")
            try:
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
            if code == "SQLITE_FULL":
                raise OSError(f"store {self.path}: the disk is full; what was stored before is kept") from error
            raise OSError(f"store {self.path}: {error}; check its folder or set PERSONA_STORE") from error


def _encode(key: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError(f"value of {key!r} holds NaN or infinity, which JSON has not; store None instead") from None


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(keys)
    while chunk := list(itertools.islice(remaining, KEYS_PER_QUERY)):
        yield chunk
