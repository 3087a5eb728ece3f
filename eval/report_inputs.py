"""What a results folder holds, read for a page: response tables, projections, vectors and their quality reports.

A file that cannot be shown is named with the reason; it never stops the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_vectors.files import read_sidecar, sha256_of_file, sidecar_path

if TYPE_CHECKING:
    import pandas as pd

SETTING = ["pole", "control", "vector", "matched", "layer", "coef"]
"""Columns of `Table.rows` that say how a row was sampled."""
PROJECTION = re.compile(r"(?P<name>.+?)_(?P<kind>prompt_last_proj|cos_sim|proj)_layer(?P<layer>\d+)")
SUFFIXES = (".csv", ".jsonl", ".pt", "_quality.json")
OF_A_MODEL = ("adapter_config.json", "config.json", "trainer_state.json")
"""Beside these a .pt file is a checkpoint's own (optimizer, scheduler), and no vectors."""
TEXTS = ("question", "answer", "question_id")


@dataclass(frozen=True)
class Table:
    """A response table with how each of its rows was sampled.

    Attributes:
        name: its path as a reader knows it.
        rows: question, answer, question_id, score (of the trait), coherence, the columns of SETTING (layer NaN and
            texts "" where there is none) and the projections.
        sidecar: {} where there is none.
        notes: what to know about it.
    """

    name: str
    trait: str
    rows: pd.DataFrame
    sidecar: dict[str, Any]
    projections: list[str]
    notes: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        return self.sidecar.get("settings") or {}


@dataclass(frozen=True)
class Projected:
    """A JSON-lines file with projections: column -> values."""

    name: str
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Vectors:
    """A vector file: its norm at every layer, (n_layers + 1,)."""

    name: str
    norms: np.ndarray
    sidecar: dict[str, Any]


@dataclass
class Inputs:
    """Everything that was found, and (name, reason) of what could not be used."""

    tables: list[Table] = field(default_factory=list)
    projected: list[Projected] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    qualities: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def find_files(given: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, path) of every file to look at, each once; a folder stands for all tables and vectors under it, without
    what belongs to a model or checkpoint there.

    Raises:
        ValueError: a path that does not exist.
    """
    found: dict[Path, tuple[str, Path]] = {}
    for path in map(Path, given):
        if not path.exists():
            raise ValueError(f"{path} does not exist; give folders or files that the commands wrote")
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if path.is_file() or (file.name.endswith(SUFFIXES) and not hidden and not _is_of_a_model(file)):
                name = str(file.relative_to(path)) if path.is_dir() and len(given) == 1 else str(file)
                found.setdefault(file.resolve(), (name, file))
    return list(found.values())


def _is_of_a_model(file: Path) -> bool:
    return file.suffix == ".pt" and any(file.with_name(name).exists() for name in OF_A_MODEL)


def read_inputs(given: Sequence[str]) -> Inputs:
    """All that the files and folders hold."""
    inputs = Inputs()
    for name, path in find_files(given):
        try:
            _read(name, path, inputs)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            inputs.skipped.append((name, " ".join(reason.split())))
    orphan = "a sidecar without its table, which was moved or never finished"
    inputs.skipped += [(name, orphan) for name in _orphans(given)]
    return inputs


def _orphans(given: Sequence[str]) -> Iterator[str]:
    for folder in (Path(path) for path in given if Path(path).is_dir()):
        yield from (str(file) for file in sorted(folder.rglob("*.csv.json")) if not file.with_suffix("").exists())


def _read(name: str, path: Path, inputs: Inputs) -> None:
    if path.name.endswith("_quality.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError(f"a quality report is a JSON object, not a {type(report).__name__}")
        inputs.qualities.append((name, report))
    elif path.suffix == ".pt":
        from persona_vectors.vectors import load_vectors

        sidecar, _notes = _sidecar(path)
        if sidecar.get("kind") == "weight direction":
            raise ValueError("a direction of weights; eval_lora_persona.py makes a table with it, which can be shown")
        inputs.vectors.append(Vectors(name, load_vectors(path).norm(dim=-1).numpy(), sidecar))
    elif path.suffix == ".jsonl":
        inputs.projected.append(_read_projected(name, path))
    elif path.suffix == ".csv":
        inputs.tables.append(_read_table(name, path))
    else:
        raise ValueError(f"not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")


_OBJECTS = ("settings", "file", "random_directions", "pairs")


def _sidecar(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The sidecar, and notes on what is wrong with it."""
    try:
        sidecar = read_sidecar(path)
    except (ValueError, OSError) as error:
        return {}, [f"its sidecar cannot be read: {error}"]
    if not sidecar:
        return {}, [f"it has no sidecar ({sidecar_path(path).name}), so what made it is not known"]
    wrong = [name for name in _OBJECTS if name in sidecar and not isinstance(sidecar[name], dict)]
    if wrong:
        return {}, [f"its sidecar is not one of this project's: {', '.join(wrong)} should be a JSON object"]
    expected = sidecar.get("file", {}).get("sha256")
    if expected and expected != sha256_of_file(path):
        return sidecar, ["it was changed after its sidecar was written"]
    return sidecar, []


