"""The README's script of the paper's claims, from nothing to its table: its quickest part, on half of the rows and half
of the questions."""

import json
from pathlib import Path

import pytest

from persona_vectors.files import read_jsonl, write_jsonl_atomic
from tests.test_readme import PAPER, checkout, execute

__all__ = ["checkout"]  # a fixture


def fewer_rows(checkout: Path) -> None:
    """The checkout's data sets have every second row, the same ones at every level, and its traits 10 questions."""
    for level in ("misaligned_2", "normal"):
        for file in (checkout / "dataset").glob(f"tiny_*/{level}.jsonl"):
            write_jsonl_atomic(file, read_jsonl(file)[::2])
    for file in (checkout / "models" / "tiny-persona" / "traits" / "extract").glob("*.json"):
        trait = json.loads(file.read_text())
        file.write_text(json.dumps(trait | {"questions": trait["questions"][::2]}))


@pytest.mark.long
def test_the_script_measures_a_part_and_writes_its_table_and_page(checkout):
    fewer_rows(checkout)
    said = execute(["bash", "-c", f"{PAPER} --parts samples"], checkout).stdout
    folder = checkout / "results" / "paper"
    assert "1 of 1 claims hold for every trait that was tested" in said
    assert said.startswith("vectors of seven traits") and "no evidence about large models" in said
    found = json.loads((folder / "claims.json").read_text())["claims"]["samples"]["found"]
    assert len(found) == 4 and all(one["value"] > 0.9 and "99th percentile" in one["beside"] for one in found.values())
    assert "largely separable" in (folder / "claims.md").read_text()
    assert "The claims" in (folder / "claims.html").read_text()
