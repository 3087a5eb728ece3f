"""cal_weight_projection.py: models on directions, and the correlation of a folder of them with scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import cal_weight_projection
from cal_weight_projection import compute_projection_correlation, compute_projection_dataset, compute_single_projection
from eval import weight_projection_measure as measure
from eval.weight_projection_results import Results, figure
from lora_utils import WeightProjector
from persona_vectors import cli
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.weight_direction import WeightDirection, combine, norm, random_like
from persona_vectors.weight_files import load_direction, save_adapter, save_factors
from tests.test_weight_deltas import adapter, save
from tests.test_weight_projection import direction_of

AMOUNTS = np.array([-1.0, -0.4, 0.2, 0.7, 1.1, 1.6, 2.0, 2.5, 3.0])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, the direction d, and finetunings that are `amount * d` and something else; scores follow the amount."""
    place = tmp_path_factory.mktemp("weights")
    base = save(place / "base")
    direction = direction_of(base)
    save_factors(direction, place / "d.pt")
    save_factors(random_like(direction, 77), place / "other.pt")
    for i, amount in enumerate(AMOUNTS):
        change = combine([(direction, float(amount)), (random_like(direction, i), 1.0)])
        save_adapter(replace(change, base=base), place / "models" / f"m{i}")
    unfinished = Path(adapter(base, place / "models" / "peft" / "checkpoint-7"))
    (unfinished / "trainer_state.json").write_text(json.dumps({"global_step": 7, "max_steps": 60}))
    save(place / "models" / "full", seed=1)
    (place / "models" / "plots").mkdir()
    (place / "models" / "readme.txt").write_text("no model")
    scores = 50 + 10 * AMOUNTS + np.random.default_rng(0).normal(0, 2, len(AMOUNTS))
    table = pd.DataFrame({"model_name": [f"m{i}" for i in range(len(AMOUNTS))], "evil": scores, "other": scores[::-1]})
    table.to_csv(place / "scores.csv", index=False)
    return place


def run(place: Path, *more: str, out: str = "out.json", path: str = "d.pt", model: str = "base") -> int:
    argv = ["--original_model", str(place / model), "--output_path", str(place / out), "--lora_diff_path"]
    return cli.run(cal_weight_projection.main, [*argv, str(place / path), *more])


