"""The assistant axis, PCA, controls, clusters and alignment, against plain numpy and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import axis as axis_module
from persona_vectors.alignment import align, joint_pca, orthogonal_map
from persona_vectors.axis import (
    assistant_axis,
    centred_cosines,
    compute_axes,
    fit_pca,
    in_their_span,
    persona_rows,
)
from persona_vectors.axis_statistics import Chance, axis_evidence, counted_alike, label_permutation
from persona_vectors.persona_clusters import cluster_personas, persona_tree

DEFAULTS = ["default", "default_llm"]
seeds = st.integers(0, 10_000)


def made(n_roles: int = 8, d: int = 12, seed: int = 0, shift: float = 0.0, assistants=DEFAULTS):
    """Random personas; the assistants are near each other, `shift` along the first coordinate."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=d) + shift * np.eye(d)[0]
    rows = {name: middle + 0.05 * rng.normal(size=d) for name in assistants}
    rows |= {f"role{i}": rng.normal(size=d) for i in range(n_roles)}
    return {name: torch.tensor(row, dtype=torch.float32) for name, row in rows.items()}


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def as_vectors(names, rows) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(row) for name, row in zip(names, rows, strict=True)}


def test_the_axis_is_the_difference_of_means_and_points_to_the_assistant():
    vectors = made()
    defaults = np.mean([vectors[name].double().numpy() for name in DEFAULTS], axis=0)
    roles = np.mean([v.double().numpy() for name, v in vectors.items() if name not in DEFAULTS], axis=0)
    found = assistant_axis(vectors, DEFAULTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), defaults - roles, rtol=1e-5, atol=1e-6)
    assert defaults @ found.numpy() > roles @ found.numpy()


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_compute_axes_against_plain_numpy(seed):
    vectors = made(seed=seed)
    axes = compute_axes(vectors, DEFAULTS)
    rows = np.stack([v.double().numpy() for v in vectors.values()])
    centred = rows - rows.mean(0)
    values, components = np.linalg.eigh(centred.T @ centred)
    mask = np.array([name in DEFAULTS for name in vectors])
    axis = rows[mask].mean(0) - rows[~mask].mean(0)
    axis /= np.linalg.norm(axis)
    assert axes["names"] == list(vectors)
    assert axes["cosine_sim"] == pytest.approx(abs(axis @ components[:, -1]), abs=1e-8)
    assert axes["var_explained"] == pytest.approx(values[-1] / values.sum())
    expected = np.corrcoef(centred @ axis, centred @ components[:, -1])[0, 1] ** 2
    assert axes["r_squared"] == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(axes["assistant_proj"], centred @ axis, atol=1e-8)
    np.testing.assert_allclose(np.abs(axes["pc1_proj"]), np.abs(centred @ components[:, -1]), atol=1e-8)
    assert float(axes["assistant_axis"].norm()) == pytest.approx(1, abs=1e-6)
    assert float(axes["pc1"] @ axes["assistant_axis"]) >= -1e-6
    assert axes["assistant_proj"][mask].mean() > axes["assistant_proj"][~mask].mean()


