"""Shifts of finetuned models: the algebra against plain loops, real models end to end, mistakes as one line."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import training
from eval import finetuning_shift
from eval.finetuning_shift_findings import notes, overview, sentences
from eval.finetuning_shift_measure import Measured, _mean
from eval.finetuning_shift_models import Finetune, cluster_line, find_finetunes, origin_notes
from eval.finetuning_shift_page import write_results
from eval.finetuning_shift_rows import Comparison, correlated
from eval.finetuning_shift_statistics import cross_mean, shift_correlations
from eval.finished_answers import Engine
from eval.text_table import short_names
from persona_vectors import cli
from persona_vectors.files import sha256_of_file, write_json_atomic
from persona_vectors.models import fingerprint, load_model
from persona_vectors.scatter import Panel, Points, scatter_png
from persona_vectors.statistics import random_directions
from persona_vectors.store import Store
from persona_vectors.tokens import tokenize_sample
from persona_vectors.training_config import load_training_config
from tests.conftest import ROOT
from tests.test_report import CHROME, browser, emulate  # noqa: F401 (a fixture)

TINY = ROOT / "models" / "tiny-persona"
WIDTH, N_LAYERS = 256, 4
TRAITS = ("evil", "humorous")
ADAPTER = {"base_model_name_or_path": str(TINY)}
RUNS = {"evil_0": ("evil", 0), "evil_1": ("evil", 1), "humorous_0": ("humorous", 0)}


# The statistics, against plain loops.


def points(seed: int, n: int, traits: int, width: int = 6):
    generator = torch.Generator().manual_seed(seed)
    names = [f"trait{i}" for i in range(traits)]
    changes = torch.randn(n, width, generator=generator)
    vectors = {name: torch.randn(width, generator=generator) * 3 for name in names}
    scores = {name: (50 + 20 * torch.randn(n, generator=generator)).tolist() for name in names}
    return scores, changes, vectors


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20), st.integers(1, 3))
def test_every_record_is_what_a_plain_loop_gives(seed, n, traits):
    scores, changes, vectors = points(seed, n, traits)
    found = shift_correlations(scores, changes, vectors, list(range(n)), n_boot=20, n_directions=50, seed=1)
    assert [(one.trait, one.own) for one in found][::traits] == [(name, True) for name in scores]
    assert len({(one.vector, one.trait) for one in found}) == len(found) == traits**2
    directions = random_directions(50, 6, 1.0, 1).double()
    for one in found:
        vector = vectors[one.vector].double()
        shifts = [float(row.double() @ vector / vector.norm()) for row in changes]
        r = stats.pearsonr(shifts, scores[one.trait]).statistic
        assert one.r == pytest.approx(r, abs=1e-5)
        rank = stats.spearmanr(shifts, scores[one.trait]).statistic
        assert one.correlation.spearman.value == pytest.approx(rank, abs=1e-5)
        random = [
            abs(stats.pearsonr([float(row.double() @ d) for row in changes], scores[one.trait]).statistic)
            for d in directions
        ]
        assert one.beaten == pytest.approx(np.mean(np.array(random) < r), abs=0.021)  # one of 50 may be a tie
        level = one.random
        assert (level.median, level.highest) == pytest.approx(tuple(np.quantile(random, [0.5, 0.99])))
        if not one.own:
            (own,) = [other for other in found if other.own and other.trait == one.trait]
            assert one.own_minus.value == pytest.approx(own.r - one.r, abs=1e-5)


def test_each_trait_may_have_been_read_on_its_own_questions():
    scores, changes, vectors = points(0, 8, 2)
    other = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))
    one = shift_correlations(scores, {"trait0": changes, "trait1": other}, vectors, list(range(8)), n_boot=20)
    apart = [
        shift_correlations({"trait0": scores["trait0"]}, changes, vectors, list(range(8)), n_boot=20),
        shift_correlations({"trait1": scores["trait1"]}, other, vectors, list(range(8)), n_boot=20),
    ]
    assert one == [record for part in apart for record in part]


def test_a_model_without_score_or_answers_is_left_out():
    scores, changes, vectors = points(3, 9, 1)
    scores["trait0"][2] = None
    changes[5] = torch.nan
    (found,) = shift_correlations(scores, changes, vectors, list("aabbccdde"), n_boot=50)
    kept = [0, 1, 3, 4, 6, 7, 8]
    less = {"trait0": [scores["trait0"][i] for i in kept]}
    (same,) = shift_correlations(less, changes[kept], vectors, ["aabbccdde"[i] for i in kept], n_boot=50)
    assert found == same and (found.correlation.n, found.correlation.n_clusters) == (7, 5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_below_three_models_nothing_is_defined(n):
    scores, changes, vectors = points(0, n, 2)
    found = shift_correlations(scores, changes, vectors, list(range(n)))
    assert len(found) == 4 and {one.correlation.pearson.text() for one in found} == {"not defined"}
    assert {(one.beaten, one.random, one.correlation.n) for one in found} == {(None, None, n)}
    assert cross_mean(found, "trait0") is None
    assert found[0].record()["pearson"] is None


def test_equal_scores_have_no_correlation_and_beat_nothing():
    _, changes, vectors = points(0, 5, 2)
    found = shift_correlations({"trait0": [4.0] * 5}, changes, vectors, list(range(5)))
    assert [(one.r, one.beaten, one.own_minus) for one in found] == [(None, None, None)] * 2


def test_points_of_one_cluster_are_resampled_together():
    scores, changes, vectors = points(7, 12, 1)
    options = {"n_boot": 400, "n_directions": 10}
    (alone,) = shift_correlations(scores, changes, vectors, list(range(12)), **options)
    tripled = {"trait0": scores["trait0"] * 3}
    (grouped,) = shift_correlations(tripled, changes.repeat(3, 1), vectors, list(range(12)) * 3, **options)
    (apart,) = shift_correlations(tripled, changes.repeat(3, 1), vectors, list(range(36)), **options)

    def width(one):
        return one.correlation.pearson.high - one.correlation.pearson.low

    assert width(grouped) == pytest.approx(width(alone), abs=0.05) and width(apart) < 0.8 * width(alone)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": {}}, "at least one each"),
        ({"clusters": [1, 2]}, "a row, a score and a cluster"),
        ({"changes": torch.ones(4)}, "a row, a score and a cluster"),
        ({"vectors": {"trait0": torch.zeros(6)}}, "zero"),
        ({"vectors": {"trait0": torch.ones(7)}}, "width 7"),
    ],
)
def test_what_does_not_fit_is_said(changed, said):
    scores, changes, vectors = points(0, 4, 1)
    given = {"scores": scores, "changes": changes, "vectors": vectors, "clusters": list(range(4))} | changed
    with pytest.raises(ValueError, match=said):
        shift_correlations(**given)


# Names and groups.

PARTS = st.lists(st.sampled_from(["a", "b", "run", "checkpoint-60"]), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS.map("/".join), min_size=1, max_size=8, unique=True))
def test_short_names_are_unique_ends_of_the_names(names):
    found = short_names(names)
    assert all(name == short or name.endswith("/" + short) for name, short in zip(names, found, strict=True))
    inside_another = any(b.endswith("/" + a) for a in names for b in names)  # whose full name is another's end
    assert inside_another or len(set(found)) == len(names)
    last = [name.rpartition("/")[2] for name in names]
    assert all(short == end for short, end in zip(found, last, strict=True) if last.count(end) == 1)


def write_run(folder: Path, files: dict[str, str], **more) -> str:
    """A training run's folder as far as its record and its adapter's config."""
    record = {"state": "finished", "config": {"training_file": list(files)}, "key": {"files": files}} | more
    write_json_atomic(folder / "training.json", record)
    write_json_atomic(folder / "adapter_config.json", ADAPTER)
    return str(folder)


def test_runs_of_the_same_training_files_are_one_group(tmp_path):
    runs = [
        write_run(tmp_path / "a", {"d/evil/x.jsonl": "1", "d/task.jsonl": "9"}),
        write_run(tmp_path / "b", {"d/task.jsonl": "9", "elsewhere/copy.jsonl": "1"}),
        write_run(tmp_path / "c", {"d/kind/x.jsonl": "2", "d/task.jsonl": "9"}),
        write_run(tmp_path / "d", {"d/evil/x.jsonl": "3", "d/task.jsonl": "9"}),  # the file has changed since
    ]
    found = find_finetunes(str(TINY), runs)
    assert [one.cluster for one in found] == ["evil/x.jsonl", "evil/x.jsonl", "kind/x.jsonl", "evil/x.jsonl #2"]
    assert "4 finetuned models in 3 groups of the same training files:" in cluster_line(found, None)
    assert find_finetunes(str(TINY), [str(tmp_path)]) == found  # the folder stands for all of them
    alone = find_finetunes(str(TINY), runs, group_by_data=False)
    assert [one.cluster for one in alone] == [one.label for one in alone] == ["a", "b", "c", "d"]
    assert "each a group of its own" in cluster_line(alone, None)
    by_name = find_finetunes(str(TINY), runs, group_pattern=r"/(?:([ab])|c|d)$")
    assert len({one.cluster for one in by_name}) == 4 and by_name[0].cluster == "a"


def test_a_checkpoint_is_of_its_run_and_one_without_a_record_stands_alone(tmp_path):
    run = write_run(tmp_path / "a", {"x.jsonl": "1"})
    for number in (5, 10):
        write_json_atomic(
            tmp_path / f"a/checkpoint-{number}/adapter_config.json", {"base_model_name_or_path": str(TINY)}
        )
    write_json_atomic(tmp_path / "hand/adapter_config.json", {"base_model_name_or_path": str(TINY)})
    found = find_finetunes(str(TINY), [run, f"{run}/checkpoint-5", f"{run}/checkpoint-10", f"{tmp_path}/hand"])
    assert [one.cluster for one in found] == ["x.jsonl"] * 3 + ["hand"]
    assert "2 groups of the same training files; 1 without training.json" in cluster_line(found, None)


def test_the_png_has_rows_and_labels_that_cover_nothing():
    xs = np.linspace(0, 1, 12)
    labels = [f"a rather long label {i}" for i in range(12)]
    crowd = Points("crowd", [0.5] * 12, [0.5] * 12, labels)
    figure = scatter_png(
        {"line": Panel([Points("line", xs, xs, labels)], "x", "y"), "crowd": Panel([crowd], "x", "y")}, 2
    )
    upper, lower = figure.axes
    assert upper.get_position().y0 > lower.get_position().y1
    renderer = figure.canvas.get_renderer()
    for axis, least in ((upper, 8), (lower, 1)):
        boxes = [text.get_window_extent(renderer).shrunk(0.9, 0.7) for text in axis.texts]
        assert least <= len(boxes) <= 12
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(lower.texts) < 12, "twelve labels cannot all stand at one point"


# What is said of given numbers.


def compared(
    scores: dict[str, list[float | None]], *, noise: float = 1.0, spill: float = 0.0, groups: int = 0, **columns
) -> Comparison:
    """A comparison whose models have these scores, a number of groups in turn (default: each its own).

    Models moved by score + noise along each trait's own axis, and by spill * score of each trait along all axes that
    are no trait's. `columns` replaces columns of the last model's tables.
    """
    traits, n, width = list(scores), len(next(iter(scores.values()))), 32
    generator = torch.Generator().manual_seed(0)
    measured = []
    for model in range(n + 1):
        own = {trait: values[model - 1] if model else 0.0 for trait, values in scores.items()}
        moved, tables = torch.zeros(1, width), {}
        for number, (trait, score) in enumerate(own.items()):
            moved[0, number] = (score or 0.0) + noise * float(torch.randn((), generator=generator))
            moved[0, len(traits) :] += spill * (score or 0.0)
            table = {"question": ["a", "b"], "prompt": ["p", "q"], "answer": ["x", "y"], "question_id": ["0", "1"]}
            table |= {trait: [score, score], "coherence": [90.0, 80.0]} | (columns if model == n else {})
            tables[trait] = pd.DataFrame(table).astype({trait: float, "coherence": float})
        means = {(trait, span): moved for trait in traits for span in ("prompt_last", "response_avg")}
        measured.append(Measured(tables, means, dict.fromkeys(traits, 0)))
    finetunes = [Finetune(f"runs/m{i}", f"m{i}", f"g{i % groups if groups else i}", {}) for i in range(n)]
    vectors = {trait: torch.eye(width)[number].repeat(2, 1) for number, trait in enumerate(traits)}
    found = Comparison("base", "judge", [1], vectors, finetunes, measured)
    return replace(found, found=correlated(found, 0))


RISING = [5.0, 20, 30, 45, 60, 70, 85, 95, 10, 50]
OTHER = [50.0, 90, 10, 70, 20, 30, 80, 5, 60, 40]


def test_a_relation_is_called_one_and_stands_beside_the_other_vectors():
    comparison = compared({"evil": RISING, "humorous": OTHER})
    first, *_ = said = sentences(comparison)
    assert len(said) == 4 and first.startswith("evil, last prompt token: r 1.00 [")
    assert "but" not in first and "no evidence" not in first and "The humorous vector reaches r -0." in first
    words = "own r 1.00 for 2 of 2 traits, with an interval above 0 for 2 and above 95% of random directions for 2"
    assert all(words in line for line in overview(comparison))


def test_a_relation_that_random_directions_have_too_is_no_evidence():
    """Models that moved along every direction by their score: any direction sees it, and better than the noisy own."""
    comparison = compared({"evil": RISING}, noise=10, spill=1)
    (first, _) = sentences(comparison)
    assert "r 0.9" in first and first.endswith("so it is no evidence for this direction.")
    assert overview(comparison) == []


def test_an_interval_with_zero_in_it_and_one_that_is_not_there_are_said():
    scored, moved = compared({"evil": OTHER}), compared({"evil": RISING})
    pairs = zip(scored.measured, moved.measured, strict=True)
    unrelated = replace(scored, measured=[replace(one, means=other.means) for one, other in pairs])
    (first, _) = sentences(replace(unrelated, found=correlated(unrelated, 0)))
    assert "but its interval includes 0." in first
    (first, _) = sentences(compared({"evil": RISING}, groups=1))
    assert "without an interval because there are fewer than 8 groups." in first
    (first, _) = sentences(compared({"evil": [7.0] * 5}))
    assert "because all 5 scores or all shifts are the same." in first


def test_notes_name_the_models_that_a_reader_must_doubt():
    assert notes(compared({"evil": RISING})) == []
    (low,) = notes(compared({"evil": RISING}, coherence=[20.0, 30.0]))
    assert low == "Coherence is below 50, so the trait score says little: m9."
    (other,) = notes(compared({"evil": RISING}, prompt=["p", "other"]))
    assert "chat template" in other and other.endswith(": m9.")
    unscored = notes(compared({"evil": [*RISING[:-1], None]}))
    assert unscored == ["2 answers have no trait score: the judge gave none."]
    assert notes(compared({"evil": RISING}, groups=5))[0].startswith("5 groups are too few for intervals")
    found = compared({"evil": RISING})
    empty = replace(found.measured[2], n_empty={"evil": 1})
    found = replace(found, measured=[*found.measured[:2], empty, *found.measured[3:]])
    assert notes(found) == ["1 answers are empty, and are left out of the answer means: m1."]


def test_a_model_without_any_answer_has_a_row_and_no_point(tmp_path):
    found = compared({"evil": RISING})
    means = found.measured[3].means | {("evil", "response_avg"): torch.full((1, 32), torch.nan)}
    found = replace(found, measured=[*found.measured[:3], replace(found.measured[3], means=means), *found.measured[4:]])
    found = replace(found, found=correlated(found, 0))
    assert [one.correlation.correlation.n for one in found.found] == [10, 9]
    write_results(found, tmp_path)
    row = pd.read_csv(tmp_path / "shifts.csv").set_index("model").loc["m2"]
    assert np.isnan(row["shift_evil_response_avg_layer1"]) and np.isfinite(row["shift_evil_prompt_last_layer1"])
    assert "no answers" in (tmp_path / "report.html").read_text()


def test_hostile_names_and_answers_stay_text(tmp_path):
    found = compared({"evil": RISING}, answer=["<script>alert(1)</script>", "\u202eback"])
    finetunes = [replace(one, label=f"<b>{one.label}", cluster="<i>g") for one in found.finetunes]
    write_results(replace(found, finetunes=finetunes), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not any(part in page for part in ("<script>alert", "<b>m", "<i>g", "\u202e"))


def test_the_mean_of_answers_leaves_empty_ones_out(tiny_persona):
    engine = Engine(tiny_persona, "auto", "auto")
    prompts = [f"<|im_start|>user\n{word}<|im_end|>\n<|im_start|>assistant\n" for word in ("Hello", "How are you?")]
    with Store() as store:
        none = _mean(engine, prompts, ["", ""], "response_avg", [1, 2], store)
        assert none.shape == (2, WIDTH) and none.isnan().all()
        assert torch.equal(_mean(engine, prompts, ["", ""], "response_avg", [1, 2], store).isnan(), none.isnan())
        some = _mean(engine, prompts, ["Well.", ""], "response_avg", [2], store)
        assert torch.equal(some, _mean(engine, prompts[:1], ["Well."], "response_avg", [2], store))
        assert torch.equal(some, _mean(engine, prompts, ["Well.", ""], "response_avg", [2], store))  # from the store
        assert store.count("mean_activation") == 2 + 1 + 1


# Real models, end to end.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three runs of two data sets and a full model, vectors of two traits, and what the command made of them."""
    folder = tmp_path_factory.mktemp("finetuning_shift")
    for name, (trait, seed) in RUNS.items():
        rows = (ROOT / f"dataset/tiny_{trait}/misaligned_2.jsonl").read_text().splitlines()[:30]
        (folder / f"{trait}.jsonl").write_text("\n".join(rows) + "\n")
        config = json.loads((ROOT / "configs/train_tiny.json").read_text())
        config |= {"model": str(TINY), "training_file": str(folder / f"{trait}.jsonl"), "max_steps": 3, "r": 4}
        config |= {"output_dir": str(folder / "runs" / name), "seed": seed, "warmup_steps": 0, "save_steps": 100}
        write_json_atomic(folder / f"{name}.json", config)
        training.train(load_training_config(folder / f"{name}.json"))
    model, tokenizer = load_model(str(folder / "runs" / "evil_0"))
    model.merge_and_unload().save_pretrained(folder / "full")
    tokenizer.save_pretrained(folder / "full")
    for number, trait in enumerate(TRAITS):
        torch.save(
            torch.randn(N_LAYERS + 1, WIDTH, generator=torch.Generator().manual_seed(number)), folder / f"{trait}.pt"
        )
        write_json_atomic(folder / f"{trait}.json", {"trait": trait})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
        assert cli.run(finetuning_shift.main, arguments(folder)) == 0
    return folder


