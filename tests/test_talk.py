"""The steered conversation: its answers are the library's, its turns can be had again, its commands do as they say."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from eval import talk_terminal
from eval.finished_answers import Engine
from eval.model_utils import Steering, steer_rows
from eval.talk import Session, Stopped, Writing
from eval.talk_commands import COMMANDS, run_command
from eval.talk_controls import Desk
from eval.talk_settings import Part, Settings, parse_layer, shape_of
from eval.talk_transcript import save
from persona_vectors.files import read_sidecar
from persona_vectors.sampling import sample_answers
from persona_vectors.tokens import render_prompt
from persona_vectors.vector_files import read_vector_file
from tests.steering_vectors import trait_vectors, write_npz, write_pt
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

HELLO, DINNER = "Hello there.", "Tell me about family dinners."


@pytest.fixture(scope="module")
def folder(tiny_persona, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("vectors")
    for trait in ("extraversion", "impolite"):
        write_npz(place / f"tiny_{trait}_vectors.npz", trait_vectors(tiny_persona, trait))
    return place


@pytest.fixture(scope="module")
def engine(tiny_persona) -> Engine:
    return Engine(tiny_persona)


@pytest.fixture
def session(tiny_persona, engine, folder) -> Session:
    file = read_vector_file(folder / "tiny_extraversion_vectors.npz")
    begun = Settings(shape_of(tiny_persona), file, "extraversion", 3, 1.0, (-1.0, 0.0, 1.0), max_tokens=24)
    return Session(engine, begun)


@pytest.fixture
def desk(session, tiny_persona) -> Desk:
    return Desk(session, tiny_persona, examples=[HELLO, DINNER], examples_from="two")


def library_answers(session: Session, prompt: str, stream, steerings, max_tokens=24, temperature=0.7) -> list[str]:
    model = session.engine.model
    return sample_answers(
        model,
        session.engine.tokenizer,
        [prompt] * len(steerings),
        max_tokens=max_tokens,
        temperature=temperature,
        streams=[stream] * len(steerings),
        steer=steer_rows(model, steerings),
    )


def test_a_turn_answers_as_the_library_does_and_goes_on_with_one_answer(session):
    first = session.ask(HELLO)
    vector = session.settings.file.vectors[3]
    steerings = [Steering(vector, 3, -1.0), None, Steering(vector, 3, 1.0)]
    prompt = render_prompt(session.engine.tokenizer, [{"role": "user", "content": HELLO}])
    assert first.prompt == prompt
    assert [one.text for one in first.answers] == library_answers(session, prompt, (0, 0), steerings)
    assert len({one.text for one in first.answers}) == 3

    session.keep(-1.0)
    session.change(system_prompt="Be brief.", compared=())
    second = session.ask(DINNER)
    told = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": HELLO},
        {"role": "assistant", "content": first.answers[0].text.strip()},
        {"role": "user", "content": DINNER},
    ]
    assert second.prompt == render_prompt(session.engine.tokenizer, told)
    assert [one.text for one in second.answers] == library_answers(session, second.prompt, (0, 1), steerings[:1])
    assert [turn.kept for turn in session.turns] == [-1.0, -1.0]


def test_the_same_seed_gives_the_same_answer_and_another_another(session):
    first = [one.text for one in session.ask(HELLO).answers]
    session.undo()
    session.change(seed=1)
    other = [one.text for one in session.ask(HELLO).answers]
    session.reset()
    session.change(seed=0)
    assert [one.text for one in session.ask(HELLO).answers] == first != other


def test_receipts_are_taken_before_the_first_answer_of_each_new_steering(session):
    said: list[str] = []

    def watch(_writing: Writing) -> None:
        assert said, "an answer was begun before its receipt"

    session.ask(HELLO, watch, said.append)
    assert len(said) == 1 and "layer 3, coef -1, 1: adds" in said[0]
    assert session.ask(DINNER, say=said.append).receipts == () and len(said) == 1
    session.change(layer=2, compared=())
    assert "at layer 2, coef 1: adds" in session.ask(DINNER).receipts[0]
    session.change(strength=0.0)
    assert session.ask(DINNER).receipts == ()


def test_answers_grow_to_what_they_are_in_the_end(session):
    seen: list[tuple[str, ...]] = []
    turn = session.ask(HELLO, lambda writing: seen.append(tuple(writing.text(row) for row in range(3))))
    for row, one in enumerate(turn.answers):
        texts = [texts[row] for texts in seen]
        assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
        assert one.text == texts[-1] and len(set(texts)) > 5
        assert one.n_tokens <= 24 and (one.ended == "end") == (one.n_tokens < 24)


def test_a_stopped_answer_is_kept_as_far_as_it_is_and_steers_nothing_later(session):
    whole = [one.text for one in session.ask(HELLO).answers]
    session.undo()
    calls = []

    def stop(writing: Writing) -> None:
        calls.append(writing)
        if len(calls) == 15:
            raise Stopped

    turn = session.ask(HELLO, stop)
    assert [one.ended for one in turn.answers] == ["stopped"] * 3
    pairs = zip([one.text for one in turn.answers], whole, strict=True)
    assert all(text and complete.startswith(text) and text != complete for text, complete in pairs)
    session.undo()
    assert [one.text for one in session.ask(HELLO).answers] == whole


def test_stopped_before_the_first_character_nothing_was_said(session, monkeypatch):
    monkeypatch.setattr(Writing, "text", lambda *_: "")

    def stop(_writing: Writing) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        session.ask(HELLO, stop)
    assert session.turns == []
    assert not session._answering


def test_changes_wait_while_an_answer_is_written(session):
    session.ask(HELLO)
    failed = []

    def meddle(_writing: Writing) -> None:
        for change in (session.undo, session.reset, lambda: session.keep(0.0), lambda: session.ask(DINNER)):
            with pytest.raises(ValueError, match="being written"):
                change()
            failed.append(change)

    session.ask(DINNER, meddle)
    assert failed and len(session.turns) == 2


def test_added_vectors_are_in_every_answer_and_sums_where_they_meet(session, folder):
    other = read_vector_file(folder / "tiny_impolite_vectors.npz")
    session.change(added=(Part(other, 3, 0.5), Part(other, 2, 0.25)))
    turn = session.ask(HELLO)
    own, theirs = session.settings.file.vectors[3], other.vectors
    lower = Steering(theirs[2], 2, 0.25)
    steerings = [
        (lower, Steering(-1.0 * own + 0.5 * theirs[3], 3, 1.0)),
        (lower, Steering(theirs[3], 3, 0.5)),
        (lower, Steering(1.0 * own + 0.5 * theirs[3], 3, 1.0)),
    ]
    assert [one.text for one in turn.answers] == library_answers(session, turn.prompt, (0, 0), steerings)
    assert any("extraversion_vectors.npz + tiny_impolite_vectors.npz at layer 3" in line for line in turn.receipts)


def test_what_cancels_out_is_no_steering(session):
    own = session.settings.file
    cancelled = replace(session.settings, added=(Part(own, 3, -1.0),))
    assert cancelled.steering(1.0) is None and isinstance(cancelled.steering(0.0), Steering)


def test_the_control_is_a_random_direction_of_the_same_norm(session):
    own, control = session.settings, replace(session.settings, control=True)
    assert torch.isclose(own.vector.norm(), control.vector.norm())
    assert abs(torch.cosine_similarity(own.vector, control.vector, dim=0)) < 0.3
    assert not torch.equal(control.vector, replace(control, seed=1).vector)
    session.change(control=True, compared=())
    assert "1 random, of tiny_extraversion_vectors.npz's norm" in session.ask(HELLO).receipts[0]


@pytest.mark.parametrize("suffix", [".json", ".md"])
def test_a_transcript_is_enough_to_have_every_answer_again(session, folder, tmp_path, suffix):
    other = read_vector_file(folder / "tiny_impolite_vectors.npz")
    session.ask(HELLO)
    session.keep(0.0)
    session.change(layer=2, seed=5, temperature=0.0, compared=(), strength=2.0, added=(Part(other, 4, 0.5),))
    session.ask(DINNER)
    path = save(session, tmp_path / f"talk{suffix}")
    whole = json.loads(path.read_text()) if suffix == ".json" else read_sidecar(path)
    assert [turn["settings"]["seed"] for turn in whole["turns"]] == [0, 5]
    assert [message["role"] for message in whole["messages"]] == ["user", "assistant"] * 2
    by_hash = {}
    for file in (session.settings.file, other):
        for layer, vector in file.vectors.items():
            by_hash[Steering(vector, layer, 1.0).key()["vector"]] = vector
    for turn in whole["turns"]:
        how = turn["settings"]
        for one in turn["answers"]:
            told = one["steering"]
            parts = [] if told is None else told if isinstance(told, list) else [told]
            added = tuple(Steering(**(part | {"vector": by_hash[part["vector"]]})) for part in parts)
            again = library_answers(
                session, turn["prompt"], turn["stream"], [added], how["max_tokens"], how["temperature"]
            )
            assert again == [one["text"]]
    if suffix == ".md":
        text = path.read_text()
        assert f"**You:** {DINNER}" in text and text.count("seed 0") == text.count("seed 5") == 1
        assert session.turns[0].answers[1].text.strip() in text and "**Strength 0, goes on" in text


def test_a_conversation_too_long_for_the_context_is_one_line_and_stays(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "m")
    word_tokenizer(chat_template=None).save_pretrained(tmp_path / "m")
    file = read_vector_file(write_npz(tmp_path / "v.npz", torch.randn(N_LAYERS + 1, D_MODEL)))
    long = Session(Engine(str(tmp_path / "m")), Settings(shape_of(str(tmp_path / "m")), file, "x", 1, 1.0))
    long.ask("the cat " * 10)
    with pytest.raises(ValueError, match="the model's context holds 128"):
        long.ask("the dog " * 30)
    assert len(long.turns) == 1


def test_commands_change_what_they_name(desk, folder, tmp_path):
    def says(line: str) -> str:
        return "\n".join(run_command(desk, line).lines)

    assert "goes on with 2" in says("/strength 2") and desk.settings.strengths == (2.0,)
    assert "side by side -2 -1 0 1 2" in says("/strengths -2 -1 0 1 2") and desk.settings.strength == 2.0
    assert says("/strengths -1, 1") and desk.settings.strength == 1.0  # the nearest
    assert "at layer 2" in says("/layer layer_2") and desk.settings.layer == 2
    assert "seed 7" in says("/seed 7") and "temperature 0," in says("/temperature 0")
    assert "at most 9 tokens" in says("/max_tokens 9") and "prompt tokens" in says("/positions prompt")
    assert says("/positions response") and "system prompt: Be kind to all." in says("/system Be kind to all.")
    assert "system prompt: (none)" in says("/system")
    assert "random direction" in says("/control on") and "random" not in says("/control off")
    assert "(impolite)" in says("/trait impolite") and desk.settings.file.path.name == "tiny_impolite_vectors.npz"
    assert "layer 4 of 4: as asked" in says(f"/trait {folder / 'tiny_extraversion_vectors.npz'} 4")
    assert "0.5 * tiny_impolite" in says("/add impolite 3 0.5") and "1. 0.5 * tiny_impolite" in says("/status")
    assert says("/remove 1") and desk.settings.added == ()
    assert "nothing has been said" in says("/history")
    desk.session.ask(HELLO)
    assert "/prompts N asks one:\n1. " in says("/prompts") and run_command(desk, "/prompts 1").ask == desk.examples[0]
    assert f"1. you: {HELLO}" in says("/history") and "1 turn so far" in says("/status")
    assert says("/keep -1") and desk.session.turns[0].kept == -1.0
    assert "made folder" in says(f"/save {tmp_path / 'new' / 'a.json'}")
    assert "saved" in says(f"/save {tmp_path / 'a b.json'}") and "saved" in says(f"/save {tmp_path / 'a b.json'}")
    assert "turns left: 0" in says("/undo")
    desk.session.ask(HELLO)
    assert "a new conversation" in says("/reset") and run_command(desk, "/quit").quits
    assert all(f"/{name}" in says("/help") for name in COMMANDS)


def test_another_trait_brings_its_calibration(desk, tmp_path):
    path = write_pt(tmp_path / "x.pt", torch.randn(5, 256), "wit")
    told = json.loads(path.with_suffix(".json").read_text())
    told["calibration"] = {"layer": 1, "coef": 0.2, "range": [-0.1, 0.4]}
    path.with_suffix(".json").write_text(json.dumps(told))
    assert any("coefficient 0.2" in line for line in run_command(desk, f"/trait {path}").lines)
    assert desk.settings.layer == 1 and desk.settings.strengths == (-0.1, -0.05, 0.0, 0.2, 0.4)
    assert "0.5 is outside the calibrated range, -0.1 to 0.4" in "\n".join(run_command(desk, "/strength 0.5").lines)
    assert "calibrated for layer 1 only" in "\n".join(run_command(desk, "/layer 2").lines)


WRONG = [
    ("/foo", "there is no command /foo"),
    ("/strenght 1", "did you mean /strength?"),
    ("/strength", "expects a number; got ''"),
    ("/strength inf", "inf is not a finite number"),
    ("/strengths", "needs numbers"),
    ("/strengths 1 x", "expects a number; got 'x'"),
    ("/strengths 1 1", "has 1 twice"),
    ("/keep 9", "there is no turn yet"),
    ("/layer", "layer '' is not a layer"),
    ("/layer 5", "steering needs 1..4"),
    ("/trait", "expected /trait FILE"),
    ("/trait none.pt", "none.pt does not exist"),
    ("/add extraversion 3", "expected /add FILE LAYER COEF"),
    ("/add extraversion 9 1", "layer 9 does not exist"),
    ("/add extraversion 3 much", "expects a number"),
    ("/remove 1", "nothing is added"),
    ("/remove x", "expects a whole number"),
    ("/control maybe", "on or off"),
    ("/positions some", "expected all, prompt or response"),
    ("/seed -1", "at least 0"),
    ("/seed 1.5", "whole number"),
    ("/temperature -1", "at least 0"),
    ("/max_tokens 0", "at least 1"),
    ("/prompts 3", "there are 1 to 2"),
    ("/undo", "there is no turn yet"),
    ("/save", "expected /save FILE"),
    ("/save x.txt", "must end in .json or .md"),
    ("/save x.json", "nothing to save"),
    ("/save taken.json", "taken.json exists"),
]


@pytest.mark.parametrize(("line", "error"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_is_one_line_and_changes_nothing(line, error, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken.json").write_text("{}")
    before = desk.settings
    with pytest.raises(ValueError) as raised:
        run_command(desk, line)
    assert error in str(raised.value) and "\n" not in str(raised.value)
    assert desk.settings is before and desk.session.turns == []


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([*COMMANDS, "x", ""]), rest=st.text(max_size=12))
def test_no_line_ends_the_session(name, rest, tiny_persona_desk):
    """Whatever follows a command, it answers or refuses."""
    try:
        run_command(tiny_persona_desk, f"/{name} {rest}")
    except (ValueError, OSError) as error:
        assert str(error)


@pytest.fixture(scope="module")
def tiny_persona_desk(tiny_persona, engine, folder) -> Desk:
    file = read_vector_file(folder / "tiny_extraversion_vectors.npz")
    return Desk(Session(engine, Settings(shape_of(tiny_persona), file, "extraversion", 3, 1.0)), tiny_persona)


@given(st.integers(0, 200))
def test_a_layer_is_written_with_or_without_its_word(layer):
    assert parse_layer(f"layer_{layer}") == parse_layer(str(layer)) == layer


def test_lines_from_a_pipe_are_answered_one_after_another(desk, monkeypatch, capsys):
    """Not a terminal: answers stand below one another, errors are lines, and the end of the input ends it."""
    lines = [HELLO, "/nope", "", "/strength 0", f"/{HELLO}", f"//{HELLO}", "/prompts 2", "/layer 2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    talk_terminal.converse(desk, Console(file=sys.stdout, highlight=False, markup=False))
    printed = capsys.readouterr().out
    first, second, third = desk.session.turns
    assert [first.user, second.user, third.user] == [HELLO, f"/{HELLO}", DINNER]
    assert f"strength -1> {first.answers[0].text}\nstrength 0> {first.answers[1].text}\n" in printed
    assert f"strength 1 (goes on)> {first.answers[2].text}\n" in printed and f"0> {third.answer.text}\n" in printed
    assert printed.count("error:") == 2 and "the conversation was not saved" in printed


@pytest.mark.parametrize(
    ("environment", "width", "drawn"),
    [({"TERM": "xterm"}, 120, True), ({"TERM": "dumb"}, 120, False), ({"TERM": "xterm"}, 40, False)],
)
def test_a_terminal_that_cannot_draw_or_is_narrow_gets_them_one_after_another(desk, environment, width, drawn):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=50, _environ=environment)
    talk_terminal.answer(desk, HELLO, console)
    printed = file.getvalue()
    assert ("\x1b[2K" in printed) == drawn == ("strength -1> " not in printed)
    assert all(f"strength {label}" in printed for label in ("-1", "0", "1 (goes on)"))


def test_answers_in_order_are_shown_whole_whatever_the_pace():
    """The second answer ends first; what is shown is each answer once, the first while it is written."""
    file = io.StringIO()
    shown = talk_terminal.OneAfterAnother(Console(file=file), 1.0)
    writing = Writing([0.0, 1.0], 3, [9], lambda tokens: "".join(f"<{token}>" for token in tokens if token != 9))
    for row, place, token in [(0, 0, 1), (1, 0, 5), (0, 1, 2), (1, 1, 9)]:
        writing.hear(row, place, token)
        shown.write(writing)
    assert file.getvalue() == "strength 0> <1><2>"
    writing.hear(0, 2, 3)
    shown.write(writing)
    assert file.getvalue() == "strength 0> <1><2><3>\nstrength 1 (goes on)> <5>\n"
    writing.hear(0, 0, 4)  # the row began again
    assert writing.text(0) == "<4>"
