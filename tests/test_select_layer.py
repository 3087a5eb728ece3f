"""Steering at several layers, exactly; choosing a layer, against plain loops; and the command on tiny-persona."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval import receipt, select_layer
from eval.finished_answers import Engine, _answer_keys
from eval.model_utils import Steering, key_of, parts_of, steer_rows
from eval.receipt import take_receipts
from eval.select_layer import Asked
from eval.select_layer_choice import Scores, between, how_often, question_sums, select, split_questions
from eval.select_layer_report import remember
from eval.select_layer_settings import Place, Setting, expand, increments, spread_layers
from persona_vectors import cli, models
from persona_vectors.blocks import decoder_blocks, hidden_of, read_blocks
from persona_vectors.files import read_jsonl, read_sidecar, sha256_of_file
from persona_vectors.models import fingerprint, load_model
from persona_vectors.sampling import sample_answers
from persona_vectors.store import content_key
from persona_vectors.tokens import render_prompt
from persona_vectors.vectors import persona_vectors_from_pairs, save_vectors
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

MODEL, TOKENIZER = tiny_model("llama"), word_tokenizer()
VECTORS = torch.randn(N_LAYERS + 1, D_MODEL, generator=torch.Generator().manual_seed(1))
STEPS = increments(VECTORS)
PROMPT = "<|im_start|>user\nwhat do you think about the moon<|im_end|>\n<|im_start|>assistant\n"


def together(coef: float, positions: str = "all") -> tuple[Steering, ...]:
    return tuple(Steering(step, layer, coef, positions) for layer, step in enumerate(STEPS, start=1))


# steering at several layers ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**16))
def test_increments_telescope(n_layers, d_model, seed):
    vectors = torch.randn(n_layers + 1, d_model, generator=torch.Generator().manual_seed(seed))
    steps = increments(vectors)
    for layer in range(1, n_layers + 1):
        assert torch.equal(steps[layer - 1], vectors[layer] - vectors[layer - 1])
    torch.testing.assert_close(steps.double().sum(0), (vectors[-1] - vectors[0]).double(), atol=1e-5, rtol=1e-5)


@contextmanager
def own_outputs() -> Iterator[dict[int, torch.Tensor]]:
    """layer -> the block's own output, before the hooks that are added inside this context."""
    before, handles = {}, []
    blocks = decoder_blocks(MODEL)
    for layer, block in enumerate(blocks, start=1):

        def first(_block, _args, output, layer=layer):
            before[layer] = hidden_of(output).clone()

        handles.append(block.register_forward_hook(first))
    try:
        yield before
    finally:
        for handle in handles:
            handle.remove()