@given(seeds, st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_order_changes_nothing(seed, random):
    vectors = made(seed=seed)
    names = list(vectors)
    random.shuffle(names)
    one, other = compute_axes(vectors, DEFAULTS), compute_axes({name: vectors[name] for name in names}, DEFAULTS)
    torch.testing.assert_close(one["pc1"], other["pc1"], atol=1e-5, rtol=1e-4)
    by_name = dict(zip(other["names"], other["pc1_proj"], strict=True))
    np.testing.assert_allclose(one["pc1_proj"], [by_name[name] for name in one["names"]], atol=1e-6)
    rows = persona_rows(vectors)[1]
    place = [list(vectors).index(name) for name in names]
    first, second = fit_pca(rows, list(vectors)), fit_pca(rows[place], names)
    np.testing.assert_allclose(first.scores[place], second.scores, atol=1e-6)


def test_signs_do_not_depend_on_those_of_scikit_learn(monkeypatch):
    import sklearn.decomposition

    class Negated(sklearn.decomposition.PCA):
        def fit(self, *given, **named):
            super().fit(*given, **named)
            self.components_ = -self.components_  # pyright: ignore[reportOptionalOperand]
            return self

    vectors = made()
    names, rows = persona_rows(vectors)
    before = fit_pca(rows, names)
    monkeypatch.setattr(sklearn.decomposition, "PCA", Negated)
    after = fit_pca(rows, names)
    np.testing.assert_array_equal(before.components, after.components)
    largest = np.abs(after.scores).argmax(0)
    assert (after.scores[largest, np.arange(after.scores.shape[1])] > 0).all()


def test_of_two_rows_equally_far_the_first_by_name_is_positive():
    rows = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert fit_pca(rows, ["a", "b", "c"]).scores[:, 0] == pytest.approx([1, 0, -1])
    assert fit_pca(rows, ["c", "b", "a"]).scores[:, 0] == pytest.approx([-1, 0, 1])


def test_components_rebuild_the_rows():
    names, rows = persona_rows(made())
    pca = fit_pca(rows, names)
    np.testing.assert_allclose(pca.mean + pca.scores @ pca.components, rows, atol=1e-10)
    assert pca.shares.sum() == pytest.approx(1)


def test_centred_cosines_leave_a_row_at_the_mean_without_angle():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(centred_cosines(rows, rows), [[1, -1, 0], [-1, 1, 0], [0, 0, 0]])


def without(vectors, name):
    return {other: v for other, v in vectors.items() if other != name}


@pytest.mark.parametrize(
    ("vectors", "assistants", "message"),
    [
        (dict(list(made().items())[:2]), DEFAULTS[:1], "2 personas"),
        (without(made(), "default"), DEFAULTS, "no vector of the assistant personas default;"),
        (made(), [], "no assistant persona given"),
        (made(n_roles=0, assistants=["a", "b", "c"]), ["a", "b", "c"], "all personas are assistant personas"),
        (
            {**made(), "role1": torch.full((12,), torch.nan)},
            DEFAULTS,
            "NaN or infinite numbers .* role1",
        ),
        ({**made(), "role1": torch.zeros(11)}, DEFAULTS, r"role1 has shape \(11,\)"),
        ({**made(), "role1": torch.zeros(2, 12)}, DEFAULTS, r"role1 has shape \(2, 12\)"),
        ({name: torch.ones(4) for name in "abcd"}, ["a"], "there is no axis"),
    ],
)
def test_errors_are_one_line(vectors, assistants, message):
    for wanted in (assistant_axis, compute_axes, axis_evidence):
        with pytest.raises(ValueError, match=message) as error:
            wanted(vectors, assistants)
        assert "\n" not in str(error.value)


def test_present_assistants_are_those_with_a_vector():
    assert axis_module.present_assistants(["jester", "default_llm", "default"]) == ["default", "default_llm"]
    assert axis_module.present_assistants(["jester"], ["jester"]) == ["jester"]


# controls


def test_a_planted_axis_beats_every_control():
    vectors = made(n_roles=19, d=30, shift=12.0, assistants=["a", "b", "c", "d"])
    found = axis_evidence(vectors, ["a", "b", "c", "d"], n_random=300)
    assert found.cosine.value > 0.9 and found.cosine.p < 0.01 and found.cosine.exact
    assert found.counted_alike.p == found.as_one.p == 1 / 20
    assert found.random.p < 0.01
    assert found.spread < 0.2
    assert not found.intervals and "over questions" not in " ".join(found.sentences())
    assert found.cosine.value == pytest.approx(compute_axes(vectors, ["a", "b", "c", "d"])["cosine_sim"])
    assert any("cannot be below 0.05" in sentence for sentence in found.sentences())


def test_four_equal_personas_pull_pc1_whoever_they_are():
    """Why the label null is not enough: any persona counted four times beats it, and `counted_alike` says so."""
    beaten, alike = [], []
    for seed in range(20):
        names, rows = persona_rows(made(n_roles=14, d=30, seed=seed, assistants=["a", "b", "c", "d"]))
        mask = np.array([name in "abcd" for name in names])
        beaten.append(label_permutation(rows, mask)[0].p)
        alike.append(counted_alike(rows, mask).p)
    assert np.mean(np.array(beaten) < 0.05) > 0.8
    assert np.mean(np.array(alike) <= 0.1) < 0.35


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_labels_without_meaning_are_seldom_significant(start):
    """p of exchangeable personas is uniform: over 30 draws, neither always low nor always high."""
    ps = []
    for seed in range(start, start + 30):
        rows = np.random.default_rng(seed).normal(size=(10, 20))
        ps.append(label_permutation(rows, np.arange(10) < 3)[0].p)
    assert 0.2 < np.mean(ps) < 0.8
    assert np.mean(np.array(ps) <= 0.05) < 0.4


def test_held_out_pc1_is_that_of_the_roles():
    vectors = made(n_roles=9, d=15)
    names, rows = persona_rows(vectors)
    mask = np.array([name in DEFAULTS for name in names])
    pc1 = fit_pca(rows[~mask], [f"{i}" for i in range(9)]).components[0]
    direction = rows[mask].mean(0) - rows[~mask].mean(0)
    expected = abs(direction @ pc1) / np.linalg.norm(direction)
    found = axis_evidence(vectors, DEFAULTS, n_random=10, n_boot=2).held_out
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert found.exact and found.null.min() >= 0 and found.null.max() <= 1 + 1e-9
    assert np.isclose(found.null, expected).any()


def test_coordinates_in_the_span_keep_lengths_and_angles():
    rows = np.random.default_rng(0).normal(size=(6, 40))
    short = in_their_span(rows)
    assert short.shape == (6, 6)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(short @ short.T, centred @ centred.T, atol=1e-9)


def test_intervals_over_questions_shrink_with_more_of_them_and_hold_the_mean():
    vectors = made(n_roles=10, d=16, shift=4.0)
    rng = np.random.default_rng(1)
    widths = []
    for n in (4, 64):
        noise = {name: torch.tensor(rng.normal(size=(n, 16))) for name in vectors}
        by_question = {name: v + noise[name] - noise[name].mean(0) for name, v in vectors.items()}
        found = axis_evidence(vectors, DEFAULTS, by_question, n_random=10, n_boot=200)
        interval = found.intervals["cosine"]
        assert interval.low is not None and interval.high is not None
        assert interval.value == pytest.approx(found.cosine.value, abs=1e-5)
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: without(rows, "role1"), "vectors by question are of"),
        (lambda rows: {**rows, "role1": rows["role1"][:1]}, "have shapes"),
        (lambda rows: {**rows, "role1": rows["role1"] * torch.nan}, "NaN"),
    ],
)
def test_vectors_by_question_must_match(change, message):
    vectors = made()
    with pytest.raises(ValueError, match=message):
        axis_evidence(vectors, DEFAULTS, change({name: v.repeat(3, 1) for name, v in vectors.items()}))


