"""quick_persona_extract.py as a user runs it: published files and lines, held-out numbers, judges, methods."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import eval.finished_answers
import quick_persona_extract
from eval.quick_compare import read_folder
from eval.quick_extract import Asked, file_base, plan, wanted_layers
from eval.quick_report import verdict
from persona_vectors import cli
from persona_vectors.files import read_sidecar, sidecar_path
from persona_vectors.quality import LayerQuality
from persona_vectors.separation import LayerSeparation
from persona_vectors.statistics import Interval
from persona_vectors.vector_files import read_vector_file
from tests.tiny_models import D_MODEL, fondness, saved_model

LINE = re.compile(r"Layer (\d+): AUC = (\d\.\d{3}), Separation = (-?\d+\.\d\d)")
PUBLISHED = {
    "auc",
    "separation",
    "vector_magnitude",
    "proj_high_mean",
    "proj_high_std",
    "proj_low_mean",
    "proj_low_std",
}


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr without progress bars)."""
    code = cli.run(quick_persona_extract.main, list(argv))
    told = capsys.readouterr()
    return code, told.out, "\n".join(line for line in told.err.splitlines() if line.startswith(("error", "unfinished")))


@pytest.fixture(scope="module")
def extracted(tiny_persona, tmp_path_factory):
    """One run of the published command: (its folder, its store, what it printed)."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
        patch.chdir(Path(tiny_persona).parent.parent)
        told = []
        patch.setattr("builtins.print", lambda *texts, **_: told.append(" ".join(map(str, texts))))
        argv = ["--model_name", "models/tiny-persona", "--trait", "openness", "neuroticism", "--layers", "2", "3"]
        argv += ["--n_samples", "3", "--max_tokens", "32", "--methods", "all", "--save_dir", str(folder)]
        assert cli.run(quick_persona_extract.main, argv) == 0
    return folder, "\n".join(told)


def test_the_published_files_are_written_and_read_back(extracted):
    folder, _ = extracted
    base = folder / "models_tiny-persona_openness"
    with np.load(f"{base}_vectors.npz") as arrays:
        assert set(arrays.files) == {f"layer_{n}_vector{end}" for n in (2, 3) for end in ("", "_norm")}
        for layer in (2, 3):
            vector = arrays[f"layer_{layer}_vector"]
            assert vector.dtype == np.float32 and vector.shape == (256,)
            assert float(arrays[f"layer_{layer}_vector_norm"]) == pytest.approx(float(np.linalg.norm(vector)), rel=1e-5)
    file = read_vector_file(f"{base}_vectors.npz")
    assert file.layers == [2, 3] and file.sidecar["trait"] == "openness" and file.sidecar["best_layer"] in (2, 3)
    assert file.sidecar["prompts"]["questions"] and len(file.sidecar["prompts"]["instruction"]) == 5
    assert "hidden_states index" in file.sidecar["layers"] and file.sidecar["arguments"]["n_samples"] == 3
    analysis = json.loads(Path(f"{base}_analysis.json").read_text())
    assert list(analysis) == ["layer_2", "layer_3"]
    for told in analysis.values():
        assert set(told) >= PUBLISHED and "held out" in told["auc_is"]
        assert told["auc_low"] <= told["auc"] <= told["auc_high"] <= 1
        assert 0.4 < told["auc_permuted_mean"] < 0.6 and told["auc_random_mean"] <= told["auc_random_95"]
        assert (
            told["proj_high_mean"] > told["proj_low_mean"] and told["split_half"] <= told["split_half_spearman_brown"]
        )
    assert Path(f"{base}_analysis.png").read_bytes().startswith(b"\x89PNG")
    page = Path(f"{base}_analysis.html").read_text()
    own = re.sub(r"<script>/\*\*\n\* plotly.js.*?</script>", "", page, flags=re.S)
    assert len(own) < 300_000 < len(page) and own.count('class="plotly-graph-div"') == 3 and '"sliders"' in own
    assert not re.search(r'(src|href)="https?://', own)
    answers = pd.read_csv(f"{base}_answers.csv")
    assert len(answers) == 30 and answers["answer"].str.len().min() > 0
    assert all(f"_{row.pole}_" in row.question_id for row in answers.itertuples())
    for ending in ("answers.csv", "analysis.png", "analysis.html"):
        told = read_sidecar(f"{base}_{ending}")
        assert told["file"]["name"].endswith(ending) and "max_tokens" in told.get("arguments", told.get("settings"))


def test_the_vector_is_the_difference_of_the_means_of_the_answers_that_are_shown(extracted, tiny_persona):
    from persona_vectors.activations import mean_activations
    from persona_vectors.models import load_model
    from persona_vectors.tokens import tokenize_sample

    base = extracted[0] / "models_tiny-persona_openness"
    model, tokenizer = load_model(tiny_persona)
    table = pd.read_csv(f"{base}_answers.csv")
    samples = [tokenize_sample(tokenizer, row.prompt, row.answer) for row in table.itertuples()]
    means = mean_activations(model, samples, [3], ["response_avg"])["response_avg"][:, 0]
    pos = torch.tensor(table["question_id"].str.contains("_pos_").to_numpy())
    wanted = means[pos].mean(0) - means[~pos].mean(0)
    torch.testing.assert_close(read_vector_file(f"{base}_vectors.npz").vectors[3], wanted, rtol=1e-4, atol=1e-3)


def test_lines_read_as_published_and_show_their_controls(extracted):
    told = extracted[1]
    lines = [line for line in told.splitlines() if LINE.match(line)]
    assert len(lines) == 4 and sum(line.endswith("<- Best layer") for line in lines) == 2
    assert all(re.search(r"\(AUC \[\d.*\], random \d.*, in sample \d.*; separation random", line) for line in lines)
    analysis = json.loads((extracted[0] / "models_tiny-persona_openness_analysis.json").read_text())
    shown = {int(match[1]): float(match[2]) for line in lines[:2] if (match := LINE.match(line))}
    assert shown == {n: pytest.approx(analysis[f"layer_{n}"]["auc"], abs=6e-4) for n in (2, 3)}
    best = max(analysis, key=lambda name: (analysis[name]["auc"], analysis[name]["separation"]))
    assert [line for line in lines[:2] if "Best" in line][0].startswith(f"Layer {best.removeprefix('layer_')}:")
    assert "no judge: every answer counts" in told and "chosen for each fold on the others" in told


def test_methods_have_vectors_of_one_norm_and_the_other_trait_as_background(extracted):
    folder, told = extracted
    table = pd.read_csv(folder / "models_tiny-persona_openness_methods.csv")
    assert set(table["method"]) == {"mean_diff", "mean_centred", "pca", "probe", "lda"} and len(table) == 10
    assert (table["auc_low"] <= table["auc"]).all() and (table["auc"] <= table["auc_high"]).all()
    cosines = table[table["layer"] == 3].set_index("method")["cosine_to_mean_diff"]
    assert cosines["mean_diff"] == pytest.approx(1) and 0 < cosines["mean_centred"] < 0.9999 and cosines["lda"] < 0.9
    plain = read_vector_file(folder / "models_tiny-persona_openness_vectors.npz").vectors[3]
    for name in ("mean_centred", "pca", "probe", "lda"):
        file = read_vector_file(folder / f"models_tiny-persona_openness_{name}_vectors.npz")
        assert file.sidecar["method"] == name
        assert float(file.vectors[3].norm()) == pytest.approx(float(plain.norm()), rel=1e-4)
        assert float(file.vectors[3] @ plain) > 0
    assert "held-out AUC [95%], separation of each method" in told and "mean_centred is mean_diff here" not in told


def test_the_same_command_samples_nothing_and_gives_the_same_vectors(extracted, capsys, monkeypatch, tmp_path):
    folder, _ = extracted
    monkeypatch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
    monkeypatch.setattr(eval.finished_answers, "sample_answers", lambda *_, **__: pytest.fail("sampled again"))
    argv = ["--model_name", "models/tiny-persona", "--trait", "openness", "--layers=[2,3]", "--n_samples", "3"]
    argv += ["--max_tokens", "32", "--save_dir", str(tmp_path)]
    name = "models_tiny-persona_openness_vectors.npz"
    shutil.copy(folder / name, tmp_path)
    told = read_sidecar(folder / name) | {"calibration": {"layers": [{"layer": 3}], "coef": 1.5}}
    sidecar_path(tmp_path / name).write_text(json.dumps(told))
    code, out, _ = run(capsys, *argv)
    assert code == 0 and len(LINE.findall(out)) == 2
    assert read_sidecar(tmp_path / name)["calibration"]["coef"] == 1.5 and "dropped" not in out
    again, first = (read_vector_file(where / name).vectors for where in (tmp_path, folder))
    assert list(again) == list(first) and all(torch.allclose(again[n], first[n], rtol=1e-4, atol=1e-3) for n in first)
    code, out, _ = run(capsys, *("2" if token == "3" else token for token in argv))  # other questions, other vectors
    assert code == 0 and "the calibration is dropped" in out and "calibration" not in read_sidecar(tmp_path / name)


def test_a_folder_with_methods_holds_one_extraction_a_trait(extracted):
    """The vectors of other methods have no analysis of their own, and are no extractions."""
    assert [one.trait for one in read_folder(extracted[0])] == ["neuroticism", "openness"]


def test_a_judge_keeps_the_pairs_that_show_the_trait_and_compares_what_directions_steer(
    capsys, tmp_path, tiny_persona, monkeypatch
):
    """The trait's own file with few questions, which are then asked again when its directions steer."""
    trait = json.loads((Path(tiny_persona) / "traits" / "extract" / "humorous.json").read_text())
    few = tmp_path / "humorous.json"
    few.write_text(json.dumps(trait | {"questions": trait["questions"][:6]}))
    monkeypatch.setattr("eval.quick_steering.N_RANDOM", 2)
    monkeypatch.setattr("eval.quick_steering.N_PER_QUESTION", 1)
    argv = ["--model_name", tiny_persona, "--trait", str(few), "--layers", "3", "--n_samples", "3"]
    argv += ["--judge_model", tiny_persona, "--max_tokens", "32", "--save_dir", str(tmp_path)]
    argv += ["--methods", "mean_diff", "lda", "--compare_steering", "--coefs", "1.5", "--calibrate"]
    monkeypatch.setattr("eval.calibrate.CROSSTALK", ())
    monkeypatch.setattr("eval.calibration_confirm.SHARES", (1.0,))
    monkeypatch.setattr("eval.calibration_bounds.MOST", 0.5)
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    assert "kept by the judge" in out and "no judge" not in out and "Best layer" not in out  # one layer is no choice
    (sidecar,) = (json.loads(path.read_text()) for path in tmp_path.glob("*_humorous_vectors.json"))
    assert sidecar["pairs"]["n_kept"] == sidecar["pairs"]["n_read"] <= sidecar["pairs"]["n_asked"] == 15
    (table,) = (pd.read_csv(path) for path in tmp_path.glob("*_humorous_methods_steering.csv"))
    assert list(table["direction"]) == ["unsteered", "mean_diff", "lda", "random1", "random2"]
    score = table.set_index("direction")["humorous"]
    assert score["mean_diff"] > max(score["random1"], score["random2"]) + 5
    assert "best of random" in out and "3 of the questions also made the directions" in out
    (page,) = tmp_path.glob("*_analysis.html")
    assert "Which direction steers" in page.read_text()
    assert "Calibration</h2>" in page.read_text() and "vectors_calibration.png" in page.read_text()
    assert str(sidecar["calibration"]["confirmed"][-1]["coef"])[:4] in page.read_text()