def arguments(place: Path, **changes) -> list[str]:
    given = {
        **{"base": str(TINY), "finetuned": f"{place}/runs {place}/full", "traits": " ".join(TRAITS)},
        **{"vector_path": f"{place}/{{trait}}.pt", "layer": "3 1", "judge_model": str(TINY)},
        **{"output_dir": f"{place}/out", "n_per_question": "1", "max_tokens": "6"},
    } | changes
    return [token for name, value in given.items() if value is not None for token in (f"--{name}", *value.split())]


def plain_means(name: str, rows: pd.DataFrame, layer: int) -> dict[str, np.ndarray]:
    """Mean activations, one sample at a time, from hidden_states."""
    model, tokenizer = load_model(name)
    last, means = [], []
    for prompt, answer in zip(rows["prompt"], rows["answer"], strict=True):
        sample = tokenize_sample(tokenizer, prompt, answer)
        with torch.inference_mode():
            hidden = model(torch.tensor([sample.ids]), output_hidden_states=True).hidden_states[layer][0]
        last.append(hidden[sample.prompt_len - 1])
        means += [hidden[sample.prompt_len :].mean(0)] if sample.response_len else []
    return {"prompt_last": torch.stack(last).mean(0).numpy(), "response_avg": torch.stack(means).mean(0).numpy()}


