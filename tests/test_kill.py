"""A run killed with SIGKILL goes on where it was: nothing done twice, its table that of a run left alone."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import soak
from eval import eval_persona
from persona_vectors import cli
from persona_vectors.store import Store, default_store_path


def run_left_alone(folder: Path) -> Path:
    """The table of an uninterrupted run, in this process."""
    assert cli.run(eval_persona.main, soak.arguments(folder)) == 0
    return folder / "out.csv"


@pytest.mark.long
def test_three_kills_while_sampling_and_judging(tmp_path, monkeypatch):
    monkeypatch.chdir(soak.ROOT)
    folder = tmp_path / "killed"
    folder.mkdir()
    kills = soak.chain(folder, seed=3, n_kills=3)  # raises where an item was lost or stored again
    assert any(kill.in_sampling for kill in kills) and sum(kill.in_work for kill in kills) >= 2, kills

    assert soak.same_table(folder / "out.csv", run_left_alone(tmp_path))
    table = pd.read_csv(folder / "out.csv")
    assert len(table) == soak.N_ANSWERS
    assert set(table["question_id"].value_counts()) == {soak.N_PER_QUESTION}
    with Store(folder / "s") as killed, Store(default_store_path()) as alone:
        assert {item["key"] for item in killed.items()} == {item["key"] for item in alone.items()}


def test_a_kill_inside_a_commit_leaves_what_was_before_it(tmp_path):
    """One commit of 40,000 items does not fit the cache, so its frames reach the log long before it is complete."""
    code = f"""
        from persona_vectors.store import Store
        store = Store({str(tmp_path / "s")!r})
        store.put_many({{f"early {{i}}": i for i in range(10)}}, kind="x")
        store.put_many({{f"late {{i}}": "x" * 500 for i in range(40_000)}}, kind="x")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=soak.ROOT)
    give_up = time.monotonic() + 60
    while soak.log_state(tmp_path / "s")[0] < 2_000_000 and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    assert soak.ends_inside_a_commit(tmp_path / "s")
    with Store(tmp_path / "s") as store:
        assert store.count() == 10 and store.verify() == []
        store.put_many({"late 1": 1}, kind="x")
        assert store.get_many(["early 3", "late 1", "late 2"]) == {"early 3": 3, "late 1": 1}
