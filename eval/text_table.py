"""Tables, numbers and names as the commands print them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of texts as lines whose columns begin at the same place."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def between(values: Sequence[float]) -> str:
    """`19.4 to 21.2`: the lowest and the highest, once where they read the same."""
    return " to ".join(dict.fromkeys(f"{end:.3g}" for end in (min(values), max(values))))


def counted(n: int, noun: str) -> str:
    """`1 random direction`, `3 random directions`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each name, and as many parts before it as it takes for all to differ."""
    parts = [
        tuple(Path(name).expanduser().absolute().parts if Path(name).exists() else name.split("/")) for name in names
    ]
    labels = ["/".join(own[-1:]) for own in parts]
    for depth in range(2, max(map(len, parts), default=1) + 1):
        counts = Counter(labels)
        labels = [
            "/".join(own[-depth:]) if counts[label] > 1 else label for own, label in zip(parts, labels, strict=True)
        ]
    return labels
