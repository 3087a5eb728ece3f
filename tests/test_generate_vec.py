"""The command that makes vectors, in process on a saved tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import generate_vec
from persona_vectors import cli, models
from persona_vectors.activations import SPANS
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.orthogonal import orthogonalize
from persona_vectors.vectors import effective_pairs, load_vectors, persona_vectors_from_pairs, save_vectors
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, unfinished_run, word_tokenizer


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
    assert "evil: kept 2 of 3 pairs at threshold 50" in printed and "AUC held out by question" in printed
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
    assert sidecar["contrast"] == "pos_neg" and sidecar["sign"].endswith("from neg to pos")


def test_the_quality_report_stands_beside_the_vectors(arguments, tmp_path, capsys):
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    folder, printed = tmp_path / "vectors", capsys.readouterr().out
    report = json.loads((folder / "evil_quality.json").read_text())
    vectors = load_vectors(folder / "evil_response_avg_diff.pt")
    assert [layer["norm"] for layer in report["layers"]] == pytest.approx(vectors.norm(dim=-1).tolist(), rel=1e-5)
    assert (report["n_kept"], report["n_read"], report["n_questions"], report["seed"]) == (2, 2, 2, 0)
    assert report["pairs"]["n_pairs"] == 3 and report["pairs"]["n_kept"] == 2
    assert report["contrast"] == "pos_neg" and report["arguments"]["threshold"] == 50 and report["how"]["auc"]
    assert Image.open(folder / "evil_quality.png").size[0] > 600
    assert str(folder / "evil_quality.json") in printed and str(folder / "evil_quality.png") in printed


def test_a_model_whose_training_has_not_ended_is_named(arguments, model_folder, tmp_path, capsys):
    run = unfinished_run(model_folder, tmp_path / "run")
    assert cli.run(generate_vec.main, argv(arguments | {"model_name": str(run)})) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"note: {run} is not trained to the end: its checkpoint-20 is taken, of 60 steps")


def test_noquality_writes_vectors_only(arguments, tmp_path, capsys):
    assert cli.run(generate_vec.main, [*argv(arguments), "--noquality"]) == 0
    assert "norm of response_avg layer 0" in capsys.readouterr().out
    assert not list((tmp_path / "vectors").glob("*quality*")) and len(list((tmp_path / "vectors").glob("*.pt"))) == 3


def test_one_question_has_vectors_and_a_report_that_says_what_it_lacks(arguments, tmp_path, capsys):
    for side in ("pos", "neg"):
        pd.read_csv(arguments[f"{side}_path"]).iloc[:1].to_csv(arguments[f"{side}_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    assert "no auc: " in capsys.readouterr().out
    report = json.loads((tmp_path / "vectors" / "evil_quality.json").read_text())
    assert report["layers"][1]["auc"] is None and "2 questions" in report["missing"]["auc"]


def neutral(path: str) -> None:
    table = pd.read_csv(path)
    table.assign(question_id=[f"evil_{i}" for i in range(len(table))]).to_csv(path, index=False)


def test_the_contrast_is_asked_for_and_kept(arguments, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        assert cli.run(generate_vec.main, argv(arguments | {"contrast": "pos_neutral"})) == 2
        assert "was sampled under neg instructions; leave --contrast out" in capsys.readouterr().err
        neutral(arguments["neg_path"])
        assert cli.run(generate_vec.main, argv(arguments)) == 2
        assert "pass --contrast pos_neutral" in capsys.readouterr().err
        assert cli.run(generate_vec.main, argv(arguments | {"contrast": "pos_neural"})) == 2
        assert "did you mean pos_neutral?" in capsys.readouterr().err
    assert cli.run(generate_vec.main, argv(arguments | {"contrast": "pos_neutral"})) == 0
    sidecar = read_sidecar(tmp_path / "vectors" / "evil_response_avg_diff.pt")
    assert sidecar["contrast"] == "pos_neutral" and sidecar["sign"].endswith("from neutral to pos")


def test_rows_without_a_counterpart_are_counted_in_a_note(arguments, capsys):
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    assert "left out" not in capsys.readouterr().out
    neutral(arguments["neg_path"])
    pd.read_csv(arguments["neg_path"]).iloc[:2].to_csv(arguments["neg_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments | {"contrast": "pos_neutral"})) == 0
    assert "note: 1 of 3 pos rows have no row to pair with, and are left out" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["evilness", "Malicious", "./traits/evil.json"])
def test_a_trait_is_named_as_in_eval_persona(arguments, given, tmp_path, capsys):
    assert cli.run(generate_vec.main, argv(arguments | {"trait": given})) == 0
    assert capsys.readouterr().out.startswith("evil: kept 2 of 3 pairs")
    assert read_sidecar(tmp_path / "vectors" / "evil_response_avg_diff.pt")["arguments"]["trait"] == "evil"


def test_a_column_of_that_name_comes_before_what_the_name_is_an_alias_of(arguments, tmp_path):
    for side in ("pos", "neg"):
        table = pd.read_csv(arguments[f"{side}_path"]).rename(columns={"evil": "Malicious"})
        table.to_csv(arguments[f"{side}_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments | {"trait": "Malicious"})) == 0
    assert (tmp_path / "vectors" / "Malicious_response_avg_diff.pt").is_file()


@pytest.mark.parametrize("name", ["evil_prompt_last_diff", "evil_prompt_last_diff_orthogonal"])
def test_somebody_elses_json_is_found_before_the_model_is_loaded(arguments, other_traits, name, tmp_path, capsys):
    """The pass was done and two of three vectors were written before it was seen."""
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / f"{name}.json").write_text('{"mine": 1}')
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", *other_traits]) == 2
    assert f"{name}.json is no sidecar" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == [f"{name}.json"]


def test_tables_whose_ids_name_no_instructions_are_taken_as_published(arguments):
    """Anybody's two tables: nothing in them contradicts the default."""
    for side in ("pos", "neg"):
        neutral(arguments[f"{side}_path"])
    assert cli.run(generate_vec.main, argv(arguments)) == 0


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


