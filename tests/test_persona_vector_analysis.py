"""persona_vector_analysis.py as a user runs it: files as published, controls beside every number, errors in a line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_vector_analysis
from eval.trait_analysis import Asked, plan
from eval.trait_profile import Profile, holm, steered_conditions
from eval.trait_scoring import Condition, Scored
from eval.trait_vectors import wanted_layers
from persona_vectors import cli
from persona_vectors.models import load_tokenizer
from persona_vectors.option_shares import Shares, trait_score
from persona_vectors.questionnaire import OWN, Item
from persona_vectors.radar import Outline, radar_plotly, radar_png
from persona_vectors.vector_files import read_vector_file
from persona_vectors.vectors import write_vectors
from tests.conftest import ROOT
from tests.tiny_models import tiny_model

PUBLISHED = {"auc", "mean_diff", "std_on", "std_off", "proj_on_mean", "proj_off_mean"}


def command(*arguments: object) -> int:
    return cli.run(persona_vector_analysis.main, [str(argument) for argument in arguments])


def small(folder: Path, model: str, n_items: int = 3, traits: tuple[str, ...] = ()) -> str:
    """A file with a few items of the model's own questionnaire."""
    content = json.loads((Path(model) / "traits" / "questionnaire.json").read_text())
    kept: dict[str, list] = {}
    for row in content["items"]:
        if not traits or row["personality"].lower() in traits:
            kept.setdefault(row["personality"], []).append(row)
    path = folder / "items.json"
    path.write_text(json.dumps(content | {"items": [row for rows in kept.values() for row in rows[:n_items]]}))
    return str(path)


def steering_file(folder: Path) -> str:
    vector = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    return str(write_vectors(folder / "openness.pt", 30 * vector / vector.norm(dim=1, keepdim=True), {"trait": "x"}))


def test_the_published_command_writes_the_published_files(tiny_persona, tmp_path, capsys):
    given = ["--model_name", tiny_persona, "--persona_trait", "openness", "--layer_start", 2, "--layer_end", 3]
    given += [
        "--max_samples",
        4,
        "--prompt_type",
        1,
        "--save_dir",
        tmp_path,
        "--data_file",
        small(tmp_path, tiny_persona, 4),
    ]
    assert command(*given) == 0
    with np.load(tmp_path / "persona_vectors_openness.npz") as arrays:
        assert sorted(arrays.files) == ["layer_2", "layer_3"] and arrays["layer_2"].shape == (256,)
        norm = float(np.linalg.norm(arrays["layer_3"]))
    results = json.loads((tmp_path / "analysis_results_openness.json").read_text())
    assert list(results) == ["layer_2", "layer_3"]
    for own in results.values():
        assert PUBLISHED <= set(own) and own["auc_in_sample"] == 1.0 and own["auc_low"] <= own["auc"]
        assert own["auc_random_mean"] < own["auc_random_95"] and 0 < own["auc_permuted_mean"] < 1
        assert own["mean_diff"] == pytest.approx(own["proj_on_mean"] - own["proj_off_mean"])
    assert results["layer_3"]["mean_diff"] == pytest.approx(norm, rel=1e-4)  # in sample it is the vector's norm
    for name in ("persona_vector_analysis_openness.png", "persona_vector_analysis_openness.html"):
        assert (tmp_path / name).stat().st_size > 10_000 and (tmp_path / f"{name}.json").is_file()
    told = read_vector_file(tmp_path / "persona_vectors_openness.npz").sidecar
    assert told["trait"] == "openness" and told["best_layer"] in (2, 3) and told["n_items"] == 4
    words = json.loads((tmp_path / "analysis_results_openness.json.json").read_text())["words_alone"]
    assert words["auc"] is not None  # layer 0 stands beside
    scores = pd.read_csv(tmp_path / "trait_scores_openness.csv")
    assert scores["trait"].tolist() == ["openness"] and scores["n_asked"].tolist() == [16]
    assert scores[["place_A", "place_B", "place_C", "place_D"]].sum(axis=1).to_list() == pytest.approx([1.0])
    items = pd.read_csv(tmp_path / "trait_scores_openness_items.csv")
    assert len(items) == 4 and items["p_high"].mean() == pytest.approx(scores["score"][0])
    said = capsys.readouterr().out
    assert "Best layer" in said and "Layer 0 (the words alone): AUC" in said and "place alone gets" in said
    best = max(own["auc"] for own in results.values())
    assert "part the responses with a held-out AUC" in said and "adds the rest" not in said
    assert ("shows nothing that the words do not" in said) == (best <= words["auc"])
    page = (tmp_path / "persona_vector_analysis_openness.html").read_text()
    assert [f"<td>{one}" in page.replace("</td><td>", "\n<td>") for one in ("0", "2", "3")] == [True] * 3


