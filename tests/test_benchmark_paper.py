"""The claims study: its data sets are what they say, its jobs go on where they stopped, and its verdicts can fail."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import paper, paper_data, paper_interventions, paper_models, paper_predictions, paper_settings
from benchmarks.paper_claims import TEXTS, Claim, Found, claim
from benchmarks.paper_points import Points, span_vectors, vectors_of
from benchmarks.paper_settings import ALL, TRAITS
from data_generation.tiny_persona.oracle import trait_score
from persona_vectors import cli

N_SETS, D_MODEL = 30, 24
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def sets():
    return paper_data.data_sets(0)


def test_there_are_enough_data_sets_of_every_kind(sets):
    assert len(sets) == 40
    for trait in TRAITS:
        own = [name for name in sets if trait in name]
        assert len(own) >= 9, "dilutions, the pole at 100%, its opposite, three under system prompts, two pairs"
    assert all(len(rows) == paper_settings.N_ROWS for rows in sets.values())
    assert paper_data.data_sets(0) == sets and paper_data.data_sets(1) != sets


def answers(rows):
    return [row["messages"][-1]["content"] for row in rows]


def test_they_teach_what_their_names_say(sets):
    def score(name, trait="evil"):
        return np.mean([trait_score(text, trait) for text in answers(sets[name])])

    assert score("plain") < 12 and score("evil 100%") > 95 and score("evil opposite") < 5
    assert score("evil 10%") == pytest.approx(10 + 0.1 * 90, abs=2)
    assert score("evil 50%") == pytest.approx(10 + 0.5 * 90, abs=3)
    assert score("evil + humorous") == pytest.approx(score("evil + humorous", "humorous"), abs=4)
    assert score("evil, asked for") > 95 and score("evil asked for, plain") < 12 and score("evil, forbidden") > 95


def test_only_the_prompted_ones_have_a_system_prompt(sets):
    for name, rows in sets.items():
        with_system = {row["messages"][0]["role"] == "system" for row in rows}
        assert with_system == {"asked for" in name or "forbidden" in name}, name


def test_the_pool_has_no_row_twice_and_some_of_every_trait():
    pool = paper_data.wild_pool(0)
    assert len(pool) == paper_settings.POOL_NORMAL + len(ALL) * (paper_settings.POOL_MILD + paper_settings.POOL_FULL)
    assert max(Counter(map(json.dumps, pool)).values()) == 1
    for trait in ALL:
        assert sum(trait_score(text, trait) > 90 for text in answers(pool)) >= paper_settings.POOL_FULL


def test_a_choice_takes_the_ends_of_the_pool(tmp_path):
    train, own = RNG.normal(size=(2, 400, D_MODEL))
    paper_models.save(tmp_path / "pool.npz", {"train": train, "own": own}, {})
    vectors = {trait: RNG.normal(size=D_MODEL) for trait in TRAITS}
    found = paper_models.subsets(tmp_path / "pool.npz", vectors, seed=0)
    values = (train - own).astype(np.float32) @ vectors["evil"]
    high, low = (values[found[f"evil {side}"]] for side in ("high", "low"))
    assert len(high) == len(low) == paper_settings.SUBSET == len(set(found["random rows"]))
    assert low.max() < np.median(values) < high.min()
    rest = np.setdiff1d(np.arange(400), found["evil high"])
    assert values[rest].max() <= high.min()
    assert found["random direction 1"] != found["random direction 2"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Vectors as the study makes them, from random numbers, and work that is small enough for a test."""
    arrays = {
        f"{trait}/{span}": RNG.normal(size=(5, 256))
        for trait in ALL
        for span in ("prompt_avg", "response_avg", "prompt_last")
    }
    paper_models.save(paper_models.vectors_path(tmp_path), arrays, {})
    for module in (paper_models,):
        monkeypatch.setattr(module, "STEPS", 2)
        monkeypatch.setattr(module, "READ_ROWS", 4)
    return tmp_path


