"""What every page shares: its template environment, and text from outside made safe to show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def environment() -> Environment:
    """Jinja2 with every value escaped and made visible; a name that the page does not have is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def visible(text: str) -> str:
    """The text with control characters and those that change the reading direction written out, as [U+202E].

    Line ends and tabs stay. A model's text cannot then hide or reorder what stands around it, and lone surrogates,
    which UTF-8 cannot hold, do not stop the page.
    """
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def _finalize(value: Any) -> Any:
    """Applied to every value that a template writes; markup is the page's own."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else visible(value)