def test_a_profile_stands_beside_random_directions(tiny_persona, tmp_path, capsys):
    given = ["--model_name", tiny_persona, "--persona_trait", "Openness", "--layer_start", 3, "--layer_end", 3]
    own = small(tmp_path, tiny_persona, 2, ("openness", "extraversion", "narcissism"))
    given += ["--data_file", own, "--save_dir", tmp_path, "--scoring", "open", "--profile"]
    given += ["--persona_instruction_type", "pos", "neg", "--vector_file", steering_file(tmp_path), "--layer", 3]
    assert command(*given, "--coef", 2, "--n_random", 2) == 0
    table = pd.read_csv(tmp_path / "personality_profile.csv")
    assert len(table) == 3 * (1 + 2 + 1 + 2)
    assert table["kind"].value_counts().to_dict() == {"random": 6, "told": 6, "steered": 3, "unsteered": 3}
    unsteered = table[table["kind"] == "unsteered"]
    assert (unsteered["shift"] == 0).all() and table["place_A"].isna().all()
    said = capsys.readouterr().out
    for row in table[table["kind"] != "random"].itertuples():  # each condition beside its own null
        assert (
            f"{row.score:.2f} [{row.low:.2f}, {row.high:.2f}] ({row.permuted_low:.2f} to {row.permuted_high:.2f})"
            in said
        )
    moved = table[(table["condition"] == "coef 2") & (table["trait"] == "openness")].iloc[0]
    assert moved["score"] - unsteered["score"].iloc[0] == pytest.approx(moved["shift"])
    told = json.loads((tmp_path / "personality_profile.csv.json").read_text())
    assert [one["control"] for one in told["receipts"]] == [None, 1, 2]
    assert {round(one["expected"]) for one in told["receipts"]} == {60}  # random ones have the vector's norm
    page = (tmp_path / "personality_profile.html").read_text()
    assert "scatterpolar" in page and "random directions" in page and (tmp_path / "personality_profile.png").is_file()
    assert said.count("steering receipt") == 1 and "told neg: openness" in said
    assert "2 random directions of the same norm" in said


def test_a_vector_made_of_the_same_items_is_said_to_prove_little(tiny_persona, tmp_path):
    own = small(tmp_path, tiny_persona, 2, ("openness",))
    given = ["--model_name", tiny_persona, "--persona_trait", "openness", "--layer_start", 3, "--layer_end", 3]
    assert command(*given, "--data_file", own, "--save_dir", tmp_path, "--scoring", "open") == 0
    vector_file = str(tmp_path / "persona_vectors_openness.npz")
    asked = Asked(tiny_persona, "openness", data_file=own, vector_file=vector_file)
    assert "proves little" in plan(asked).notes[-1]
    assert plan(asked).conditions[1].steering is not None
    assert "proves little" not in str(plan(replace(asked, data_file=None)).notes)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "mistral"])
