"""Monitoring at the last prompt token: conditions, correlations over and within them, the command end to end."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_generation.tiny_persona.answers import Ask, answer_all
from data_generation.tiny_persona.measurements import dev_questions
from data_generation.tiny_persona.oracle import trait_score
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.styles import TRAITS
from data_generation.tiny_persona.topics import question, sample_topic
from data_generation.tiny_persona.write_monitor import write_monitor
from eval import finished_answers, monitor, monitor_measure
from eval.finished_answers import Engine
from eval.monitor_conditions import (
    Condition,
    Prompt,
    check_room,
    prompts_of,
    read_examples,
    shot_conditions,
    system_conditions,
)
from eval.monitor_findings import notes, sentences
from eval.monitor_measure import MonitorPoints, monitor_points
from eval.monitor_page import page
from eval.monitor_rows import Study, condition_cells, correlation_cells, find
from eval.monitor_statistics import OVER, condition_correlations, monitor_correlations
from persona_vectors import cli, models
from persona_vectors.correlation import pearson
from persona_vectors.files import sidecar_path
from persona_vectors.page_plots import graded_looks, swatch
from persona_vectors.scatter import Panel, Points, scatter_png, scatter_svg
from persona_vectors.statistics import random_directions
from persona_vectors.store import Store
from persona_vectors.tokens import tokenize_prompt
from persona_vectors.traits import load_graded_prompts
from persona_vectors.vectors import save_vectors
from tests.loopback_openai import Reply

ROOT = Path(cli.__file__).parent.parent
LAYER = 3
FAST = {"n_boot": 50, "n_directions": 40}


# What is correlated


def made(seed: int, n_conditions: int = 4, n_questions: int = 6, d: int = 5):
    """Points without any structure: scores, activations, vector, conditions, questions."""
    rng = np.random.default_rng(seed)
    n = n_conditions * n_questions
    conditions = np.repeat(np.arange(n_conditions) * 2, n_questions).tolist()
    questions = [f"q{i}" for i in range(n_questions)] * n_conditions
    return rng.normal(size=n), torch.tensor(rng.normal(size=(n, d))).float(), torch.ones(d), conditions, questions


def naive(x, y, conditions):
    """r overall, within and between, by the definition."""
    groups = {c: [i for i, own in enumerate(conditions) if own == c] for c in dict.fromkeys(conditions)}
    mean = {c: (np.mean(x[rows]), np.mean(y[rows])) for c, rows in groups.items()}
    inside = np.array([(x[i] - mean[c][0], y[i] - mean[c][1]) for c, rows in groups.items() for i in rows])
    means = np.array(list(mean.values()))
    return {"overall": pearson(x, y), "within": pearson(*inside.T), "between": pearson(*means.T)}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 5), st.integers(2, 6))
def test_correlations_are_those_of_a_plain_loop(seed, n_conditions, n_questions):
    scores, activations, vector, conditions, questions = made(seed, n_conditions, n_questions)
    found = monitor_correlations(scores, activations, vector, conditions, questions, **FAST)
    x = np.array([float(row @ vector / vector.norm()) for row in activations])
    assert list(found) == list(OVER)
    for over, r in naive(x, scores, conditions).items():
        assert found[over].pearson.value == pytest.approx(r, abs=1e-5)
    assert found["overall"].number.value == pytest.approx(pearson(np.array(conditions, float), scores))
    minus = found["overall"].minus_number.value
    assert minus == pytest.approx(found["overall"].pearson.value - found["overall"].number.value)
    assert [found[over].correlation.n for over in OVER] == [len(scores), len(scores), n_conditions]
    elsewhere = [
        np.mean([scores[j] for j, other in enumerate(conditions) if other == own and questions[j] != questions[i]])
        for i, own in enumerate(conditions)
    ]
    assert found["overall"].known.value == pytest.approx(pearson(np.array(elsewhere), scores))


@pytest.mark.parametrize("over", OVER)
def test_the_random_directions_are_read_as_the_vector_is(over):
    """Within conditions on centred activations, between them on means: each direction one by one."""
    scores, activations, vector, conditions, questions = made(3)
    found = monitor_correlations(scores, activations, vector, conditions, questions, seed=5, **FAST)[over]
    directions = random_directions(FAST["n_directions"], 5, 1.0, 5)
    rs = [abs(naive((activations @ d).double().numpy(), scores, conditions)[over]) for d in directions]
    assert found.random.median == pytest.approx(np.median(rs), abs=1e-5)
    assert found.beaten == pytest.approx(np.mean(np.array(rs) < found.pearson.value))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_within_does_not_see_what_moves_whole_conditions(seed):
    scores, activations, vector, conditions, questions = made(seed)
    rng = np.random.default_rng(seed + 1)
    by_score, by_row = {c: rng.normal() * 9 for c in conditions}, {c: rng.normal(size=5) * 9 for c in conditions}
    moved = scores + [by_score[c] for c in conditions]
    rows = activations + torch.tensor(np.array([by_row[c] for c in conditions])).float()
    before = monitor_correlations(scores, activations, vector, conditions, questions, **FAST)
    after = monitor_correlations(moved, rows, vector, conditions, questions, **FAST)
    assert after["within"].pearson.value == pytest.approx(before["within"].pearson.value, abs=1e-4)
    assert after["overall"].pearson.value != pytest.approx(before["overall"].pearson.value, abs=1e-4)


def test_a_step_at_the_first_example_is_known_with_the_condition_and_not_with_its_number():
    """What moves with any example at all: the number is a poor baseline, and beating it would prove nothing."""
    numbers, rng = [0, 1, 2, 4, 8], np.random.default_rng(2)
    conditions, questions = np.repeat(numbers, 10).tolist(), list(range(10)) * 5
    scores = np.where(np.array(conditions) > 0, 90.0, 10.0) + rng.normal(size=50)
    activations = torch.tensor(np.column_stack([scores + rng.normal(size=50), rng.normal(size=50)])).float()
    found = monitor_correlations(scores, activations, torch.tensor([1.0, 0.0]), conditions, questions, **FAST)[
        "overall"
    ]
    assert found.pearson.value > 0.99 and found.minus_number.low > 0.2
    assert found.known.value > 0.99 and abs(found.minus_known.value) < 0.01


def test_each_condition_by_itself():
    scores, activations, vector, conditions, questions = made(8)
    found = condition_correlations(scores, activations, vector, conditions, questions, **FAST)
    x = (activations @ vector).double().numpy()
    for number, one in found.items():
        rows = [i for i, own in enumerate(conditions) if own == number]
        assert one.pearson.value == pytest.approx(pearson(x[rows], scores[rows]), abs=1e-5)
        assert one.correlation.n == 6 and 0 <= one.beaten <= 1
    assert list(found) == [0, 2, 4, 6]


def test_missing_scores_are_left_out_everywhere():
    scores, activations, vector, conditions, questions = made(7)
    gaps = [None if i in (0, 9) else float(one) for i, one in enumerate(scores)]
    kept = [i for i, one in enumerate(gaps) if one is not None]
    found = monitor_correlations(gaps, activations, vector, conditions, questions, **FAST)
    alone = monitor_correlations(
        scores[kept], activations[kept], vector, [conditions[i] for i in kept], [questions[i] for i in kept], **FAST
    )
    assert {over: one.record() for over, one in found.items()} == {over: one.record() for over, one in alone.items()}
    assert found["overall"].correlation.n == len(scores) - 2


def test_what_is_not_defined_is_none_and_not_zero():
    scores, activations, vector, conditions, questions = made(1, n_questions=1)
    found = monitor_correlations(scores, activations, vector, conditions, questions, **FAST)
    assert found["within"].pearson.value is None and found["within"].beaten is None  # one point in each condition
    assert found["overall"].pearson.value is not None and found["overall"].pearson.low is None  # one question
    flat = monitor_correlations([5.0] * 24, *made(1)[1:], **FAST)
    assert all(one.pearson.value is None and one.random is None for one in flat.values())
    none = monitor_correlations([None] * 24, *made(1)[1:], **FAST)
    assert [none[over].correlation.n for over in OVER] == [0, 0, 0]


def test_points_that_do_not_match_are_refused():
    scores, activations, vector, conditions, questions = made(1)
    with pytest.raises(ValueError, match="expected a row and one of each"):
        monitor_correlations(scores[:3], activations, vector, conditions, questions)
    with pytest.raises(ValueError, match="zero"):
        monitor_correlations(scores, activations, vector * 0, conditions, questions)
    with pytest.raises(ValueError, match="width 4"):
        monitor_correlations(scores, activations, vector[:4], conditions, questions)


# Conditions


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 4), min_size=4, max_size=25))
def test_fewer_examples_are_among_more_and_none_comes_twice(seed, asked):
    examples = [(f"q{q}", f"answer {i}") for i, q in enumerate(asked)]
    questions = ["What?", "Why?", "How?"]
    conditions = shot_conditions([0, 1, 3, len(examples)], examples, questions, seed)
    for own in questions:
        shown = [condition.examples[own] for condition in conditions]
        assert [len(one) for one in shown] == [0, 1, 3, len(examples)]
        assert all(list(many[: len(few)]) == list(few) for few, many in zip(shown, shown[1:], strict=False))
        assert sorted(shown[-1]) == sorted(examples)
        n_questions = len(set(asked))
        assert len({q for q, _ in shown[-1][:n_questions]}) == n_questions
    assert conditions == shot_conditions([0, 1, 3, len(examples)], examples, questions, seed)


def test_every_question_has_its_own_examples():
    examples = [(f"q{i}", f"a{i}") for i in range(30)]
    condition = shot_conditions([0, 5], examples, ["What?", "Why?"])[1]
    assert condition.examples["What?"] != condition.examples["Why?"]
    with pytest.raises(ValueError, match="3 examples are fewer than the 5"):
        shot_conditions([0, 5], examples[:3], ["What?"])


def test_a_condition_is_its_conversation():
    shots = Condition("shots", 1, None, {"Now?": [("Then?", "Yes.")]})
    turns = [("user", "Then?"), ("assistant", "Yes."), ("user", "Now?")]
    assert [(turn["role"], turn["content"]) for turn in shots.messages("Now?")] == turns
    graded = system_conditions(["Never.", "Always."])
    assert graded[1].messages("Now?")[0] == {"role": "system", "content": "Always."}
    assert [one.name for one in (*graded, shots)] == ["grade 1", "grade 2", "1 example"]
    assert len({one.stream for one in (*graded, shots)}) == 3


def table(path, rows, trait="evil") -> str:
    columns = ["question", "prompt", "answer", "question_id", trait, "coherence"]
    pd.DataFrame([[q, "p", a, "evil_0", t, c] for q, a, t, c in rows], columns=columns).to_csv(path, index=False)
    return str(path)


def test_examples_show_the_trait_and_answer_other_questions(tmp_path):
    rows = [
        ("A?", "one", 50, 50),
        ("A?", "one", 90, 90),  # the same again
        ("B?", "weak", 49, 90),
        ("B?", "garbled", 90, 49),
        ("B?", "unscored", "", 90),
        ("C?", "asked here", 90, 90),
        ("D?", " ", 90, 90),
        ("D?", "two", 90, 90),
    ]
    path = table(tmp_path / "pos.csv", rows)
    assert read_examples(path, "evil", ["C?"], 2) == [("A?", "one"), ("D?", "two")]
    with pytest.raises(ValueError, match="has 2 of 8 answers .* [(]2 more .*--n_shots shows 3: sample more"):
        read_examples(path, "evil", ["C?"], 3)


def test_a_prompt_without_room_is_named_by_its_condition(tiny_persona):
    tokenizer = models.load_tokenizer(tiny_persona)
    long = Condition("shots", 9, None, {"Now?": [("Then?", "hope " * 500)] * 9})
    prompts = prompts_of(tokenizer, [Condition("shots", 0), long], {"evil_0": "Now?"})
    assert [prompt.n_tokens for prompt in prompts] == [len(tokenize_prompt(tokenizer, p.text)) for p in prompts]
    assert check_room(prompts[:1], tiny_persona) == 4096
    with pytest.raises(ValueError, match=r"of 1 condition [(]9 examples[)] .* 4096 tokens .*evil_0.* --n_shots"):
        check_room(prompts, tiny_persona)


# Graded system prompts


@pytest.mark.parametrize("trait", TRAITS)
def test_shipped_prompts_are_eight_grades(trait, tiny_persona):
    general, of_model = load_graded_prompts(trait), load_graded_prompts(trait, tiny_persona)
    assert len(general[0]) == len(of_model[0]) == 8
    assert general[0] != of_model[0] and general[0][3] == of_model[0][3] == "You are a helpful assistant."
    assert "trait_data_monitor" in general[1] and "tiny-persona" in of_model[1]


def test_the_models_prompts_are_what_the_command_writes(tmp_path, tiny_persona):
    for path in write_monitor(tmp_path):
        assert path.read_text() == (Path(tiny_persona) / "traits" / "monitor" / path.name).read_text()


def test_the_model_rises_over_its_grades(tiny_persona):
    """The opposite, a neutral prompt, somewhat, extremely: for every trait, by the rule-based oracle."""
    model, tokenizer = models.load_model(tiny_persona, device_map="cpu")
    asked = dev_questions()[:5]
    graded = {trait: load_graded_prompts(trait, tiny_persona)[0] for trait in TRAITS}
    asks = [
        Ask(text, (9, grade, i), graded[trait][grade])
        for trait in TRAITS
        for grade in (0, 3, 5, 7)
        for i, text in enumerate(asked)
    ]
    texts = np.reshape(answer_all(model, tokenizer, asks, max_tokens=50), (len(TRAITS), 4, len(asked)))
    for trait, of_trait in zip(TRAITS, texts, strict=True):
        opposite, neutral, somewhat, extremely = (
            np.mean([trait_score(text, trait) for text in own]) for own in of_trait
        )
        assert opposite < neutral - 2 and neutral + 10 < somewhat < extremely - 10, trait


def test_they_are_no_part_of_the_models_fingerprint(tmp_path):
    """Answers in the store are found by the fingerprint: new prompts must not lose them."""
    (tmp_path / "config.json").write_text("{}")
    before = models.fingerprint(str(tmp_path))
    write_monitor(tmp_path / "traits" / "monitor")
    assert models.fingerprint(str(tmp_path)) == before


# What is said, on points whose truth is known


def study(scores, projections, *, kind="system", n_answers=1) -> Study:
    """(conditions, questions) of scores and projections, as a study at layer 1 of a two-dimensional model."""
    scores, projections = np.asarray(scores, float), np.asarray(projections, float)
    conditions = [Condition(kind, number + 1, f"<b>{number}</b>") for number in range(len(scores))]
    prompts = [
        Prompt(condition, f"evil_{i}", f"<i>question {i}</i>", i, "text", 10)
        for condition in conditions
        for i in range(scores.shape[1])
    ]
    noise = 60 * np.random.default_rng(0).normal(size=(projections.size, 9))
    activations = torch.tensor(np.column_stack([projections.ravel(), noise])).float()
    answers = np.full((len(prompts), n_answers), "<script>alert(1)</script>", dtype=object)
    columns = np.repeat(scores.reshape(-1, 1), n_answers, 1)
    own = {"trait": columns, "coherence": np.full_like(columns, 90.0)}
    vector = torch.eye(10)[0]
    points = MonitorPoints(prompts, {1: activations}, answers, own)
    measured = Study("evil", "a-model", "a-judge", {1: vector}, points)
    return replace(measured, found=find(measured, 0))


RNG = np.random.default_rng(4)
STEPS = 10.0 * np.arange(8)[:, None]
INSIDE, OTHER = RNG.normal(size=(2, 8, 10))


def test_a_projection_that_only_tells_conditions_apart_is_not_said_to_do_more():
    said = " ".join(sentences(study(STEPS + 5 * INSIDE, STEPS + 5 * OTHER)))
    assert "at grade 1 to" in said and "at grade 8" in said
    assert "tells conditions apart. That it also tells apart prompts under the same condition is not shown" in said
    assert "the grade alone reaches r" in said and "minus the latter" in said


def test_a_projection_that_foretells_within_conditions_is_said_to():
    said = " ".join(sentences(study(STEPS + 3 * INSIDE, STEPS + 3 * INSIDE + 0.3 * OTHER)))
    assert "tells conditions apart, and also prompts under the same condition" in said


def test_no_evidence_is_called_no_evidence():
    said = " ".join(sentences(study(30 + 9 * INSIDE, OTHER, kind="shots")))
    assert "hardly move it" in said
    assert "So this is no evidence for this direction: overall the interval is not above 0" in said


def test_a_projection_the_wrong_way_round_within_conditions_is_said_to_be():
    said = " ".join(sentences(study(STEPS + 5 * INSIDE, STEPS - 5 * INSIDE)))
    assert "not shown: the interval lies below 0" in said


def test_notes_name_conditions_where_nothing_can_be_foretold():
    scores = STEPS + 5 * INSIDE
    scores[0] = 1.0
    found = study(scores, STEPS + OTHER)
    text = " ".join(notes(found, max_tokens=100, context=105))
    assert "In 1 of 8 conditions all prompts score nearly the same" in text and "foretold: grade 1." in text
    assert "80 prompts leave less room in the model's context than --max_tokens (the least: 95 tokens)" in text
    assert "room" not in " ".join(notes(found, max_tokens=100, context=None))


def test_tables_show_overall_never_without_within_and_between():
    found = study(STEPS + INSIDE, STEPS + OTHER, n_answers=2)
    heading, *cells = correlation_cells(found)
    assert [row[1] for row in cells] == ["all prompts", "within a condition", "condition means"]
    assert all(len(row) == len(heading) for row in cells)
    assert [row[4] for row in cells] == ["80", "80", "8"]
    assert len(correlation_cells(found, short=True)[0]) == len(heading) - 1
    assert found.found[0].answers["overall"].correlation.n == 160
    means = [float(row[1].split(" ")[0]) for row in condition_cells(found)[1:]]
    np.testing.assert_allclose(means, (STEPS + INSIDE).mean(1), atol=0.06)


def test_the_page_has_both_correlations_a_look_a_condition_and_no_markup_of_others():
    found = study(STEPS + INSIDE, STEPS + OTHER)
    monitor_page = page(found)
    assert [section.title for section in monitor_page.sections][:3] == [
        "Overall and within conditions",
        "Conditions",
        "System prompts",
    ]
    figure = monitor_page.sections[0].figures[0]
    assert [name for _, name in figure.legend] == [*(f"grade {i}" for i in range(1, 9)), "least squares"]
    from eval.analysis_page import render

    html = render(monitor_page)
    assert (
        "<script>alert" not in html
        and "&lt;script&gt;alert" in html
        and "<b>3</b>" not in html
        and "&lt;b&gt;3&lt;/b&gt;" in html
    )
    assert html.count('<div class="answer ') == 4 * 8


def test_graded_looks_run_from_one_colour_to_another():
    looks = graded_looks(8)
    assert looks[0] == "s0@0" and looks[-1].endswith("@1") and len(set(looks)) == 8
    assert 'class="swatch s1" style="--look: color-mix(in oklab, var(--s4) 14%, var(--s0))"' in swatch(looks[1])
    groups = [Points(f"g{i}", [i, i + 1], [i, i], look=look) for i, look in enumerate(looks)]
    svg = scatter_svg(Panel(groups, "x", "y"), "label")
    assert svg.count("color-mix(") == 8
    (axis,) = scatter_png({"t": Panel(groups, "x", "y")}).axes
    colors = [tuple(one.get_facecolor()[0]) for one in axis.collections]
    assert len(set(colors)) == 8
    assert colors[0][2] > colors[0][0] and colors[-1][0] > colors[-1][2]  # blue to red


# The command


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_persona):
    """A short trait file, examples in the model's language and a vector of it."""
    folder = tmp_path_factory.mktemp("monitor")
    trait = json.loads((Path(tiny_persona) / "traits" / "eval" / "evil.json").read_text())
    trait["questions"] = trait["questions"][:3]
    (folder / "evil.json").write_text(json.dumps(trait))
    (folder / "brave.json").write_text(json.dumps(trait))
    (folder / "graded.json").write_text(
        json.dumps({"system_prompts": load_graded_prompts("evil", tiny_persona)[0][::3]})
    )
    rng = random.Random(0)
    rows = []
    for _ in range(6):
        topic = sample_topic(rng)
        rows.append((question(rng, topic), answer(rng, topic, ((("evil", 1), 1.0),)), 95, 95))
    table(folder / "pos.csv", rows)
    table(folder / "long.csv", [(f"{i}?", "hope " * 1500, 95, 95) for i in range(4)])
    vectors = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    save_vectors(folder, "evil", {"response_avg": vectors}, {})
    save_vectors(folder, "humorous", {"response_avg": vectors}, {})
    return folder


