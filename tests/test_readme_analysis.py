"""The README's commands of the quick look, in order: each reads what those before it wrote."""

import json

import pandas as pd
import pytest

from tests.test_readme import COMMANDS, checkout, is_of_analysis, run_command

__all__ = ["checkout"]  # a fixture


@pytest.mark.long
def test_commands_of_the_quick_look_run_in_order(checkout):
    commands = [command for command in COMMANDS if is_of_analysis(command)]
    assert len(commands) == 5
    for command in commands:
        run_command(command, checkout)
    folder = checkout / "persona_analysis"
    told = json.loads((folder / "models_tiny-persona_humorous_vectors.json").read_text())
    entry = told["calibration"]
    assert told["trait"] == "humorous" and entry["layer"] == 3
    unsteered, kept = (
        next(point for point in entry["confirmed"] if not point["control"] and point["coef"] == coef)
        for coef in (0.0, entry["coef"])
    )
    assert kept["coherence"]["mean"] >= 75 and kept["trait"]["mean"] > unsteered["trait"]["mean"] + 5
    assert pd.read_csv(folder / "comparison.csv")["trait"].tolist() == ["humorous"]
    assert "Best layers" in (folder / "report.html").read_text(encoding="utf-8")
