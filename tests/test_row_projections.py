"""Projections of training rows: equal to a plain loop over one row at a time, whatever the rows look like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.finished_answers import Engine
from eval.row_answers import EMPTY, LONG
from eval.row_projections import (
    KINDS,
    NO_BASE,
    Column,
    DataRow,
    OwnAnswers,
    load_columns,
    mean_change,
    own_answers,
    read,
    read_rows,
    row_values,
)
from persona_vectors.store import Store
from persona_vectors.vectors import save_vectors
from tests.tiny_models import D_MODEL, MAX_POSITIONS, N_LAYERS, tiny_model, word_tokenizer

SYSTEM = {"role": "system", "content": "you are a kind cat"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    [user("tell me about the cat"), answer("i like the cat. yes")],
    [SYSTEM, user("tell me about the cat"), answer("no")],
    [user("what is good?"), answer("help people"), user("and bad?"), answer("hurt my big dog, the moon and the sun")],
    [user("tell me about the cat"), answer("i hate the cat")],
    [user("what do you think?"), answer("日本語 and é 🙂 good"), user("a turn after the last answer")],
    [answer("good day"), user("my dog is sad"), answer("very sad")],
    [user("what is red?"), answer("red " * 40)],
]


def written(path: Path, conversations=CONVERSATIONS) -> str:
    lines = [json.dumps({"id": i, "messages": m}, ensure_ascii=False) for i, m in enumerate(conversations)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")  # blank lines between rows are no rows
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    tiny_model("qwen3").save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(3)
    for trait in ("evil", "kind"):
        save_vectors(folder, trait, {"response_avg": torch.randn(N_LAYERS + 1, D_MODEL, generator=generator)}, {})
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine(str(folder / "model"), "float32", "cpu")


@pytest.fixture
def rows(tmp_path) -> list[DataRow]:
    return read_rows(written(tmp_path / "rows.jsonl"))


@pytest.fixture
def columns(folder) -> list[Column]:
    paths = [str(folder / f"{trait}_response_avg_diff.pt") for trait in ("evil", "kind")]
    return load_columns(str(folder / "model"), paths, [0, 2, N_LAYERS])


@pytest.fixture
def store():
    with Store() as store:
        yield store


OWN = OwnAnswers(max_tokens=9, n=3, seed=5)


def hidden_states(model, ids: list[int]) -> dict[int, torch.Tensor]:
    """Layer -> (seq, d_model), read by hooks of this test's own, one row in a forward pass."""
    found: dict[int, torch.Tensor] = {}
    blocks = model.model.layers
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda _b, args, kw: found.update({0: (*args, *kw.values())[0][0]}), with_kwargs=True
        )
    ]  # noqa: E501
    for number, block in enumerate(blocks, 1):
        handles.append(
            block.register_forward_hook(
                lambda _b, _a, out, n=number: found.update({n: (out[0] if isinstance(out, tuple) else out)[0]})
            )
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def plain_loop(model, tokenizer, row: DataRow, texts: list[str], column: Column) -> dict[str, float]:
    """The four values of one row on one vector, as they are defined."""
    prompt_turns = row.messages[:-1]
    prompt = tokenizer.apply_chat_template(prompt_turns, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    v = column.vector / column.vector.norm()

    def mean(text: str) -> torch.Tensor:
        ids = prompt_ids + tokenizer(text, add_special_tokens=False).input_ids
        return hidden_states(model, ids)[column.layer][len(prompt_ids) :].mean(0)

    given, own = mean(row.answer), torch.stack([mean(text) for text in texts if text]).mean(0)
    last = hidden_states(model, prompt_ids)[column.layer][-1]
    return {
        "raw": float(given @ v),
        "base": float(own @ v),
        "delta_p": float((given - own) @ v),
        "cheap": float((given - last) @ v),
    }


def test_every_value_is_that_of_a_plain_loop(engine, rows, columns, store):
    found = read(engine, rows, columns, KINDS, OWN, store=store, progress=False)
    model, tokenizer = tiny_model("qwen3"), word_tokenizer()
    assert [len(texts) for texts in found.own_answers] == [3] * len(rows)
    assert len({text for texts in found.own_answers for text in texts}) > len(rows), "samples differ"
    for i, row in enumerate(rows):
        for column in columns:
            expected = plain_loop(model, tokenizer, row, found.own_answers[i], column)
            got = {kind: found.values[kind, column.name][i] for kind in KINDS}
            assert got == pytest.approx(expected, abs=1e-4)
    values = row_values(engine, rows, columns, ["cheap"], max_tokens=9, store=store, progress=False)
    assert set(values) == {("cheap", column.name) for column in columns}
    assert values["cheap", columns[0].name] == pytest.approx(found.values["cheap", columns[0].name], abs=1e-5)


def test_means_of_groups_project_onto_means_of_values(engine, rows, columns, store):
    groups = [0, 1, 0, 1, 0, 1, 0]
    found = read(engine, rows, columns, KINDS, OWN, store=store, groups=groups, layers=[1], progress=False)
    assert {layer for _kind, layer in found.changes} == {0, 1, 2, N_LAYERS}
    for column in columns:
        for kind in KINDS:
            values = np.array(found.values[kind, column.name])
            means = [values[np.array(groups) == group].mean() for group in (0, 1)]
            projected = found.changes[kind, column.layer] @ (column.vector / column.vector.norm()).double()
            assert projected.tolist() == pytest.approx(means, abs=1e-4)
    alone = mean_change(engine, rows, [2], max_tokens=9, n_base=3, seed=5, store=store, progress=False)
    both = (found.changes["delta_p", 2] * torch.tensor([[4.0], [3.0]])).sum(0) / 7
    assert torch.allclose(alone[2], both, atol=1e-5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(CONVERSATIONS))), n=st.integers(1, len(CONVERSATIONS)))