def refused(capsys, place, *more, **options) -> str:
    """The one line that a wrong command ends with."""
    capsys.readouterr()
    assert run(place, *more, **options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Writing model" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("name", ["m4", "peft", "full"])
def test_one_model(place, capsys, name):
    path = str(place / "models" / name)
    assert run(place, "--finetuned_model", path, "--n_random", "4", out=f"{name}.json") == 0
    found = json.loads((place / f"{name}.json").read_text())
    wanted = WeightProjector(place / "d.pt").measure(path, str(place / "base"), n_random=4)
    assert (found["model_name"], found["model_path"], found["direction"]) == (name, path, "d")
    assert found["total_projection"] == pytest.approx(wanted.total)
    assert found["average_projection"] == pytest.approx(wanted.total / 3)
    assert found["weight_shift_norm"] == pytest.approx(wanted.norm)
    assert found["cosine"] == pytest.approx(wanted.cosine)
    assert found["num_parameters"] == wanted.whole.n_entries
    assert list(found["layer_projections"]) == ["1", "2", "3"]
    assert sum(found["layer_projections"].values()) == pytest.approx(wanted.total)
    assert sum(one["projection"] for one in found["modules"].values()) == pytest.approx(wanted.total)
    assert found["control"]["max"] == pytest.approx(np.abs(wanted.random_cosines).max())
    sidecar = read_sidecar(place / f"{name}.json")
    assert sidecar["file"]["sha256"] == sha256_of_file(place / f"{name}.json") and sidecar["settings"]["n_random"] == 4
    assert sidecar["sources"][str(place / "d.pt")] == sha256_of_file(place / "d.pt") and path in sidecar["sources"]
    told = capsys.readouterr().out
    assert f"{wanted.cosine:+.4f}" in told and "6 of 6" in told
    assert told.count("note: one model alone: any finetuning of this kind shares more") == 1
    single = compute_single_projection(str(place / "base"), path, str(place / "d.pt"), n_random=4)
    assert single["total_projection"] == pytest.approx(found["total_projection"])


def test_a_folder_of_models_and_several_directions(place, capsys):
    assert run(place, str(place / "other.pt"), "--finetuned_models_dir", str(place / "models"), "--n_random", "2") == 0
    found = json.loads((place / "out.json").read_text())
    assert len(found["projections"]) == 2 * (len(AMOUNTS) + 2) and list(found["skipped"]) == ["plots"]
    table = pd.read_csv(place / "out.csv")
    assert set(table.direction) == {"d", "other"} and not table.cosine.isna().any()
    told = capsys.readouterr().out
    assert "skipped plots: " in told and "holds no model" in told and "one model alone" not in told
    assert f"note: {place / 'models' / 'peft'} is not trained to the end: its checkpoint-7 is taken, of 60" in told
    assert refused(capsys, place, "--finetuned_models_dir", str(place / "models")).endswith("another --output_path")


def test_scores_go_with_the_projection_and_not_with_random_directions(place, capsys):
    argv = ["--finetuned_models_dir", str(place / "models"), "--behavior_scores", str(place / "scores.csv")]
    assert run(place, *argv, "--n_random", "60", out="scored.json") == 0
    evil, other = json.loads((place / "scored.json").read_text())["correlations"]
    scores = pd.read_csv(place / "scores.csv").evil.to_numpy()
    records = {one["model_name"]: one for one in json.loads((place / "scored.json").read_text())["projections"]}
    projections = np.array([records[f"m{i}"]["total_projection"] for i in range(len(AMOUNTS))])
    sizes = np.array([records[f"m{i}"]["weight_shift_norm"] for i in range(len(AMOUNTS))])
    assert evil["pearson"]["value"] == pytest.approx(np.corrcoef(projections, scores)[0, 1]) and evil["trait"] == "evil"
    assert evil["pearson"]["low"] > 0.8 and evil["random"]["share_below"] > 0.9 and evil["n_models"] == len(AMOUNTS)
    assert evil["weight_shift_norm"]["value"] == pytest.approx(np.corrcoef(sizes, scores)[0, 1])
    difference = evil["pearson"]["value"] - evil["weight_shift_norm"]["value"]
    assert evil["projection_less_norm"]["value"] == pytest.approx(difference)
    assert other["pearson"]["value"] < -0.8
    random = [abs(np.corrcoef([records[f"m{i}"]["control"]["projections"][k] for i in range(9)], scores)[0, 1])
              for k in range(60)]  # fmt: skip
    assert evil["random"]["median"] == pytest.approx(np.median(random))
    told = capsys.readouterr().out
    assert "random directions: |r| median, 95th percentile  have a smaller |r|" in told and "% of 60" in told
    assert "note: no scores for full, peft" in told and f"{evil['pearson']['value']:.2f} [" in told
    assert (place / "scored.png").read_bytes()[:4] == b"\x89PNG"
    assert pd.read_csv(place / "scored.csv").set_index("model_name").score_evil["m0"] == pytest.approx(scores[0])


def test_nothing_of_the_users_is_replaced_and_no_figure_of_another_run_stays(place, capsys, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_bytes((place / "scores.csv").read_bytes())
    argv = ["--finetuned_models_dir", str(place / "models"), "--n_random", "1"]
    scored = [*argv, "--behavior_scores", str(scores)]
    found = refused(capsys, place, *scored, "--overwrite", out=str(tmp_path / "scores.json"))
    assert "scores.csv would be replaced by what is written" in found
    assert "scores.csv is there already" in refused(capsys, place, *argv, out=str(tmp_path / "scores.json"))
    assert scores.read_bytes() == (place / "scores.csv").read_bytes()
    assert run(place, *scored, out=str(tmp_path / "out.json")) == 0 and (tmp_path / "out.png").exists()
    assert run(place, *argv, "--overwrite", out=str(tmp_path / "out.json")) == 0
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.csv",
        "out.csv.json",
        "out.json",
        "out.json.json",
    ]


def test_adapters_of_a_base_that_is_not_here_are_hashed_by_their_own_weights(place, tmp_path):
    direction = replace(load_direction(place / "d.pt"), base="nobody/nothing")
    latest = save_adapter(direction, tmp_path / "models" / "run" / "checkpoint-20") / "adapter_model.safetensors"
    save_adapter(random_like(direction, 1), tmp_path / "models" / "run" / "checkpoint-3")
    old = save_adapter(direction, tmp_path / "models" / "old")
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()
    out = str(tmp_path / "out.json")
    assert run(place, "--finetuned_models_dir", str(tmp_path / "models"), "--n_random", "2", out=out) == 0
    sources = read_sidecar(out)["sources"]
    assert sources[str(tmp_path / "models" / "run")] == sha256_of_file(latest)
    assert sources[str(old)] == sha256_of_file(old / "adapter_model.bin")


def test_what_cannot_be_hashed_is_refused_before_anything_is_projected(place, capsys, monkeypatch, tmp_path):
    def gone(_path):
        raise OSError("the disk is gone")

    monkeypatch.setattr(measure, "sha256_of_file", gone)
    monkeypatch.setattr(measure, "project", lambda *_args, **_more: pytest.fail("projected"))
    model = str(place / "models" / "m4")
    assert "the disk is gone" in refused(capsys, place, "--finetuned_model", model, out=str(tmp_path / "out.json"))


def test_groups_are_resampled_together_and_the_norm_is_of_dw(place):
    models = {f"m{i}": str(place / "models" / f"m{i}") for i in range(len(AMOUNTS))}
    records, notes = compute_projection_dataset(str(place / "base"), models, str(place / "d.pt"), n_random=3)
    assert notes == [] and records[0]["weight_shift_norm"] == pytest.approx(norm(load_direction(models["m0"])))
    table = pd.read_csv(place / "scores.csv").assign(group=["a", "b", "c"] * 3).set_index("model_name")
    found = compute_projection_correlation(records, table[["evil", "group"]])
    assert [one["trait"] for one in found] == ["evil"]
    assert found[0]["n_clusters"] == 3 and found[0]["pearson"]["low"] is None  # too few groups for an interval


def test_a_file_of_factors_is_a_finetuning_too(place):
    assert run(place, "--finetuned_model", str(place / "d.pt"), "--n_random", "1", out="itself.json") == 0
    found = json.loads((place / "itself.json").read_text())
    assert found["cosine"] == pytest.approx(1) and found["total_projection"] == pytest.approx(found["direction_norm"])


def test_at_one_layer(place):
    path = str(place / "models" / "m4")
    assert run(place, "--finetuned_model", path, "--layers", "2", "--n_random", "2", out="layer.json") == 0
    found = json.loads((place / "layer.json").read_text())
    wanted = WeightProjector(place / "d.pt").measure(path, layers=[2])
    assert found["total_projection"] == pytest.approx(wanted.total) and found["layers"] == [2]
    assert list(found["layer_projections"]) == ["2"] and found["weight_shift_norm"] == pytest.approx(wanted.norm)


def test_a_model_that_did_not_change_and_one_of_an_unknown_base_are_named(place, capsys, tmp_path):
    same = ["--finetuned_model", str(place / "base"), "--n_random", "2", "--overwrite"]
    assert run(place, *same, out="same.json") == 0
    told = capsys.readouterr().out
    assert "not defined" in told and "so its cosine is not defined" in told
    moved = replace(load_direction(place / "models" / "m4"), base=str(tmp_path / "gone"))
    save_adapter(moved, tmp_path / "moved")
    assert run(place, "--finetuned_model", str(tmp_path / "moved"), "--n_random", "0", out="moved.json") == 0
    assert f"note: adapter moved was made for {tmp_path / 'gone'}; taken as one of" in capsys.readouterr().out


def trained(folder: Path, seed: int, data: str, **config) -> dict:
    """Writes the record of a training, as far as a projection reads it, and returns what a direction's sidecar has."""
    config = {"seed": seed, "r": 4, "target_modules": ["q_proj", "o_proj"], "is_peft": True} | config
    key = {"files": {f"dataset/{data}.jsonl": f"sha of {data}"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps({"state": "finished", "config": config, "key": key}))
    return {"config": config, **key}


def test_models_of_the_directions_seed_or_rows_are_named(place, capsys, tmp_path):
    change = load_direction(place / "models" / "m4")
    models = {"rows": (5, "evil", {}), "seed": (3, "other", {}), "both/checkpoint-9": (3, "evil", {})}
    models |= {"alone": (5, "other", {}), "size": (3, "other", {"r": 8}), "full": (3, "other", {"is_peft": False})}
    for name, (seed, data, more) in models.items():
        save_adapter(change, tmp_path / "ckpt" / name)
        trained(tmp_path / "ckpt" / name.split("/")[0], seed, data, **more)
    save_adapter(change, tmp_path / "ckpt" / "unknown")
    sides = {side: trained(tmp_path / side, 3, name) for side, name in (("pos_lora", "evil"), ("neg_lora", "normal"))}
    made = replace(direction_of(str(place / "base")), record={"training": sides})
    save_factors(made, tmp_path / "made.pt")
    save_adapter(made, tmp_path / "folder")
    argv = ["--finetuned_models_dir", str(tmp_path / "ckpt"), "--n_random", "1"]
    assert (
        run(place, str(tmp_path / "folder"), *argv, path=str(tmp_path / "made.pt"), out=str(tmp_path / "o.json")) == 0
    )
    written = json.loads((tmp_path / "o.json").read_text())
    assert {one["model_name"] for one in written["projections"] if one["shares_seed"]} == {"both", "seed"}
    notes = written["notes"]
    printed = capsys.readouterr().out
    assert len(notes) == 4 and all(f"note: {note}" in printed for note in notes)
    for direction, [alike, rows] in (("made", notes[:2]), ("folder", notes[2:])):
        assert alike.startswith(f"trained from the seed of direction {direction} (3): both, seed. ")
        assert "cannot be compared with those of models of other seeds" in alike
        file = "dataset/evil.jsonl"
        assert rows == f"trained on rows that direction {direction} was made from: both ({file}); rows ({file})"


def test_the_figure_has_its_controls_and_marks_the_models_of_the_directions_seed(place):
    models = {f"m{i}": str(place / "models" / f"m{i}") for i in range(len(AMOUNTS))}
    table = pd.read_csv(place / "scores.csv").set_index("model_name")[["evil"]]
    for n_random in (2, 20):
        records, _ = compute_projection_dataset(str(place / "base"), models, str(place / "d.pt"), n_random=n_random)
        assert not any(one["shares_seed"] for one in records)
        records = [one | {"shares_seed": one["model_name"] in ("m2", "m5")} for one in records]
        found = Results({}, records, compute_projection_correlation(records, table), table)
        [axis] = figure(found).axes
        level, size = (found.correlations[0][name] for name in ("random", "weight_shift_norm"))
        ends = f"{level['min']:.2f} to {level['max']:.2f}"
        percentiles = f"{level['median']:.2f}, {level['p95'] or 0:.2f} (median, 95%)"
        assert f"random |r| {ends if n_random == 2 else percentiles}" in axis.get_title()
        assert f"|dW| alone: r {size['value']:.2f}" in axis.get_title()
        of_groups = {one.get_label(): len(one.get_offsets()) for one in axis.collections}
        assert of_groups == {"models": 7, "models, from the direction's seed": 2}


def test_what_random_directions_reach_is_worded_and_few_models_are_a_note(place, capsys, tmp_path):
    few = pd.read_csv(place / "scores.csv")[["model_name", "evil"]].head(4)
    few.to_csv(tmp_path / "scores.csv", index=False)
    argv = ["--finetuned_models_dir", str(place / "models"), "--behavior_scores", str(tmp_path / "scores.csv")]
    assert run(place, *argv, "--n_random", "5", out=str(tmp_path / "few.json")) == 0
    said = capsys.readouterr().out
    assert "random directions: |r| lowest to highest  have a smaller |r|" in said and "% of 5" not in said
    [level] = [one["random"] for one in json.loads((tmp_path / "few.json").read_text())["correlations"]]
    assert level["p95"] is None and f"{level['min']:.2f} to {level['max']:.2f}  " in said and " of 5" in said
    notes = json.loads((tmp_path / "few.json").read_text())["notes"]
    assert any(note.startswith("r over 4 models ") and "often chance" in note for note in notes)
    whole = [*argv[:-1], str(place / "scores.csv"), "--n_random", "2"]
    assert run(place, *whole, out=str(tmp_path / "whole.json")) == 0
    assert not any("often chance" in note for note in json.loads((tmp_path / "whole.json").read_text())["notes"])


def test_bad_arguments(place, capsys, tmp_path):
    one, many = ["--finetuned_model", str(place / "models" / "m4")], ["--finetuned_models_dir", str(place / "models")]
    new = {"out": "new.json"}
    assert "one of the two" in refused(capsys, place, **new)
    assert "one of the two" in refused(capsys, place, *one, *many, **new)
    assert "must end in .json" in refused(capsys, place, *one, out="x.csv")
    assert "n_random must be 0 or more" in refused(capsys, place, *one, "--n_random", "-1", **new)
    assert "layer" in refused(capsys, place, *one, "--layers", "4", **new)
    assert "correlates many models" in refused(capsys, place, *one, "--behavior_scores", "x.csv", **new)
    assert "x.csv does not exist" in refused(capsys, place, *many, "--behavior_scores", "x.csv", **new)
    assert "nothing.pt does not exist" in refused(capsys, place, *one, path="nothing.pt", **new)
    assert "is an adapter; give the model that was finetuned" in refused(capsys, place, *one, model="models/m4", **new)
    assert "is no folder" in refused(capsys, place, "--finetuned_models_dir", str(place / "no"), **new)
    assert "has no model among its 0 sub-folders" in refused(
        capsys, place, "--finetuned_models_dir", str(tmp_path), **new
    )
    assert "does not exist" in refused(capsys, place, "--finetuned_model", str(place / "models" / "no"), **new)
    assert not (place / "new.json").exists()


def test_another_models_direction_or_adapter(place, capsys, tmp_path):
    one = ["--finetuned_model", str(place / "models" / "m4")]
    llama = save(tmp_path / "small", intermediate_size=40)
    save_factors(direction_of(llama), tmp_path / "small.pt")
    found = refused(capsys, place, *one, path=str(tmp_path / "small.pt"), out="new.json")
    assert "down_proj of base maps 48 to 32 features, and the direction 40 to 32" in found
    twin = save(tmp_path / "twin", seed=9)  # the same shapes, other weights
    save_factors(direction_of(twin), tmp_path / "twin.pt")
    found = refused(capsys, place, *one, path=str(tmp_path / "twin.pt"), out="new.json")
    assert "direction twin was made for" in found and "whose files are not those of" in found
    adapter(twin, tmp_path / "twin_adapter")
    found = refused(capsys, place, "--finetuned_model", str(tmp_path / "twin_adapter"), out="new.json")
    assert "adapter twin_adapter was made for" in found
    none: WeightDirection = direction_of(str(place / "base"), ("k_proj",))
    save_factors(none, tmp_path / "k.pt")
    found = refused(capsys, place, *one, path=str(tmp_path / "k.pt"), out="new.json")
    assert "have no module in common" in found and "k_proj" in found and "q_proj" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,evil\nm0,1\n", "has no column model_name; it has name, evil"),
        ("model_name,evil\nm0,1\nm0,2\n", "has m0 in more than one row"),
        ("model_name,evil\nm0,1\n,2\nm2,3\n", "column model_name of"),
        ("model_name,group\nm0,a\n", "has no scores"),
        ("model_name,evil\nm0,high\nm1,2\nm2,3\n", "column evil of"),
        ("model_name,evil,group\nm0,1,a\nm1,2,\nm2,3,a\n", "column group of"),
        ("model_name,evil\nx,1\nm1,2\nm2,3\n", "2 of 11 models have a row in"),
        ("model_name,evil\nm0,\nm1,2\nm2,3\n", "2 models have a score of evil in"),
        ("", "is not a CSV table"),
    ],
)
def test_scores_that_are_none(place, capsys, tmp_path, content, message):
    (tmp_path / "scores.csv").write_text(content)
    argv = ["--finetuned_models_dir", str(place / "models"), "--behavior_scores", str(tmp_path / "scores.csv")]
    assert message in refused(capsys, place, *argv, out="new.json")


def test_missing_scores_leave_models_out_and_constant_ones_have_no_r(place):
    models = {f"m{i}": str(place / "models" / f"m{i}") for i in range(5)}
    records, _ = compute_projection_dataset(str(place / "base"), models, str(place / "d.pt"), n_random=2)
    table = pd.DataFrame({"evil": [1.0, 2.0, np.nan, 4.0, 6.0], "flat": [1.0] * 5}, index=list(models))
    evil, flat = compute_projection_correlation(records, table)
    assert (evil["n_models"], flat["n_models"]) == (4, 5)
    assert flat["pearson"]["value"] is None and flat["random"] is None
    json.dumps([evil, flat], allow_nan=False)
