"""The README's commands of the assistant axis, and its example of the library, in order."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from persona_vectors import ASSISTANT_PERSONAS, compute_axes, load_persona_vectors
from persona_vectors.vectors import load_vector
from tests.test_readme import COMMANDS, PYTHON, checkout, execute, is_of_axis, run_command

__all__ = ["checkout"]  # a fixture


@pytest.mark.long
def test_commands_of_the_axis_run_in_order(checkout):
    commands = [command for command in COMMANDS if is_of_axis(command)]
    assert len(commands) == 7
    for command in commands:
        run_command(command, checkout)
    axis = load_vector(checkout / "persona_vectors" / "tiny-persona" / "assistant_axis.pt", layer=3)
    axes = compute_axes(
        load_persona_vectors(checkout / "data" / "persona_vectors" / "tiny-persona.pt"), ASSISTANT_PERSONAS
    )
    assert float(axis @ axes["assistant_axis"]) / float(axis.norm()) == pytest.approx(1, abs=1e-4)
    results = checkout / "results"
    turns = pd.read_csv(results / "drift" / "turns.csv")
    spoken = turns[turns["role"] == "assistant"]
    assert len(spoken) == 2 * 3 * 6 and np.isfinite(spoken["projection"]).all()  # with and without the cap
    assert json.loads((results / "capping" / "cap.json").read_text())
    assert (results / "card" / "README.md").is_file()
    assert (checkout / "images" / "tiny" / "results.json").is_file()
    printed = execute([sys.executable, "-c", PYTHON[0]], checkout).stdout
    assert float(printed.split()[-1]) == pytest.approx(axes["cosine_sim"], abs=0.03)
    assert (checkout / "images" / "pca.html").is_file()