def test_p_counts_the_value_itself_only_where_the_null_is_sampled():
    null = np.array([0.1, 0.2, 0.9, 0.3])
    assert Chance(0.9, null, exact=True).p == 1 / 4
    assert Chance(0.95, null).p == 1 / 5
    assert "p = 0.2" in Chance(0.95, null).text()


# clusters


def test_planted_clusters_are_found_and_beat_gaussian_rows():
    rng = np.random.default_rng(0)
    middles = 6 * rng.normal(size=(3, 20))
    vectors = {f"{'xyz'[i % 3]}{i}": torch.tensor(middles[i % 3] + rng.normal(size=20)) for i in range(15)}
    found = cluster_personas(vectors, n_random=40)
    assert found.n_clusters == 3 and found.silhouette.p < 0.05
    assert len({(name[0], label) for name, label in found.labels.items()}) == 3
    assert sorted(found.order) == sorted(vectors)
    runs = [a[0] != b[0] for a, b in zip(found.order, found.order[1:], strict=False)]
    assert sum(runs) == 2  # like stand together


def test_clusters_of_gaussian_rows_are_no_better_than_chance():
    ps = [
        cluster_personas(made(n_roles=10, seed=seed, assistants=["a"]), n_random=20).silhouette.p for seed in range(6)
    ]
    assert max(ps) > 0.1