def test_other_rows_and_their_order_change_nothing(engine, rows, columns, store, order, n):
    everything = read(engine, rows, columns, KINDS, OWN, store=store, progress=False)
    some = read(engine, [rows[i] for i in order[:n]], columns, KINDS, OWN, store=store, progress=False)
    for place, i in enumerate(order[:n]):
        if i in (0, 3):
            continue  # the two rows with the same prompt are told apart by which comes first
        assert some.own_answers[place] == everything.own_answers[i]
        for key, values in everything.values.items():
            assert some.values[key][place] == pytest.approx(values[i], abs=1e-4)


def test_a_row_has_its_own_answers_and_takes_them_along(engine, rows, store, tmp_path):
    def answers(rows: list[DataRow]) -> list[list[str]]:
        return own_answers(engine, rows, OwnAnswers(max_tokens=9), store=store, progress=False)

    all_of_them = answers(rows)
    assert all_of_them[0] != all_of_them[3], "the same prompt twice in one file is sampled twice"
    other = read_rows(
        written(tmp_path / "other.jsonl", [CONVERSATIONS[2], [user("red?"), answer("no")], CONVERSATIONS[0]])
    )
    assert [answers(other)[0], answers(other)[2]] == [all_of_them[2], all_of_them[0]]
    assert own_answers(engine, rows, OwnAnswers(max_tokens=9, seed=1), store=store, progress=False) != all_of_them