def _read_projected(name: str, path: Path) -> Projected:
    from persona_vectors.files import read_jsonl

    rows = read_jsonl(path)
    columns = dict.fromkeys(key for row in rows for key in row if PROJECTION.fullmatch(key))
    if not columns:
        raise ValueError("no projection columns; add some with python -m eval.cal_projection")
    return Projected(name, {key: np.array([_number(row.get(key)) for row in rows]) for key in columns})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _read_table(name: str, path: Path) -> Table:
    import pandas as pd

    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=lambda column: column != "prompt")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"not a CSV table: {error}") from None
    sidecar, notes = _sidecar(path)
    trait = _trait_column(list(raw.columns))
    if raw.empty:
        raise ValueError("it has no rows")
    rows = pd.DataFrame({name: raw[name] for name in TEXTS})
    for new, old in (("score", trait), ("coherence", "coherence")):
        rows[new] = _numbers(raw[old])
        wrong = int((np.isnan(rows[new].to_numpy()) & (raw[old] != "").to_numpy()).sum())
        if wrong:
            notes.append(f"{wrong} cells of {old} are no numbers and count as not scored")
    for column, values in _setting_columns(raw, sidecar, notes).items():
        rows[column] = values
    projections = [column for column in raw.columns if PROJECTION.fullmatch(str(column))]
    for column in projections:
        rows[column] = _numbers(raw[column])
    return Table(name, trait, rows, sidecar, projections, notes)


def _numbers(column: Any) -> np.ndarray:
    """The column as floats; what is no number, or infinite, is NaN."""
    import pandas as pd

    numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _trait_column(columns: list[str]) -> str:
    """The trait's column: the published table has it right before `coherence`."""
    missing = [column for column in (*TEXTS, "coherence") if column not in columns]
    if missing:
        raise ValueError(f"not a response table: no column {', '.join(missing)}")
    before = columns.index("coherence") - 1
    if before < 0 or columns[before] in (*TEXTS, "prompt"):
        raise ValueError("not a response table: no column of trait scores before coherence")
    return columns[before]


def _setting_columns(raw: pd.DataFrame, sidecar: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """How each row was sampled, from the table's own columns or else from its sidecar."""
    import pandas as pd

    settings = _steering(sidecar)
    poles = raw["question_id"].str.extract(r"_(pos|neg)_\d+$")[0].fillna("")
    if "coef" in raw and "direction" in raw:  # the demo's table of random directions
        layer = (sidecar.get("random_directions") or {}).get("layer")
        found = {"coef": raw["coef"], "layer": layer, "control": "random" + raw["direction"]}
    elif {"coef", "layer", "vector", "control"} <= set(raw.columns):
        found = {name: raw[name] for name in ("coef", "layer", "vector", "control")}
        found["matched"] = _matched(raw["control"], settings).str.replace("{trait}", str(settings.get("trait")))
    else:
        if not settings:
            notes.append("it does not say how it was steered; it is shown as a setting of its own")
        elif any(isinstance(settings.get(key), list) and len(settings[key]) > 1 for key in ("coef", "layer")):
            notes.append("its sidecar names several settings, but the table has no columns for them")
        found = _from_settings(settings)
    frame = pd.DataFrame({"pole": poles, "control": "", "vector": "", "matched": "", "layer": np.nan, "coef": np.nan})
    for column, value in found.items():
        frame[column] = value
    for column in ("layer", "coef"):
        frame[column] = _numbers(frame[column])
    frame.loc[frame["control"] == "prompt", "pole"] = ""  # said by the control
    unsteered = (frame["coef"] == 0) & ~frame["control"].str.startswith("random")
    frame.loc[unsteered, "vector"], frame.loc[unsteered, "layer"] = "", np.nan
    return {column: frame[column] for column in SETTING}


def _steering(sidecar: dict[str, Any]) -> dict[str, Any]:
    """The settings, with what steered under the names that eval_persona has, whichever command wrote the table."""
    from eval.compare_settings import WEIGHTS
    from eval.sweep import TOGETHER

    settings = sidecar.get("settings") or {}
    directions = settings.get("lora_diff_path")
    if "lora_coef" in settings:  # eval_lora_persona
        if settings.get("compose") and isinstance(directions, list):
            directions = TOGETHER.join(map(str, directions))
        return {**settings, "coef": settings["lora_coef"], "vector_path": directions}
    if "activation_vector_path" in settings:  # compare_steering_methods
        own = {"vector_path": settings["activation_vector_path"]}
        if sidecar.get("method") == WEIGHTS:
            own = {"vector_path": directions, "layer": None}
        return {**settings, **own, "coef": sidecar.get("coef")}
    return settings


def _from_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The one setting of a published table. Without settings coef is NaN: unknown."""
    one = {key: _only(settings.get(key)) for key in ("coef", "layer", "vector_path", "control")}
    control = one["control"] or ""
    path = one["vector_path"] or ""
    control, path = str(control), str(path)
    is_random = control.startswith("random")
    return {
        "coef": one["coef"] if one["coef"] is not None else 0.0 if settings else np.nan,
        "layer": one["layer"],
        "control": control,
        "vector": "" if control else path,
        "matched": path if is_random else "",
    }


def _only(value: Any) -> Any:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if isinstance(value, (str, int, float)) else None


def _matched(controls: Any, settings: dict[str, Any]) -> pd.Series:
    """The vector whose norm each random direction has: the second vector's follow after n_random of the first's."""
    vectors, n_random = settings.get("vector_path"), settings.get("n_random")
    vectors = [vectors] if isinstance(vectors, str) else vectors
    numbers = controls.str.extract(r"^random(\d+)$")[0]
    if not isinstance(vectors, list) or not vectors or (len(vectors) > 1 and not n_random):
        return numbers.map(lambda _: "")

    def vector(number: Any) -> str:
        if not isinstance(number, str):
            return ""
        place = (int(number) - 1) // n_random if len(vectors) > 1 and isinstance(n_random, int) else 0
        return str(vectors[place]) if place < len(vectors) else ""

    return numbers.map(vector)