def test_a_judge_that_keeps_nothing_is_an_error_with_the_counts(capsys, tmp_path, tiny_persona):
    argv = ["--model_name", tiny_persona, "--trait", "openness", "--layers", "1", "--n_samples", "2"]
    code, _, err = run(
        capsys,
        *argv,
        "--judge_model",
        tiny_persona,
        "--threshold",
        "100",
        "--max_tokens",
        "8",
        "--save_dir",
        str(tmp_path),
    )
    assert code == 2 and "0 of 10 pairs kept" in err and not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "mistral"])
def test_other_architectures_and_a_trait_file_of_ones_own(capsys, tmp_path, architecture):
    """GPT-2 has no chat template. More samples than questions ask each several times."""
    model = saved_model(architecture, tmp_path / architecture)
    argv = ["--model_name", model, "--trait", fondness(tmp_path), "--n_samples", "6"]
    code, out, err = run(capsys, *argv, "--max_tokens", "6", "--save_dir", str(tmp_path / "out"))
    assert code == 0, err
    assert f"{architecture} has 3 layers, fewer than the default 10 to 20: all are read" in out
    (vectors,) = (tmp_path / "out").glob("*_fond_vectors.npz")
    file = read_vector_file(vectors)
    assert file.layers == [1, 2, 3] and file.d_model == D_MODEL
    pairs = file.sidecar["pairs"]
    assert pairs["n_asked"] == 16 >= pairs["n_read"] > 8  # 6 samples of 4 questions: each twice, under 2 instructions
    analysis = json.loads(vectors.with_name(vectors.name.replace("_vectors.npz", "_analysis.json")).read_text())
    assert all(PUBLISHED <= set(own) for own in analysis.values())


