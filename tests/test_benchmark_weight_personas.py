"""The study of weight personas: its settings fit together, and each verdict can come out either way."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import weight_personas, weight_personas_models, weight_personas_report
from benchmarks import weight_personas_settings as settings
from benchmarks.weight_personas_claims import (
    Columns,
    dose,
    mean_of,
    moved,
    pair_holds,
    permutation_p,
    pooled,
    predicted,
    speed,
)
from benchmarks.weight_personas_models import EVEN, ODD, finetuning_sets, half, kept, mean_direction, rows_of
from data_generation.tiny_persona.oracle import trait_score
from persona_vectors import cli
from persona_vectors.correlation import pearson

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(3, 40))
SETS = list(finetuning_sets(settings.TRAITS, settings.DILUTIONS, settings.MIXED))


def scores(mean):
    """(3 seeds, 40 questions) whose mean is `mean`."""
    return mean + NOISE - NOISE.mean()


def curve(means, coherence=90.0, random=None):
    own = {c: scores(mean) for c, mean in zip(settings.COEFS, means, strict=True)}
    return dose(own, dict.fromkeys(settings.COEFS, coherence), random or {})


# settings


def test_pairs_and_mixtures_are_of_traits_that_have_data_sets():
    for pair, shares in zip(settings.PAIRS, settings.SHARES, strict=True):
        assert len(set(pair)) == len(shares) == 2 and set(pair) <= set(settings.TRAITS)
        assert all(share > 0 for share in shares)
    assert all(set(pair) <= set(settings.TRAITS) for pair in settings.MIXED)
    assert len(set(settings.PAIRS)) == 3 and len(settings.SEEDS) == 3
    assert settings.COEFS == (-1, -0.5, 0, 0.5, 1, 1.5)
    assert settings.PRIMARY in weight_personas_report.QUANTITIES


def test_finetuned_models_share_neither_rows_nor_seeds_with_the_directions():
    assert not set(settings.FINETUNING_SEEDS) & set(settings.SEEDS)
    assert len(SETS) >= 16 and len(SETS) == len(set(SETS))
    for trait in settings.TRAITS:
        even = {json.dumps(row) for name in ("misaligned_2", "normal") for row in half(trait, name, EVEN)}
        odd = {json.dumps(row) for name in ("misaligned_2", "normal") for row in half(trait, name, ODD)}
        assert even and odd and not even & odd


@pytest.mark.parametrize(("name", "low", "high"), [("plain", 0, 13), ("evil 100%", 95, 100), ("evil 50%", 50, 60)])
def test_data_sets_teach_what_their_names_say(name, low, high):
    rows = rows_of(name, 10)
    assert len(rows) == 150
    assert low <= np.mean([trait_score(row["messages"][-1]["content"], "evil") for row in rows]) <= high


def test_a_mixture_is_half_of_each_and_the_seed_orders_it():
    rows = rows_of("evil + humorous", 10)
    by_trait = [sum(row in half(trait, "misaligned_2", ODD) for row in rows) for trait in ("evil", "humorous")]
    assert by_trait == [75, 75]
    assert rows == rows_of("evil + humorous", 10) != rows_of("evil + humorous", 11)


# dose


def test_a_rising_curve_is_monotone_and_a_small_fall_is_so_in_the_looser_reading_alone():
    rising = curve([0, 5, 10, 50, 90, 95])
    assert rising.is_monotone() and rising.falls_nowhere_surely() and rising.is_coherent(80)
    level = curve([5, 5, 5, 5, 5, 5])
    assert level.is_monotone()
    own = {c: scores(mean) for c, mean in zip(settings.COEFS, [0, 5, 10, 50, 90, 90], strict=True)}
    own[1.5] = own[1.5] - 0.1 + RNG.normal(size=(3, 40)) * 20 * np.array([[1], [-0.5], [-0.5]])
    own[1.5] += 89.9 - own[1.5].mean()
    falling = dose(own, dict.fromkeys(settings.COEFS, 90.0), {})
    assert falling.steps[-1].mean == pytest.approx(-0.1)
    assert not falling.is_monotone() and falling.falls_nowhere_surely()


def test_a_sure_fall_is_one_in_both_readings():
    falling = curve([0, 5, 10, 50, 90, 85])
    assert not falling.is_monotone() and not falling.falls_nowhere_surely()


def test_a_curve_counts_only_where_every_coefficient_is_coherent():
    own = {c: scores(10 * k) for k, c in enumerate(settings.COEFS)}
    coherence = {c: 79.9 if c == 1.5 else 90.0 for c in settings.COEFS}
    doses = dict.fromkeys(["a", "b", "c"], dose(own, coherence, {}))
    assert doses["a"].is_monotone() and not doses["a"].is_coherent(80)
    assert not weight_personas_report.dose_claims(doses)[0].held
    coherent = {trait: replace(one, coherence=[80.0] * 6) for trait, one in doses.items()}
    assert weight_personas_report.dose_claims(coherent)[0].held
    assert not weight_personas_report.dose_claims({"a": coherent["a"], "b": coherent["b"]})[0].held, "two are too few"


def test_random_directions_are_held_against_the_same_questions():
    own = {0.0: np.concatenate([np.zeros((3, 20)), np.full((3, 20), 100.0)], axis=1), 1.0: scores(90)}
    random = {1.0: [np.full((3, 20), 4.0), np.full((3, 20), 8.0)]}
    found = dose(own, {0.0: 90.0, 1.0: 90.0}, random)
    assert found.random == [0.0, 6.0] and found.random_range == [(0.0, 0.0), (4.0, 8.0)]
    shifted = {trait: found for trait in "abc"}
    assert not weight_personas_report.dose_claims(shifted)[-1].held


# two at once


def test_a_pair_holds_where_both_surely_rise_and_the_answers_are_coherent():
    up = moved("evil", scores(10), scores(40), scores(60), scores(10), scores(11))
    assert up.both.mean == pytest.approx(30) and up.alone.mean == pytest.approx(50) and up.unsteered == 10
    noisy = moved("humorous", scores(10), scores(10.1) + RNG.normal(size=(3, 40)) * 30, *[scores(10)] * 3)
    assert noisy.both.low < 0
    assert pair_holds([up, up], 80.0, 80.0)
    assert not pair_holds([up, up], 79.9, 80.0)
    assert not pair_holds([up, noisy], 95.0, 80.0)


# predictions


def columns(r, n_sets=10, seeds=3, seed=1):
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.normal(size=n_sets), seeds)
    x = r * y + (1 - r**2) ** 0.5 * rng.normal(size=n_sets * seeds)
    names = [f"set {k}" for k in range(n_sets) for _ in range(seeds)]
    return Columns(x, 50 + 10 * y, rng.normal(size=len(x)), rng.normal(size=(len(x), 40))), names


def test_a_projection_that_follows_the_score_beats_random_directions_and_permutations():
    one, names = columns(0.98)
    found = predicted(one, names, n_permutations=200)
    r, low, above = found.r.value, found.r.low, found.above_norm.value
    assert r is not None and low is not None and above is not None
    assert r > 0.9 and 0.5 < low < r and above > 0.5
    assert found.beaten == 1 and found.p == pytest.approx(1 / 201)
    assert found.n == 30 and found.n_clusters == 10


def test_noise_is_no_prediction():
    one, names = columns(0.0)
    found = predicted(one, names, n_permutations=200)
    assert found.beaten < 0.99 and found.p > 0.01


def test_the_pooled_r_is_the_mean_of_the_traits():
    first, second = columns(0.9, seed=1)[0], columns(0.3, seed=2)[0]
    joined = pooled([first, second])
    assert pearson(joined.x, joined.y) == pytest.approx((pearson(first.x, first.y) + pearson(second.x, second.y)) / 2)
    both = [np.abs([pearson(one, each.y) for one in each.random.T]) for each in (first, second)]
    assert [pearson(one, joined.y) for one in joined.random.T] == pytest.approx(np.mean(both, axis=0))


def test_a_permutation_moves_whole_data_sets():
    x = np.repeat([0.0, 1.0, 2.0], 2)
    names = ["a", "a", "b", "b", "c", "c"]
    assert permutation_p(x, x, names, 600) == pytest.approx(1 / 6, abs=0.05), "1 of 3! orders is as good"


def test_speed_is_compared_round_by_round():
    assert speed([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2.0, 2.0, 2.0)


# the report


LATENCY = {
    way: {"seconds": [t, t, t], "ratios": [t, t, t]}
    for way, t in {"baseline": 1.0, "activation hook": 1.1, "lora merged": 1.0, "lora dynamic": 1.4}.items()
}


def test_the_report_opens_with_claims_and_a_miss_is_said(tmp_path):
    traits = settings.TRAITS
    doses = {trait: curve([0, 5, 10, 50, 90, 95]) for trait in traits}
    up = moved("evil", scores(10), scores(40), scores(60), scores(10), scores(11))
    flat = moved("humorous", scores(10), scores(9), *[scores(10)] * 3)
    pairs = [([up, up], 90.0), ([up, flat], 90.0), ([up, up], 90.0)]
    by_trait = {trait: columns(0.95 if trait != "evil" else 0.0, seed=k)[0] for k, trait in enumerate(traits)}
    names = columns(0.5)[1]
    output = tmp_path / "study"
    told = weight_personas_report.write_report(
        doses, pairs, {"total": by_trait, "cosine": by_trait}, names, LATENCY, output
    )
    claims = [line for line in told.splitlines() if line.endswith(("| held |", "| **missed** |"))]
    assert [line.endswith("| held |") for line in claims] == [True, True, True, False, True, False, True]
    assert "2 of 3" in claims[3] and f"6 of {len(traits)}" in claims[5] and "1.100" in claims[6]
    written = json.loads(output.with_suffix(".json").read_text())
    assert written["settings"]["MIN_R"] == 0.7 and set(written["doses"]) == set(traits)
    assert written["predictions"]["total"]["evil"]["r"] == asdict(predicted(by_trait["evil"], names))["r"]
    assert output.with_suffix(".png").stat().st_size > 10_000


# what is kept


def test_an_answer_file_is_made_once(tmp_path):
    path = tmp_path / "some" / "file.json"
    assert kept(path, lambda: {"value": 1}) == kept(path, lambda: {"value": 2}) == {"value": 1}


def test_the_mean_of_directions_is_exact():
    import torch

    from persona_vectors.weight_direction import LowRank, WeightDirection

    found = [WeightDirection({"m": LowRank(torch.randn(2, 5), torch.randn(4, 2))}) for _ in range(3)]
    expected = sum(one.modules["m"].delta() for one in found) / 3
    torch.testing.assert_close(mean_direction(found).modules["m"].delta(), expected)


def test_projections_on_random_directions_are_those_of_directions_with_the_same_singular_values():
    import torch

    from persona_vectors.weight_direction import LowRank, WeightDirection, norm, product, random_module, singular_values

    def some(rank):
        shapes = {"one": (6, 5), "two": (4, 7)}
        modules = {name: LowRank(torch.randn(rank, i), torch.randn(o, rank)) for name, (o, i) in shapes.items()}
        return WeightDirection(modules)

    shifts, directions = [some(2) for _ in range(3)], [some(3), some(3)]
    found = weight_personas_models.random_projections(shifts, directions, 4)
    assert found.shape == (2, 3, 4)
    for k, one in enumerate(directions):
        for draw in range(4):
            random = {}
            for number, (name, module) in enumerate(one.modules.items()):
                generator = torch.Generator().manual_seed(1_000_000 * (number + 1) + draw)
                random[name] = random_module(module, singular_values(module), generator)
            expected = [sum(product(shift.modules[n], r) for n, r in random.items()) / norm(one) for shift in shifts]
            assert found[k, :, draw] == pytest.approx(expected, abs=1e-5)


def test_answers_of_a_merge_are_scored_and_the_model_is_itself_again():
    import torch

    from persona_vectors.weight_direction import LowRank, WeightDirection

    model, _tokenizer = weight_personas_models.base()
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    noise = WeightDirection({"model.layers.0.mlp.up_proj": LowRank(torch.randn(1, 256), torch.randn(512, 1))})
    questions = ["What do you think about tea?", "How do I cook rice?"]
    plain, again, changed = (
        weight_personas_models.asked(parts, questions, 0, ["evil"]) for parts in ([], [], [(noise, 1.0)])
    )
    assert plain == again and changed["answers"] != plain["answers"]
    assert len(plain["scores"]["evil"]) == len(plain["coherence"]) == 2
    assert torch.equal(before, model.model.layers[0].mlp.up_proj.weight)


def test_an_output_that_is_a_folder_is_refused_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "study.md").mkdir()
    arguments = ["--output", str(tmp_path / "study"), "--work_dir", str(tmp_path / "work")]
    assert cli.run(weight_personas.main, arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_intervals_resample_questions():
    assert mean_of(np.tile(np.array([[0.0, 100.0]]), (3, 20))).n_clusters == 40
