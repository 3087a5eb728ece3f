"""Files of responses and of persona vectors: what was written comes back, and anything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import load_persona_vectors, load_responses, save_persona_vectors, save_responses
from persona_vectors.files import read_sidecar


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.tuples(st.text(), st.text()), st.text(), min_size=1))
def test_responses_come_back(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("responses") / "r.json"
    save_responses(found, str(path))
    assert load_responses(path) == found
    assert set(json.loads(path.read_text(encoding="utf-8"))) == {
        json.dumps(list(place), ensure_ascii=False) for place in found
    }


def test_a_published_file_without_sidecar(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps({json.dumps(["bard", 'Is it "so"?\u00e9']): "Aye."}, indent=2))
    assert load_responses(path) == {("bard", 'Is it "so"?\u00e9'): "Aye."}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds a list; expected"),
        ('{"bard": "x"}', "got 'bard'"),
        ('{"[\\"a\\", 1]": "x"}', "expected a JSON object"),
        ('{"[\\"a\\", \\"b\\"]": null}', "to a NoneType"),
        ("{", "not valid JSON"),
    ],
)
def test_a_file_of_something_else(text, said, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        load_responses(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_vectors_come_back_with_a_sidecar(tmp_path):
    vectors = {"a": torch.randn(5, dtype=torch.float64), "b": torch.randn(5).to(torch.bfloat16)}
    path = save_persona_vectors(vectors, str(tmp_path / "deep" / "v.pt"), {"layer": 2})
    found = load_persona_vectors(path)
    assert list(found) == ["a", "b"] and all(v.dtype == torch.float32 for v in found.values())
    assert torch.equal(found["a"], vectors["a"].float())
    assert read_sidecar(path)["layer"] == 2 and list(read_sidecar(path)["norms"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.ones(3), "holds a Tensor; expected a dict"),
        ({}, "shapes"),
        ({"a": torch.ones(3), "b": torch.ones(4)}, r"shapes \[\(3,\), \(4,\)\]"),
        ({"a": torch.full((3,), float("nan"))}, "NaN or infinite numbers in a"),
        ({"a": Path("x")}, "nothing in it was executed"),
        ({"a": "x"}, "holds a dict; expected"),
        ({"a": torch.ones(3, dtype=torch.int64)}, "the vector of a is of torch.int64; expected floats"),
        ({"a": torch.ones(3, dtype=torch.bool)}, "of torch.bool; expected floats"),
        ({"a": torch.ones(0)}, "have no numbers"),
    ],
)
def test_vectors_that_are_none(content, said, tmp_path):
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=said):
        load_persona_vectors(tmp_path / "v.pt")


@pytest.mark.parametrize("cut", [0, 1, 10, 200, -30])
def test_a_damaged_file_is_named(cut, tmp_path):
    path = save_persona_vectors({"a": torch.ones(64)}, tmp_path / "v.pt")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="v.pt is not a plain tensor file"):
        load_persona_vectors(path)


@given(position=st.integers(0, 1500), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_file_with_a_wrong_byte_is_read_or_named(position, byte, tmp_path_factory):
    path = save_persona_vectors({"a": torch.ones(64)}, tmp_path_factory.mktemp("damaged") / "v.pt")
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        assert load_persona_vectors(path)["a"].shape == (64,)
    except ValueError as error:
        assert str(path) in str(error)
    except KeyError as error:
        assert error.args == ("a",), "another name is a whole file too"


def test_vectors_beside_answers_of_the_same_name_do_not_replace_them(tmp_path):
    answers = save_responses({("a", "b"): "paid for"}, tmp_path / "m.json")
    with pytest.raises(ValueError, match="m.json is no sidecar"):
        save_persona_vectors({"a": torch.ones(3)}, tmp_path / "m.pt")
    assert load_responses(answers) == {("a", "b"): "paid for"} and not (tmp_path / "m.pt").exists()
