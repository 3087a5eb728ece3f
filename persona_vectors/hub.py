"""Vectors on the Hugging Face hub: a folder with the files, their sidecars and a card; pushed, and pulled again.

What leaves this machine is that folder and nothing else, so `stage` can be looked at first. Paths of this machine are
taken out of the sidecars; everything else in them stays.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from persona_vectors.convert import Source
from persona_vectors.files import (
    append_to_sidecar,
    read_sidecar,
    sha256_of_file,
    sidecar_path,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from persona_vectors.traits import read_json

RepoType = Literal["model", "dataset"]

PATTERNS = ("*.pt", "*.npz", "*.safetensors", "*.gguf", "*.json", "*.md", "*_quality.png")
VECTORS = (".pt", ".npz", ".safetensors", ".gguf")
MAX_BYTES = 2**30
"""More than this is a model rather than vectors, and is pulled only by name."""
_FOLDERS = re.compile(
    r"(?:(?<=:)(?!//)|(?<![^\s'\"`=(\[,>]))"  # at the beginning of a word, and not in an address
    r"(?:~?/|[A-Za-z]:[\\/]|\\\\)(?:[^\\/\s'\"`<>]+[\\/])*(?=[^\\/\s'\"`])"
)
_FILE_ADDRESS = re.compile(r"\bfile://[^/\s'\"`]*")


@dataclass(frozen=True, eq=False)
class Pulled:
    """What came from a repo: the files, in the order of their names, at one commit."""

    files: list[Path]
    commit: str


def stage(sources: Sequence[Source], folder: str | Path, card: str, reports: Sequence[Path] = ()) -> list[Path]:
    """The folder that is pushed: each vector file, its sidecar without this machine's paths, reports, and README.md.

    Raises:
        ValueError: two files of one name, or a folder that already holds something.
    """
    folder = Path(folder)
    names = [source.file.path.name for source in sources] + [path.name for path in reports]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two files are named {min(twice)}; a repo holds one of each name, so push them apart")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; give a new one, so that only these files are pushed")
    written = []
    for source in sources:
        path = write_bytes_atomic(folder / source.file.path.name, source.file.path.read_bytes())
        written.append(path)
        if sidecar := read_sidecar(source.file.path):
            written.append(write_json_atomic(sidecar_path(path), without_paths(sidecar)))
    for path in reports:
        if path.suffix == ".json":
            written.append(write_json_atomic(folder / path.name, without_paths(read_json(path))))
        else:
            written.append(write_bytes_atomic(folder / path.name, path.read_bytes()))
    return [*written, write_text_atomic(folder / "README.md", card)]


def pushed_caps(paths: Sequence[Path], sources: Sequence[Source]) -> list[Path]:
    """The `cap.json` files, each of which goes along with the vectors that it caps along.

    Raises:
        ValueError: a file that is no cap, or one whose vectors are not among the sources.
    """
    from persona_vectors.capping import read_cap

    vectors = {source.file.path.resolve() for source in sources}
    for path in paths:
        if (own := path.parent / read_cap(path)[0]["vectors"]).resolve() not in vectors:
            raise ValueError(f"{path} caps along {own}, without which it is of no use: name both in --vector_path")
    return list(paths)


def without_paths(value: Any) -> Any:
    """The value with each absolute path in it cut to the file's name, in lists and dictionaries (keys, too)."""
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        for key, one in value.items():
            name = public = without_paths(key)
            while name in found:  # files of one name from several folders stay apart
                name = f"{public} ({len(found) + 1})"
            found[name] = _command(one) if key == "command" else without_paths(one)
        return found
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    value = _FILE_ADDRESS.sub("", value)
    if value.startswith(("/", "~/")) and "\n" not in value:
        return value.rstrip("/").rsplit("/", 1)[-1]
    return _FOLDERS.sub("", value)


def _command(value: Any) -> Any:
    """A command line, word by word, since a path with a space is one word of it."""
    try:
        words = shlex.split(value)
    except (ValueError, AttributeError):
        return without_paths(value) if not isinstance(value, str) else _FOLDERS.sub("", _FILE_ADDRESS.sub("", value))
    return shlex.join("=".join(without_paths(part) for part in word.split("=")) for word in words)


