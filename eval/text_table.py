"""Tables and numbers as the commands print them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of texts as lines whose columns begin at the same place."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def between(values: Sequence[float]) -> str:
    """`19.4 to 21.2`: the lowest and the highest, once where they read the same."""
    return " to ".join(dict.fromkeys(f"{end:.3g}" for end in (min(values), max(values))))
