"""Look at the store of finished answers and scores, check it, and forget what is no longer wanted.

python -m eval.store
python -m eval.store --action prune --kind score --source gpt-4.1-mini --older_than 30 --apply
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.store import Store

SECONDS_PER_DAY = 86400.0


def main(
    action: Literal["list", "verify", "prune", "vacuum", "export"] = "list",
    path: str | None = None,
    kind: str | None = None,
    source: str | None = None,
    older_than: float | None = None,
    apply: bool = False,
    output_path: str | None = None,
) -> None:
    """Where the store is, how large, and what it holds; check, prune, compact or export it, also while a run uses it.

    list shows the items by kind and source with their age. verify checks the file and every value. prune forgets the
    items that match --kind, --source and --older_than together; it only counts them, unless --apply is given.
    vacuum gives the space of pruned items back to the disk. export writes all items as JSON lines.

    Args:
        action: list, verify, prune, vacuum or export.
        path: store file; default PERSONA_STORE, else .cache/persona_store.sqlite.
        kind: prune: only this kind (answer, score, ...), as list shows it.
        source: prune: only this source, as list shows it; - for items without one.
        older_than (days): prune: only items stored longer ago than this; 0 is all.
        apply: prune: really forget them.
        output_path: export: .jsonl file to write; one object a line: key, kind, source, created, value.
    """
    from persona_vectors.store import Store, default_store_path

    limits = {"--kind": kind, "--source": source, "--older_than": older_than}
    given = [flag for flag, value in limits.items() if value is not None]
    if action != "prune" and (given or apply):
        raise ValueError(f"{(given or ['--apply'])[0]} is for --action prune, got --action {action}")
    if action == "prune" and not given:
        raise ValueError("prune needs --kind, --source or --older_than (days); --older_than 0 is every item")
    if older_than is not None and not 0 <= older_than < float("inf"):
        raise ValueError(f"--older_than must be a number of days from 0, got {older_than}")
    if (action == "export") != (output_path is not None):
        raise ValueError("--output_path is for --action export, which needs it")
    file = Path(path) if path is not None else default_store_path()
    if not file.is_file():
        raise ValueError(f"there is no store at {file}; runs make one, or give --path or PERSONA_STORE")

    with Store(file) as store:
        if action == "list":
            _list(store)
        elif action == "verify":
            _verify(store)
        elif action == "prune":
            before = None if older_than is None else time.time() - older_than * SECONDS_PER_DAY
            _prune(store, kind, source, before, apply)
        elif action == "vacuum":
            size_before = store.size()
            store.vacuum()
            print(f"{file}: {_size(size_before)} -> {_size(store.size())}")
        elif output_path is not None:
            _export(store, output_path)


def _list(store: Store) -> None:
    groups = store.groups()
    print(f"{store.path}: {_size(store.size())} on disk, {sum(group.n for group in groups)} items")
    if not groups:
        return
    width = max(6, *(len(group.source) for group in groups))
    print(f"{'kind':<10} {'source':<{width}} {'items':>10} {'values':>10}  {'oldest':<16}  newest (UTC)")
    for group in groups:
        print(
            f"{group.kind:<10} {group.source:<{width}} {group.n:>10} {_size(group.value_bytes):>10}"
            f"  {_moment(group.oldest):<16}  {_moment(group.newest)}"
        )


def _verify(store: Store) -> None:
    problems = store.verify()
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"store {store.path} is damaged: {problems[0]}{more}; save what can be read with --action export, "
            "then move it away (with its -wal and -shm files)"
        )
    print(f"{store.path}: ok, {store.count()} items")


def _prune(store: Store, kind: str | None, source: str | None, before: float | None, apply: bool) -> None:
    if not apply:
        n = store.count(kind, source, before)
        print(f"{n} of {store.count()} items match; nothing was forgotten: add --apply to forget them")
        return
    n = store.prune(kind, source, before)
    print(f"{n} items forgotten, {store.count()} kept; --action vacuum gives their space back to the disk")


def _export(store: Store, output_path: str) -> None:
    from persona_vectors.files import check_output_path, write_jsonl_atomic

    out = check_output_path(output_path, [".jsonl"])
    write_jsonl_atomic(out, store.items())
    print(out)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


if __name__ == "__main__":
    cli.run(main)