def test_every_architecture(architecture, tiny_persona, tmp_path):
    """Random weights, with the embedded model's tokenizer; GPT-2's has no chat template, so it is asked raw."""
    tokenizer = load_tokenizer(tiny_persona)
    positions = {"n_positions": 512} if architecture == "gpt2" else {"max_position_embeddings": 512}
    model = tiny_model(architecture, vocab_size=len(tokenizer), **positions)
    if architecture == "gpt2":
        tokenizer.chat_template = None
    folder = tmp_path / architecture
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = ["--model_name", folder, "--persona_trait", "narcissism", "--max_samples", 2, "--save_dir", tmp_path]
    own = small(tmp_path, tiny_persona, 2, ("narcissism",))
    assert command(*given, "--data_file", own, "--scoring", "letter", "text", "open") == 0
    assert set(json.loads((tmp_path / "analysis_results_narcissism.json").read_text())) == {
        "layer_1",
        "layer_2",
        "layer_3",
    }
    scores = pd.read_csv(tmp_path / "trait_scores_narcissism.csv").set_index("scoring")
    assert scores["n_missing"].to_dict() == {"letter": 8, "text": 0, "open": 0}  # random weights do not say a letter
    assert np.isnan(scores["score"]["letter"]) and 0 < scores["score"]["text"] < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--persona_trait", "humility"], "has no item of humility"),
        (
            ["--persona_trait", "openness", "--layer_start", "8", "--layer_end", "12"],
            "try --layer_start 1 --layer_end 4",
        ),
        (["--persona_trait", "openness", "--layer_start", "3", "--layer_end", "2"], "try --layer_start 1"),
        (["--persona_trait", "openness", "--max_samples", "1"], "at least 2; got 1"),
        (["--persona_trait", "openness", "--prompt_type", "2"], "expected 1..1"),
        (["--persona_trait", "openness", "--data_file", "mirlab/TRAIT"], "give --data_file a file"),
        (["--persona_trait", "openness", "--data_file", "nowhere.json"], "does not exist"),
        (["--persona_trait", "openness", "--scoring", "letters"], "expects letter|text|open"),
        (["--persona_trait", "openness", "--coef", "2"], "give --vector_file as well"),
        (["--persona_trait", "openness", "--vector_file", "no.npz"], "does not exist"),
        (["--persona_trait", "openness", "--load_in_8bit"], "needs CUDA"),
        (["--persona_trait", "openness", "--n_random", "-1"], "expected 0"),
    ],
)
def test_a_mistake_is_one_line(tiny_persona, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("eval.finished_answers.load_model", lambda *_a, **_k: pytest.fail("a model was loaded"))
    assert command("--model_name", tiny_persona, "--save_dir", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_which_questionnaire_is_asked_is_said(tiny_persona, tmp_path):
    own = plan(Asked(tiny_persona, "openness"))
    assert own.notes[0].startswith(f"{tiny_persona} ships a questionnaire") and len(own.own) == len(own.items) == 12
    ours = plan(Asked(tiny_persona, "openness", data_file=str(OWN), profile=True, max_samples=4))
    assert not [note for note in ours.notes if "ships" in note] and len(ours.own) == 4 and len(ours.items) == 32
    with pytest.raises(ValueError, match="--profile draws three traits or more"):
        plan(Asked(tiny_persona, "openness", data_file=small(tmp_path, tiny_persona, 2, ("openness",)), profile=True))


def test_layers_are_cut_where_the_model_ends(tiny_persona):
    assert wanted_layers(tiny_persona, None, None)[0] == [1, 2, 3, 4]
    assert wanted_layers(tiny_persona, 2, 20)[0] == [2, 3, 4] and "2 to 4" in wanted_layers(tiny_persona, 2, 20)[1][0]
    assert wanted_layers(tiny_persona, 0, 0) == ([0], [])


def profile(shifts: dict[str, list[float]], plain: list[float]) -> Profile:
    """A profile of one trait whose items have these P(high)."""
    items = [Item("openness", f"question {number}", ("a", "b", "c", "d")) for number in range(len(plain))]
    conditions = [Condition("unsteered"), *steered_conditions(torch.ones(4), 2, [1.0], "response", 2, 0)]
    scored = []
    for condition in conditions:
        high = np.array(plain) + np.array(shifts.get(condition.name, [0.0] * len(plain)))
        shares = Shares(np.stack([high / 2, high / 2, (1 - high) / 2, (1 - high) / 2], 1), None, None, 0)
        scored.append([Scored(condition, items, shares, trait_score(items, shares, len(items)))])
    return Profile("open", "openness", scored)


@pytest.mark.parametrize(
    ("coef", "random", "followed"),
    [
        ([0.2, 0.21, 0.19, 0.2], [0.01] * 4, True),
        ([0.2, -0.2, 0.2, -0.2], [0.01] * 4, False),  # not sure
        ([0.2, 0.21, 0.19, 0.2], [-0.3] * 4, False),  # a random direction does more
        ([-0.2, -0.21, -0.19, -0.2], [0.01] * 4, False),  # the other way
    ],
)
def test_a_shift_counts_beside_random_directions(coef, random, followed):
    own = profile({"coef 1": coef, "random 2, coef 1": random}, [0.4, 0.5, 0.6, 0.5])
    assert own.followed(1) is followed
    assert own.largest_random("openness", 1.0) == pytest.approx(abs(random[0]))
    assert ("as asked" in own.sentences()[-1]) is followed
    assert (
        "lie outside what swapped labels give" in own.sentences()[0] and "how usual its words are" in own.sentences()[1]
    )


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values: list[float]):
    passed, n = holm(p_values), len(p_values)
    assert all(own for own, p in zip(passed, p_values, strict=True) if p <= 0.05 / n)  # as Bonferroni at least
    assert not any(own for own, p in zip(passed, p_values, strict=True) if p > 0.05)
    kept = sorted(p for own, p in zip(passed, p_values, strict=True) if own)
    assert kept == sorted(p_values)[: len(kept)] and all(p <= 0.05 / (n - rank) for rank, p in enumerate(kept))
    assert holm([0.03, 0.04]) == [False, False] and holm([0.02, 0.04]) == [True, True]


def test_a_radar_closes_and_needs_three_traits():
    names, one = ["a", "b", "c"], Outline("x", [0.1, 0.2, 0.3], "#2b83c6")
    trace = radar_plotly(names, [one]).data[1]  # the first is the ring at 0.5
    assert list(trace.r) == [0.1, 0.2, 0.3, 0.1] and list(trace.theta) == ["a", "b", "c", "a"]
    long = radar_plotly([*names, "conscientiousness"], [Outline("x", [0.1, 0.2, 0.3, 0.4], "#2b83c6")])
    assert long.layout.margin.l == long.layout.margin.r > 17 * 7  # the name's letters, which were clipped
    assert len(radar_png([("t", names, [one]), ("u", names, [one])]).axes) == 2
    with pytest.raises(ValueError, match="three traits or more; got a, b"):
        radar_plotly(names[:2], [one])


def test_the_command_is_listed_where_it_is_installed_from():
    listed = (ROOT / "pyproject.toml").read_text()
    assert '"persona_vector_analysis"' in listed and "trait_questionnaire.json" in listed