def push(folder: Path, repo: str, *, private: bool, repo_type: RepoType = "model") -> str:
    """The address of the commit with the folder's files; the repo is made if it is not there.

    Raises:
        ValueError: no token.
        OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    api = HfApi(token=check_token())
    with _hub_errors(f"push to {repo}"):
        api.create_repo(repo, private=private, repo_type=repo_type, exist_ok=True)
        message = "Vectors, with a card"
        return str(
            api.upload_folder(repo_id=repo, folder_path=folder, repo_type=repo_type, commit_message=message).commit_url
        )


def pull(
    repo: str,
    folder: str | Path,
    *,
    repo_type: RepoType = "model",
    revision: str = "main",
    files: Sequence[str] = PATTERNS,
    overwrite: bool = False,
) -> Pulled:
    """The files of a repo that match a pattern, now in the folder; what each vector file came from is in its sidecar.

    Raises:
        ValueError: nothing matches, files that are here already, more than 1 GiB by the default patterns, or a vector
            file that is not the one its sidecar describes.
        OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, snapshot_download

    check_repo(repo)
    token = _token()
    with _hub_errors(f"pull from {repo}"):
        api = HfApi(token=token)
        info_of = api.model_info if repo_type == "model" else api.dataset_info
        info = info_of(repo, revision=revision, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    names = sorted(name for name in sizes if any(fnmatch(name, pattern) for pattern in files))
    _check_wanted(repo, names, sizes, Path(folder), by_name=tuple(files) != PATTERNS, overwrite=overwrite)
    commit = str(info.sha)
    with _hub_errors(f"pull from {repo}"):
        cached = snapshot_download(repo, repo_type=repo_type, revision=commit, allow_patterns=names, token=token)
    told = {name: _told(repo, name, names, Path(cached)) for name in names if Path(name).suffix in VECTORS}
    here = [write_bytes_atomic(Path(folder) / name, (Path(cached) / name).read_bytes()) for name in names]
    for name, record in told.items():
        path = Path(folder) / name
        write_json_atomic(sidecar_path(path), record)
        append_to_sidecar(path, "pulled", {"repo": repo, "repo_type": repo_type, "commit": commit})
    return Pulled(here, commit)


def _told(repo: str, name: str, names: Sequence[str], cached: Path) -> dict[str, Any]:
    """What a vector file's sidecar says, of those that are pulled; {} without one. Nothing is written yet.

    Raises:
        ValueError: a sidecar that is none, or that describes another file.
    """
    path = cached / name
    beside = str(PurePosixPath(name).with_name(sidecar_path(path).name))
    if beside not in names:
        return {}
    try:
        record = read_sidecar(path)
    except ValueError:
        record = None
    file = {} if record is None else record.get("file") or {}
    if record is None or not isinstance(file, dict) or not isinstance(record.get("pulled", []), list):
        raise ValueError(f"{beside} of {repo} is no sidecar of {name}; pull that file without it: --files {name}")
    if file.get("sha256") and file["sha256"] != sha256_of_file(path):
        raise ValueError(
            f"{name} of {repo} is not the file that its sidecar describes (its sha256 differs); ask its author"
        )
    return record


def check_repo(repo: str) -> None:
    """Refuses, with a ValueError, what is not the name of a repo, `org/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo_ok = False
    else:
        repo_ok = "/" in repo
    if not repo_ok:
        raise ValueError(f"repo {repo!r} is not a name such as org/name")


def _check_wanted(
    repo: str, names: Sequence[str], sizes: dict[str, int], folder: Path, *, by_name: bool, overwrite: bool
) -> None:
    if not names:
        raise ValueError(f"{repo} has no vector files; it has {', '.join(list(sizes)[:6]) or 'no files'}")
    for name in names:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{repo} has a file {name!r}, which would lie outside of {folder}; nothing was pulled")
    if (total := sum(sizes[name] for name in names)) > MAX_BYTES and not by_name:
        raise ValueError(
            f"{len(names)} files of {repo} have {total / 2**30:.1f} GiB together; choose with --files (a name or "
            f"pattern such as {names[0]})"
        )
    written = [path for name in names for path in {folder / name, _sidecar_here(folder / name)}]
    there = sorted(path for path in written if path.exists())
    if there and not overwrite:
        raise ValueError(f"{there[0]} is there already; give another folder, or --overwrite")


def _sidecar_here(path: Path) -> Path:
    """What is written beside a pulled file: of vectors their sidecar, of anything else nothing but itself."""
    return sidecar_path(path) if path.suffix in VECTORS else path


def check_token() -> str:
    """The token of whoever pushes; ValueError without one."""
    if not (token := _token()):
        raise ValueError("pushing needs HF_TOKEN in .env or the process, with write access; none is set")
    return token


def _token() -> str | None:
    from huggingface_hub import get_token

    from persona_vectors.config import load_credentials

    return load_credentials().get("HF_TOKEN") or get_token()


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """An error of the hub, or of the way there, as an OSError of one line."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] (the HTTP client's own, whichever it is)
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled:
        raise OSError(f"cannot {what}: HF_HUB_OFFLINE is set") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OSError(f"cannot {what}: {' '.join(lines[:3]) or type(error).__name__}") from None
