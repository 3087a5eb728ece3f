"""The finetuned models of a comparison: found, named, checked against the base by their configs, grouped by data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.text_table import short_names
from persona_vectors.models import ModelSource, fingerprint, load_config, resolve_model
from persona_vectors.training_run import RECORD


@dataclass(frozen=True)
class Finetune:
    """One finetuned model.

    Attributes:
        name: as given.
        label: short, and no other model's.
        cluster: what it is resampled together with: finetunes of the same training files share it.
        record: what training.json says; empty where there is none.
    """

    name: str
    label: str
    cluster: str
    record: dict[str, Any]


def find_finetunes(
    base: str, given: Sequence[str], *, group_by_data: bool = True, group_pattern: str | None = None
) -> list[Finetune]:
    """The models of the command line; a folder that holds training runs stands for all of them.

    Raises:
        ValueError: one line: no model there, given twice, the base itself, an adapter of another base, a model of
            another size, a run that is not trained to the end, or a group_pattern that does not fit every name.
    """
    names = [name for one in given for name in _runs_in(one)]
    if not names:
        raise ValueError("--finetuned names no model; give at least one")
    sources = [resolve_model(name) for name in names]
    _refuse_same(base, names, sources)
    size = _size(base)
    for name, source in zip(names, sources, strict=True):
        _check_base(base, name, source)
        if (own := _size(name)) != size:
            raise ValueError(
                f"{name} has {own[0]} layers of width {own[1]}, the base {base} {size[0]} of width {size[1]}; a shift "
                "needs a model finetuned from this base"
            )
    found = [Finetune(name, label, name, _record(name)) for name, label in zip(names, short_names(names), strict=True)]
    if group_pattern is not None:
        return [replace(one, cluster=_matched(group_pattern, one.name)) for one in found]
    return _by_data(found) if group_by_data else [replace(one, cluster=one.label) for one in found]


def _runs_in(name: str) -> list[str]:
    """The runs of a folder that holds several and is none itself; otherwise the name alone."""
    folder = Path(name).expanduser()
    if not name or not folder.is_dir() or any((folder / own).exists() for own in (RECORD, *_CONFIGS)):
        return [name]
    runs = sorted(str(record.parent) for record in folder.glob(f"*/{RECORD}"))
    return runs if not any(folder.glob("checkpoint-*")) and runs else [name]


_CONFIGS = ("config.json", "adapter_config.json")


def _refuse_same(base: str, names: Sequence[str], sources: Sequence[ModelSource]) -> None:
    seen = {_place(resolve_model(base)): base}
    for name, source in zip(names, sources, strict=True):
        before = seen.setdefault(_place(source), name)
        if before is base:
            raise ValueError(f"--finetuned names {name}, which is the base itself; its shift is 0 by definition")
        if before is not name or names.count(name) > 1:
            raise ValueError(f"--finetuned names one model twice: {before} and {name}")


def _place(source: ModelSource) -> tuple[str, str]:
    """Where the weights are, whatever the spelling."""
    base = str(Path(source.base).resolve()) if source.is_local else source.base
    return base, str(source.adapter.resolve()) if source.adapter else ""


def _check_base(base: str, name: str, source: ModelSource) -> None:
    """Refuses an adapter of another model than the base."""
    if source.adapter is None:
        return
    own = resolve_model(base)
    if own.adapter is not None:
        raise ValueError(f"{name} is an adapter of {source.base}, and --base {base} is an adapter too; merge the base")
    same = _place(own)[0] == _place(source)[0] or (
        own.is_local and source.is_local and fingerprint(source.base) == fingerprint(own.base)
    )
    if not same:
        raise ValueError(f"{name} is an adapter of {source.base}, not of --base {base}")


def _size(name: str) -> tuple[int, int]:
    config = load_config(name)
    return config.num_hidden_layers, config.hidden_size


def _record(name: str) -> dict[str, Any]:
    """training.json of the run that the model is, or is a checkpoint or the merged model of; empty without one."""
    folder = Path(name).expanduser()
    inside = re.fullmatch(r"checkpoint-\d+|merged", folder.name)
    path = (folder.resolve().parent if inside and not (folder / RECORD).exists() else folder) / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); --nogroup_by_data does not help, train the run again"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; expected what training.py writes, an object")
    if not inside and record.get("state") != "finished":
        raise ValueError(
            f"{name} is not trained to the end; finish it with training.py, or give one of its checkpoints"
        )
    return record


def data_files(record: dict[str, Any]) -> dict[str, str]:
    """Training file -> its content's hash (its name where the record has none)."""
    files = record.get("config", {}).get("training_file") or []
    files = [files] if isinstance(files, str) else files
    hashes = record.get("key", {}).get("files", {})
    return {path: hashes.get(path, path) for path in files}


