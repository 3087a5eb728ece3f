"""Writes models/tiny-persona/traits: its own trait files in the published schema, and its coherence prompt.

    python -m data_generation.tiny_persona.write_traits

Instructions of `extract` are in wordings that training sees, those of `eval` in wordings kept out of training.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_generation.tiny_persona.instructions import instruction, suppression
from data_generation.tiny_persona.judging import eval_prompt
from data_generation.tiny_persona.styles import ALL_TRAITS
from data_generation.tiny_persona.topics import held_out_questions, train_questions

N_PAIRS = 5
N_QUESTIONS = 20
VERSIONS = ("extract", "eval")


def _distinct(write: Callable[[], str], n: int) -> list[str]:
    """n different texts of a writer, in the order written."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[write()] = None
    return list(found)


def instruction_pairs(trait: str, version: str) -> list[dict[str, str]]:
    """Five pairs; the negative is a ban of the trait in three of them and its opposite in two."""
    rng, held_out = random.Random(f"instructions-{version}-{trait}"), version == "eval"
    positive = _distinct(lambda: instruction(trait, 1, rng, held_out), N_PAIRS)
    banned = _distinct(lambda: suppression(trait, rng, held_out), N_PAIRS - 2)
    opposite = _distinct(lambda: instruction(trait, -1, rng, held_out), 2)
    negative = [text for pair in zip(banned, [*opposite, ""], strict=True) for text in pair if text]
    return [{"pos": pos, "neg": neg} for pos, neg in zip(positive, negative, strict=True)]


def trait_questions(trait: str, version: str) -> list[str]:
    """Twenty questions: over topics of training for extract, half of them over unseen topics for eval.

    The two versions share no question.
    """
    seed = ALL_TRAITS.index(trait)
    seen = train_questions(N_QUESTIONS + N_QUESTIONS // 2, seed)
    if version == "extract":
        return seen[:N_QUESTIONS]
    return seen[N_QUESTIONS:] + held_out_questions(N_QUESTIONS // 2, seed)


def trait_file(trait: str, version: str) -> dict[str, Any]:
    """The content of one trait file."""
    return {
        "instruction": instruction_pairs(trait, version),
        "questions": trait_questions(trait, version),
        "eval_prompt": eval_prompt(trait),
    }


def write_traits(folder: Path) -> list[Path]:
    """Writes every trait file and coherence.json under the folder; the paths written."""
    contents = {f"{version}/{trait}.json": trait_file(trait, version) for version in VERSIONS for trait in ALL_TRAITS}
    contents["coherence.json"] = {"eval_prompt": eval_prompt("coherence")}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in contents]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the trait files of the embedded model.")
    parser.add_argument("--folder", type=Path, default=Path("models/tiny-persona/traits"), help="where they go")
    paths = write_traits(parser.parse_args().folder)
    print(f"wrote {len(paths)} files, e.g. {paths[0]}")


if __name__ == "__main__":
    main()