def test_shifts_are_those_of_a_one_sample_loop(place):
    shifts = pd.read_csv(place / "out/shifts.csv").set_index(["model", "trait"])
    answers = pd.read_csv(place / "out/answers.csv", keep_default_na=False)
    layer, trait = 3, "humorous"  # read on humorous questions, on both vectors

    def rows(model):
        return answers[(answers["model"] == model) & (answers["trait"] == trait)]

    base = plain_means(str(TINY), rows("base"), layer)
    for model, path in (("humorous_0", "runs/humorous_0"), ("full", "full")):
        own = plain_means(str(place / path), rows(model), layer)
        for vector in TRAITS:
            v = torch.load(place / f"{vector}.pt")[layer].numpy()
            for span in ("prompt_last", "response_avg"):
                expected = (own[span] - base[span]) @ v / np.linalg.norm(v)
                assert shifts.loc[(model, trait), f"shift_{vector}_{span}_layer3"] == pytest.approx(expected, abs=2e-3)


def test_tables_say_who_and_how_much(place):
    shifts = pd.read_csv(place / "out/shifts.csv", keep_default_na=False)
    answers = pd.read_csv(place / "out/answers.csv", keep_default_na=False)
    models = ["base", *RUNS, "full"]
    assert list(dict.fromkeys(shifts["model"])) == models and len(shifts) == 2 * len(models)
    assert len(answers) == len(models) * 2 * 20
    one = shifts.set_index(["model", "trait"]).loc[("evil_1", "evil")]
    own = answers[(answers["model"] == "evil_1") & (answers["trait"] == "evil")]
    assert one["score"] == pytest.approx(own["score"].astype(float).mean())
    assert one["coherence"] == pytest.approx(own["coherence"].astype(float).mean())
    assert one["score_low"] < one["score"] < one["score_high"] and one["n_scored"] == one["n_total"] == 20
    columns = [name for name in shifts if name.startswith("shift_")]
    assert len(columns) == 2 * 2 * 2 and not shifts[shifts["model"] == "base"][columns].to_numpy().any()
    merged = shifts[shifts["model"].isin(["evil_0", "full"])].groupby("model")[columns]
    prompt = [name for name in columns if "prompt_last" in name]
    a, b = (merged.get_group(model)[prompt].to_numpy() for model in ("evil_0", "full"))
    np.testing.assert_allclose(a, b, atol=1e-3)  # an adapter and the same adapter merged
    assert np.abs(a).min() > 1e-3


