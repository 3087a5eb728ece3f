"""Published names of a command, imported when they are asked for: they need torch, and a typo on its line does not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def published(module: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`: each name of `where` is that of the module it stands for.

    __getattr__ = published(__name__, {"sample": "eval.model_utils"})
    """

    def find(name: str) -> Any:
        if name in where:
            return getattr(importlib.import_module(where[name]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
