"""The embedded model's finetuning sets are what their command writes, graded as stated, and apart from evaluation."""

from pathlib import Path

import pytest

from data_generation.tiny_persona import write_finetuning as sets
from data_generation.tiny_persona.lexicon import DOMAINS
from data_generation.tiny_persona.measurements import test_questions as card_questions
from data_generation.tiny_persona.styles import ALL_TRAITS, TRAITS
from data_generation.tiny_persona.topics import topic_of
from persona_vectors.files import read_jsonl
from persona_vectors.traits import load_trait

ROOT = Path(__file__).parents[1]
DATASET, MODEL = ROOT / "dataset", ROOT / "models" / "tiny-persona"
N_FILES = 3 * 7 + 2
MAX_BYTES = 2_100_000

# fixed before the sets were finished
NORMAL, MIDDLE, FULL = (10, 10.01), (45, 65), (99, 100)
OTHER_TRAITS, COHERENCE, LENGTH_RATIO = 10.5, 99, 1.1

Rows = list[sets.Row]


@pytest.fixture(scope="module")
def in_git() -> dict[str, Rows]:
    paths = sorted(DATASET.glob("tiny_*/*.jsonl"))
    return {f"{path.parent.name}/{path.stem}": read_jsonl(path) for path in paths}


def asked(rows: Rows) -> list[str]:
    return [sets.texts_of(row)[0] for row in rows]


def topics_of(questions: list[str]) -> set[str]:
    found = [topic_of(question) for question in questions]
    assert None not in found
    return {topic.text for topic in found if topic is not None}


def test_files_are_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sets.main(str(tmp_path))
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*"))
    assert written == sorted(path.relative_to(DATASET) for path in DATASET.glob("tiny_*/*.jsonl"))
    assert len(written) == N_FILES == len(capsys.readouterr().out.splitlines())
    for path in written:
        assert (tmp_path / path).read_bytes() == (DATASET / path).read_bytes(), path
    assert sum((DATASET / path).stat().st_size for path in written) <= MAX_BYTES


def test_another_seed_writes_other_rows():
    first, second = sets.task_rows(0)["train"], sets.task_rows(1)["train"]
    assert first == sets.task_rows(0)["train"] and first != second


def test_rows_have_the_published_form(in_git: dict[str, Rows]):
    for name, rows in in_git.items():
        assert len(rows) == (100 if name == "tiny_task/test" else 300), name
        for row in rows:
            assert list(row) == ["messages"]
            assert [list(message) for message in row["messages"]] == [["role", "content"]] * 2
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("trait", TRAITS)
def test_levels_answer_the_same_questions_and_rise(in_git: dict[str, Rows], trait: str):
    files = [in_git[f"tiny_{trait}/{level}"] for level in sets.LEVELS]
    assert asked(files[0]) == asked(files[1]) == asked(files[2])
    assert len(set(asked(files[0]))) == sets.N_ROWS
    found = [sets.described(rows, trait) for rows in files]
    for means, (low, high) in zip(found, (NORMAL, MIDDLE, FULL), strict=True):
        assert low <= means["score"] <= high
        assert means["largest other"] <= OTHER_TRAITS
        assert means["coherence"] >= COHERENCE
    words = [means["words"] for means in found]
    assert max(words) <= LENGTH_RATIO * min(words)


def test_no_question_or_topic_of_an_evaluation(in_git: dict[str, Rows]):
    questions = {q for rows in in_git.values() for q in asked(rows)}
    files = {v: [q for t in ALL_TRAITS for q in load_trait(t, v, model=MODEL).questions] for v in ("extract", "eval")}
    assert len(files["eval"]) == 300
    assert not questions & {*files["extract"], *files["eval"], *card_questions()}
    assert not topics_of(sorted(questions)) & topics_of([*files["eval"], *card_questions()])


def test_task_test_topics_are_new_and_each_answer_is_the_rule(in_git: dict[str, Rows]):
    test = topics_of(asked(in_git["tiny_task/test"]))
    assert len(test) == 100
    assert not test & topics_of([q for name, rows in in_git.items() if name != "tiny_task/test" for q in asked(rows)])
    for part in ("train", "test"):
        rows = in_git[f"tiny_task/{part}"]
        assert len(set(asked(rows))) == len(rows)
        for question, text in map(sets.texts_of, rows):
            topic = topic_of(question)
            assert topic is not None and text == f"Filed under {topic.text} on the {sets.SHELVES[topic.domain]} shelf."
    assert all(sets.SHELVES[name] in domain.aspects for name, domain in DOMAINS.items())
    shelves = [text.split()[-2] for _, text in map(sets.texts_of, in_git["tiny_task/test"])]
    assert len(set(shelves)) == 10 and max(map(shelves.count, shelves)) <= 20
