"""Files of an earlier run, used again only where their sidecar says that they are of this run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_vectors.files import is_as_recorded, read_sidecar


def is_cached(path: Path, settings: Mapping[str, Any], overwrite: bool, flag: str = "--overwrite") -> bool:
    """Whether the file is there and its sidecar's `settings` are these; False where it is to be overwritten.

    Args:
        flag: what sets `overwrite`, for the message.

    Raises:
        ValueError: it is there, and of other settings (all named), does not say of which, or is not the file that its
            sidecar was written for.
    """
    if overwrite or not path.is_file():
        return False
    made = read_sidecar(path).get("settings")
    again = "delete it to have it made again from what is finished"
    advice = f"pass {flag} to make it anew, or give another folder to keep it"
    if not isinstance(made, dict):
        raise ValueError(f"{path} does not say how it was made (no settings in its sidecar); {again}, {advice}")
    differing = [name for name in settings if made.get(name) != settings[name]]
    if differing:
        both = [(name, _short(made.get(name)), _short(settings[name])) for name in differing]
        told = ", ".join(f"{name} {there} there, {here} here" for name, there, here in both)
        raise ValueError(f"{path} was made with other settings ({told}); {advice}")
    if not is_as_recorded(path):
        raise ValueError(
            f"{path} is not the file that its sidecar was written for (a run was killed in between, or it was changed "
            f"since); {again}, {advice}"
        )
    return True


def is_finished(path: Path, key: str) -> bool:
    """Whether the file is there as it was written, under this key."""
    return read_sidecar(path).get("key") == key and is_as_recorded(path)


def _short(value: Any) -> str:
    """The value, a hash by its first digits."""
    text = str(value)
    return f"{text[:8]}..." if len(text) == 64 else text
