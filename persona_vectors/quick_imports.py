"""transformers without scikit-learn: a command starts almost a second sooner."""

from __future__ import annotations

import sys
from typing import Any

_ONLY_USER = "transformers.generation.candidate_generator"


class _NoSklearn:
    """Finds no module; when the one that loads scikit-learn is asked for, tells transformers so: there is none."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name != _ONLY_USER:
            return
        from transformers.utils.import_utils import is_sklearn_available

        sys.meta_path.remove(self)
        if "sklearn" not in sys.modules:
            sys.modules["sklearn"] = None  # pyright: ignore[reportArgumentType] (how the import system says "absent")
            is_sklearn_available()  # its answer is kept
            del sys.modules["sklearn"]


def leave_out_sklearn() -> None:
    """transformers, if it is imported later in this process, goes without scikit-learn; others import it as ever.

    transformers loads it, and by it scipy.stats, for a draft model's confidence in assisted generation, which no
    command here uses; where it is not installed, transformers goes without. For a process that is a command of ours.
    """
    if _ONLY_USER not in sys.modules:
        sys.meta_path.insert(0, _NoSklearn())