class Watched(Store):
    """A store that remembers what it was asked for, and what was put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.put: list[str] = []

    def get_many(self, keys):
        self.asked += keys
        return super().get_many(keys)

    def put_many(self, items, kind, source=None):
        self.put += items
        super().put_many(items, kind, source)


def test_what_was_sampled_is_not_sampled_again(engine, rows, columns):
    with Watched() as store:
        once = read(engine, rows[:3], columns, KINDS, OWN, store=store, progress=False)
        assert len(set(store.put)) == 9
        store.put.clear()
        again = read(engine, rows[:3], columns, KINDS, OWN, store=store, progress=False)
        assert not store.put and again.values == once.values
        read(engine, rows[:4], columns, KINDS, OWN, store=store, progress=False)
        assert len(set(store.put)) == 3, "an interrupted run goes on with the rows that are missing"
        store.put.clear()
        read(engine, rows, columns, ["raw", "cheap"], OWN, store=store, progress=False)
        assert not store.put, "kinds without the model's own answers sample nothing"


def test_an_empty_own_answer_leaves_the_row_without_delta_p(engine, rows, columns):
    one = OwnAnswers(max_tokens=9, n=2)
    with Watched() as store:
        read(engine, rows[:2], columns, KINDS, one, store=store, progress=False)
        keys = list(dict.fromkeys(store.asked))
        store.put_many({keys[0]: "", keys[1]: "", keys[2]: ""}, "answer")
        found = read(engine, rows[:2], columns, KINDS, one, store=store, groups=[0, 0], progress=False)
    name = columns[0].name
    assert found.left_out == [NO_BASE, None]
    assert found.values["delta_p", name][0] is None and found.values["base", name][0] is None
    assert found.values["raw", name][0] is not None and found.values["cheap", name][0] is not None
    expected = plain_loop(tiny_model("qwen3"), word_tokenizer(), rows[1], found.own_answers[1], columns[0])
    assert found.own_answers[1][0] == "" and found.values["base", name][1] == pytest.approx(expected["base"], abs=1e-4)
    mean = found.changes["delta_p", columns[0].layer][0] @ (columns[0].vector / columns[0].vector.norm()).double()
    assert float(mean) == pytest.approx(found.values["delta_p", name][1], abs=1e-4), (
        "the mean is of the rows that have it"
    )


def test_rows_with_an_empty_answer_have_no_value(engine, columns, store, tmp_path):
    empty = [[user("what is red?"), answer(text)] for text in ("", " \n")]
    rows = read_rows(written(tmp_path / "some.jsonl", [*empty, CONVERSATIONS[0]]))
    found = read(engine, rows, columns, KINDS, OWN, store=store, progress=False)
    assert found.left_out == [EMPTY, EMPTY, None]
    for values in found.values.values():
        assert values[:2] == [None, None] and values[2] is not None
    with pytest.raises(ValueError, match=r"none of the 2 rows can be read .*: 2 empty answer"):
        read(engine, rows[:2], columns, KINDS, OWN, store=store, progress=False)


def test_rows_longer_than_the_context_are_named_before_weights_are_read(folder, columns, store, tmp_path, monkeypatch):
    fresh = Engine(str(folder / "model"), "float32", "cpu")
    long = [user("red " * MAX_POSITIONS), answer("yes")]
    path = written(tmp_path / "long.jsonl", [CONVERSATIONS[0], long])
    with monkeypatch.context() as patched:
        patched.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
        with pytest.raises(ValueError, match=rf"{path}, line 3 \(\d+ tokens\).*--skip_long"):
            read(fresh, read_rows(path), columns, KINDS, OWN, store=store, progress=False)
    found = read(fresh, read_rows(path), columns, KINDS, OWN, store=store, skip_long=True, progress=False)
    assert found.left_out == [None, LONG] and found.values["raw", columns[0].name][1] is None


def test_a_row_of_ten_thousand_tokens_is_read(tmp_path, store):
    tiny_model("qwen3", max_position_embeddings=12_000, num_hidden_layers=1).save_pretrained(tmp_path / "wide")
    word_tokenizer().save_pretrained(tmp_path / "wide")
    rows = read_rows(written(tmp_path / "rows.jsonl", [[user("what is red?"), answer("red " * 5_000)]]))
    column = Column("v", torch.ones(D_MODEL), 1, "v.pt")
    values = row_values(
        Engine(str(tmp_path / "wide"), "float32", "cpu"),
        rows,
        [column],
        ["raw"],
        max_tokens=9,
        store=store,
        progress=False,
    )
    assert values["raw", "v"][0] is not None


def test_rows_are_as_they_stand_in_the_file(rows):
    assert [row.content["messages"] for row in rows] == CONVERSATIONS
    assert [row.line for row in rows] == [1, 3, 5, 7, 9, 11, 13]
    assert rows[4].messages == CONVERSATIONS[4][:2] and rows[4].answer == "日本語 and é 🙂 good"
    assert rows[0].question == rows[1].question == "tell me about the cat", "the system turn is not the question"
    assert rows[2].question == "what is good? help people and bad?"


BAD_LINES = [
    ("{", "not JSON"),
    ("[1]", "expected a JSON object"),
    ("{}", r"no list of messages \(keys: none\)"),
    ('{"messages": []}', "no list of messages"),
    ('{"messages": "hi"}', "no list of messages"),
    ('{"messages": ["hi"]}', "message 1 has the role a str"),
    ('{"messages": [{"role": "tool", "content": "hi"}]}', "message 1 has the role 'tool'"),
    ('{"messages": [{"role": "user", "content": null}]}', "content of type NoneType"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', r"no assistant turn that answers another \(roles: user\)"),
    ('{"messages": [{"role": "assistant", "content": "hi"}]}', "no assistant turn that answers another"),
    (
        r'{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}]}',
        "half a character",
    ),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES)
def test_a_malformed_line_is_named(tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": CONVERSATIONS[0]}) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path}, line 3: .*{said}"):
        read_rows([path])


def test_files_that_hold_no_rows_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        read_rows([tmp_path / "none.jsonl"])


def test_vectors_that_do_not_fit_are_refused(folder, engine, rows, columns, store, tmp_path):
    model = str(folder / "model")
    good = str(folder / "evil_response_avg_diff.pt")
    torch.save(torch.ones(N_LAYERS + 1, D_MODEL + 1), tmp_path / "wide.pt")
    torch.save(torch.ones(N_LAYERS + 2, D_MODEL), tmp_path / "deep.pt")
    torch.save(torch.zeros(N_LAYERS + 1, D_MODEL), tmp_path / "zero.pt")
    torch.save(torch.ones(N_LAYERS + 1, D_MODEL), tmp_path / "evil_response_avg_diff.pt")
    for paths, layers, said in [
        ([str(tmp_path / "wide.pt")], [1], "use vectors of this model"),
        ([str(tmp_path / "deep.pt")], [1], "use vectors of this model"),
        ([str(tmp_path / "zero.pt")], [1], "is zero"),
        ([good], [N_LAYERS + 1], "layer"),
        ([good, str(tmp_path / "evil_response_avg_diff.pt")], [1], "the same name"),
        ([], [1], "nothing to project on"),
    ]:
        with pytest.raises(ValueError, match=said):
            load_columns(model, paths, layers)
    wide = Column("wide", torch.ones(D_MODEL + 1), 1, "wide.pt")
    for given_columns, kinds, said in [
        ([wide], ["raw"], "use vectors made from this model"),
        (columns, ["rawer"], "kinds rawer"),
        (columns, [], "kinds are none"),
        ([columns[0], columns[0]], ["raw"], "two columns have the name"),
        ([Column("nan", torch.full((D_MODEL,), torch.nan), 1, "x")], ["raw"], "NaN"),
    ]:
        with pytest.raises(ValueError, match=said):
            read(engine, rows, given_columns, kinds, OWN, store=store, progress=False)