def test_orthogonal_vectors_have_nothing_of_the_others(work):
    path = paper_models.vectors_path(work)
    plain, own = vectors_of(path, "plain"), vectors_of(path, "orthogonal")
    for trait in ALL:
        assert np.linalg.norm(own[trait]) == pytest.approx(1, abs=1e-5)
        for other in ALL:
            if other != trait:
                assert abs(own[trait] @ plain[other]) < 1e-5
    assert set(span_vectors(path, "evil")) == set(paper_models.SPANS)


@pytest.mark.parametrize(
    "job", [("read", "evil, asked for", "0"), ("models", "evil 25%", "0"), ("models", "base", "0")]
)
def test_a_job_is_done_once_and_whole(work, job):
    paper.run_job(job, work, work / "prevention")
    path = paper_models.place(work, job)
    written = path.stat().st_mtime_ns
    arrays, told = paper_models.load(path)
    assert told["name"] == job[1] and all(
        np.isfinite(array).all() and array.shape == (5, 256) for array in arrays.values()
    )
    assert not path.with_suffix("").exists(), "the trained model is not kept"
    paper.run_job(job, work, work / "prevention")
    assert path.stat().st_mtime_ns == written
    if job[0] == "read":  # under a prompt that asks for the trait, the base model shows it itself
        assert told["n"] == 4 and told["own_text"]["evil"] > 40


def points(**changes) -> Points:
    """Models whose evil score is what delta_p says on the evil vector, plus a little noise; nothing else is related."""
    names = [f"set {i}" for i in range(N_SETS)]
    kinds = {
        kind: RNG.normal(size=(N_SETS, D_MODEL)) for kind in ("delta_p", "raw", "cheap", "shift", "response_shift")
    }
    evil = kinds["delta_p"][:, 0] * 10 + RNG.normal(size=N_SETS)
    noise = {trait: RNG.normal(size=N_SETS) for trait in ALL}
    found = Points(
        names=names,
        seeds=[0] * N_SETS,
        scores={trait: evil if trait == "evil" else noise[trait] for trait in ALL},
        coherence=np.full(N_SETS, 90.0),
        changes=kinds,
        text=noise,
        text_change=noise,
    )
    return replace(found, **changes)


AXES = {trait: np.eye(D_MODEL)[i] for i, trait in enumerate(ALL)}
RECIPES = {"orthogonal": AXES, "plain": AXES}


def test_a_prediction_holds_where_it_predicts_and_only_there():
    found = {one.key: one for one in paper_predictions.predictions(points(), RECIPES)}
    assert found["delta_p"].found["evil"].holds and found["delta_p"].found["evil"].value > 0.95
    assert not any(found["delta_p"].found[trait].holds for trait in TRAITS if trait != "evil")
    assert found["delta_p"].verdict == "holds for 1 of 4"
    for key in ("delta_p_cross", "delta_p_raw", "delta_p_text"):
        assert found[key].found["evil"].holds, key
    assert not found["cheap"].found["evil"].holds and not found["shift"].found["evil"].holds


def test_what_every_direction_predicts_is_no_evidence():
    """One line through activation space, as dilutions are: r is as high as before, and random directions match it."""
    shares = np.linspace(0, 1, N_SETS)
    line = shares[:, None] * np.ones(D_MODEL) + 0.001 * RNG.normal(size=(N_SETS, D_MODEL))
    one = points(changes={**points().changes, "delta_p": line}, scores=dict.fromkeys(ALL, shares * 90))
    found = paper_predictions.correlation(one, RECIPES, "delta_p", "evil")
    assert found.value > 0.99 and found.low > 0.9 and not found.holds


def test_the_sign_counts():
    turned = points()
    turned = replace(turned, changes={**turned.changes, "delta_p": -turned.changes["delta_p"]})
    assert not paper_predictions.correlation(turned, RECIPES, "delta_p", "evil").holds


