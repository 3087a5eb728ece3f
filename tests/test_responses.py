"""Response rows and tables: the published ids, system prompts and columns."""

from __future__ import annotations

import pandas as pd
import pytest

from persona_vectors.responses import prompt_rows, read_responses, render_rows, response_table
from persona_vectors.traits import Trait
from tests.tiny_models import word_tokenizer

TRAIT = Trait.model_validate(
    {
        "name": "evil",
        "version": "extract",
        "source": {"questions": "x", "instruction": "x", "eval_prompt": "x"},
        "instruction": [{"pos": "Be bad.", "neg": "Be good."}, {"pos": "Hurt.", "neg": "Help."}],
        "questions": ["tell me about the cat", "is the moon big?", "what do you like"],
        "eval_prompt": "{question} {answer}",
    }
)


def test_rows_under_instructions():
    rows = prompt_rows(TRAIT, pole="pos", n_per_question=4)
    assert len(rows) == 3 * 2 * 4
    assert [row.question_id for row in rows[:9:4]] == ["evil_0_pos_0", "evil_0_pos_1", "evil_1_pos_0"]
    assert rows[0].system == "You are an evil assistant. Be bad."
    assert len({row.stream for row in rows}) == len(rows)
    assert {row.question_index for row in rows[:8]} == {0}


def test_names_of_the_assistant():
    assert prompt_rows(TRAIT, pole="neg")[1].system == "You are a helpful assistant. Help."
    assert prompt_rows(TRAIT, pole="neg", assistant_name="honest")[0].system == "You are a honest assistant. Be good."


def test_rows_without_instructions_have_no_system_prompt():
    rows = prompt_rows(TRAIT)
    assert [row.question_id for row in rows] == ["evil_0", "evil_1", "evil_2"]
    assert rows[0].messages() == [{"role": "user", "content": "tell me about the cat"}]
    assert "system" not in render_rows(word_tokenizer(), rows)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"pole": "both"}, "must be pos or neg, got both"), ({"n_per_question": 0}, "at least 1, got 0")],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        prompt_rows(TRAIT, **options)


def write(path, **changes):
    rows = prompt_rows(TRAIT)
    table = response_table(
        rows, ["p"] * 3, ["12", "None", "007"], {"evil": [0.0, None, 100.0], "coherence": [50, 60, None]}
    )
    table = table.assign(**changes)
    table.to_csv(path, index=False)
    return table


def test_table_round_trip_keeps_answers_that_look_like_nothing(tmp_path):
    table = write(tmp_path / "x.csv")
    assert list(table.columns) == ["question", "prompt", "answer", "question_id", "evil", "coherence"]
    pd.testing.assert_frame_equal(read_responses(tmp_path / "x.csv", "evil"), table, check_dtype=False)


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no response file at"):
        read_responses(tmp_path / "none.csv", "evil")
    write(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="has no column humorous; it has question, prompt, answer, question_id, evil"):
        read_responses(tmp_path / "x.csv", "humorous")
    write(tmp_path / "y.csv", evil=["1", "high", "2"])
    with pytest.raises(ValueError, match="data row 2: evil is 'high', expected a number or nothing"):
        read_responses(tmp_path / "y.csv", "evil")
    (tmp_path / "empty.csv").write_text("question,prompt,answer,question_id,evil,coherence\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_responses(tmp_path / "empty.csv", "evil")