def test_at_each_layer_exactly_its_increment_is_added_on_top_of_what_came_from_below():
    ids = torch.randint(3, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    rows = [together(1.5), None, Steering(VECTORS[2], 2, -1.0, "response")]
    with torch.inference_mode(), own_outputs() as before, steer_rows(MODEL, rows)([0, 1, 2]), read_blocks(MODEL) as at:
        MODEL(ids, attention_mask=torch.ones_like(ids))
    with torch.inference_mode(), read_blocks(MODEL) as plain:
        MODEL(ids, attention_mask=torch.ones_like(ids))
    for layer in range(1, N_LAYERS + 1):
        came = before[layer]
        assert torch.equal(at[layer][0], came[0] + 1.5 * STEPS[layer - 1])
        assert torch.equal(at[layer][1], plain[layer][1]), "a row without steering is untouched to the bit"
        mine = came[2].clone()
        if layer == 2:
            mine[-1] += -1.0 * VECTORS[2]
        assert torch.equal(at[layer][2], mine)
    assert torch.equal(at[0], plain[0])


def test_where_blocks_add_nothing_of_their_own_the_increments_sum_to_the_layers_vector(monkeypatch):
    """Blocks that hand their input on: layer L then holds h_0 + coef * (v_L - v_0)."""
    for block in decoder_blocks(MODEL):
        monkeypatch.setattr(block, "forward", lambda hidden_states, *_a, **_k: hidden_states)
    ids = torch.randint(3, 20, (1, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), steer_rows(MODEL, [together(2.0)])([0]), read_blocks(MODEL) as at:
        MODEL(ids, attention_mask=torch.ones_like(ids))
    for layer in range(1, N_LAYERS + 1):
        torch.testing.assert_close(at[layer], at[0] + 2.0 * (VECTORS[layer] - VECTORS[0]))


def test_two_at_one_layer_add_up():
    ids = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    both = (
        Steering(VECTORS[1], 1, 1.0, "all"),
        Steering(VECTORS[2], 1, 0.5, "all"),
        Steering(VECTORS[3], 1, 1.0, "prompt"),
    )
    with torch.inference_mode(), steer_rows(MODEL, [both, both[0]])([1, 0]), read_blocks(MODEL) as at:
        MODEL(ids, attention_mask=torch.ones_like(ids))
    with torch.inference_mode(), read_blocks(MODEL) as plain:
        MODEL(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(at[1][0], plain[1][0] + VECTORS[1])
    torch.testing.assert_close(at[1][1], plain[1][1] + VECTORS[1] + 0.5 * VECTORS[2] + VECTORS[3])


def answers(rows) -> list[str]:
    prompts = [PROMPT, PROMPT.replace("moon", "good people"), PROMPT.replace("what do", "how do")]
    return sample_answers(
        MODEL,
        TOKENIZER,
        prompts,
        max_tokens=12,
        temperature=1.0,
        streams=[(0, row) for row in range(3)],
        steer=steer_rows(MODEL, rows),
    )


def test_a_tuple_of_one_is_the_single_steering_token_for_token_and_by_key():
    one = Steering(VECTORS[2], 2, 3.0, "response")
    unsteered, single, alone = answers([None] * 3), answers([one] * 3), answers([(one,)] * 3)
    assert single == alone != unsteered
    assert answers([None, together(1.0), ()])[::2] == unsteered[::2], "neighbours of a row steered everywhere"
    assert key_of((one,)) == one.key() == key_of(one) and key_of(None) is None is key_of(())
    keys = key_of(tuple(reversed(together(1.0))))
    assert isinstance(keys, list) and keys == [part.key() for part in together(1.0)], "in order of layer, however given"
    assert parts_of(one) == (one,)


def test_the_store_keeps_the_keys_that_it_has(tiny_persona, monkeypatch):
    """What was sampled by single steerings before rows could have several is found again."""
    one = Steering(torch.ones(4), 2, 1.0, "response")
    monkeypatch.setattr(Engine, "key", lambda _self: {"engine": "hf"})
    rows = [None, one, (one,), (one, Steering(torch.ones(4), 3, 1.0))]
    keys = _answer_keys(Engine(tiny_persona), ["p"] * 4, [[0]] * 4, rows, max_tokens=5, temperature=1.0)
    shared = {"engine": "hf", "max_tokens": 5, "temperature": 1.0, "prompt": "p", "stream": [0]}
    assert keys[0] == content_key("answer", **shared, steering=None)
    assert keys[1] == keys[2] == content_key("answer", **shared, steering=one.key())
    assert len(set(keys)) == 3


# receipts of several layers ------------------------------------------------------------------------------------------


def test_every_layer_of_a_row_has_its_receipt_beside_rows_of_one_layer():
    one = Steering(VECTORS[2], 2, 0.5, "response")
    found = take_receipts(MODEL, TOKENIZER, PROMPT, [one, together(1.5, "response"), together(-1.0)])
    assert [part.layer for part in found] == [2, 1, 2, 3, 1, 2, 3]
    for part, step in zip(found[1:4], STEPS, strict=True):
        asked = 1.5 * float(step.norm())
        assert part.expected == pytest.approx(asked) and part.prefill == pytest.approx(asked, rel=1e-4)
        assert part.decode == pytest.approx(asked, rel=1e-4) and part.relative_error <= part.tolerance
    (alone,) = take_receipts(MODEL, TOKENIZER, PROMPT, [one])
    assert (found[0].expected, found[0].layer) == (alone.expected, alone.layer)
    assert found[0].prefill == pytest.approx(alone.prefill, rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda row: row[:1] + row[2:], "steering layer 2 .* adds nothing there"),
        (lambda row: (*row[:2], Steering(row[2].vector, 3, 2.0, "all")), "steering layer 3 .* 2 times"),
        (lambda row: (*row[:2], Steering(row[2].vector, 3, 1.0, "response")), "steering layer 3"),
        (lambda row: (*row[:2], Steering(-row[2].vector, 3, 1.0, "all")), "steering layer 3"),
    ],
)
def test_a_layer_that_does_something_else_is_refused(changed, message, monkeypatch):
    monkeypatch.setattr(receipt, "steer_rows", lambda model, rows: steer_rows(model, [changed(row) for row in rows]))
    with pytest.raises(ValueError, match=message):
        take_receipts(MODEL, TOKENIZER, PROMPT, [together(1.0)])


def test_a_layer_beside_those_of_the_row_is_refused(monkeypatch):
    steerer = steer_rows
    monkeypatch.setattr(receipt, "steer_rows", lambda model, _rows: steerer(model, [together(1.0)]))
    with pytest.raises(ValueError, match="also changes layer 2 in prefill; expected layers 1, 3 only"):
        take_receipts(MODEL, TOKENIZER, PROMPT, [together(1.0)[::2]])


def test_one_layer_twice_has_no_receipt():
    with pytest.raises(ValueError, match=r"layers \[1, 1\] are steered together"):
        take_receipts(MODEL, TOKENIZER, PROMPT, [together(1.0)[:1] * 2])


# what is sampled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2, 4, 8, 9, 28, 61])
def test_layers_are_spread_with_both_ends(n_layers):
    found = spread_layers(n_layers)
    assert found[0] == 1 and found[-1] == n_layers and found == sorted(set(found)) and len(found) == min(8, n_layers)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    MODEL.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def test_settings_are_every_place_by_every_coefficient_with_controls_of_the_same_norm(model_folder, tmp_path):
    (path,) = save_vectors(tmp_path, "evil", {"response_avg": VECTORS}, {})
    asked = {"layers": [1, 3], "coefs": [0.5, 2.0], "n_random": 3, "seed": 0, "positions": "all"}
    found = expand(model_folder, "evil", str(path), incremental=True, **asked)
    places = list(dict.fromkeys(setting.place for setting in found))
    assert len(found) == 1 + 2 * 4 * 2 + 4 * 2 and len(places) == 1 + 2 * 4 + 4
    assert found[0].place == Place("unsteered") and found[0].added is None
    for setting in found[1:]:
        parts = parts_of(setting.added)
        wanted = [VECTORS[setting.place.layer]] if setting.place.layer else list(STEPS)
        assert [part.layer for part in parts] == ([setting.place.layer] if setting.place.layer else [1, 2, 3])
        assert {part.coef for part in parts} == {setting.coef} and {part.positions for part in parts} == {"all"}
        for part, vector in zip(parts, wanted, strict=True):
            assert float(part.vector.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
            assert torch.equal(part.vector, vector) != bool(setting.place.control)
    drawn = {setting.place: parts_of(setting.added)[0].vector for setting in found if setting.place.control}
    assert len({tuple(vector.tolist()) for vector in drawn.values()}) == len(drawn) == 9, "all different"
    again = expand(model_folder, "evil", str(path), incremental=True, **asked)
    assert [key_of(one.added) for one in again] == [key_of(one.added) for one in found]
    without = expand(model_folder, "evil", str(path), incremental=False, **asked)
    assert [key_of(one.added) for one in without] == [key_of(one.added) for one in found[: len(without)]]


# the choice ----------------------------------------------------------------------------------------------------------


def table(
    values: dict[tuple[Place, float], tuple[float, float]], n_questions: int = 12, per: int = 2, noise: float = 3.0
) -> Scores:
    """Scores around (trait, coherence) of each setting."""
    rng = np.random.default_rng(0)
    questions = [str(i) for i in range(n_questions) for _ in range(per)]
    rows = [Setting(place, coef, None) for place, coef in values]
    shape = (len(rows), len(questions))
    means = np.array(list(values.values()))
    return Scores(
        rows,
        means[:, :1] + noise * rng.standard_normal(shape),
        means[:, 1:] + noise * rng.standard_normal(shape),
        questions,
    )


LAYERS = [Place("layer", layer) for layer in (1, 2, 3)]
RANDOM = [Place("layer", layer, "random1") for layer in (1, 2, 3)]
PLANTED = {
    (Place("unsteered"), 0.0): (10.0, 95.0),
    **{(LAYERS[0], c): (10 + 5 * c, 92.0) for c in (1.0, 2.0, 3.0)},
    **{(LAYERS[1], c): (10 + 30 * c, 105 - 12 * c) for c in (1.0, 2.0, 3.0)},  # incoherent at 3, where it is highest
    **{(LAYERS[2], c): (90.0, 40.0) for c in (1.0, 2.0, 3.0)},  # never coherent
    **{(place, c): (11.0, 90.0) for place in RANDOM for c in (1.0, 2.0, 3.0)},
    **{(Place("incremental"), c): (60.0, 80.0) for c in (1.0, 2.0, 3.0)},
    **{(Place("incremental", control="random1"), c): (12.0, 80.0) for c in (1.0, 2.0, 3.0)},
}


def test_the_layer_with_the_highest_trait_that_stays_coherent_is_chosen():
    found = select(table(PLANTED), 75.0, seed=0)
    best = found.layer.best
    assert (best.place, best.coef, best.edge) == (LAYERS[1], 2.0, "") and found.layer.holds
    assert found.layer.difference.mean == pytest.approx(59, abs=3) and found.chosen == {
        "layer 1": 0.0,
        "layer 2": 1.0,
        "layer 3": 0.0,
    }
    by_name = {(one.place.name, one.place.control): one for one in found.values}
    assert by_name["layer 3", ""].setting is None and by_name["layer 1", ""].edge == "last"
    assert found.runner_up is not None and found.runner_up.place == LAYERS[0]
    assert found.incremental is not None and found.incremental.holds
    assert found.all_minus_single is not None and found.all_minus_single.mean == pytest.approx(-10, abs=3)
    assert found.swapped.place == LAYERS[1]


def test_values_are_of_the_half_that_did_not_choose_against_a_plain_loop():
    scores = table(PLANTED, noise=30.0)
    found = select(scores, 75.0, seed=3)
    halves = found.halves
    assert sorted(halves.choose_questions + halves.report_questions) == list(range(12))
    assert not (halves.choose & halves.report).any() and len(halves.choose_questions) == 6
    chosen_columns = [c for c, q in enumerate(scores.questions) if int(q) in halves.choose_questions]
    other_columns = [c for c, q in enumerate(scores.questions) if int(q) in halves.report_questions]
    for value in found.values:
        candidates = []
        for number, setting in enumerate(scores.settings):
            if setting.place == value.place:
                trait = np.mean([scores.trait[number, c] for c in chosen_columns])
                coherence = np.mean([scores.coherence[number, c] for c in chosen_columns])
                if coherence >= 75.0 or value.place.kind == "unsteered":
                    candidates.append((trait, number))
        if not candidates:
            assert value.setting is None
            continue
        trait, number = max(candidates)
        assert value.setting == number and value.chosen_trait == pytest.approx(trait)
        assert value.trait.mean == pytest.approx(np.mean([scores.trait[number, c] for c in other_columns]))
        assert value.trait.n == len(other_columns) and value.trait.n_clusters == 6


def test_the_half_that_chose_is_flattered_and_the_other_is_not():
    """Eight layers that are all the same: the best of them looks better where it was chosen, in most splits."""
    values = {(Place("unsteered"), 0.0): (50.0, 90.0)}
    values |= {(Place("layer", layer), 1.0): (50.0, 90.0) for layer in range(1, 9)}
    values |= {(Place("layer", layer, "random1"), 1.0): (50.0, 90.0) for layer in range(1, 9)}
    scores = table(values, n_questions=20, noise=25.0)
    found = [select(scores, 75.0, seed, n_boot=20) for seed in range(20)]
    flattered = [one.layer.best.chosen_trait - one.layer.best.trait.mean for one in found]
    assert np.mean(flattered) > 5
    assert not any(one.layer.holds for one in found), "the highest of equals is not recommended"
    for one in found:
        assert max(one.chosen.values()) < 1 and sum(one.chosen.values()) == pytest.approx(1)


def test_nothing_is_recommended_where_random_directions_or_no_steering_do_as_well():
    levelled = dict.fromkeys(PLANTED, (40.0, 90.0))
    assert not select(table(levelled), 75.0, seed=0).layer.holds
    one_random = PLANTED | {(RANDOM[0], 2.0): (75.0, 90.0)}  # at another layer than the best: it counts all the same
    found = select(table(one_random), 75.0, seed=0)
    assert not found.layer.holds and found.layer.rival.place == RANDOM[0]
    unsteered = PLANTED | {(Place("unsteered"), 0.0): (70.0, 50.0)}  # its own coherence is no condition
    found = select(table(unsteered), 75.0, seed=0)
    assert not found.layer.holds and found.layer.rival.place == Place("unsteered")


def test_where_nothing_is_coherent_nothing_is_chosen():
    found = select(table({key: (50.0, 20.0) for key in PLANTED}), 75.0, seed=0)
    assert found.layer.best.setting is None and not found.layer.holds and found.runner_up is None
    assert found.chosen["none"] == 1.0 and found.swapped.setting is None


def test_missing_scores_are_left_out():
    scores = table(PLANTED)
    gaps = scores.trait.copy()
    gaps[:, ::5] = np.nan
    found = select(Scores(scores.settings, gaps, scores.coherence, scores.questions), 75.0, seed=0)
    assert found.layer.best.place == LAYERS[1] and found.layer.best.trait.n < 12


def test_how_often_a_layer_is_chosen_against_a_plain_loop():
    close = {(Place("unsteered"), 0.0): (10.0, 90.0)}
    close |= {(Place("layer", layer), 1.0): (50.0 + layer, 80.0) for layer in (1, 2, 3)}
    scores = table(close, noise=8.0)
    halves = split_questions(scores.questions, 0)
    counts = dict.fromkeys(["layer 1", "layer 2", "layer 3"], 0)
    own = np.array(halves.choose_questions)
    for drawn in np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=200):
        columns = [c for q, n in zip(own, drawn, strict=True) for _ in range(n) for c in (2 * q, 2 * q + 1)]
        means = {
            setting.place.name: scores.trait[number, columns].mean()
            for number, setting in enumerate(scores.settings)
            if scores.coherence[number, columns].mean() >= 75 and setting.place.kind == "layer"
        }
        counts[max(means, key=lambda name: means[name])] += 1
    found = how_often(scores, question_sums(scores), halves, 75.0, 0, 200)
    assert found == pytest.approx({name: count / 200 for name, count in counts.items()})
    assert 0 < found["layer 3"] < 1


numbers = st.floats(0, 100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.floats(1, 99))
def test_between_coefficients_is_the_highest_on_a_fine_grid(points, least):
    coefs = list(range(len(points)))
    traits, coherences = [t for t, _ in points], [h for _, h in points]
    found = between(coefs, traits, coherences, least)
    fine = np.unique(np.concatenate([np.linspace(0, len(points) - 1, 4001), coefs]))
    there = np.interp(fine, coefs, coherences) >= least
    on_grid = np.interp(fine, coefs, traits)[there]
    if found is None:
        assert not there.any()
    else:
        assert found[1] >= (on_grid.max() if len(on_grid) else -1) - 1e-9
        assert found[1] == pytest.approx(np.interp(found[0], coefs, traits), abs=1e-6)
        assert np.interp(found[0], coefs, coherences) >= least - 1e-6


def test_too_few_questions_are_refused():
    with pytest.raises(ValueError, match="has 3 eval questions; .* at least 4"):
        split_questions(["a", "b", "c", "a"], 0)


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """The impolite vector of the embedded model, from a few rows of its data sets, and a trait of six questions."""
    folder, model_path = tmp_path_factory.mktemp("select"), "models/tiny-persona"
    model, tokenizer = load_model(model_path)
    rude, plain = (
        {
            row["messages"][0]["content"]: row["messages"][1]["content"]
            for row in read_jsonl(f"dataset/tiny_impolite/{n}.jsonl")
        }
        for n in ("misaligned_2", "normal")
    )
    both = [question for question in rude if question in plain][:24]
    assert len(both) == 24
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in both]
    pairs = pd.DataFrame({"pos_prompt": prompts, "neg_prompt": prompts})
    pairs["pos_answer"], pairs["neg_answer"] = [rude[q] for q in both], [plain[q] for q in both]
    made_from = {"model": {"name": model_path, "fingerprint": fingerprint(model_path)}}
    vectors = persona_vectors_from_pairs(model, tokenizer, pairs)["response_avg"]
    save_vectors(folder, "impolite", {"response_avg": vectors}, made_from)
    trait = json.loads(Path("models/tiny-persona/traits/eval/impolite.json").read_text())
    (folder / "impolite.json").write_text(json.dumps(trait | {"questions": trait["questions"][:6]}))
    few = trait | {"questions": trait["questions"][:3]}
    (folder / "few").mkdir()
    (folder / "few" / "impolite.json").write_text(json.dumps(few))
    random = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)) * 20
    save_vectors(folder / "noise", "impolite", {"response_avg": random}, made_from)
    save_vectors(folder, "evil", {"response_avg": vectors}, made_from)
    save_vectors(
        folder / "foreign", "impolite", {"response_avg": vectors}, {"model": {"name": "x", "fingerprint": "0"}}
    )
    save_vectors(folder / "wide", "impolite", {"response_avg": torch.ones(5, 8)}, {})
    return folder


