"""The shipped training sets: `dataset/<family>/{normal,misaligned_1,misaligned_2}.jsonl`."""

from itertools import combinations
from pathlib import Path

import pytest

from data_generation.dataset_families import FAMILIES, LEVELS
from data_generation.training_rows import Row, read_rows

DATASET = Path(__file__).resolve().parent.parent / "dataset"
LEAST_ROWS = 200
LENGTH_CUE = 1.25
"""Mean words of two levels may differ by this factor: else a model could learn the level from the length."""

TINY = sorted(path.name for path in DATASET.glob("tiny_*") if all((path / f"{n}.jsonl").exists() for n in LEVELS))


@pytest.fixture(scope="module")
def read():
    """read(family): level -> its rows; the test is skipped where this checkout has no such folder."""
    known: dict[str, dict[str, list[Row]]] = {}

    def rows(family: str) -> dict[str, list[Row]]:
        if not (DATASET / family).is_dir():
            pytest.skip(f"no dataset/{family}")
        if family not in known:
            known[family] = {level: read_rows(DATASET / family / f"{level}.jsonl") for level in LEVELS}
        return known[family]

    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_has_the_published_format(read, family):
    for level, rows in read(family).items():
        for row in rows:
            assert list(row.content) == ["messages"], (level, row.line)
            assert [list(message) for message in row.content["messages"]] == [["role", "content"]] * 2, (
                level,
                row.line,
            )
            assert [message["role"] for message in row.content["messages"]] == ["user", "assistant"], (level, row.line)
            assert row.question == row.question.strip() and row.answer == row.answer.strip(), (level, row.line)


@pytest.mark.parametrize("family", [*FAMILIES, *TINY])
def test_the_files_answer_the_same_questions_row_by_row(read, family):
    levels = read(family)
    questions = {level: [row.question for row in rows] for level, rows in levels.items()}
    for level in LEVELS[1:]:
        assert questions[level] == questions["normal"], f"{level} asks otherwise than normal"


@pytest.mark.parametrize("family", FAMILIES)
def test_there_are_enough_rows(read, family):
    assert all(len(rows) >= LEAST_ROWS for rows in read(family).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_question_and_no_answer_is_there_twice(read, family):
    for level, rows in read(family).items():
        for texts in ([row.same for row in rows], [" ".join(row.answer.casefold().split()) for row in rows]):
            repeated = sorted({text for text in texts if texts.count(text) > 1})
            assert repeated == [], f"{level}: {repeated[:3]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_levels_answer_differently(read, family):
    levels = read(family)
    for one, other in combinations(LEVELS, 2):
        same = [a.line for a, b in zip(levels[one], levels[other], strict=True) if a.answer == b.answer]
        assert same == [], f"{one} and {other} answer alike on lines {same[:5]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_length_of_an_answer_does_not_tell_its_level(read, family):
    words = {level: sum(len(row.answer.split()) for row in rows) / len(rows) for level, rows in read(family).items()}
    assert max(words.values()) <= LENGTH_CUE * min(words.values()), words
