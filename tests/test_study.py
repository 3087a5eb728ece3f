"""A study's folder is its own: measurements of other settings, another model or other data are never taken for its."""

from types import SimpleNamespace

import pytest

from benchmarks import paper_settings, prevention_settings, study
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def settings(**changes):
    return SimpleNamespace(**(study.settings_of(paper_settings) | changes))


def test_the_same_study_has_the_same_folder(tmp_path):
    assert study.study_folder(tmp_path, paper_settings) == study.study_folder(tmp_path, settings())
    assert study.study_folder(tmp_path, paper_settings).parent == tmp_path


@pytest.mark.parametrize("changes", [{"STEPS": 31}, {"LAYER": 2}, {"SHARES": (0.1, 0.25)}, {"NEW": 1}])
def test_other_settings_have_another(tmp_path, changes):
    assert study.study_folder(tmp_path, settings(**changes)) != study.study_folder(tmp_path, paper_settings)


def test_two_studies_never_share_one(tmp_path):
    assert study.study_folder(tmp_path, prevention_settings) != study.study_folder(tmp_path, paper_settings)


def test_another_model_or_other_data_has_another(tmp_path, monkeypatch):
    before = study.study_folder(tmp_path, paper_settings)
    (tmp_path / "dataset" / "tiny_evil").mkdir(parents=True)
    (tmp_path / "dataset" / "tiny_evil" / "normal.jsonl").write_text("{}")
    model = str(ROOT / study.TINY)
    monkeypatch.setattr(study, "TINY", model)
    assert study.study_folder(tmp_path, paper_settings) == before, "the model counts by its content, not by its path"
    monkeypatch.chdir(tmp_path)
    assert study.study_folder(tmp_path, paper_settings) != before