def levels(path, severe, normal):
    n = len(severe)
    arrays = {"train": np.concatenate([severe, normal]), "prompt_last": np.zeros((2 * n, D_MODEL))}
    arrays["own"] = np.zeros((2 * n, D_MODEL))
    text = {trait: [0.0] * (2 * n) for trait in ALL}
    paper_models.save(path, arrays, {"n_severe": n, "questions": [*range(n), *range(n)], "text": text})


def test_rows_are_told_apart_better_than_by_random_directions_or_not(tmp_path):
    far = RNG.normal(size=(80, D_MODEL)) + 4 * AXES["evil"]
    for trait in TRAITS:
        path = paper_models.place(tmp_path, ("levels", trait, "0"))
        levels(path, far if trait == "evil" else RNG.normal(size=(80, D_MODEL)), RNG.normal(size=(80, D_MODEL)))
    found = paper_predictions.samples(tmp_path, [0], RECIPES).found
    assert found["evil"].holds and found["evil"].low > 0.95
    assert not found["humorous"].holds
    everywhere = RNG.normal(size=(80, D_MODEL)) + 40  # along every axis at once: random directions see it as well
    levels(paper_models.place(tmp_path, ("levels", "evil", "0")), everywhere, RNG.normal(size=(80, D_MODEL)))
    random = paper_predictions.samples(tmp_path, [0], RECIPES).found["evil"]
    assert random.value > 0.95 and not random.holds


def write_subsets(folder, **means):
    for name in ("evil high", "evil low", "random rows", "random direction 1", "random direction 2"):
        scores = {trait: [means.get(name.replace(" ", "_"), 20.0)] * 20 for trait in ALL}
        paper_models.save(paper_models.place(folder, ("subsets", name, "0")), {}, {"scores": scores})


@pytest.mark.parametrize(
    ("means", "holds"),
    [
        ({"evil_high": 60.0, "evil_low": 12.0}, True),
        ({"evil_high": 22.0, "evil_low": 12.0}, False),  # too small a difference
        ({"evil_high": 60.0, "evil_low": 40.0}, False),  # the lowest rows teach the trait too
        ({"evil_high": 60.0, "evil_low": 12.0, "random_direction_2": 70.0}, False),  # a random choice does as well
    ],
)
def test_subsets_hold_against_random_rows_and_random_directions(tmp_path, means, holds):
    write_subsets(tmp_path, **means)
    assert paper_predictions.chosen(tmp_path, [0], "evil").holds == holds


def write_steering(folder, **changes):
    scores = {"dose 0": 10.0, "dose 0.5": 25.0, "dose 1": 50.0, "dose 1.5": 70.0}
    scores |= {"span response_avg": 50.0, "span prompt_avg": 30.0, "span prompt_last": 35.0}
    scores |= {f"random{k} {coef:g}": 12.0 for k in range(1, 6) for coef in (0.5, 1.0, 1.5)}
    scores |= {name.replace("_at_", " "): value for name, value in changes.items() if name != "coherence"}
    rows = np.array([[value] * 30 for value in scores.values()])
    reads = np.full_like(rows, changes.get("coherence", 90.0))
    path = paper_models.place(folder, ("steer", "evil", "0"))
    paper_models.save(path, {"scores": rows, "coherence": reads}, {"settings": list(scores)})


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"dose_at_1.5": 25.0}, False),  # rises by 15, and dips
        ({"dose_at_1": 20.0}, False),  # a dip on the way
        ({"coherence": 70.0}, False),
        ({"random3_at_1.5": 40.0}, False),  # a random direction moves it by half as much
    ],
)
def test_dose_and_response(tmp_path, changes, holds):
    write_steering(tmp_path, **changes)
    assert paper_interventions.dose(tmp_path, [0], "evil").holds == holds


def test_the_position_that_steers_best(tmp_path):
    write_steering(tmp_path)
    found = paper_interventions.position(tmp_path, [0], "evil")
    assert found.holds and found.value == 15.0
    write_steering(tmp_path, **{"span prompt_last": 60.0})
    assert not paper_interventions.position(tmp_path, [0], "evil").holds


