"""Credentials: the environment wins over `.env`, and nothing is read at import."""

import os

import pytest

from persona_vectors import config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, a stand-in checkout, and no credential in the environment."""
    for name in config.CREDENTIALS:
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    monkeypatch.setattr(config, "CHECKOUT", tmp_path / "checkout")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_environment_wins_over_here_wins_over_checkout(folder, monkeypatch):
    (folder / "checkout/.env").write_text("HF_TOKEN=checkout\nOPENAI_API_KEY=checkout\nWANDB_PROJECT=checkout\n")
    (folder / "here/.env").write_text("HF_TOKEN=here\nOPENAI_API_KEY=here\n")
    monkeypatch.setenv("HF_TOKEN", "process")
    expected = {"HF_TOKEN": "process", "OPENAI_API_KEY": "here", "WANDB_PROJECT": "checkout"}
    assert config.load_credentials() == expected
    assert {name: os.environ.get(name) for name in expected} == expected


def test_blank_is_unset_and_other_names_are_left_alone(folder, monkeypatch):
    (folder / "here/.env").write_text("OPENAI_API_KEY=\nHF_TOKEN=' '\nPATH=/evil\nOPENAI_BASE_URL=' http://x/v1 '\n")
    monkeypatch.setenv("WANDB_PROJECT", "  ")
    before = os.environ["PATH"]
    assert config.load_credentials() == {"OPENAI_BASE_URL": "http://x/v1"}
    assert os.environ["PATH"] == before


def test_example_file_declares_the_credentials_and_sets_none(folder):
    example = (folder / "here/.env").parent.joinpath(".env")
    text = (config.Path(__file__).resolve().parent.parent / ".env.example").read_text()
    example.write_text(text)
    assert config.load_credentials() == {}
    assert [name for name in config.CREDENTIALS if f"{name}=" not in text] == []
