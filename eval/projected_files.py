"""Files of responses that columns are added to in place: read cell by cell, and written so that nothing else changes.

A file's sidecar says under `projections` what made each column: a column is kept only for what it was made by.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_vectors.files import (
    append_to_sidecar,
    read_jsonl,
    read_sidecar,
    write_csv_atomic,
    write_jsonl_atomic,
)
from persona_vectors.locks import locked

Row = dict[str, Any]
PROJECTIONS = "projections"  # the sidecar's list of what was added
_LONGEST_FIELD = 2**31 - 1  # python's own limit is 131072 characters, less than a long conversation


@dataclass(frozen=True)
class Origin:
    """What determines a projection column, beside the responses.

    Attributes:
        vector_path: as it was given; another path to the same content is the same.
        vector: sha256 of the vector file.
        model_name: as it was given.
        model: fingerprint of the model.
        dtype: what the model computes in ("float32", ...), or "auto" where a record or config does not say more.
    """

    vector_path: str
    vector: str
    model_name: str
    model: str
    dtype: str

    def differs_from(self, other: Origin) -> list[str]:
        """What is not the same, in words that show both; "auto" is compared with nothing."""
        found = []
        if self.vector != other.vector:
            found.append(f"vector {self.vector_path} ({self.vector[:8]}), not {other.vector_path} ({other.vector[:8]})")
        if self.model != other.model:
            found.append(f"model {self.model_name} ({self.model[:8]}), not {other.model_name} ({other.model[:8]})")
        if self.dtype != other.dtype and "auto" not in (self.dtype, other.dtype):
            found.append(f"dtype {self.dtype}, not {other.dtype}")
        return found


def read_rows(file_path: str | Path) -> list[Row]:
    """The file's rows; every cell of a CSV as the text it is, so that writing it back changes none.

    Raises:
        ValueError: no such file, another kind of file, no rows, a missing column, naming those it has, or a row that
            could not be written back as it is.
    """
    path = Path(file_path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"file_path {file_path} ends in {path.suffix or 'nothing'}; expected .csv or .jsonl")
    if not path.is_file():
        raise ValueError(f"file_path {file_path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.suffix == ".jsonl":
        rows = read_jsonl(path)
        for number, row in enumerate(rows, start=1):
            _check_writable(row, f"{path}, row {number}")
    else:
        header, rows = read_cells(path)
        missing = [name for name in ("prompt", "answer") if name not in header]
        if missing:
            raise ValueError(f"{file_path} has no column {', '.join(missing)}; it has {', '.join(header)}")
    if not rows:
        raise ValueError(f"{file_path} has no rows")
    return rows


def read_cells(path: str | Path) -> tuple[list[str], list[Row]]:
    """The header of a CSV and its rows, all cells as text; blank lines are no rows.

    Raises:
        ValueError: no CSV table in UTF-8, two columns of one name, or a row of another width than the header's.
    """
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from None
    finally:
        csv.field_size_limit(before)
    if not header:
        raise ValueError(f"{path} is not a CSV table: it is empty")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}; rename one of them")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise ValueError(f"{path}, row {number}: {len(line)} cells; the header has {len(header)}: mend that row")
    return header, [dict(zip(header, line, strict=True)) for line in lines]


def _check_writable(row: Row, place: str) -> None:
    """Refuses what JSON escapes let in and no file in UTF-8 can hold, and numbers that JSON has none for."""
    for key, value in row.items():
        try:
            json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place}: half a character (a lone surrogate) under {ascii(key)}; mend it") from None
        except ValueError:
            raise ValueError(f"{place}: a number under {ascii(key)} is too large to be written back") from None


def columns_of(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The columns that every row has."""
    return set.intersection(*(set(row) for row in rows))


def kept_columns(file_path: str | Path, rows: Sequence[Row], origins: Mapping[str, Origin]) -> dict[str, bool]:
    """Which of these columns are there already, and whether the sidecar says that they were made by the same.

    Raises:
        ValueError: a column that another vector, model or number type made.
    """
    there = columns_of(rows)
    return {name: _is_made_by(file_path, name, origin) for name, origin in origins.items() if name in there}


def _is_made_by(file_path: str | Path, name: str, origin: Origin) -> bool:
    """Whether a record says so; False where none says anything."""
    recorded = _recorded(file_path, name, Path(origin.vector_path).stem)
    if recorded is None:
        return False
    if differences := recorded.differs_from(origin):
        raise ValueError(
            f"{file_path} has the column {name} already, made by {' and '.join(differences)}; pass --overwrite to "
            "compute it anew, or rename the column or the vector file to have both"
        )
    return True


def _recorded(file_path: str | Path, name: str, stem: str) -> Origin | None:
    """What made a column, which is named after a vector file of that stem; the last record of it counts."""
    for entry in reversed(read_sidecar(file_path).get(PROJECTIONS, [])):
        if name in entry["columns"]:
            for path, sha256 in entry["vectors"].items():
                if Path(path).stem == stem:
                    return Origin(path, sha256, entry["model"], entry["model_fingerprint"], entry["dtype"])
    return None


def add_columns(
    file_path: str | Path,
    rows: Sequence[Row],
    values: Mapping[str, Sequence[float | None]],
    origins: Mapping[str, Origin],
    *,
    overwrite: bool = False,
) -> None:
    """The file with new columns, and their record in its sidecar; what others added to it since it was read stays.

    The file is written in one step: an interrupted run leaves it as it was.

    Args:
        rows: as `read_rows` gave them before the values were computed.
        origins: of each column of `values`, all of one model.

    Raises:
        ValueError: prompts or answers that changed since, or, without `overwrite`, a column that another run made of
            something else since; nothing is written.
    """
    with locked(file_path):
        now = read_rows(file_path)
        if [_responses(file_path, row) for row in now] != [_responses(file_path, row) for row in rows]:
            raise ValueError(
                f"the responses in {file_path} were changed while they were read, so nothing was written; run the same "
                "command again"
            )
        if not overwrite:
            kept_columns(file_path, now, {name: origins[name] for name in values})
        _write(file_path, now, values)
        append_to_sidecar(file_path, PROJECTIONS, _record([*values], [origins[name] for name in values]))


def _responses(file_path: str | Path, row: Row) -> list[Any]:
    return [row.get(name) for name in (["messages"] if Path(file_path).suffix == ".jsonl" else ["prompt", "answer"])]


def _write(file_path: str | Path, rows: Sequence[Row], values: Mapping[str, Sequence[float | None]]) -> None:
    import pandas as pd

    if Path(file_path).suffix == ".jsonl":
        added = [{name: column[i] for name, column in values.items()} for i in range(len(rows))]
        write_jsonl_atomic(file_path, [{**row, **new} for row, new in zip(rows, added, strict=True)])
        return
    table = pd.DataFrame(list(rows))
    for name, column in values.items():
        table[name] = pd.Series(list(column), dtype="float64")
    write_csv_atomic(table, file_path)


def _record(columns: list[str], origins: Sequence[Origin]) -> dict[str, Any]:
    """What the sidecar says of new columns: which model read the rows, and which vectors by their content."""
    return {
        "columns": columns,
        "model": origins[0].model_name,
        "model_fingerprint": origins[0].model,
        "dtype": origins[0].dtype,
        "vectors": {origin.vector_path: origin.vector for origin in origins},
    }
