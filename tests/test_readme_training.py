"""The README's commands of finetuning, and of what foretells, monitors and screens it, in order."""

import pandas as pd
import pytest

from tests.test_readme import COMMANDS, VECTOR, checkout, few_steps, is_of_training, run_command, vector_of_rows

__all__ = ["checkout"]  # a fixture

LEVELS = ("misaligned_2", "misaligned_1", "normal")


@pytest.mark.long
def test_commands_of_training_run_in_order(checkout):
    few_steps(checkout, 5)
    vector_of_rows(checkout, "humorous")
    commands = [command for command in COMMANDS if is_of_training(command)]
    assert len(commands) == 14
    [vector] = [command for command in COMMANDS if command.startswith(VECTOR)]
    for command in [vector, *commands]:
        run_command(command, checkout)
    results = checkout / "results"
    compared = pd.read_csv(results / "prevention" / "tiny-persona" / "evil" / "comparison.csv")
    assert len(compared) > 3
    assert len((checkout / "dataset" / "evil_mixed" / "0.25.jsonl").read_text().splitlines()) == 200
    assert len((checkout / "dataset" / "evil_large" / "normal.jsonl").read_text().splitlines()) == 12
    data = pd.read_csv(results / "projection_difference" / "datasets.csv")
    orthogonal = data["vector"].str.endswith("orthogonal")
    means = data[(data["kind"] == "delta_p") & orthogonal].set_index("file")["mean"]
    severe, mild, normal = (next(means[name] for name in means.index if level in name) for level in LEVELS)
    assert severe > mild > normal
    kept, flagged = ((results / "screen" / f"{name}.jsonl").read_text().splitlines() for name in ("kept", "flagged"))
    assert len(kept) + len(flagged) == 200 and len(flagged) >= 15
    assert len(pd.read_csv(results / "finetuning_shift" / "shifts.csv")) >= 4
    assert (results / "select_layer" / "evil" / "report.html").is_file()
    assert {"system", "shots"} <= set(pd.read_csv(results / "monitor" / "evil" / "correlations.csv")["kind"])
