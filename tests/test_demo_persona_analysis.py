"""The menu of the analysis toolkit: batch, comparison and page of real extractions; mistakes do not end it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pexpect
import pytest

import demo_persona_analysis
from eval.quick_compare import comparisons, read_folder
from persona_vectors import cli
from persona_vectors.vector_files import read_vector_file
from tests.conftest import ROOT
from tests.tiny_models import fondness, saved_model

TINY = "models/tiny-persona"
SMALL = ["--n_samples", "2", "--max_tokens", "12", "--engine", "hf"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two traits extracted by the batch, a model that is not there beside them."""
    path = tmp_path_factory.mktemp("analysis")
    patch = pytest.MonkeyPatch()
    patch.setenv("PERSONA_STORE", str(path / "store.sqlite"))
    given = ["--option", "2", "--model_names", TINY, "models/none", "--traits", "openness", "extraversion"]
    assert cli.run(demo_persona_analysis.main, [*given, "--save_dir", str(path), *SMALL]) == 1  # run again for the rest
    patch.undo()
    return path


def test_a_batch_goes_on_after_a_failure_and_is_compared(folder: Path):
    table = pd.read_csv(folder / "comparison.csv")
    assert table["trait"].tolist() == ["extraversion", "openness"]
    for row in table.itertuples():
        rows = json.loads((folder / f"models_tiny-persona_{row.trait}_analysis.json").read_text())
        assert row.auc == pytest.approx(max(one["auc"] for one in rows.values()))
        assert ("not surely above random" in row.band) == (row.auc_low <= row.auc_random_95)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Best layers" in page and "heatmap" in page and "http://" not in page.split("plotly", 1)[0]


def test_how_it_was_made_is_of_the_extractions_not_of_the_menus_defaults(folder: Path, capsys):
    """A later comparison without the flags of the extractions once listed its own defaults."""
    assert cli.run(demo_persona_analysis.main, ["--option", "4", "--save_dir", str(folder)]) == 0, capsys.readouterr()
    told = json.loads((folder / "comparison.csv.json").read_text())
    assert told["of all"]["max_tokens"] == 12 and told["of all"]["n_samples"] == 2 and "arguments" not in told
    page = (folder / "report.html").read_text(encoding="utf-8").split("How it was made")[-1]
    assert "of all.max_tokens" in page and "neuroticism" not in page


def test_cosines_are_those_of_the_vectors(folder: Path):
    found = read_folder(folder)
    [one] = comparisons(found)  # one model, so no trait has two
    layer = int(one.title.split("layer ")[1].split(":")[0])
    a, b = (read_vector_file(each.path).vectors[layer].double().numpy() for each in found)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert one.matrix[0, 1] == pytest.approx(expected, abs=1e-5) and one.matrix[0, 0] == pytest.approx(1, abs=1e-5)
    assert 1.5 / 256**0.5 < one.chance < 2.5 / 256**0.5  # 1.96 standard deviations, of 200 draws


def test_models_of_one_width_are_compared_by_trait(folder: Path):
    found = read_folder(folder)
    again = [type(one)(**{**vars(one), "model": "another"}) for one in found]
    titles = [one.title for one in comparisons([*found, *again])]
    assert len(titles) == 4 and any(title.startswith("openness: models") for title in titles)


@pytest.mark.parametrize("asked", ["--layers 15 16 17", "--layer_range 10 25"])
def test_published_layers_on_models_that_have_them(asked: str, monkeypatch, tmp_path: Path):
    """As published, argparse's lists included, on four architectures of 26 layers in one batch."""
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    architectures = ["gpt2", "llama", "qwen2", "mistral"]
    models = [saved_model(architecture, tmp_path / architecture, n_layers=26) for architecture in architectures]
    given = ["--option", "2", "--model_names", *models, "--traits", fondness(tmp_path), *asked.split(), *SMALL]
    assert cli.run(demo_persona_analysis.main, [*given, "--save_dir", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").glob("*_fond_vectors.npz"))
    assert len(files) == 4 and len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 4
    for file in files:
        assert read_vector_file(file).layers == ([15, 16, 17] if "range" not in asked else list(range(10, 26)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--option", "7"], "expected 1, 2, 3 or 4"),
        (["--option", "3"], "run python quick_persona_extract.py"),
        (["--option", "1", "--traits"], "--traits"),
    ],
)
def test_mistakes_are_told_in_one_line(more: list[str], said: str, capsys, tmp_path: Path):
    assert cli.run(demo_persona_analysis.main, [*more, "--save_dir", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_menu_asks_again_after_a_mistake(folder: Path):
    command = [str(ROOT / "demo_persona_analysis.py"), "--save_dir", str(folder)]
    session = pexpect.spawn(sys.executable, command, cwd=str(ROOT), timeout=60, encoding="utf-8", dimensions=(40, 200))
    session.expect("q  leave")
    session.sendline("9")
    session.expect("expected 1, 2, 3 or 4")
    session.expect("q  leave")
    session.sendline("3")
    session.expect("comparison.csv")
    session.expect("q  leave")
    session.sendline("q")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0
