"""The notebook runs from beginning to end, finds what it says, and is stored with the outputs of a run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "persona_vectors.ipynb"
OUTCOMES = """
import json
print(json.dumps({
    "extracted": {t: {pole: float(table[t].mean()) for pole, table in sides.items()} for t, sides in tables.items()},
    "pairs": n_pairs,
    "baseline": float(baseline[first].mean()),
    "steered": {str(coef): float(table[first].mean()) for coef, table in steered.items()},
    "coherence": float(steered[largest]["coherence"].mean()),
    "random": random_scores,
    "crosstalk": crosstalk.to_dict(),
    "cosines": cosines.to_numpy().tolist(),
}))
"""


def files_of_the_checkout() -> set[str]:
    """Every file that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def outcomes() -> dict:
    """What a run of a copy of the notebook ends with; nothing is left in the checkout."""
    copy = nbformat.read(NOTEBOOK, as_version=4)
    copy.cells.append(nbformat.v4.new_code_cell(OUTCOMES))
    before = files_of_the_checkout()
    NotebookClient(copy, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    assert not [name for name in files_of_the_checkout() - before if "ipynb" in name or name.endswith((".png", ".pt"))]
    return json.loads(copy.cells[-1].outputs[0].text)


def test_instructions_elicit_each_trait_and_give_pairs(outcomes):
    for trait, sides in outcomes["extracted"].items():
        assert sides["pos"] > sides["neg"] + 20, trait
        assert outcomes["pairs"][trait] >= 5, trait


def test_the_vector_moves_the_trait_further_than_any_random_direction(outcomes):
    scores = list(outcomes["steered"].values())
    assert scores[-1] > max(outcomes["random"]) + 10
    assert scores[-1] > outcomes["baseline"] + 10
    assert outcomes["coherence"] > 50


def test_each_vector_raises_its_own_trait(outcomes):
    for trait, scored in outcomes["crosstalk"].items():
        assert scored[trait] > scored["no vector"], trait
    for row, cosines in enumerate(outcomes["cosines"]):
        assert cosines[row] == pytest.approx(1, abs=1e-5)
        assert all(abs(cosine) < 0.98 for column, cosine in enumerate(cosines) if column != row)


def test_stored_with_the_outputs_of_one_run_in_order(stored):
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    images = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_outputs_hold_no_warnings_errors_or_paths_of_a_machine(stored):
    for cell in stored.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = json.dumps({key: value for key, value in output.get("data", {}).items() if key != "image/png"})
            assert not re.search(r"/(home|root|tmp|work|Users)/|Warning", text + output.get("text", ""))
