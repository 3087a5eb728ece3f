"""The README's script of the paper's claims, from nothing to its table: the part that is quickest, as it is run."""

import json

from tests.test_readme import PAPER, checkout, execute

__all__ = ["checkout"]  # a fixture


def test_the_script_measures_a_part_and_writes_its_table_and_page(checkout):
    said = execute(["bash", "-c", f"{PAPER} --parts samples"], checkout).stdout
    folder = checkout / "results" / "paper"
    assert "1 of 1 claims hold for every trait that was tested" in said
    assert said.startswith("vectors of seven traits") and "no evidence about large models" in said
    found = json.loads((folder / "claims.json").read_text())["claims"]["samples"]["found"]
    assert len(found) == 4 and all(one["value"] > 0.9 and "99th percentile" in one["beside"] for one in found.values())
    assert "largely separable" in (folder / "claims.md").read_text()
    assert "The claims" in (folder / "claims.html").read_text()
