"""Conversations along an axis: spans, projections in one pass, what is kept, drift, and the command's page."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_steer import ActivationSteerer
from eval import drift as command
from eval.transcripts import Transcript, read_transcripts, write_transcripts
from persona_vectors import cli, drift
from persona_vectors.blocks import decoder_blocks, read_blocks
from persona_vectors.drift import project_tokens, project_transcript, slope_interval, slopes, turn_means
from persona_vectors.models import load_tokenizer
from persona_vectors.tokens import render_prompt, tokenize_messages, tokenize_prompt, tokenize_turns
from persona_vectors.vectors import write_vectors
from tests.tiny_models import CHATML, D_MODEL, N_LAYERS, tiny_model, word_tokenizer

TALK = [
    {"role": "system", "content": "you are kind"},
    {"role": "user", "content": "tell me about the moon"},
    {"role": "assistant", "content": "yes the moon is good"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "no cat"},
]
FORGETS = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'].split('</think>')[-1] if not loop.last else message['content'] }}",
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
TRIMS = CHATML.replace("{{ message['content'] }}", "{{ message['content'] | trim }}")


def vectors_of(n=2, layers=(0, 1, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(n, D_MODEL, generator=generator) for layer in layers}


# spans


@pytest.mark.parametrize("fmt", ["chat", "raw"])
@pytest.mark.parametrize("tokenizer", ["words", "tiny_persona"])
def test_turns_are_their_contents_tokens(tokenizer, fmt, tiny_persona):
    tokenizer = word_tokenizer() if tokenizer == "words" else load_tokenizer(tiny_persona)
    talk = [*TALK, {"role": "user", "content": "What about café music?"}]
    ids, turns = tokenize_turns(tokenizer, talk, fmt)
    assert [turn.role for turn in turns] == [one["role"] for one in talk]
    for turn, message in zip(turns, talk, strict=True):
        assert "".join(turn.pieces) == message["content"]
        assert len(turn.pieces) == turn.end - turn.start
        if "é" not in message["content"]:
            assert str(tokenizer.decode(list(ids[turn.start : turn.end]))).strip() == message["content"]


@pytest.mark.parametrize("fmt", ["chat", "raw"])
def test_the_last_answer_is_what_extraction_reads(fmt, tiny_persona):
    tokenizer = load_tokenizer(tiny_persona)
    ids, turns = tokenize_turns(tokenizer, TALK, fmt)
    sample = tokenize_messages(tokenizer, TALK, fmt)
    assert ids[turns[-1].start : turns[-1].end] == sample.ids[sample.prompt_len :]
    first, spans = tokenize_turns(tokenizer, TALK[:3], fmt)
    assert first == ids[: len(first)] and spans == turns[:3]  # what follows changes nothing before
    assert list(first[: spans[2].start]) == tokenize_prompt(tokenizer, render_prompt(tokenizer, TALK[:2], fmt))


def test_contents_like_the_template_are_found_where_they_stand():
    talk = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "assistant"}, *TALK[3:]]
    _, turns = tokenize_turns(word_tokenizer(), talk)
    assert ["".join(turn.pieces) for turn in turns] == ["user", "assistant", "a", "no cat"]
    assert all(one.end <= two.start for one, two in zip(turns, turns[1:], strict=False))


def test_empty_and_trimmed_contents():
    talk = [{"role": "system", "content": ""}, {"role": "user", "content": " a "}, TALK[2]]
    for template in (CHATML, TRIMS):
        _, turns = tokenize_turns(word_tokenizer(chat_template=template), talk)
        assert (turns[0].start, turns[0].end, turns[0].pieces) == (0, 0, ())
        assert "".join(turns[1].pieces).strip() == "a"
        assert "".join(turns[2].pieces) == TALK[2]["content"]


def test_a_system_text_that_is_folded_into_the_users_turn_is_found_there():
    _, turns = tokenize_turns(word_tokenizer(chat_template=NO_SYSTEM), TALK)
    assert ["".join(turn.pieces) for turn in turns] == [one["content"] for one in TALK]
    assert turns[0].end <= turns[1].start


def test_a_template_that_rewrites_turns_is_refused():
    talk = [TALK[1], {"role": "assistant", "content": "<think> sun </think> moon"}, *TALK[3:]]
    with pytest.raises(ValueError, match=r"rewrites message 2 \(assistant\).*thoughts"):
        tokenize_turns(word_tokenizer(chat_template=FORGETS), talk)
    with pytest.raises(ValueError, match="no messages"):
        tokenize_turns(word_tokenizer(), [])


# projections


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_projections_are_those_of_a_plain_hook_loop(architecture):
    model, vectors = tiny_model(architecture), vectors_of()
    ids = list(range(6, 40))
    with read_blocks(model) as hidden, torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    [values] = project_tokens(model, [ids], vectors)
    assert values.shape == (len(ids), 3, 2) and values.dtype == torch.float32
    for at, (layer, own) in enumerate(vectors.items()):
        for k in range(2):
            expected = torch.stack([state @ own[k] / own[k].norm() for state in hidden[layer][0]])
            torch.testing.assert_close(values[:, at, k], expected, atol=2e-5, rtol=1e-4)


def test_batches_padding_and_order_change_nothing():
    model, vectors = tiny_model("qwen2"), vectors_of()
    texts = [list(range(6, 6 + n)) for n in (5, 30, 1, 12, 30)]
    alone = [project_tokens(model, [text], vectors)[0] for text in texts]
    for budget in (30, 64, 1000):
        for one, other in zip(project_tokens(model, texts, vectors, token_budget=budget), alone, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_steerer_is_seen_and_layers_below_it_are_not_changed():
    model, vectors = tiny_model("llama"), vectors_of(1, layers=(1, 2))
    ids = [list(range(6, 20))]
    push = vectors[2][0]
    [plain] = project_tokens(model, ids, vectors)
    with ActivationSteerer(model, push, coeff=2.0, layer_idx=1):
        [steered] = project_tokens(model, ids, vectors)
    assert torch.equal(steered[:, 0], plain[:, 0])
    torch.testing.assert_close(steered[:, 1, 0], plain[:, 1, 0] + 2 * push.norm(), atol=1e-4, rtol=1e-4)


def test_no_hidden_state_is_kept_and_the_pass_ends_at_the_highest_layer(monkeypatch):
    model = tiny_model("llama", max_position_embeddings=2048)
    ran, kept = [], {}
    handles = [
        block.register_forward_hook(lambda _m, _a, _o, i=i: ran.append(i))
        for i, block in enumerate(decoder_blocks(model))
    ]
    whole = drift.reduced_pass

    def watched(*args):
        kept.update(whole(*args))
        return kept

    monkeypatch.setattr(drift, "reduced_pass", watched)
    ids = [torch.randint(6, 60, (1500,)).tolist()]
    [values] = project_tokens(model, ids, vectors_of(3, layers=(0, 1, 2)))
    assert ran == [0, 1]  # of 3 blocks; no lm_head either
    assert {layer: tuple(own.shape) for layer, own in kept.items()} == dict.fromkeys((0, 1, 2), (1, 1500, 3))
    assert values.untyped_storage().nbytes() == 4 * 1500 * 3 * 3
    assert not any(own._base is not None and own._base.numel() > 1500 * 9 for own in kept.values())
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("sequences", "vectors", "message"),
    [
        ([[]], vectors_of(), "no tokens"),
        ([[7]], {}, "no directions"),
        ([[7]], {9: torch.ones(1, D_MODEL)}, "layer 9 does not exist"),
        ([[7]], {1: torch.ones(1, 5)}, rf"shape \(1, 5\).*needs \(n, {D_MODEL}\)"),
        ([[7]], {1: torch.zeros(1, D_MODEL)}, "zero"),
        ([[7]], {1: torch.ones(1, D_MODEL), 2: torch.ones(2, D_MODEL)}, "different numbers"),
    ],
)
def test_bad_input_of_the_library_is_refused(sequences, vectors, message):
    with pytest.raises(ValueError, match=message):
        project_tokens(tiny_model(), sequences, vectors)


def test_transcript_turns_are_means_of_their_tokens():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    axis = torch.randn(N_LAYERS + 1, D_MODEL, generator=torch.Generator().manual_seed(1))
    found = project_transcript(model, tokenizer, TALK, axis, "chat", layer=2)
    assert [(turn.role, turn.content) for turn in found] == [(one["role"], one["content"]) for one in TALK]
    ids, turns = tokenize_turns(tokenizer, TALK, "chat")
    [values] = project_tokens(model, [ids], {2: axis[2][None]})
    for turn, own in zip(turns, found, strict=True):
        assert own.tokens == tuple(values[turn.start : turn.end, 0, 0].tolist())
        assert own.mean == pytest.approx(np.mean(own.tokens), rel=1e-5)
    # a single vector, and the published defaults: raw format, 0.65 of the depth
    raw = project_transcript(model, tokenizer, TALK, axis[2])
    assert [turn.mean for turn in raw] == [
        turn.mean for turn in project_transcript(model, tokenizer, TALK, axis, "raw", 2)
    ]
    assert np.isnan(project_transcript(model, tokenizer, [{"role": "system", "content": ""}, *TALK], axis)[0].mean)


def test_a_conversation_that_is_too_long_is_never_cut():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    talk = TALK[:3] + 40 * TALK[3:]
    with pytest.raises(ValueError, match=r"tokens and 128 can be read.*turns \d+ to 83 of 83 would be cut"):
        project_transcript(model, tokenizer, talk, torch.ones(D_MODEL))
    with pytest.raises(ValueError, match="20 can be read"):
        project_transcript(model, tokenizer, TALK, torch.ones(D_MODEL), max_seq_len=20)
    with pytest.raises(ValueError, match="2 layers"):
        project_transcript(model, tokenizer, TALK, torch.ones(2, D_MODEL))


def test_turn_means_of_an_empty_turn_are_nan():
    _, turns = tokenize_turns(word_tokenizer(), [{"role": "system", "content": ""}, *TALK[1:3]])
    means = turn_means(torch.ones(30, 1, 1), turns)
    assert torch.isnan(means[0]).all() and (means[1:] == 1).all()


# drift


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 100))
def test_slopes_are_least_squares(n, start, slope, seed):
    noise = np.random.default_rng(seed).normal(size=n)
    ys = start + slope * np.arange(n) + noise
    assert slopes(ys[:, None])[0] == pytest.approx(np.polyfit(np.arange(n), ys, 1)[0], abs=1e-8)
    found = slope_interval(ys)
    assert np.isnan(found.low) if n == 2 else found.low < found.mean < found.high


def test_slope_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    found = [slope_interval(0.5 * np.arange(8) + rng.normal(size=8)) for _ in range(400)]
    held = np.mean([one.low <= 0.5 <= one.high for one in found])
    assert 0.92 < held < 0.98
    with pytest.raises(ValueError, match="two turns"):
        slopes(np.ones((1, 2)))


# transcripts


def test_transcripts_in_every_shape_and_back(tmp_path):
    shapes = {
        "one": TALK,
        "object": {"messages": TALK, "name": "called"},
        "several": [TALK[:3], {"messages": TALK}],
    }
    for name, content in shapes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"messages": TALK}) for _ in range(2)))
    names = ["one.json", "object.json", "several.json", "lines.jsonl"]
    found = read_transcripts([str(tmp_path / name) for name in names])
    assert [one.name for one in found] == ["one", "called", "several 1", "several 2", "lines 1", "lines 2"]
    assert found[0].messages == found[1].messages == found[-1].messages == TALK
    again = write_transcripts(tmp_path / "again.jsonl", found)
    assert read_transcripts([str(again)]) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "", "expected .json or .jsonl"),
        ("x.json", "{", "not JSON"),
        ("x.json", "3", "holds a int"),
        ("x.json", "[]", "no conversation"),
        ("x.json", '[{"messages": []}]', "conversation 1: expected a list of messages"),
        ("x.json", '[{"content": "x"}]', "message 1 has role None"),
        ("x.json", '[{"role": "bot", "content": "a"}]', "message 1 has role 'bot'"),
        ("x.jsonl", '{"messages": [{"role": "user", "content": 3}]}', "message 1: expected an object"),
        ("x.jsonl", "[1]", "expected a JSON object"),
    ],
)
def test_bad_transcripts_are_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_transcripts([str(tmp_path / name)])
    assert "\n" not in str(error.value)


# the command


@pytest.mark.parametrize("layer", ["0", "3"])
def test_a_vector_of_another_width_is_one_line_at_every_layer(tmp_path, axis_file, tiny_persona, capsys, layer):
    narrow = write_vectors(tmp_path / "narrow.pt", torch.ones(5, 64), {})
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    arguments = ["--model_name", tiny_persona, "--transcripts", str(tmp_path / "talk.json"), "--layer", layer]
    arguments += ["--vector_path", axis_file, str(narrow), "--output_dir", str(tmp_path / "out")]
    assert cli.run(command.main, arguments) == 2
    error = capsys.readouterr().err
    assert "narrow.pt has vectors of width 64; the model has 256" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def axis_file(tmp_path_factory):
    vectors = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    return str(write_vectors(tmp_path_factory.mktemp("vectors") / "axis.pt", vectors, {}))


HOSTILE = "<script>alert(1)</script> & \u202e reversed"


def test_the_command_writes_tables_tokens_and_a_page(tmp_path, axis_file, tiny_persona, capsys):
    talk = [*TALK, {"role": "user", "content": HOSTILE}, TALK[2]]
    write_transcripts(tmp_path / "talks.jsonl", [Transcript("first", talk), Transcript("short", TALK[:3])])
    arguments = ["--model_name", tiny_persona, "--transcripts", str(tmp_path / "talks.jsonl"), "--vector_path"]
    arguments += [axis_file, "--layer", "2", "3", "--output_dir", str(tmp_path / "out"), "--n_random", "20"]
    assert cli.run(command.main, arguments) == 0
    assert "needs two assistant turns" in capsys.readouterr().out
    turns = pd.read_csv(tmp_path / "out" / "turns.csv")
    assert len(turns) == 2 * (len(talk) + 3)
    tokens = pd.read_json(tmp_path / "out" / "tokens.jsonl", lines=True)
    for layer in (2, 3):
        values = tokens.projections.map(lambda found, layer=layer: found[f"axis, layer {layer}"])
        means = values.groupby([tokens.transcript, tokens.turn]).mean()
        own = turns[turns.layer == layer].set_index(["transcript", "turn"]).projection
        pd.testing.assert_series_equal(own.sort_index(), means.sort_index(), check_names=False, rtol=1e-5)
    drifts = pd.read_csv(tmp_path / "out" / "drift.csv")
    first = turns[(turns.transcript == "first") & (turns.role == "assistant") & (turns.layer == 3)]
    slope = drifts[(drifts.transcript == "first") & (drifts.layer == 3)].slope.item()
    assert slope == pytest.approx(np.polyfit(range(3), first.projection, 1)[0], rel=1e-6)
    assert first.random_low.iloc[0] == pytest.approx(first.projection.iloc[0])  # the band begins at the first turn
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "\u202e" not in page and "&lt;" in page
    text = re.sub(r"<[^>]*>", "", page)
    assert "tell me about the moon" in text and "[U+202E]" in page
    sidecar = json.loads((tmp_path / "out" / "turns.csv.json").read_text())
    assert sidecar["settings"]["layer"] == [2, 3] and axis_file in sidecar["files"]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--layer", "9", "layer 9"),
        ("--layer", "-1", "layer -1"),
        ("--vector_path", "missing.pt", "no vector file"),
        ("--transcripts", "missing.json", "does not exist"),
        ("--n_random", "3", "at least 20"),
        ("--max_seq_len", "20", "talk: the conversation has"),
        ("--cap", "missing.json", "no cap at"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(tmp_path, axis_file, tiny_persona, capsys, flag, value, message):
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    given = {"--model_name": tiny_persona, "--transcripts": str(tmp_path / "talk.json"), "--vector_path": axis_file}
    given |= {"--layer": "3", "--output_dir": str(tmp_path / "out"), flag: value}
    assert cli.run(command.main, [token for pair in given.items() for token in pair]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