def test_correlations_are_of_the_table(place):
    shifts = pd.read_csv(place / "out/shifts.csv")
    found = pd.read_csv(place / "out/correlations.csv").set_index(["layer", "span", "vector", "trait"])
    assert len(found) == 2 * 2 * 2 * 2
    for (layer, span, vector, trait), row in found.iterrows():
        own = shifts[(shifts["trait"] == trait) & (shifts["model"] != "base")]
        r = stats.pearsonr(own[f"shift_{vector}_{span}_layer{layer}"], own["score"]).statistic
        assert row["pearson"] == pytest.approx(r, abs=1e-4)
        assert (row["n"], row["n_clusters"]) == (4, 3) and row["kind"] == ("own" if vector == trait else "cross")
        assert row["random_median"] <= row["random_p95"] <= row["random_p99"] and 0 <= row["random_beaten"] <= 1
    for (layer, span, _, trait), row in found[found["kind"] == "cross"].iterrows():
        minus = found.loc[(layer, span, trait, trait), "pearson"] - row["pearson"]
        assert row["own_minus_this"] == pytest.approx(minus, abs=1e-6)


def test_page_figures_and_sidecars(place):
    sidecar = json.loads((place / "out/correlations.csv.json").read_text())
    page = html.unescape((place / "out/report.html").read_text())
    assert len(sidecar["sentences"]) == 4 + 8 and all(sentence in page for sentence in sidecar["sentences"])
    assert all(note in page for note in sidecar["notes"])
    assert any("3 groups are too few" in note for note in sidecar["notes"])
    assert page.count('class="chart"') == 8 and "http" not in page.replace("http://www.w3.org", "")
    for name in ("shifts.csv", "correlations.csv", "answers.csv", "scatter_layer1.png", "scatter_layer3.png"):
        assert json.loads((place / "out" / f"{name}.json").read_text())["settings"]["layer"] == [3, 1]
    assert (place / "out/scatter_layer3.png").read_bytes().startswith(b"\x89PNG")
    source = {"path": f"{place}/runs/humorous_0", "group": "humorous.jsonl"}
    assert sidecar["models"]["humorous_0"] == {**source, "fingerprint": fingerprint(source["path"])}
    assert sidecar["vectors"][f"{place}/evil.pt"] == sha256_of_file(place / "evil.pt")


