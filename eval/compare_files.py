"""The tables and figures of a comparison of steering methods, each with its sidecar; another one's are removed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.compare_behavior import results_table
from eval.compare_page import comparison_png, findings
from eval.compare_settings import METHODS, Checked
from persona_vectors import plots
from persona_vectors.files import (
    is_as_recorded,
    read_sidecar,
    sha256_of_file,
    sidecar_path,
    write_bytes_atomic,
    write_csv_atomic,
    write_json_atomic,
    write_sidecar,
)

if TYPE_CHECKING:
    import pandas as pd

    from eval.compare_steps import Comparison

LATENCY = "latency_comparison.csv"
NOT_IN_EVERY_RUN = (
    *(f"{method}_coef_*.csv" for method in METHODS),
    *(LATENCY, "space_analysis.json", "space_analysis.png", "capability.csv"),
)


def remove_stale(checked: Checked) -> list[str]:
    """Removes what a comparison with other settings wrote and this one need not replace; says of each file what was
    done.

    Whose a file is, its sidecar says: one without a sidecar of this command, or changed since, stays.
    """
    lines = []
    for path in sorted(path for pattern in NOT_IN_EVERY_RUN for path in checked.asked.folder.glob(pattern)):
        told = read_sidecar(path)
        settings = told.get("settings")
        if (
            not isinstance(settings, dict)
            or not _is_of_a_comparison(settings)
            or settings == checked.record["settings"]
        ):
            continue
        if told.get("file", {}).get("sha256") != sha256_of_file(path):
            lines.append(f"note: {path} is of a comparison with other settings, and was changed since: it stays")
            continue
        path.unlink()
        sidecar_path(path).unlink()
        lines.append(f"removed {path}, of an earlier comparison with other settings")
    return lines


def _is_of_a_comparison(settings: Any) -> bool:
    names = {"activation_vector_path", "lora_diff_path", "lora_coefficients", "content"}
    return isinstance(settings, dict) and names <= settings.keys()


def write_behavior(found: Comparison) -> None:
    """The response tables, comparison_results.csv and comparison_plot.png; what they replace is said."""
    folder, record = found.checked.asked.folder, found.checked.record
    for line in remove_stale(found.checked):
        print(line)
    for run in found.runs:
        if not run.control:
            path = table_path(folder, run.method, run.coef)
            own = {"method": run.method, "coef": run.coef, "n_failed": len(run.answered.failures)}
            write_sidecar(write_csv_atomic(run.table, path), {**record, **own})
    table = results_table(found.runs, found.checked)
    write_sidecar(
        write_csv_atomic(table, folder / "comparison_results.csv"),
        {**record, **found.behavior.receipts, **findings(found)},
    )
    drawn = write_bytes_atomic(folder / "comparison_plot.png", plots.png_bytes(comparison_png(found)))
    write_sidecar(drawn, {"kind": "trait and coherence of two steering methods", **record})


def table_path(folder: Path, method: str, coef: float) -> Path:
    """The response table of a method's own setting."""
    return folder / f"{method}_coef_{coef:.12g}.csv"


def earlier_table(name: str, checked: Checked) -> pd.DataFrame | None:
    """The table as a run of these very settings wrote it; None where there is none, or with --overwrite.

    It tells of this machine at one time, so that measuring again would replace it by other numbers.
    """
    import pandas as pd

    path = checked.asked.folder / name
    same = read_sidecar(path).get("settings") == checked.record["settings"]
    if checked.asked.overwrite or not same or not is_as_recorded(path):
        return None
    return pd.read_csv(path)


def write_latency(found: Comparison) -> None:
    """latency_comparison.csv."""
    assert found.latency is not None
    path = write_csv_atomic(found.latency, found.checked.asked.folder / LATENCY)
    write_sidecar(path, found.checked.record)


def write_spaces(found: Comparison) -> None:
    """space_analysis.json and .png."""
    from eval.compare_spaces import space_png

    assert found.spaces is not None
    folder, record = found.checked.asked.folder, found.checked.record
    write_sidecar(write_json_atomic(folder / "space_analysis.json", found.spaces.record()), record)
    drawn = write_bytes_atomic(folder / "space_analysis.png", plots.png_bytes(space_png(found.spaces)))
    write_sidecar(drawn, {"kind": "change of activations by a direction of weights", **record})


def write_capability(found: Comparison) -> None:
    """capability.csv."""
    assert found.capability is not None
    path = write_csv_atomic(found.capability, found.checked.asked.folder / "capability.csv")
    write_sidecar(path, found.checked.record)
