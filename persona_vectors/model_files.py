"""What a model folder's files hold, as a hash; what large ones hold is hashed once and kept in the store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from persona_vectors.files import sha256_of_file
from persona_vectors.store import Store, content_key

LARGE = 64 * 2**20  # bytes


def update_with_folder(digest: Any, folder: Path) -> None:
    """Adds the names, sizes and contents of the model's files to the digest."""
    suffixes = {".safetensors", ".bin", ".json", ".jinja", ".model"}
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in suffixes)
    large = _hashes_of([file for file in files if file.stat().st_size >= LARGE])
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        digest.update(large[file].encode() if file in large else file.read_bytes())


def _hashes_of(files: Sequence[Path]) -> dict[Path, str]:
    """The sha256 of each file, read whole where the store does not know it as it is now."""
    if not files:
        return {}
    from tqdm import tqdm

    def key_of(file: Path) -> str:
        stat = file.stat()
        return content_key("file", path=str(file.resolve()), size=stat.st_size, changed=stat.st_mtime_ns)

    keys = {file: key_of(file) for file in files}
    with Store() as store:
        known = store.get_many(list(keys.values()))
        missing = [file for file in files if keys[file] not in known]
        with ThreadPoolExecutor(4) as pool:
            hashed = tqdm(pool.map(sha256_of_file, missing), "hashing weights", len(missing), disable=not missing)
            known |= (found := {keys[file]: one for file, one in zip(missing, hashed, strict=True)})
        store.put_many(found, kind="file", source=files[0].parent.name)
    return {file: known[key] for file, key in keys.items()}