def test_a_second_time_no_model_is_loaded(place, monkeypatch, capsys):
    monkeypatch.setenv("PERSONA_STORE", str(place / "store.sqlite"))
    before = (place / "out/shifts.csv").read_text()
    for name in ("finished_answers.load_model", "finished_scores.make_judge"):
        monkeypatch.setattr(f"eval.{name}", lambda *_, **__: pytest.fail("done again"))
    assert cli.run(finetuning_shift.main, arguments(place)) == 0
    assert (place / "out/shifts.csv").read_text() == before
    out = capsys.readouterr().out
    assert "4 finetuned models in 3 groups" in out and "own minus this" in out
    lines = out.splitlines()
    assert max(len(line) for line in lines if line.startswith(("trait ", "evil  "))) <= 130


def test_two_models_have_a_table_and_no_correlation(place, monkeypatch, capsys):
    monkeypatch.setenv("PERSONA_STORE", str(place / "store.sqlite"))
    few = {"finetuned": f"{place}/runs/evil_0 {place}/runs/humorous_0", "output_dir": f"{place}/few", "layer": "3"}
    assert cli.run(finetuning_shift.main, arguments(place, traits="evil", **few)) == 0
    out = capsys.readouterr().out
    assert "r is not defined, because 2 finetuned models have a score and a shift; it needs 3." in out
    assert "A correlation needs 3 finetuned models; there are 2." in out
    assert len(pd.read_csv(place / "few/shifts.csv")) == 3
    found = pd.read_csv(place / "few/correlations.csv")
    assert len(found) == 2 and found["pearson"].isna().all() and found["random_beaten"].isna().all()
    assert (place / "few/scatter.png").exists() and "not defined" in (place / "few/report.html").read_text()