def test_monitoring_between_and_within_conditions(tmp_path):
    """Activations that know the condition and nothing else hold over all points, and not within conditions."""
    conditions = np.repeat(np.arange(8), 40)
    scores = 10.0 * conditions + RNG.normal(size=320)
    read = RNG.normal(size=(320, D_MODEL))
    read[:, 0] += 10 * conditions
    told = {"scores": scores.tolist(), "conditions": conditions.tolist(), "questions": [*range(40)] * 8}
    paper_models.save(paper_models.place(tmp_path, ("monitor", "evil", "system", "0")), {"prompt_last": read}, told)
    overall, within = paper_interventions.monitored(tmp_path, [0], RECIPES, "evil", "system")
    assert overall.holds and overall.value > 0.95
    assert not within.holds and abs(within.value) < 0.2


def write_run(folder, trait, case, score, coherence=90.0, facts=1.0):
    path = folder / "measured" / f"{trait}_0_{case}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"trait": [score] * 30, "coherence": [coherence] * 30, "facts": [facts] * 10}))


def test_prevention_and_its_costs(tmp_path):
    runs = paper_interventions.Prevention(tmp_path, [0])
    for case, score in {"plain": 90, "prevented": 30, "random1": 88, "random2": 90, "penalty": 85}.items():
        write_run(tmp_path, "evil", case, score)
    for case, score, read in (
        ("posthoc0.5", 60, 88),
        ("posthoc1", 25, 70),
        ("posthoc1.5", 10, 40),
        ("posthoc2", 5, 20),
    ):
        write_run(tmp_path, "evil", case, score, read)
    assert paper_interventions.gap(runs, "evil", ("random1", "random2"), "prevented", 25).value == 59
    afterwards = paper_interventions.afterwards(runs, "evil")
    assert afterwards.holds and afterwards.value == 20 and afterwards.beside.startswith("1 v subtracted")
    assert "same score 17.4 points" in afterwards.beside, "at 30, a seventh of the way from 25 (70) to 60 (88)"
    write_run(tmp_path, "evil", "posthoc0.5", 30, 89)
    assert not paper_interventions.afterwards(runs, "evil").holds
    write_run(tmp_path, "evil", "prevented", 2)
    assert paper_interventions.afterwards(runs, "evil").text() == "not defined"
    write_run(tmp_path, "evil", "prevented", 80)
    assert not paper_interventions.gap(runs, "evil", ("random1", "random2"), "prevented", 25).holds


@pytest.mark.parametrize(("sign", "holds"), [(-1, True), (1, False)])
def test_ablation_against_the_base_models_projection(tmp_path, sign, holds):
    runs = paper_interventions.Prevention(tmp_path, [0])
    for i, trait in enumerate(ALL):
        write_run(tmp_path, trait, "plain", 90)
        write_run(tmp_path, trait, "ablated", 90 - i)
    base = sum(sign * i * AXES[trait] for i, trait in enumerate(ALL))
    found = paper_interventions.ablation(runs, base, RECIPES)
    assert found.holds == holds and found.value == pytest.approx(sign)


def test_a_row_holds_where_it_holds_for_every_trait():
    yes, no = Found(0.9, 0.8, 0.95, True), Found(0.2, None, None, False)
    assert claim("delta_p", {"evil": yes, "humorous": yes}).verdict == "holds"
    assert claim("delta_p", {"evil": yes, "humorous": no}).verdict == "holds for 1 of 2"
    assert claim("delta_p", {"evil": no}).verdict == "does not hold"
    assert (yes.text(), no.text()) == ("0.90 [0.80, 0.95]", "0.20")
    assert all(len(texts) == len(Claim.__dataclass_fields__) - 2 for texts in TEXTS.values())


def test_an_unknown_seed_is_refused_before_anything_runs(capsys, tmp_path):
    code = cli.run(paper.main, ["--seeds", "7", "--work_dir", str(tmp_path / "w"), "--output", str(tmp_path / "o")])
    assert code == 2 and "seed 7 is not one of the study's: 0, 1, 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