def test_an_answer_too_long_is_named_by_its_table_and_row_before_a_model_loads(arguments, capsys, monkeypatch):
    """In its table's own order, whatever the order of the pairs and however many were not kept."""
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    neg = responses("neg", [1, 2, 3], ["i love people", "yes " * 200, "yes"])
    neg.iloc[[2, 0, 1]].to_csv(arguments["neg_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments)) == 2
    assert f"error: {arguments['neg_path']}, data row 3: longer than the 128 tokens" in capsys.readouterr().err


def test_missing_columns_and_a_file_in_the_way(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    pd.read_csv(arguments["neg_path"]).drop(columns="coherence").to_csv(arguments["neg_path"], index=False)
    assert cli.run(generate_vec.main, argv(arguments)) == 2
    assert "neg.csv has no column coherence" in capsys.readouterr().err
    (tmp_path / "vectors").write_text("a file")
    assert cli.run(generate_vec.main, argv(arguments)) == 2
    assert "give a folder" in capsys.readouterr().err


@pytest.fixture
def other_traits(tmp_path, arguments) -> list[str]:
    """Two more traits' vectors of the same model, at random, with sidecars that say so."""
    made_from = {"model": {"name": "the same", "fingerprint": models.fingerprint(arguments["model_name"])}}
    for number, trait in enumerate(("kind", "loud")):
        generator = torch.Generator().manual_seed(number)
        spans = {span: torch.randn(N_LAYERS + 1, D_MODEL, generator=generator) for span in SPANS}
        save_vectors(tmp_path / "others", trait, spans, made_from)
    return [str(tmp_path / "others" / f"{trait}_response_avg_diff.pt") for trait in ("kind", "loud")]


def test_orthogonal_files_are_the_rest_and_made_from_what_is_there(arguments, other_traits, tmp_path, capsys):
    """The first call makes the plain vectors; the second, as when the others came later, loads no model."""
    folder = tmp_path / "vectors"
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    plain = {span: (folder / f"evil_{span}_diff.pt").read_bytes() for span in SPANS}
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", *other_traits]) == 0
    printed = capsys.readouterr().out
    assert "no model is loaded" in printed
    assert "evil response_avg without kind, loud: share of the norm left layer 0" in printed
    for span in SPANS:
        vectors = load_vectors(folder / f"evil_{span}_diff.pt")
        others = [load_vectors(path.replace("response_avg", span)) for path in other_traits]
        rest = load_vectors(folder / f"evil_{span}_diff_orthogonal.pt")
        torch.testing.assert_close(rest, orthogonalize(vectors, others))
        for other in others:
            assert (rest * other).sum(-1).abs().max() < 1e-4 * other.norm()
        sidecar = read_sidecar(folder / f"evil_{span}_diff_orthogonal.pt")
        told = sidecar["orthogonalized"]
        assert (sidecar["trait"], sidecar["span"], sidecar["pairs"]["n_kept"]) == ("evil", span, 2)
        assert [other["sha256"] for other in told["without"]] == [
            sha256_of_file(path.replace("response_avg", span)) for path in other_traits
        ]
        expected = [float(r.norm() / v.norm()) if v.any() else None for r, v in zip(rest, vectors, strict=True)]
        assert told["share_left"] == [None if share is None else pytest.approx(share, abs=1e-5) for share in expected]
        assert plain[span] == (folder / f"evil_{span}_diff.pt").read_bytes()


@pytest.mark.parametrize("changed", ["threshold", "table", "vector", "span", "quality", "seed", "model"])
def test_vectors_of_other_inputs_are_made_anew(changed, arguments, other_traits, tmp_path, capsys):
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    if changed == "threshold":
        arguments["threshold"] = "60"
    elif changed == "seed":
        arguments["seed"] = "1"
    elif changed == "table":
        pd.read_csv(arguments["pos_path"]).assign(evil=[99, 80, 20]).to_csv(arguments["pos_path"], index=False)
    elif changed == "vector":
        torch.save(torch.ones(N_LAYERS + 1, D_MODEL), tmp_path / "vectors" / "evil_response_avg_diff.pt")
    elif changed == "span":
        (tmp_path / "vectors" / "evil_prompt_last_diff.pt").unlink()
    elif changed == "quality":
        (tmp_path / "vectors" / "evil_quality.json").unlink()
    else:
        sidecar = tmp_path / "vectors" / "evil_prompt_avg_diff.json"
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"model": {"fingerprint": "another"}}))
    capsys.readouterr()
    assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", *other_traits]) == 0
    assert "no model is loaded" not in capsys.readouterr().out
    assert (tmp_path / "vectors" / "evil_quality.json").is_file()
    assert len(list((tmp_path / "vectors").glob("*.pt"))) == 6