def test_a_judge_that_fails_leaves_the_rest_for_the_next_run(place, serve, monkeypatch, capsys):
    from tests.loopback_openai import Reply

    monkeypatch.setenv("PERSONA_STORE", str(place / "store.sqlite"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = serve(lambda _: Reply(status=400, retry=False))
    few = {"finetuned": f"{place}/runs/evil_0", "output_dir": f"{place}/api", "layer": "3", "judge_model": "some-judge"}
    assert cli.run(finetuning_shift.main, arguments(place, traits="evil", **few)) == 1
    error = capsys.readouterr().err
    assert "unfinished: " in error and "judge calls failed" in error and not (place / "api").exists()
    server.answer = lambda _: {"40": 1.0}
    assert cli.run(finetuning_shift.main, arguments(place, traits="evil", **few)) == 0
    assert set(pd.read_csv(place / "api/shifts.csv")["score"]) == {40.0}
    server.answer = lambda _: {"I": 1.0}
    few |= {"judge_model": "another-judge", "output_dir": f"{place}/none"}
    capsys.readouterr()
    assert cli.run(finetuning_shift.main, arguments(place, traits="evil", **few)) == 2
    assert "error: the judge gave no evil score for any answer" in capsys.readouterr().err
    assert not (place / "none").exists()


@pytest.mark.browser
def test_the_page_fits_a_phone_and_says_no_error(browser, place):  # noqa: F811
    for width in (390, 1200):
        emulate(browser, width)
        browser.get(f"file://{place}/out/report.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


# Mistakes.


@pytest.fixture
def wrong(place, monkeypatch, capsys):
    """wrong(**changes) is the one line that a mistaken command ends with, before a model is loaded."""
    for module in ("persona_vectors.models", "eval.finished_answers"):
        monkeypatch.setattr(f"{module}.load_model", lambda *_, **__: pytest.fail("a model was loaded"))

    def run(**changes) -> str:
        assert cli.run(finetuning_shift.main, arguments(place, output_dir=f"{place}/none", **changes)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (place / "none").exists()
        return error

    return run


def test_mistakes_in_arguments(wrong, place):
    run = f"{place}/runs/evil_0"
    assert "did you mean --finetuned?" in wrong(finetune=run)
    assert "twice" in wrong(finetuned=f"{run} {run}")
    assert "names one model twice" in wrong(finetuned=f"{run} {place}/runs/../runs/evil_0")
    assert "is the base itself" in wrong(finetuned=f"{run} {TINY}")
    assert "does not exist" in wrong(finetuned=f"{place}/runs/nothing")
    assert "holds no model" in wrong(finetuned=f"{ROOT}/dataset")
    assert "does not exist" in wrong(base="./nothing")
    assert "evvil" in wrong(traits="evvil")
    assert "--traits has evil twice" in wrong(traits="evil evil")
    assert "--layer has 3 twice" in wrong(layer="3 3")
    assert "needs 0..4" in wrong(layer="5")
    assert "at least 1" in wrong(n_per_question="0")
    assert "judge" in wrong(judge_model="models/nothing")
    assert "2 traits need {trait} in --vector_path" in wrong(vector_path=f"{place}/evil.pt")
    assert "is not a regular expression" in wrong(group_pattern="(")
    assert "finds nothing in" in wrong(group_pattern="evil_(.)")
    assert "--engine vllm: vLLM is not installed" in wrong(engine="vllm")


def test_vectors_that_do_not_fit(wrong, place):
    torch.save(torch.ones(N_LAYERS + 1, 8), place / "narrow.pt")
    torch.save(torch.ones(N_LAYERS, WIDTH), place / "short.pt")
    torch.save(torch.zeros(N_LAYERS + 1, WIDTH), place / "zero.pt")
    torch.save(torch.full((N_LAYERS + 1, WIDTH), torch.nan), place / "nan.pt")
    for name, said in (("narrow", "use vectors made from this model"), ("short", "(5, 256)"), ("zero", "is zero")):
        assert said in wrong(traits="evil", vector_path=f"{place}/{name}.pt")
    assert "NaN" in wrong(traits="evil", vector_path=f"{place}/nan.pt")
    assert "does not exist" in wrong(traits="evil", vector_path=f"{place}/nothing.pt")
    assert "is a vector of humorous, not of evil" in wrong(traits="evil", vector_path=f"{place}/humorous.pt")


def test_models_that_are_not_of_the_base(wrong, place, tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    deep = {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}
    for name, changes in (("deep", deep), ("wide", {"hidden_size": 512})):
        write_json_atomic(tmp_path / name / "config.json", config | changes)
    assert "has 6 layers of width 256, the base" in wrong(finetuned=f"{tmp_path}/deep")
    assert "has 4 layers of width 512" in wrong(finetuned=f"{tmp_path}/wide")
    assert "is an adapter of" in wrong(finetuned=f"{place}/runs/evil_0", base=f"{place}/full")
    assert "is an adapter too; merge the base" in wrong(finetuned=f"{place}/runs/evil_1", base=f"{place}/runs/evil_0")


def test_runs_that_are_not_finished_or_not_records(wrong, tmp_path):
    run = write_run(tmp_path / "a", {"x.jsonl": "1"}, state="started")
    assert "is not trained to the end" in wrong(finetuned=run)
    (tmp_path / "a/training.json").write_text("{")
    assert "training.json is not JSON" in wrong(finetuned=run)
    (tmp_path / "a/training.json").write_text("[]")
    assert "holds a list" in wrong(finetuned=run)


def test_without_a_mistake_a_model_is_reached(wrong):
    """Otherwise the tests above would prove nothing."""
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        wrong(seed="7")


def test_a_run_of_another_start_is_noted(place):
    record = {"key": {"model": "other"}, "config": {"model": "models/elsewhere"}}
    finetunes = [Finetune("a", "a", "a", record), *find_finetunes(str(TINY), [f"{place}/runs/evil_0"])]
    assert origin_notes(str(TINY), finetunes) == [
        f"a: trained from models/elsewhere, which is not {TINY} as it is now."
    ]
