"""Questionnaires: the published schemas, what is refused, and the two that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from data_generation.tiny_persona.topics import topic_of
from data_generation.tiny_persona.write_questionnaire import lead, questionnaire
from persona_vectors.questionnaire import OWN, RESPONSES, TRAITS, WORDINGS, content_hash, load_questionnaire

ROW = {
    "personality": "Openness",
    "situation": "It rains.",
    "query": "What do you do?",
    **{name: f"I do thing {number}." for number, name in enumerate(RESPONSES)},
}
ASKED = {key: value for key, value in ROW.items() if key not in ("situation", "query")} | {
    "question": "It rains. What do you do?",
    "statement": "a column of the hub set that nobody reads",
}


def written(folder: Path, name: str, content: object) -> str:
    path = folder / name
    if name.endswith(".csv"):
        pd.DataFrame(content).to_csv(path, index=False)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))  # pyright: ignore
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("row", [ROW, ASKED], ids=["situation and query", "question"])
@pytest.mark.parametrize("name", ["items.json", "items.jsonl", "items.csv"])
def test_both_published_schemas_in_every_kind_of_file(tmp_path, row, name):
    found = load_questionnaire(written(tmp_path, name, [row, {**row, "personality": "evilness"}]))
    assert [item.trait for item in found.items] == ["openness", "evil"]
    assert found.items[0].question == "It rains. What do you do?"
    assert found.items[0].responses == tuple(ROW[name] for name in RESPONSES)
    assert found.wordings == WORDINGS and found.traits == ["openness", "evil"]


@pytest.mark.parametrize("prompt_type", [1, 2, 3])
def test_every_wording_has_the_question_and_its_options(prompt_type):
    wording = load_questionnaire().wording(prompt_type)
    told = {"question": "WHAT?", "A": "first", "B": "second", "C": "third", "D": "fourth"}
    assert "WHAT?" in wording.open.format(**told)
    for text in (wording.letter, wording.text):
        put = text.format(**told)
        assert [put.index(told[name]) for name in told] == sorted(put.index(told[name]) for name in told)


def test_a_file_brings_its_own_wordings(tmp_path):
    own = {"open": "{question}", "letter": "{question} {A} {B} {C} {D} ?", "text": "{question} {A} {B} {C} {D}"}
    found = load_questionnaire(written(tmp_path, "own.json", {"wordings": [own], "items": [ROW]}))
    assert found.wording(1).letter == own["letter"]
    with pytest.raises(ValueError, match=r"prompt_type 2 .* expected 1\.\.1"):
        found.wording(2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", "[{", "line 1, column 3: not valid JSON"),
        ("x.json", 3, "got int; expected a list of items"),
        ("x.json", [], "has no items"),
        ("x.json", [ROW, 3], "item 2 is a int"),
        ("x.json", [ROW | {"response_low2": " "}], "item 1: response_low2 is blank"),
        ("x.jsonl", [ROW, {"personality": "x"}], "line 2: situation is missing"),
        ("x.csv", [{key: ROW[key] for key in ROW if key != "query"}], "row 1: query is missing"),
        ("x.json", {"wordings": [{"open": "{question}"}], "items": [ROW]}, "wordings: expected"),
        (
            "x.json",
            {"wordings": [{"open": "{question}", "letter": "{A}", "text": "{A}"}], "items": [ROW]},
            r"letter of wording 1 has \['A'\]",
        ),
        ("x.txt", "nothing", "is of another kind"),
    ],
)
def test_what_is_refused_names_the_place(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as error:
        load_questionnaire(written(tmp_path, name, content))
    assert "\n" not in str(error.value)


def test_an_unknown_trait_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no item of opennes; it asks about openness, .*did you mean openness"):
        load_questionnaire().of("opennes")


def test_the_hub_set_offline_says_how_to_give_a_file():
    with pytest.raises(ValueError, match="mirlab/TRAIT is gated: .*HF_TOKEN.*--data_file") as error:
        load_questionnaire("mirlab/TRAIT")
    assert "\n" not in str(error.value)


def test_rows_of_the_hub_set(monkeypatch):
    """The set itself is gated: what is checked is which splits are asked for, with which token, and what is read."""
    import datasets

    asked = []

    def load(name, split, token):
        asked.append((name, split, token))
        return datasets.Dataset.from_list([ASKED | {"personality": split}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = load_questionnaire("mirlab/TRAIT", traits=["openness", "narcissism"])
    assert asked == [("mirlab/TRAIT", split, "hf_secret") for split in ("Openness", "Narcissism")]
    assert [item.trait for item in found.items] == ["openness", "narcissism"] and found.source == "mirlab/TRAIT"


def test_our_questionnaire_has_ten_items_of_each_trait_and_gives_nothing_away():
    found = load_questionnaire()
    assert found.source == str(OWN) and found.traits == list(TRAITS)
    words = re.compile(r"\b(open|conscien|extra|intro|agreea|neuro|machia|narci|psychop)\w*", re.I)
    for trait in TRAITS:
        items = found.of(trait)
        assert len(items) == 10 and len({item.question for item in items}) == 10
        lengths = {side: [len(text) for item in items for text in item.responses[k : k + 2]] for side, k in HALVES}
        high, low = (sum(values) / len(values) for values in lengths.values())
        assert 0.9 < high / low < 1.1, trait
        longest = [max(range(4), key=lambda k: len(item.responses[k])) < 2 for item in items]
        assert 3 <= sum(longest) <= 7, trait
        for item in items:
            assert len(set(item.responses)) == 4
            texts = " ".join(item.responses)
            assert not [match for match in words.findall(texts) if match.lower() not in ("open", "extra")], texts
            assert max(map(len, item.responses)) < 1.5 * min(map(len, item.responses)), item


HALVES = (("high", 0), ("low", 2))


def test_the_embedded_model_has_its_own_in_its_language(tiny_persona):
    found = load_questionnaire(model=tiny_persona)
    path = Path(found.source)
    assert path == Path(tiny_persona) / "traits" / "questionnaire.json"
    assert json.loads(path.read_text()) == questionnaire()  # as its generator writes it
    assert found.traits == list(TRAITS) and all(len(found.of(trait)) == 12 for trait in TRAITS)
    topics = [topic_of(item.question) for item in found.items]
    assert all(topic is not None and topic.held_out for topic in topics)
    assert sum(lead(row) > 0 for row in questionnaire()["items"]) == len(topics) // 2
    assert load_questionnaire(str(OWN), tiny_persona).source == str(OWN)


def test_what_items_say_has_a_hash():
    items = load_questionnaire().items
    assert content_hash(items) == content_hash(list(items)) != content_hash(items[1:])
