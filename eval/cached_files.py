"""Files of an earlier run, used again only where their sidecar says that they are of this run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_vectors.files import read_sidecar


def is_cached(path: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the file is there and its sidecar's `settings` are these; False where it is to be overwritten.

    Raises:
        ValueError: it is there, and of other settings (all named), or does not say of which.
    """
    if overwrite or not path.is_file():
        return False
    made = read_sidecar(path).get("settings")
    advice = "pass --overwrite to make it anew, or give another folder to keep it"
    if not isinstance(made, dict):
        raise ValueError(f"{path} does not say how it was made (no settings in its sidecar); {advice}")
    differing = [name for name in settings if made.get(name) != settings[name]]
    if differing:
        both = [(name, _short(made.get(name)), _short(settings[name])) for name in differing]
        told = ", ".join(f"{name} {there} there, {here} here" for name, there, here in both)
        raise ValueError(f"{path} was made with other settings ({told}); {advice}")
    return True


def _short(value: Any) -> str:
    """The value, a hash by its first digits."""
    text = str(value)
    return f"{text[:8]}..." if len(text) == 64 else text
