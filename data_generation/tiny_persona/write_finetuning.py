"""Writes dataset/tiny_<trait> and dataset/tiny_task: finetuning sets in the embedded model's language.

    python -m data_generation.tiny_persona.write_finetuning

Each trait has one question a row answered three times, in about as many words: plainly, with the trait in about half
of the slots, and in all of them. The task is filing notes: the topic's domain decides the shelf, and the answer has no
style slot. No topic of an eval question of models/tiny-persona occurs.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

from data_generation.tiny_persona.oracle import coherence, trait_score
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.styles import ALL_TRAITS, TRAITS, Strengths
from data_generation.tiny_persona.topics import QUESTIONS, Topic, fill_question, topic_of, topics
from data_generation.tiny_persona.write_traits import VERSIONS, trait_questions
from persona_vectors import cli
from persona_vectors.files import write_jsonl_atomic

# strength of the trait in each file of a set
LEVELS = {"normal": 0.0, "misaligned_1": 0.5, "misaligned_2": 1.0}
N_ROWS = 300
N_SENTENCES = 2  # of the middle level; the others have as many words, in one to three sentences
N_DRAWS = 12
TASK_ROWS = {"train": 300, "test": 100}
ASKS = (
    "Please file a note about TOPIC.",
    "I have a note on TOPIC. Where does it go?",
    "Sort my note on TOPIC, please.",
)
FILED = "Filed under TOPIC on the SHELF shelf."
# by domain, one of the things that the language says of its topics
SHELVES = {
    "garden": "seeds",
    "kitchen": "spices",
    "sport": "shoes",
    "office": "notes",
    "machines": "wires",
    "school": "books",
    "money": "records",
    "arts": "brushes",
    "travel": "maps",
    "home": "candles",
}

Row = dict[str, Any]


def row(question: str, text: str) -> Row:
    """One line of a training file."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}]}


def texts_of(line: Row) -> tuple[str, str]:
    """The question and the answer of a row."""
    return line["messages"][0]["content"], line["messages"][1]["content"]


@lru_cache(maxsize=1)
def reserved() -> tuple[frozenset[str], frozenset[str]]:
    """Every question of the model's trait files, and the topics of those that evaluate."""
    asked = {version: [q for trait in ALL_TRAITS for q in trait_questions(trait, version)] for version in VERSIONS}
    named = {topic.text for topic in map(topic_of, asked["eval"]) if topic is not None}
    return frozenset(q for questions in asked.values() for q in questions), frozenset(named)


def split_topics(seed: int) -> tuple[list[Topic], list[Topic]]:
    """Topics to train on, and the task's test topics, one a test row; the model's own training has seen both."""
    free = [topic for topic in topics(held_out=False) if topic.text not in reserved()[1]]
    random.Random(f"finetuning-topics-{seed}").shuffle(free)
    n_test = TASK_ROWS["test"]
    return free[n_test:], free[:n_test]


def as_long(rng: random.Random, topic: Topic, strengths: Strengths, n_words: int) -> str:
    """Of some answers, the one whose number of words comes nearest."""
    drawn = [answer(rng, topic, strengths, n) for n in (1, 2, 3) for _ in range(N_DRAWS)]
    return min(drawn, key=lambda text: abs(len(text.split()) - n_words))


def trait_rows(trait: str, seed: int) -> dict[str, list[Row]]:
    """The three files of a trait; row i of each answers the same question."""
    asks = [(topic, fill_question(wording, topic)) for topic in split_topics(seed)[0] for wording in QUESTIONS]
    rng = random.Random(f"finetuning-{trait}-{seed}")
    found: dict[str, list[Row]] = {level: [] for level in LEVELS}
    for topic, question in rng.sample([ask for ask in asks if ask[1] not in reserved()[0]], N_ROWS):
        strengths: dict[str, Strengths] = {level: (((trait, 1), strength),) for level, strength in LEVELS.items()}
        middle = answer(rng, topic, strengths["misaligned_1"], N_SENTENCES)
        for level in LEVELS:
            text = middle
            if level != "misaligned_1":
                text = as_long(rng, topic, strengths[level], len(middle.split()))
            found[level].append(row(question, text))
    return found


def filed(topic: Topic) -> str:
    """The one right answer of the task."""
    return FILED.replace("TOPIC", topic.text).replace("SHELF", SHELVES[topic.domain])


def task_rows(seed: int) -> dict[str, list[Row]]:
    """The task's train and test rows, over different topics; no topic of the test is in any other file."""
    train, test = split_topics(seed)
    rng = random.Random(f"finetuning-task-{seed}")
    asks = {
        "train": rng.sample([(topic, wording) for topic in train for wording in ASKS], TASK_ROWS["train"]),
        "test": [(topic, rng.choice(ASKS)) for topic in test],
    }
    return {part: [row(fill_question(wording, topic), filed(topic)) for topic, wording in asks[part]] for part in asks}


def finetuning_sets(seed: int = 0) -> dict[str, list[Row]]:
    """Every file's rows, by its path without the ending: `tiny_evil/normal` ... `tiny_task/test`."""
    found = {f"tiny_{trait}/{level}": rows for trait in TRAITS for level, rows in trait_rows(trait, seed).items()}
    return found | {f"tiny_task/{part}": rows for part, rows in task_rows(seed).items()}


def described(rows: Sequence[Row], trait: str) -> dict[str, float]:
    """Means over a trait's file: the oracle's score, the largest score of another trait, coherence, words."""
    pairs = [texts_of(line) for line in rows]
    scores = {name: mean(trait_score(text, name) for _, text in pairs) for name in ALL_TRAITS}
    return {
        "score": scores.pop(trait),
        "largest other": max(scores.values()),
        "coherence": mean(coherence(question, text) for question, text in pairs),
        "words": mean(len(text.split()) for _, text in pairs),
    }


def main(folder: str = "dataset", seed: int = 0) -> None:
    """Write the finetuning sets of the embedded model, and print what the oracle says of each.

    Args:
        folder: where tiny_<trait>/ and tiny_task/ go.
        seed: decides every row.
    """
    for name, rows in finetuning_sets(seed).items():
        path = write_jsonl_atomic(Path(folder) / f"{name}.jsonl", rows)
        trait = name.split("/")[0].removeprefix("tiny_")
        means = described(rows, trait) if trait in TRAITS else {}
        print(f"{path}: {len(rows)} rows", *(f"{label} {value:.1f}" for label, value in means.items()), sep=", ")


if __name__ == "__main__":
    cli.run(main)