@pytest.mark.parametrize(
    ("n_layers", "asked", "layers", "note"),
    [
        (28, {}, list(range(10, 21)), ""),
        (12, {}, list(range(1, 13)), "12 layers, fewer than the default 10 to 20: all"),
        (28, {"layers": [17, 15, 16]}, [15, 16, 17], ""),
        (28, {"layer_range": [10, 12]}, [10, 11, 12], ""),
        (12, {"layer_range": [10, 25]}, [10, 11, 12], "12 layers: 10 to 12 are read"),
        (12, {"layers": [0]}, [0], ""),
    ],
)
def test_layers_that_are_read(monkeypatch, n_layers, asked, layers, note):
    config = type("Config", (), {"num_hidden_layers": n_layers})
    monkeypatch.setattr("eval.quick_extract.load_config", lambda _name: config)
    found, notes = wanted_layers(Asked("org/model", "openness", **asked))
    assert found == layers and note in " ".join(notes)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "15", "16"], "layer 15 does not exist; reading needs 0..4"),
        (["--layers", "1", "1"], "--layers has 1 twice"),
        (["--layers", "1", "--layer_range", "1", "2"], "exclude each other"),
        (["--layer_range", "10", "25"], "layers 0..4; try --layer_range 1 4"),
        (["--layer_range", "3"], "the first and the last layer; got 3"),
        (["--n_samples", "1"], "at least 2; got 1"),
        (["--max_tokens", "0"], "max_tokens 0"),
        (["--trait", "opennes"], "did you mean openness"),
        (["--trait", "openness", "openness"], "--trait has openness twice"),
        (["--methods", "ica"], "mean_diff|mean_centred|pca|probe|lda"),
        (["--compare_steering"], "give --judge_model"),
        (["--compare_steering", "--judge_model", "models/tiny-persona", "--steer_layer", "9"], "steer_layer 9"),
        (["--coefs", "0"], "must be above 0"),
        (["--load_in_8bit"], "load_in_8bit needs CUDA"),
        (["--load_in_4bit"], "load_in_4bit needs CUDA"),
        (["--save_dir", "README.md"], "README.md"),
    ],
)
def test_mistakes_are_one_line_before_the_model_is_loaded(capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.setattr(eval.finished_answers, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    given = {"--trait": "openness", "--save_dir": str(tmp_path)}
    rest = [token for flag, value in given.items() if flag not in argv for token in (flag, value)]
    code, _, err = run(capsys, "--model_name", "models/tiny-persona", *argv, *rest)
    assert code == 2 and message in err and err.count("\n") == 0 and not list(tmp_path.iterdir())


def test_quantised_weights_are_sampled_by_hugging_face_and_have_keys_of_their_own(monkeypatch, tiny_persona):
    monkeypatch.setattr("eval.quick_extract.quantised_bits", lambda *_: 8)
    monkeypatch.setattr("persona_vectors.vllm_available.why_not_vllm", lambda: None)
    engine = plan(Asked(tiny_persona, "openness", load_in_8bit=True)).engine
    assert (engine.kind, engine.bits) == ("hf", 8)
    assert engine.key() != plan(Asked(tiny_persona, "openness", engine="hf")).engine.key() | {"bits": None}
    with pytest.raises(ValueError, match="vllm loads weights as they are"):
        plan(Asked(tiny_persona, "openness", load_in_8bit=True, engine="vllm"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen_Qwen2.5-7B-Instruct_evil"),
        ("./models/tiny-persona/", "models_tiny-persona_evil"),
        ("../finetuned", "_finetuned_evil"),
    ],
)
def test_files_are_named_after_model_and_trait(name, stem):
    assert file_base(Asked(name, "evil", save_dir="out"), "evil") == Path("out") / stem


def layer(auc: float, random: float, separation: float | None, random_95: float | None) -> LayerSeparation:
    rest = dict.fromkeys(LayerQuality.__dataclass_fields__)
    quality = LayerQuality(**rest | {"layer": 3, "norm": 1.0, "auc": auc, "auc_random_95": random})
    held_out = Interval(auc, auc - 0.1, min(1.0, auc + 0.1), 50, 5)
    return LayerSeparation(quality, held_out, separation, random_95, 0.5, 0.7, 0.01, (1.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (layer(0.89, 0.7, 2.7, 1.0), "layer 3, the best: held-out AUC 0.89 [0.79, 0.99], excellent"),
        (layer(0.65, 0.5, 0.5, 0.3), "[0.55, 0.75], moderate"),
        (layer(0.65, 0.6, 0.5, 0.3), "(moderate) means little"),  # the interval reaches down to random directions
        (layer(1.0, 0.99, 6.0, 4.0), "(excellent) means little. Separation tells more: 6.0"),
        (layer(1.0, 1.0, 6.0, 4.0), "(excellent) means little. Separation tells more: 6.0"),
        (
            layer(0.75, 0.8, 0.6, 0.9),
            "(good) means nothing: the vector separates no better than a random direction may",
        ),
        (layer(0.75, 0.8, None, None), "(good) means nothing"),
    ],
)
def test_the_band_is_of_the_held_out_value_and_silent_where_random_directions_do_as_well(one, said):
    assert said in verdict(one, 4)
