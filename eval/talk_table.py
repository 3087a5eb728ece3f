"""Answers side by side, as text: one column a strength."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LEAST_WIDTH = 18  # of a column; narrower ones are read worse than answers below one another
_PIPE_WIDTH = 28  # of a column where nobody's terminal says how wide


def printable(text: str) -> str:
    """The text without what would steer a terminal instead of being seen: escape sequences, and turns of direction."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def new_console() -> Console:
    """Standard output, where model text is never read as markup."""
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    return Console(highlight=False, markup=False, emoji=False)


def say(console: Console, *lines: str) -> None:
    """Prints lines, which the terminal wraps."""
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def fits(console: Console, n_columns: int) -> bool:
    """Whether so many columns can be read side by side."""
    return not console.is_terminal or console.width >= _LEAST_WIDTH * n_columns


def table(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows of texts under headers, each column equally wide."""
    width = console.width if console.is_terminal else _PIPE_WIDTH * len(headers)
    made = Table(box=box.SIMPLE_HEAD, width=width, show_lines=False, padding=(0, 1), pad_edge=False)
    for header in headers:
        made.add_column(Text(header), ratio=1, overflow="fold", vertical="top")
    for row in rows:
        made.add_row(*(Text(printable(cell).strip()) for cell in row), end_section=True)
    return made


def print_table(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table, or in a narrow terminal each row's texts below one another."""
    if fits(console, len(headers)):
        made = table(console, headers, rows)
        console.print(made, width=made.width, crop=False, soft_wrap=False)
        return
    for row in rows:
        for header, cell in zip(headers, row, strict=True):
            say(console, f"{header}: {cell.strip()}")
        say(console, "")