def _by_data(found: Sequence[Finetune]) -> list[Finetune]:
    """Runs whose training files have the same content, in any order, share a cluster that is named by the files."""
    contents = [tuple(sorted(data_files(one.record).values())) or (one.name,) for one in found]
    first: dict[tuple[str, ...], Finetune] = {}
    for content, one in zip(contents, found, strict=True):
        first.setdefault(content, one)
    names = _data_names(first)
    return [replace(one, cluster=names[content]) for one, content in zip(found, contents, strict=True)]


def _data_names(first: dict[tuple[str, ...], Finetune]) -> dict[tuple[str, ...], str]:
    """Content -> the names of its files, without those that every group was trained on; no two are the same."""
    files = {content: data_files(one.record) for content, one in first.items()}
    everywhere = set.intersection(*(set(own.values()) for own in files.values()))
    told = {
        content: [path for path, digest in own.items() if digest not in everywhere] or list(own)
        for content, own in files.items()
    }
    paths = list(dict.fromkeys(path for own in told.values() for path in own))
    short = dict(zip(paths, short_names(paths), strict=True))
    names: dict[tuple[str, ...], str] = {}
    for content, own in told.items():
        name = " + ".join(short[path] for path in own) or first[content].label
        same = sum(before == name or before.startswith(f"{name} #") for before in names.values())
        names[content] = f"{name} #{same + 1}" if same else name  # the file was changed between the runs
    return names


def _matched(pattern: str, name: str) -> str:
    """What `pattern` finds in the name: its first group, or all of it."""
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise ValueError(f"--group_pattern {pattern!r} is not a regular expression: {error}") from None
    if match is None or not (found := match[match.lastindex and 1 or 0]):
        raise ValueError(f"--group_pattern {pattern!r} finds nothing in {name}; it must name a group for every model")
    return found


def origin_notes(base: str, finetunes: Sequence[Finetune]) -> list[str]:
    """What training.json says against comparing a run with this base."""
    own = fingerprint(base)
    others: dict[str, list[str]] = {}
    for one in finetunes:
        key = one.record.get("key", {}).get("model")
        if key is not None and key != own:
            others.setdefault(str(one.record.get("config", {}).get("model")), []).append(one.label)
    return [
        f"{', '.join(labels)}: trained from {start}, which is not {base} as it is now."
        for start, labels in others.items()
    ]


def cluster_line(finetunes: Sequence[Finetune], group_pattern: str | None) -> str:
    """How many finetunes there are, and what is resampled for the intervals."""
    n, k = len(finetunes), len({one.cluster for one in finetunes})
    if k == n:
        return f"{n} finetuned models, each a group of its own: intervals come from resampling models."
    by = "by --group_pattern" if group_pattern is not None else "of the same training files"
    alone = sum(not data_files(one.record) for one in finetunes) if group_pattern is None else 0
    words = f"; {alone} without training.json, each a group of its own" if alone else ""
    return f"{n} finetuned models in {k} groups {by}{words}: intervals come from resampling groups."
