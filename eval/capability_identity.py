"""What determines the metrics of a task of lm-evaluation-harness but for the model, for the keys of what is kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from persona_vectors.files import sha256_of_file


@dataclass(frozen=True)
class Leaf:
    """A harness task, or one of the tasks of a group such as mmlu.

    Attributes:
        task: the harness's own.
        identity: what determines its metrics but for the model, read before anything is run.
    """

    task: Any
    identity: Mapping[str, Any]


Leaves = dict[str, Leaf]


def identity(
    task: Any, *, limit: int | None, num_fewshot: int | None, apply_chat_template: bool, seed: int
) -> dict[str, Any]:
    """What determines a part's metrics but for the model: its definition, code and data, and how it is asked."""
    set_fewshot(task, num_fewshot, seed)
    digest = hashlib.sha256(_canonical(task.dump_config()))
    shots = task.fewshot_docs() if task.get_config("num_fewshot") else ()
    for doc in (*task.eval_docs, *(shots or ())):
        digest.update(_canonical(doc))
    for content in sorted(map(sha256_of_file, _own_code(task))):
        digest.update(content.encode())
    how = {"limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": apply_chat_template, "seed": seed}
    return how | {"definition": digest.hexdigest(), "lm_eval": importlib.metadata.version("lm_eval")}


def _own_code(task: Any) -> set[str]:
    """The files that hold the task's class and the functions its definition names, whole, since a function calls others
    of its file. The harness's own are left out: its version says what they are."""
    harness = Path(str(importlib.util.find_spec("lm_eval").origin)).parent  # pyright: ignore[reportOptionalMemberAccess]
    classes = set(type(task).__mro__) - {ABC, object}
    files = set()
    for one in (*classes, *_callables(task.config.to_dict(keep_callable=True))):
        try:
            file = inspect.getsourcefile(one.func if isinstance(one, partial) else one)
        except TypeError:  # written in C
            continue
        if file is not None and harness not in Path(file).parents:
            files.add(file)
    return files


def _callables(value: Any) -> Iterator[Any]:
    """The functions in a task's definition, however deep they stand."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _callables(one)
    elif callable(value):
        yield value


def identified(tasks: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, Leaves]:
    """The loaded tasks with their identities when asked with these options; none has been run yet."""
    return {
        name: {part: Leaf(task, identity(task, **options)) for part, task in own.items()} for name, own in tasks.items()
    }


def _canonical(value: Any) -> bytes:
    """As text that is the same in another process, where objects have other addresses."""
    return _ADDRESS.sub("", json.dumps(value, sort_keys=True, default=str)).encode()


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def set_fewshot(task: Any, num_fewshot: int | None, seed: int) -> None:
    """As the harness's own command does: a task that says 0 keeps 0."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
