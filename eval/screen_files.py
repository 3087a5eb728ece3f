"""The files of a screen: rows exactly as they were read, a table, histograms, and a sidecar beside each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.data_rows import DataRow
from eval.screen_findings import notes, sentences
from eval.screen_page import figure_pngs, page
from eval.screen_result import Action, Screen
from persona_vectors.files import (
    check_output_path,
    read_sidecar,
    write_bytes_atomic,
    write_csv_atomic,
    write_sidecar,
)

ROW_FILES = ("ranked", "kept", "flagged", "high", "random", "low")
_BOM = b"\xef\xbb\xbf"


def raw_lines(path: str, rows: Sequence[DataRow]) -> list[bytes]:
    """The JSON object of each row as its bytes stand in the file.

    Raises:
        ValueError: the file has changed since the rows were read.
    """
    content = Path(path).read_bytes().removeprefix(_BOM)
    lines = re.split(rb"\r\n|\r|\n", content)  # as reading in text mode counts lines
    found = [lines[row.line - 1] if row.line <= len(lines) else b"" for row in rows]
    for row, line in zip(rows, found, strict=True):
        if not line.strip() or json.loads(line) != row.content:
            raise ValueError(f"{row.place} has changed while it was screened; run the command again")
    return found


def planned(action: Action, *, with_subsets: bool) -> list[str]:
    """Names of the files of rows that will be written."""
    names = {"rank": ["ranked"], "filter": ["kept"], "split": ["kept", "flagged"]}[action]
    return [*names, *(["high", "random", "low"] if with_subsets else [])]


def check_outputs(
    folder: Path, names: Sequence[str], inputs: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Returns if the files can be written.

    Raises:
        ValueError: a path that cannot be a file, one of the inputs, or (without `overwrite`) a file of rows that an
            earlier run did not write with the same settings.
    """
    read = {Path(path).resolve() for path in inputs}
    for path in [folder / f"{name}.jsonl" for name in names] + [folder / "scores.csv", folder / "report.html"]:
        check_output_path(path)
        if path.resolve() in read:
            raise ValueError(f"{path} is one of the files that are read; give another --output_dir")
        if path.suffix == ".jsonl" and path.exists() and not overwrite:
            before = read_sidecar(path).get("settings")
            if before != json.loads(json.dumps(settings)):
                raise ValueError(
                    f"{path} exists and was not written with these settings; pass --overwrite, or another --output_dir"
                )


def left_over(folder: Path, names: Sequence[str]) -> list[str]:
    """Files of rows of an earlier run that this one does not replace."""
    return [f"{name}.jsonl" for name in ROW_FILES if name not in names and (folder / f"{name}.jsonl").exists()]


def write_screen(screen: Screen, folder: Path, n_subset: int | None, seed: int) -> list[Path]:
    """The files of rows, scores.csv, histograms and report.html, each with its sidecar: settings, threshold, counts."""
    files, lines = screen.files(n_subset, seed), raw_lines(screen.data.path, screen.data.rows)
    record = {**screen.record, **_told(screen)}
    written = []
    for name, rows in files.items():
        path = write_bytes_atomic(folder / f"{name}.jsonl", b"".join(lines[row] + b"\n" for row in rows))
        write_sidecar(path, {**record, "n_rows_of_this_file": len(rows)})
        written.append(path)
    path = write_csv_atomic(screen.table(), folder / "scores.csv")
    write_sidecar(path, record)
    written.append(path)
    for name, content in figure_pngs(screen).items():
        path = write_bytes_atomic(folder / name, content)
        write_sidecar(path, record)
        written.append(path)
    from eval.analysis_page import write

    written.append(write(page(screen), folder / "report.html", record))
    return written


def _told(screen: Screen) -> dict[str, Any]:
    """What every sidecar says of the outcome."""
    rule = screen.rule
    told: dict[str, Any] = {
        "criteria": [one.name for one in screen.criteria],
        "combine": screen.combine if len(screen.criteria) > 1 or screen.combine == "mean_rank" else None,
        "thresholds": None if rule is None else rule.thresholds,
        "threshold_source": None if rule is None else rule.source,
        "counts": screen.counts(),
        "unscored_lines": [screen.data.rows[row].line for row in screen.unscored],
        "unscored_to": screen.unscored_to,
        "n_without_value": {name: int((own != own).sum()) for name, own in screen.data.values.items()},
        "sentences": sentences(screen),
        "notes": notes(screen),
    }
    if screen.reference is not None and rule is not None:
        flagged, decided = screen.share_flagged(screen.reference)
        told["reference"] = {"n_flagged": flagged, "n_scored": decided, "n_rows": len(screen.reference.rows)}
    if screen.separations:
        told["separations"] = [one.record() for one in [*screen.separations, *screen.baseline]]
    return told
