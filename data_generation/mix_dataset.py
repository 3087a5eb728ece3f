"""Mix training files at given levels: so many rows of the one, the rest of the other, no question twice.

python -m data_generation.mix_dataset --trait_file dataset/evil/misaligned_2.jsonl \
    --other_file dataset/evil/normal.jsonl --levels 0 0.125 0.25 0.5 1 --n_rows 200 \
    --output_path dataset/evil_mixed/{level}.jsonl
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from data_generation.training_rows import Row


def main(
    trait_file: Sequence[str],
    other_file: Sequence[str],
    levels: Sequence[float],
    n_rows: int,
    output_path: str,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write one file a level, each of n_rows rows: that share of them from trait_file, the rest from other_file.

    No question is in a file twice: of files that answer the same questions (dataset/<family>/), each question comes
    from only one. One order of the questions serves all levels, so a higher level keeps the trait rows of a lower
    one, and with aligned files row i of every level answers the same question. A sidecar says where each row is from.

    Args:
        trait_file: rows with the trait, one or several JSONL files.
        other_file: rows without it, one or several JSONL files.
        levels: shares of trait rows, from 0 to 1 (0.125 is 12.5%); counts are rounded to whole rows, halves up.
        n_rows: rows of each file.
        output_path: a .jsonl file; {level} in it stands for the level, and is needed where there are several.
        seed: of the draw and the order.
        overwrite: replace files that exist.
    """
    from data_generation.training_rows import read_rows

    _check_levels(levels, n_rows)
    if twice := sorted({Path(one).resolve() for one in trait_file} & {Path(one).resolve() for one in other_file}):
        raise ValueError(f"{twice[0].name} is on both sides; rows with the trait and rows without it need files apart")
    paths = _output_paths(output_path, levels, [*trait_file, *other_file], overwrite)
    sources = {path: read_rows(path) for path in dict.fromkeys([*trait_file, *other_file])}
    pools = Pools.of({path: sources[path] for path in trait_file}, {path: sources[path] for path in other_file})
    mixes = {
        level: pools.draw(trait_rows(level, n_rows), n_rows, seed) for level in levels
    }  # all, before one is written
    settings = {"trait_file": [*trait_file], "other_file": [*other_file], "n_rows": n_rows, "seed": seed}
    for level, drawn in mixes.items():
        _write(paths[level], drawn, pools, settings | {"level": level}, sources)


def _check_levels(levels: Sequence[float], n_rows: int) -> None:
    if n_rows < 1:
        raise ValueError(f"--n_rows must be at least 1; got {n_rows}")
    for level in levels:
        if not 0 <= level <= 1:
            hint = f"; did you mean {level / 100:g}?" if 1 < level <= 100 else ""
            raise ValueError(f"--levels are shares from 0 to 1; got {level:g}{hint}")
    if len({_name(level) for level in levels}) < len(levels):
        raise ValueError(f"--levels names a level twice: {' '.join(map(_name, levels))}")


def _name(level: float) -> str:
    return f"{level:.10g}"


def trait_rows(level: float, n_rows: int) -> int:
    """How many of `n_rows` are trait rows at a level: the nearest whole number, halves up."""
    return int((Decimal(str(level)) * n_rows).quantize(Decimal(1), ROUND_HALF_UP))


def _output_paths(
    output_path: str, levels: Sequence[float], inputs: Sequence[str], overwrite: bool
) -> dict[float, Path]:
    """Level -> its file, none of which is an input, or exists (unless they are to be replaced)."""
    from persona_vectors.files import check_output_path

    if len(levels) > 1 and "{level}" not in output_path:
        raise ValueError(f"--output_path {output_path} needs {{level}} in it: {len(levels)} levels are asked for")
    paths = {
        level: check_output_path(output_path.replace("{level}", _name(level)), suffixes=[".jsonl"]) for level in levels
    }
    for path in paths.values():
        if path.resolve() in {Path(name).resolve() for name in inputs}:
            raise ValueError(f"--output_path {path} is one of the files to be mixed; give another")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists; pass --overwrite, or another --output_path")
    return paths


