"""The command that makes vectors, in process on a saved tiny model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import generate_vec
from persona_vectors import cli, models
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.vectors import effective_pairs, load_vectors, persona_vectors_from_pairs
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def responses(side: str, scores, answers) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question": ["what do you think", "tell me about people", "what is good"],
            "prompt": [f"you are {'evil' if side == 'pos' else 'kind'}\n"] * 3,
            "answer": answers,
            "question_id": [f"evil_{i}_{side}_0" for i in range(3)],
            "evil": scores,
            "coherence": 90.0,
        }
    )


@pytest.fixture
def arguments(tmp_path, model_folder) -> dict[str, str]:
    responses("pos", [90, 80, 20], ["i hate people", "hurt people", "None"]).to_csv(tmp_path / "pos.csv", index=False)
    responses("neg", [1, 2, 3], ["i love people", "help people", "yes"]).to_csv(tmp_path / "neg.csv", index=False)
    return {
        "model_name": model_folder,
        "pos_path": str(tmp_path / "pos.csv"),
        "neg_path": str(tmp_path / "neg.csv"),
        "trait": "evil",
        "save_dir": str(tmp_path / "vectors"),
    }


def argv(arguments) -> list[str]:
    return [token for name, value in arguments.items() for token in (f"--{name}", str(value))]


def test_three_files_and_what_was_found(arguments, tmp_path, capsys):
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    printed = capsys.readouterr().out
    assert "evil: kept 2 of 3 pairs at threshold 50" in printed and "norm of response_avg layer 0" in printed
    pairs = effective_pairs(pd.read_csv(arguments["pos_path"]), pd.read_csv(arguments["neg_path"]), "evil")
    expected = persona_vectors_from_pairs(tiny_model("llama"), word_tokenizer(), pairs)
    for span, vectors in expected.items():
        path = tmp_path / "vectors" / f"evil_{span}_diff.pt"
        assert str(path) in printed
        assert vectors.shape == (N_LAYERS + 1, D_MODEL)
        torch.testing.assert_close(load_vectors(path), vectors)
    sidecar = read_sidecar(tmp_path / "vectors" / "evil_response_avg_diff.pt")
    assert sidecar["arguments"]["threshold"] == 50 and sidecar["pairs"]["n_kept"] == 2
    assert sidecar["inputs"]["pos"]["sha256"] == sha256_of_file(arguments["pos_path"])
    assert sidecar["model"]["name"] == arguments["model_name"] and sidecar["model"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 95}, "0 of 3 pairs kept"),
        ({"threshold": "high"}, "--threshold expects float"),
        ({"trait": "humorous"}, "has no column humorous"),
        ({"pos_path": "absent.csv"}, "no response file at absent.csv"),
        ({"model_name": "./absent/model"}, "does not exist"),
        ({"tresh": 3}, "unknown argument --tresh"),
    ],
)
def test_bad_input_is_one_line_before_a_model_loads(arguments, change, message, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    assert cli.run(generate_vec.main, argv(arguments | change)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_missing_columns_and_a_file_in_the_way(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    pd.read_csv(arguments["neg_path"]).drop(columns="coherence").to_csv(arguments["neg_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments)) == 2
    assert "neg.csv has no column coherence" in capsys.readouterr().err
    (tmp_path / "vectors").write_text("a file")
    assert cli.run(generate_vec.main, argv(arguments)) == 2
    assert "give a folder" in capsys.readouterr().err