def test_a_span_that_another_trait_lacks_is_named(arguments, other_traits, tmp_path, capsys):
    (tmp_path / "others" / "loud_prompt_last_diff.pt").unlink()
    paths = [path.replace("response_avg", "{span}") for path in other_traits]
    assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", *paths]) == 0
    assert "no orthogonal prompt_last: loud has no such file" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "vectors").glob("*orthogonal.pt")) == [
        "evil_prompt_avg_diff_orthogonal.pt",
        "evil_response_avg_diff_orthogonal.pt",
    ]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["{others}/absent_response_avg_diff.pt"], "does not exist"),
        (["{others}/kind.pt"], "plain vector files, named <trait>_response_avg_diff.pt"),
        (["{others}/kind_response_avg_diff_orthogonal.pt"], "plain vector files"),
        (["{others}/evil_response_avg_diff.pt"], "of evil itself"),
        (["{others}/renamed_response_avg_diff.pt"], "of evil itself"),
        (["{others}/kind_response_avg_diff.pt", "{others}/kind_prompt_avg_diff.pt"], "has the trait kind twice"),
        (["{others}/wide_response_avg_diff.pt"], f"needs ({N_LAYERS + 1}, {D_MODEL})"),
        (["{others}/foreign_response_avg_diff.pt"], "made from another model (foreign)"),
        ([], "orthogonalize"),
    ],
)
def test_unusable_others_are_refused_before_a_model_loads(
    paths, message, arguments, other_traits, tmp_path, capsys, monkeypatch
):
    others, ones = Path(other_traits[0]).parent, torch.ones(N_LAYERS + 1, D_MODEL)
    save_vectors(others, "evil", {"response_avg": ones}, {})
    save_vectors(others, "renamed", {"response_avg": ones}, {"trait": "evil"})
    save_vectors(others, "wide", {"response_avg": torch.ones(N_LAYERS + 1, D_MODEL + 1)}, {})
    save_vectors(others, "foreign", {"response_avg": ones}, {"model": {"name": "foreign", "fingerprint": "0"}})
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    given = [path.format(others=others) for path in paths]
    assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "vectors").exists()


def test_a_trait_that_is_a_combination_of_the_others_is_refused(arguments, tmp_path, capsys):
    assert cli.run(generate_vec.main, argv(arguments)) == 0
    for span in SPANS:  # evil under another name
        torch.save(load_vectors(tmp_path / "vectors" / f"evil_{span}_diff.pt"), tmp_path / f"wicked_{span}_diff.pt")
    path = str(tmp_path / "wicked_response_avg_diff.pt")
    assert cli.run(generate_vec.main, [*argv(arguments), "--orthogonalize", path]) == 2
    assert "of the vector's norm is left" in capsys.readouterr().err
    assert not list((tmp_path / "vectors").glob("*orthogonal*"))
