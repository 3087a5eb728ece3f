"""Personas and questions: the published names, and those of a model folder or file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_generation.tiny_persona.write_personas import persona_file
from persona_vectors import ASSISTANT_PERSONAS, EVAL_QUESTIONS, GROUPS, PERSONAS, load_personas


def test_published_names_in_groups():
    assert [name for names in GROUPS.values() for name in names] == list(PERSONAS)
    assert len(PERSONAS) == 23 and ASSISTANT_PERSONAS == tuple(PERSONAS)[:4]
    assert PERSONAS["default"] == "" and all(PERSONAS[name] for name in tuple(PERSONAS)[1:])
    assert all(1 <= len(re.findall(r"[.!?](?:\s|$)", text)) <= 3 for text in PERSONAS.values() if text)
    assert len(set(EVAL_QUESTIONS)) == len(EVAL_QUESTIONS) == 18


def test_a_model_folders_own(axis_cast):
    assert list(axis_cast.personas) == list(PERSONAS) and len(axis_cast.questions) == 18
    assert json.loads(Path(axis_cast.source).read_text()) == persona_file()
    assert load_personas("org/model").personas == load_personas().personas == PERSONAS
    assert axis_cast.hash != load_personas().hash == load_personas().hash


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected personas, questions"),
        ({"personas": {"a": ""}}, "has personas; expected"),
        ({"personas": {"a": 1}, "questions": ["?"]}, "name to system prompt"),
        ({"personas": {"a": ""}, "questions": [" "]}, "questions must be a list of texts"),
        ({"personas": {"a": ""}, "questions": ["?", "?"]}, "a question is there twice"),
        ({"personas": {"a": ""}, "questions": ["?"], "roles": {"b": "x"}}, "roles has b, which personas has not"),
        ({"personas": {"a": ""}, "questions": ["?"], "role_prompt": "{role}"}, "role_prompt must have"),
    ],
)
def test_a_file_that_is_not_so(content, said, tmp_path):
    path = tmp_path / "personas.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        load_personas(path=path)
    with pytest.raises(ValueError, match="there is no file"):
        load_personas(path=tmp_path / "none.json")