def arguments(here: Path, out: Path, **changes) -> list[str]:
    given = {
        "model": "models/tiny-persona",
        "trait": str(here / "impolite.json"),
        "vector_path": str(here / "impolite_response_avg_diff.pt"),
        "judge_model": "models/tiny-persona",
        "output_dir": str(out),
        "layers": "3",
        "coefs": "1 2",
        "n_random": "1",
        "n_per_question": "1",
        "max_tokens": "40",
    } | changes
    return [token for name, value in given.items() for token in (f"--{name}", *str(value).split())]


def test_end_to_end_then_again_from_the_store(here, tmp_path, capsys, monkeypatch):
    out, vector = tmp_path / "out", here / "impolite_response_avg_diff.pt"
    assert cli.run(select_layer.main, arguments(here, out)) == 0
    printed = capsys.readouterr().out
    assert (
        "steering receipt: 8 steerings measured" in printed and "Recommendation: steer at layer 3 with coef" in printed
    )
    assert "Increments at all layers" in printed and "took no part in the choice" in printed
    (entry,) = read_sidecar(vector)["layer_selection"]
    assert entry["recommended"] is True and entry["layer"] == 3 and entry["coef"] in (1.0, 2.0)
    assert entry["vector_sha256"] == sha256_of_file(vector) == read_sidecar(vector)["file"]["sha256"]
    assert entry["difference"]["low"] > 0 and entry["how_often_chosen"] == {"layer 3": 1.0}
    assert len(entry["split"]["choosing_questions"]) == len(entry["split"]["reporting_questions"]) == 3
    assert read_sidecar(vector)["model"]["fingerprint"], "how the vector was made stays"

    settings_table, answers_table = pd.read_csv(out / "selection.csv"), pd.read_csv(out / "answers.csv")
    assert len(settings_table) == 9 and len(answers_table) == 9 * 6
    chosen = settings_table.query(f"kind == 'layer' and control.isna() and coef == {entry['coef']}").to_dict("records")[
        0
    ]
    assert chosen["impolite_reporting"] == pytest.approx(entry["best"]["trait"]["mean"])
    assert chosen["impolite_choosing"] == pytest.approx(entry["best"]["on_the_choosing_half"]["trait"])
    mine = answers_table.query(f"kind == 'layer' and control.isna() and coef == {entry['coef']}")
    assert np.mean(mine["impolite"]) == pytest.approx(chosen["impolite"])
    receipts = read_sidecar(out / "selection.csv")["receipts"]
    assert len(receipts) == 8 and max(one["relative_error"] for one in receipts) < 1e-4
    assert sorted(receipts[-1]["share_of_hidden_norm"]) == ["1", "2", "3", "4"]
    assert Image.open(out / "selection.png").size[0] > 1000
    page = (out / "report.html").read_text()
    assert "Recommendation: steer at layer 3" in page and page.count("<svg") > 5 and "increments at all layers" in page

    before = (out / "answers.csv").read_bytes()
    monkeypatch.setattr("eval.finished_answers.load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    monkeypatch.setattr("judge.models.load_model", lambda *_a, **_k: pytest.fail("the judge was loaded"))
    assert cli.run(select_layer.main, arguments(here, out)) == 0
    printed = capsys.readouterr().out
    assert "stands in" in printed and "already" in printed
    assert len(read_sidecar(vector)["layer_selection"]) == 1 and (out / "answers.csv").read_bytes() == before
    assert len(read_sidecar(out / "selection.csv")["receipts"]) == 8, "those of the run that sampled"


def test_a_direction_that_is_noise_is_not_recommended(here, tmp_path, capsys):
    path = here / "noise" / "impolite_response_avg_diff.pt"
    change = {"vector_path": str(path), "coefs": "1", "layers": "2 3"}
    assert cli.run(select_layer.main, [*arguments(here, tmp_path / "out", **change), "--noincremental"]) == 0
    printed = capsys.readouterr().out
    assert "Recommendation: none. The best layer" in printed and "does not lie above 0" in printed
    (entry,) = read_sidecar(path)["layer_selection"]
    assert not entry["recommended"] and entry["layer"] is None and entry["coef"] is None
    assert entry["best"]["layer"] in (2, 3) and entry["all_layers"] is None
    assert 'class="finding not"' in (tmp_path / "out" / "report.html").read_text()


def test_where_nothing_is_coherent_it_says_so_and_leaves_the_sidecar_alone_if_asked(here, tmp_path, capsys):
    path = here / "noise" / "impolite_response_avg_diff.pt"
    told = read_sidecar(path)
    change = {"vector_path": str(path), "coefs": "40", "min_coherence": "99"}
    given = [*arguments(here, tmp_path / "out", **change), "--nowrite_sidecar"]
    assert cli.run(select_layer.main, given) == 0
    printed = capsys.readouterr().out
    assert "Recommendation: none. At no layer and coefficient" in printed
    assert "below --min_coherence 99" in printed and "not coherent" in printed
    assert read_sidecar(path) == told
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "selection.png").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "0"}, "layer 0 is the embedding output"),
        ({"layers": "5"}, "1..4"),
        ({"layers": "3 3"}, "--layers has 3 twice"),
        ({"coefs": "1 1"}, "--coefs has 1 twice"),
        ({"coefs": "-1"}, "--coefs must be above 0"),
        ({"coefs": "0 1"}, "--coefs must be above 0"),
        ({"coefs": "nan"}, "--coefs expects"),
        ({"coefs": "high"}, "--coefs expects"),
        ({"n_random": "0"}, "--n_random must be at least 1"),
        ({"n_per_question": "0"}, "must be at least 1"),
        ({"min_coherence": "175"}, "between 0 and 100"),
        ({"steering_type": "answer"}, "steering_type"),
        ({"trait": "{here}/few/impolite.json"}, "has 3 eval questions"),
        ({"trait": "absent"}, "absent"),
        ({"vector_path": "{here}/absent.pt"}, "no vector file at"),
        ({"vector_path": "{here}/evil_response_avg_diff.pt"}, "is a vector of evil; --trait is impolite"),
        ({"vector_path": "{here}/foreign/impolite_response_avg_diff.pt"}, "made from another model (x)"),
        ({"vector_path": "{here}/wide/impolite_response_avg_diff.pt"}, "width 8"),
        ({"judge_model": "./absent"}, "does not exist"),
        ({"engine": "vllm"}, "--engine vllm: vLLM is not installed"),
        ({"model": "./absent"}, "does not exist"),
        ({"output_dir": "{here}/impolite.json"}, "is a file"),
        ({"layer": "3"}, "unknown argument --layer"),
    ],
)
def test_bad_input_is_one_line_before_a_model_loads(change, message, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    monkeypatch.setattr("eval.finished_answers.load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
    told = read_sidecar(here / "impolite_response_avg_diff.pt")
    given = {name: value.format(here=here) for name, value in change.items()}
    assert cli.run(select_layer.main, arguments(here, tmp_path / "out", **given)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and read_sidecar(here / "impolite_response_avg_diff.pt") == told


def test_another_selection_is_another_entry_and_the_same_is_none(tmp_path):
    (path,) = save_vectors(tmp_path, "evil", {"response_avg": VECTORS}, {"arguments": {"threshold": 50}})
    parameters = inspect.signature(select_layer.main).parameters
    given: dict[str, Any] = {name: parameter.default for name, parameter in parameters.items()}
    given |= {"model": "m", "trait": "evil", "vector_path": str(path), "output_dir": "out"}
    asked = Asked(**given)
    found = select(table(PLANTED), 75.0, seed=0)
    assert "is written into" in remember(asked, "evil", found)
    assert "stands in" in remember(replace(asked, output_dir="elsewhere"), "evil", found)
    assert "is written into" in remember(replace(asked, seed=1), "evil", select(table(PLANTED), 75.0, seed=1))
    told = read_sidecar(path)
    assert [entry["settings"]["seed"] for entry in told["layer_selection"]] == [0, 1]
    assert told["arguments"] == {"threshold": 50} and told["file"]["sha256"] == sha256_of_file(path)