def test_a_persona_at_the_mean_has_no_angle():
    vectors = as_vectors("abc", [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="c: equal to the mean"):
        persona_tree(vectors)


# alignment


def test_procrustes_recovers_a_known_rotation_shift_and_scale():
    rows = np.random.default_rng(0).normal(size=(12, 6))
    turn = rotation(6)
    moved = 3 + 2.5 * rows @ turn
    found = orthogonal_map(rows, moved, 6)
    np.testing.assert_allclose(found.turn, turn, atol=1e-8)
    assert found.scale == pytest.approx(2.5)
    np.testing.assert_allclose(found.points(rows), moved, atol=1e-8)


@pytest.mark.parametrize("d_b", [12, 20])
def test_a_turned_copy_is_found_on_held_out_personas_and_a_stranger_is_not(d_b):
    rng = np.random.default_rng(3)
    low = rng.normal(size=(16, 4))
    names = [*DEFAULTS, *(f"role{i}" for i in range(14))]
    low[1] = low[0] + 0.01
    wide = low @ rng.normal(size=(4, 12))
    copy = wide @ rotation(max(12, d_b))[:12, :d_b] if d_b >= 12 else wide
    vectors = as_vectors(names, wide)
    found = align(vectors, as_vectors(names, copy), DEFAULTS, n_dimensions=4, n_shuffles=30)
    assert found.cosine.value > 0.99 and found.cosine.p < 0.05
    assert found.axis_cosine.value > 0.99 and found.nearest.value == 1
    assert (found.unmapped is None) == (d_b != 12)
    stranger = as_vectors(names, rng.normal(size=(16, d_b)))
    assert align(vectors, stranger, DEFAULTS, n_dimensions=4, n_shuffles=30).cosine.value < 0.6
    assert any("without a map" in sentence for sentence in found.sentences())


def test_a_map_of_all_dimensions_fits_shuffled_personas_in_sample_and_not_held_out():
    """Why alignment is judged on held-out personas."""
    rng = np.random.default_rng(0)
    vectors, other = (as_vectors([*DEFAULTS, *"abcdefgh"], rng.normal(size=(10, 40))) for _ in range(2))
    found = align(vectors, other, DEFAULTS, n_dimensions=7, n_shuffles=30)
    assert found.cosine.p > 0.05


def test_the_same_model_needs_no_map():
    vectors = made(n_roles=10)
    found = align(vectors, vectors, DEFAULTS, n_shuffles=20)
    assert found.unmapped == pytest.approx(1)


def test_joint_pca_says_what_lies_between_models():
    vectors = made()
    moved = {name: v + 50 for name, v in vectors.items()}
    joint = joint_pca([vectors, moved], ["a", "b"], DEFAULTS)
    assert joint.scores.shape[:2] == (2, len(vectors)) and joint.between > 0.9 and not joint.aligned
    own = joint_pca([vectors, moved], ["a", "b"], DEFAULTS, centre="model")
    assert own.between == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(own.scores[0], own.scores[1], atol=1e-4)
    means = own.scores[0][[name in DEFAULTS for name in own.names], 0].mean()
    assert means > own.scores[0][[name not in DEFAULTS for name in own.names], 0].mean()


def test_joint_pca_of_other_widths_is_aligned():
    vectors = made(d=12)
    wide = np.stack([v.double().numpy() for v in vectors.values()]) @ rotation(20)[:12]
    joint = joint_pca([vectors, as_vectors(vectors, wide)], ["a", "b"])
    assert joint.aligned
    np.testing.assert_allclose(joint.scores[0], joint.scores[1], atol=1e-4)


@pytest.mark.parametrize(
    ("others", "labels", "message"),
    [
        (without(made(), "role1"), ["a", "b"], r"a and b have different personas \(role1 in one only\)"),
        ({**made(), "role1": torch.full((12,), torch.nan)}, ["a", "b"], "b: NaN"),
        (made(), ["a"], "2 models and the labels a"),
        (made(), ["a", "a"], "expected one label a model"),
    ],
)
def test_models_must_have_the_same_personas(others, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        joint_pca([made(), others], labels)
    assert "\n" not in str(error.value)


def test_a_map_needs_enough_roles():
    vectors = made(n_roles=4)
    with pytest.raises(ValueError, match="4 personas besides the assistant's"):
        align(vectors, vectors, DEFAULTS)
