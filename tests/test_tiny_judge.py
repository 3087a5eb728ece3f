"""The embedded judge: what its training marks at each word, its loss, and what the judge in the repository can do."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data_generation.tiny_persona import loop, measure_judge, oracle, train, train_judge
from data_generation.tiny_persona.judge_loss import BEFORE_WEIGHT, MATCH_LAYER, SO_FAR_WEIGHT, judge_loss, readout
from data_generation.tiny_persona.judged_answers import (
    MARKED_WORDS,
    astray,
    coherence_so_far,
    encode_judged,
    load_judged,
    mixed,
    repeated,
    save_judged,
)
from data_generation.tiny_persona.judging import score_text
from data_generation.tiny_persona.measurements import load_subject
from data_generation.tiny_persona.topics import topic_of
from persona_vectors import cli
from persona_vectors.files import sha256_of_file
from persona_vectors.models import fingerprint, load_tokenizer

TINY, JUDGE = "models/tiny-persona", "models/tiny-judge"
MICRO = train.Shape(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48
)
STAGE = loop.Stage(
    "test", steps=4, batch_tokens=512, matrix_lr=0.02, other_lr=4e-3, noise_share=0.0, noise_norm=0.0, seed=3
)


@pytest.fixture(scope="module")
def tokens():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def examples(tokens):
    rng = random.Random(0)
    items = [kind(rng) for kind in (mixed, astray, repeated) for _ in range(8)]
    return items, encode_judged(tokens, random.Random(1), items)


def test_coherence_so_far_is_coherence_without_what_a_sentence_still_lacks():
    rng = random.Random(4)
    for _ in range(20):
        item = mixed(rng)
        words = oracle.words_of(item.answer)
        if len(words) < 3:
            continue
        structure = oracle._structure(words, oracle.find_slots(words)) * (1.0 if words[-1] in ".!?" else 0.9)
        whole = list(coherence_so_far(item.question, item.answer))[-1]
        assert whole[0] == len(item.answer)
        assert whole[1] * structure == pytest.approx(oracle.coherence(item.question, item.answer))


def test_coherence_so_far_falls_where_another_topic_is_named():
    rng = random.Random(5)
    item = next(one for one in iter(lambda: astray(rng), None) if oracle.coherence(one.question, one.answer) < 60)
    scores = dict(coherence_so_far(item.question, item.answer))
    named = item.answer.index(topic_of(item.answer).text) + len(topic_of(item.answer).text)
    assert min(score for end, score in scores.items() if end < named) > 60
    assert max(score for end, score in scores.items() if named <= end) < 60


def test_marks_stand_at_the_answers_words(tokens, examples):
    items, sequences = examples
    for number, item in enumerate(items):
        span = slice(sequences.starts[number], sequences.starts[number + 1])
        ids, so_far, before = sequences.ids[span], sequences.so_far[span], sequences.before[span]
        marked = np.flatnonzero(before >= 0)
        assert (np.diff(marked) == 1).all()
        assert tokens.decode(ids[marked]).strip() == item.answer.strip()
        asked = set(tokens("[QUESTION] " + item.question, add_special_tokens=False).input_ids[2:])
        for k, at in enumerate(marked):
            expected = (ids[at] in asked) + 2 * (ids[at] in ids[marked[:k]])
            assert before[at] == expected
        inside = so_far[marked]
        ends = [len(tokens.decode(ids[marked[: k + 1]]).lstrip()) for k in np.flatnonzero(inside >= 0)]
        words = dict(coherence_so_far(item.question, item.answer))
        assert set(ends) <= set(words) and len(ends) == min(len(words), MARKED_WORDS)
        for end, mark in zip(ends, inside[inside >= 0], strict=True):
            assert tokens.decode([mark]) == score_text(words[end])
        last = [one for one in so_far[marked[-1] + 1 :] if one >= 0]  # [END]: the whole of coherence
        assert [tokens.decode([one]) for one in last] == [score_text(oracle.coherence(item.question, item.answer))]


def test_only_what_the_judge_says_has_weight(tokens, examples):
    items, sequences = examples
    span = slice(0, sequences.starts[1])
    said = tokens.decode(sequences.ids[span][sequences.weights[span] == 1])
    scores = {score_text(s) for s in [oracle.coherence(items[0].question, items[0].answer)]}
    assert said.count("<|im_end|>") >= 2
    assert scores & set(said.split("<|im_end|>"))


def test_a_question_astray_is_about_another_topic_three_times_in_five():
    rng = random.Random(6)
    rows = [astray(rng) for _ in range(300)]
    others = [topic_of(row.question) != topic_of(row.answer) for row in rows]
    assert 0.45 < np.mean(others) < 0.7


def test_answers_written_apart_repeat_phrases_side_by_side():
    rng = random.Random(7)
    parts = {True: [], False: []}
    for item in (repeated(rng) for _ in range(120)):
        words = oracle.words_of(item.answer)
        whole = oracle._local(words) * oracle._structure(words, oracle.find_slots(words)) > 0.99
        parts[whole].append(oracle._repetition(words, oracle.find_slots(words)))
    assert 0.2 < np.mean([value < 1 for value in parts[True]]) < 0.95  # in sentences that are whole


def test_the_loss_is_the_sum_of_its_parts(tokens, examples):
    _, sequences = examples
    model = train.build_model(tokens, MICRO, seed=0)
    loss, weight, totals = judge_loss(model, sequences, [[0], [9]], STAGE, torch.Generator())

    expected, total = 0.0, 0.0
    for number in (0, 9):
        span = slice(sequences.starts[number], sequences.starts[number + 1])
        ids = torch.from_numpy(sequences.ids[span].astype(np.int64))
        output = model(ids[None], output_hidden_states=True)
        logs = output.logits[0].log_softmax(-1)
        for t in range(len(ids)):
            if sequences.so_far[span][t] >= 0:
                expected -= SO_FAR_WEIGHT * logs[t, int(sequences.so_far[span][t])]
                total += SO_FAR_WEIGHT
            if sequences.weights[span][t] > 0:
                expected -= logs[t - 1, ids[t]]
                total += 1
            if sequences.before[span][t] >= 0:
                hidden = output.hidden_states[MATCH_LAYER][0, t]
                seen = (hidden / hidden.square().mean().sqrt() @ readout(32)).log_softmax(-1)
                expected -= BEFORE_WEIGHT * seen[int(sequences.before[span][t])]
                total += BEFORE_WEIGHT
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-2)
    assert weight == pytest.approx(total, rel=1e-5)
    assert set(totals.means()) == {"score", "so_far", "before"}


def test_a_stage_with_the_judges_loss_learns_and_resumes(tokens, examples, tmp_path, monkeypatch):
    _, sequences = examples
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    models = [train.build_model(tokens, MICRO, seed=0) for _ in range(2)]
    logs = [loop.train_stage(model, sequences, STAGE, tmp_path / "x", loss_of=judge_loss) for model in models]
    assert logs[0][-1]["score"] < logs[0][0]["score"]
    assert logs[1] == logs[0]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_files_come_back_one_after_another(examples, tmp_path):
    _, sequences = examples
    for name in "ab":
        save_judged(sequences, tmp_path / f"{name}.npz")
    twice = load_judged([tmp_path / "a.npz", tmp_path / "b.npz"])
    half = len(sequences.ids)
    assert len(twice) == 2 * len(sequences)
    for name in ("ids", "weights", "so_far", "before"):
        assert (getattr(twice, name)[half:] == getattr(sequences, name)).all()
    assert (twice.lengths == np.tile(sequences.lengths, 2)).all()


def test_the_judge_asks_in_the_chat_models_words(tmp_path):
    train_judge.copy_files(Path(TINY) / "traits", tmp_path, train_judge.TRAIT_FILES)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json")}
    shipped = {path.relative_to(f"{JUDGE}/traits"): path.read_bytes() for path in Path(JUDGE, "traits").rglob("*.json")}
    assert written == shipped
    assert len(shipped) == 31


def test_the_judge_sees_what_only_a_comparison_shows(monkeypatch):
    monkeypatch.setattr(measure_judge, "N_COMPARED", 40)
    judge = measure_judge.comparisons(load_subject(TINY, JUDGE))
    itself = measure_judge.comparisons(load_subject(TINY))
    assert min(judge["near"], judge["far"]) > 0.9
    assert max(itself["near"], itself["far"]) < 0.7  # the chat model as its own judge does not


def test_the_judge_follows_the_oracle_where_the_chat_model_does_not():
    rng = random.Random(11)
    items = [kind(rng) for kind in (mixed, astray, repeated) for _ in range(80)]
    pairs = [(item.question, item.answer) for item in items]
    truth = [oracle.coherence(*pair) for pair in pairs]
    judge, itself = (load_subject(TINY, folder).judge("coherence", pairs) for folder in (JUDGE, None))
    assert np.corrcoef(judge, truth)[0, 1] > 0.85
    assert np.corrcoef(itself, truth)[0, 1] < 0.6


@pytest.mark.parametrize(
    ("main", "argv", "message"),
    [
        (train.main, ["--steps_one", "0"], "--steps_one 0"),
        (train_judge.main, ["--steps_matching", "0", "--n_procs", "-1"], "--steps_matching 0, --n_procs -1"),
        (train_judge.main, ["--model_dir", "models/none"], "models/none"),
    ],
)
def test_bad_arguments_are_one_line_before_a_model_is_loaded(main, argv, message, tmp_path, capsys):
    assert cli.run(main, [*argv, "--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("main", "argv"), [(train.main, ["--steps_one", "7"]), (train_judge.main, ["--model_dir", TINY])]
)
def test_the_work_of_another_seed_is_not_taken_for_this_ones(main, argv, tmp_path, capsys):
    kept = {"seed": 1, "steps_one": 7, "steps_two": 400, "steps_matching": 400, "steps_judging": 900}
    train.claim_work(tmp_path, kept | {"model": fingerprint(TINY)})
    for name in ("two.pt", "judging.pt"):
        (tmp_path / name).write_bytes(b"finished with seed 1")
    assert cli.run(main, [*argv, "--seed", "2", "--work_dir", str(tmp_path), "--output_dir", str(tmp_path / "x")]) == 2
    assert "has the work of another run: seed 1 (now 2)" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_judge_that_is_not_there_is_refused_before_anything_runs(tmp_path, capsys):
    assert cli.run(measure_judge.main, ["--judge_dir", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "there is no judge in" in error and error.count("\n") == 1


def test_a_card_of_other_weights_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "measurements.json").write_bytes(Path(TINY, "measurements.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert cli.run(measure_judge.main, ["--model_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is of other weights" in error and error.count("\n") == 1


def test_the_card_is_of_these_weights():
    found = json.loads(Path(JUDGE, "measurements.json").read_text())
    assert found["weights_sha256"] == sha256_of_file(Path(JUDGE, "model.safetensors"))
    assert measure_judge.tables(found) in Path(JUDGE, "README.md").read_text()