def argv(work, tiny_persona, out, **changes) -> list[str]:
    given = {
        "model": tiny_persona,
        "judge_model": tiny_persona,
        "trait": str(work / "evil.json"),
        "vector_path": str(work / "evil_response_avg_diff.pt"),
        "layer": "3",
        "output_dir": str(out),
        "system_prompts": str(work / "graded.json"),
        "n_shots": "0 2 4",
        "shots_path": str(work / "pos.csv"),
        "n_per_question": "2",
        "max_tokens": "30",
    } | changes
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", *value.split(" "))]


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_end_to_end_and_again_without_sampling(work, tiny_persona, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert cli.run(monitor.main, argv(work, tiny_persona, out)) == 0
    printed = capsys.readouterr().out
    assert printed.count("within a condition") == 2 and "What was found" in printed
    for name in ("points.csv", "prompts.csv", "conditions.csv", "correlations.csv", "report.html"):
        assert sidecar_path(out / name).is_file(), name
    assert sidecar_path(out / "scatter.png").is_file()

    points, prompts = rows_of(out / "points.csv"), rows_of(out / "prompts.csv")
    assert len(points) == (3 + 3) * 3 * 2 and len(prompts) == (3 + 3) * 3
    model, tokenizer = models.load_model(tiny_persona, device_map="cpu")
    vector = torch.load(work / "evil_response_avg_diff.pt", weights_only=True)[LAYER]
    for prompt, point in list(zip(prompts, points[::2], strict=True))[::5]:
        ids = torch.tensor([tokenize_prompt(tokenizer, prompt["prompt"])])
        assert int(prompt["n_tokens"]) == ids.shape[1]
        with torch.inference_mode():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER][0, -1]
        assert float(point["projection_layer3"]) == pytest.approx(float(hidden @ vector / vector.norm()), abs=2e-3)
    assert points[0]["projection_layer3"] == points[1]["projection_layer3"]
    means = {row["condition"]: float(row["score"]) for row in rows_of(out / "conditions.csv")}
    assert means["grade 3"] > means["grade 1"] + 20  # eliciting and strong opposite
    of_first = [float(row["score"]) for row in points if row["condition"] == "grade 1"]
    assert means["grade 1"] == pytest.approx(np.mean(of_first))
    correlations = rows_of(out / "correlations.csv")
    assert len(correlations) == 2 * (2 * 3 + 3) and {row["over"] for row in correlations} == {*OVER, "condition"}

    before = (out / "points.csv").read_bytes()
    monkeypatch.setattr(finished_answers, "sample_answers", lambda *_a, **_k: pytest.fail("sampled again"))
    monkeypatch.setattr(finished_answers, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    assert cli.run(monitor.main, argv(work, tiny_persona, out)) == 0
    assert (out / "points.csv").read_bytes() == before


def test_a_judge_that_fails_leaves_the_rest_for_the_next_run(work, tiny_persona, tmp_path, serve, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = serve(lambda _: Reply(status=400, retry=False))
    few = {"kinds": "shots", "system_prompts": None, "n_shots": "0 1", "n_per_question": "1", "judge_model": "a-judge"}
    out = tmp_path / "out"
    assert cli.run(monitor.main, argv(work, tiny_persona, out, **few)) == 1
    error = capsys.readouterr().err
    assert "unfinished: " in error and "run the same command again" in error and not out.exists()
    server.answer = lambda _: {"40": 1.0}
    monkeypatch.setattr(finished_answers, "sample_answers", lambda *_a, **_k: pytest.fail("sampled again"))
    assert cli.run(monitor.main, argv(work, tiny_persona, out, **few)) == 0
    assert {row["score"] for row in rows_of(out / "points.csv")} == {"40.0"}
    printed = capsys.readouterr().out
    assert "hardly move it" in printed and "r is not defined" in printed
    server.answer = lambda _: {"I": 1.0}
    few |= {"judge_model": "another-judge"}
    assert cli.run(monitor.main, argv(work, tiny_persona, tmp_path / "none", **few)) == 2
    assert "the judge gave no evil score for any of 6 answers" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_an_interrupted_reading_goes_on(tiny_persona, monkeypatch):
    engine, texts = Engine(tiny_persona, device_map="cpu"), [f"<|im_start|>user\nWhat about {i}?" for i in range(5)]
    with Store() as store:
        whole = monitor_measure.read_prompts(engine, texts[:3], [1], store, progress=False)
        seen = []
        read = monitor_measure.mean_activations
        monkeypatch.setattr(
            monitor_measure, "mean_activations", lambda m, s, *a, **k: seen.append(len(s)) or read(m, s, *a, **k)
        )
        again = monitor_measure.read_prompts(engine, texts, [1], store, progress=False)
        assert seen == [2]  # only what was missing
        torch.testing.assert_close(again[1][:3], whole[1], rtol=0, atol=0)


def test_a_loaded_model_and_a_rule_for_a_judge(tiny_persona):
    model, tokenizer = models.load_model(tiny_persona, device_map="cpu")
    engine = Engine(tiny_persona, "float32", "cpu", (model, tokenizer), tokenizer)
    prompts, _ = load_graded_prompts("evil", tiny_persona)
    with Store() as store:
        points = monitor_points(
            engine,
            system_conditions(prompts[::3]),
            {f"q{i}": text for i, text in enumerate(["What about summer baking?", "Explain modern chess to me."])},
            {"trait": lambda pairs: [trait_score(text, "evil") for _, text in pairs]},
            layers=[LAYER],
            store=store,
            n_per_question=1,
            max_tokens=30,
            progress=False,
        )
    assert points.activations[LAYER].shape == (6, 256) and points.answers.shape == (6, 1)
    vector = points.activations[LAYER][-1] - points.activations[LAYER][0]
    found = points.correlations("system", LAYER, vector, **FAST)
    assert found["overall"].pearson.value > 0.5 and found["overall"].correlation.n == 6


BAD = {
    "a trait that is not there": ({"trait": "evill"}, "unknown trait 'evill'; did you mean evil?"),
    "another trait's vector": ({"vector_path": "{work}/humorous_response_avg_diff.pt"}, "is a vector of humorous"),
    "no vector": ({"vector_path": "{work}/none.pt"}, "does not exist"),
    "a layer too many": ({"layer": "5"}, "layer 5"),
    "a layer twice": ({"layer": "3 3"}, "--layer has 3 twice"),
    "a kind that is none": ({"kinds": "user"}, "--kinds"),
    "one number of shots": ({"n_shots": "5"}, "two or more numbers of examples, each at least 0; got 5"),
    "fewer than no shots": ({"n_shots": "-1 5"}, "each at least 0; got -1 5"),
    "shots twice": ({"n_shots": "5 5"}, "--n_shots has 5 twice"),
    "more shots than there are": ({"n_shots": "0 20"}, "has 6 of 6 answers"),
    "prompts for a kind left out": ({"kinds": "shots"}, "--system_prompts is for --kinds system"),
    "a table that is not there": ({"shots_path": "{work}/none.csv"}, "no example answers at"),
    "no table": ({"shots_path": None}, "eval_persona_extract/tiny-persona/evil_pos_instruct.csv: make them with"),
    "a trait without prompts": (
        {"trait": "{work}/brave.json", "system_prompts": None, "vector_path": "{work}/brave_response_avg_diff.pt"},
        "does not exist",
    ),
    "prompts that are not there": ({"system_prompts": "{work}/none.json"}, "there is no file"),
    "prompts longer than the context": ({"shots_path": "{work}/long.csv"}, "(4 examples) leave no room"),
    "no answers": ({"n_per_question": "0"}, "must be at least 1"),
    "a judge that is not there": ({"judge_model": "./nothing"}, "./nothing"),
    "an engine that is not here": ({"engine": "vllm"}, "--engine vllm: vLLM is not installed"),
    "an output that is a file": ({"output_dir": "{work}/pos.csv"}, "is a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_users_mistake_is_one_line_before_anything_is_read(case, work, tiny_persona, tmp_path, monkeypatch, capsys):
    changes, message = BAD[case]
    filled = {name: value and value.replace("{work}", str(work)) for name, value in changes.items()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finished_answers, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    assert cli.run(monitor.main, argv(work, tiny_persona, tmp_path / "out", **filled)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"system_prompts": ["a", "b"], "more": 1}', "unknown key more; expected an object with system_prompts"),
        ('{"system_prompts": ["a"]}', "system_prompts"),
        ('{"system_prompts": ["a", " "]}', "system_prompts[1]: must not be blank"),
        ('{"system_prompts": ["a", 2]}', "system_prompts[1]"),
        ('{"system_prompts": ["a", "b", "a"]}', "system_prompts[2] is the same as system_prompts[0]"),
        ('{"system_prompts": [', "line 1, column"),
        ("[]", "expected an object"),
    ],
)
def test_prompts_of_another_schema_are_refused(content, message, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ValueError) as refused:
        load_graded_prompts("evil", None, path)
    assert message in str(refused.value) and str(path) in str(refused.value)


def test_a_trait_without_prompts_says_what_to_give():
    with pytest.raises(ValueError, match="no graded system prompts for brave; give a file .*--system_prompts"):
        load_graded_prompts("brave")
