"""The prevention study's verdicts follow what was measured: each claim can fail."""

from __future__ import annotations

import pytest

from benchmarks.prevention_settings import MORE_TRAITS, SEEDS, TRAITS
from benchmarks.prevention_table import RANDOM, load, verdicts


def study(**prevented):
    """A study in which all claims hold, but for what is changed of the prevented models or of `random` and `plain`."""
    scores = {"base": (10, 93, 7.5), "plain": (90, 92, 0.1), "prevented": (30, 92, 0.1)} | dict.fromkeys(
        RANDOM, (90, 92, 0.1)
    )
    for name in [key for key in prevented if key in scores or key == "random"]:
        for case in RANDOM if name == "random" else [name]:
            scores[case] = prevented[name]
    return {
        (trait, seed, name): {"trait": [score] * 4, "coherence": [coherence] * 4, "task_loss": loss}
        for trait in (*TRAITS, *MORE_TRAITS)
        for seed in SEEDS
        for name, (score, coherence, loss) in scores.items()
    }


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"prevented": (66, 92, 0.1)}, [0]),
        ({"random": (84, 92, 0.1)}, [1]),
        ({"prevented": (30, 89, 0.1)}, [2]),
        ({"prevented": (30, 92, 1.0)}, [3]),
    ],
)
def test_each_claim_fails_alone(changes, fails):
    rows = verdicts(study(**changes))
    assert len(rows) == 4 * len((*TRAITS, *MORE_TRAITS))
    assert [number for number, row in enumerate(rows[:4]) if not row["holds"]] == fails


def test_a_study_without_its_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks the study's runs"):
        load(tmp_path)