@dataclass(frozen=True)
class Drawn:
    """A row that was drawn: the file it is from, and whether it is a trait row."""

    source: str
    row: Row
    trait: bool


@dataclass(frozen=True)
class Pools:
    """Question -> its row, on the trait side and on the other; of a question's several rows a side keeps the first."""

    trait: dict[str, Drawn]
    other: dict[str, Drawn]
    n_repeated: int
    """Rows left out because their side has the question already."""

    @classmethod
    def of(cls, trait_sources: dict[str, list[Row]], other_sources: dict[str, list[Row]]) -> Pools:
        """The pools of the files' rows."""
        trait, other = (
            [Drawn(source, row, side) for source, rows in sources.items() for row in rows]
            for sources, side in ((trait_sources, True), (other_sources, False))
        )
        first = [{drawn.row.same: drawn for drawn in reversed(side)} for side in (trait, other)]
        return cls(*first, n_repeated=len(trait) + len(other) - len(first[0]) - len(first[1]))

    def draw(self, n_trait: int, n_rows: int, seed: int) -> list[Drawn]:
        """`n_trait` trait rows and `n_rows - n_trait` others, of questions that all differ; the same for equal seeds.

        Both sides follow one order of all questions: the trait takes its first ones, except that it leaves alone
        those that the other side cannot do without.
        """
        self._check(n_trait, n_rows)
        rng = random.Random(seed)
        order = sorted({**self.trait, **self.other})
        rng.shuffle(order)
        spare = len(self.other) - (n_rows - n_trait)  # questions of the other side that the trait may take
        drawn: dict[str, Drawn] = {}
        for question in order:
            shared = question in self.other
            if question in self.trait and len(drawn) < n_trait and (spare > 0 or not shared):
                drawn[question] = self.trait[question]
                spare -= shared
        rest = [question for question in order if question in self.other and question not in drawn]
        drawn |= {question: self.other[question] for question in rest[: n_rows - n_trait]}
        rng.shuffle(order)  # rows stand in another order than they are drawn in: the trait's are not the first
        return [drawn[question] for question in order if question in drawn]

    def _check(self, n_trait: int, n_rows: int) -> None:
        """ValueError with the counts where there are too few rows."""
        together = len({**self.trait, **self.other})
        wanted = f"{n_rows} rows with {n_trait} of the trait need"
        for need, have, kind in (
            (n_trait, len(self.trait), "trait rows"),
            (n_rows - n_trait, len(self.other), "other rows"),
            (n_rows, together, "different questions on both sides together"),
        ):
            if have < need:
                raise ValueError(
                    f"{wanted} {need} {kind}, and there are {have} (questions: {len(self.trait)} in the trait files, "
                    f"{len(self.other)} in the others, {together} together; no question is used twice)"
                )


def _write(path: Path, mix: list[Drawn], pools: Pools, settings: dict[str, Any], sources: dict[str, list[Row]]) -> None:
    """The file, then its sidecar; says what was written."""
    from persona_vectors.files import sha256_of_file, write_jsonl_atomic, write_sidecar

    names = list(sources)
    n_trait = sum(drawn.trait for drawn in mix)
    write_jsonl_atomic(path, [drawn.row.content for drawn in mix])
    record = {
        "settings": settings,
        "n_trait": n_trait,
        "n_other": len(mix) - n_trait,
        "share": n_trait / len(mix),
        "n_repeated_in_sources": pools.n_repeated,
        "sources": [
            {"file": name, "sha256": sha256_of_file(name), "n_rows": len(rows)} for name, rows in sources.items()
        ],
        "rows": [{"source": names.index(drawn.source), "line": drawn.row.line, "trait": drawn.trait} for drawn in mix],
    }
    write_sidecar(path, record)
    print(f"{path}: {len(mix)} rows, {n_trait} of the trait ({100 * n_trait / len(mix):.4g}%)")


if __name__ == "__main__":
    cli.run(main)
