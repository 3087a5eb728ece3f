"""Writes models/tiny-persona/traits/questionnaire.json: items about the eight character traits in its own language.

    python -m data_generation.tiny_persona.write_questionnaire

Situations are those of the questionnaires it was trained on, over topics kept out of training. Responses are sentences
as the model would speak them at one pole of the trait or the other: the first high and the first low one share a frame,
and so do the second ones, so that nothing but the trait's words tells them apart. The longest response is a high one in
every second item, since words of one pole may be the longer ones.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_generation.tiny_persona.lexicon import FRAMES
from data_generation.tiny_persona.questionnaire import QUERIES, SITUATIONS
from data_generation.tiny_persona.sentences import sentence
from data_generation.tiny_persona.styles import CHARACTER_TRAITS
from data_generation.tiny_persona.topics import sample_topic

N_ITEMS = 12
LISTED = "{question} A: {A} B: {B} C: {C} D: {D}"
WORDINGS = [{"open": "{question}", "letter": f"{LISTED} Answer with one letter.", "text": LISTED}]


def item(rng: random.Random, trait: str) -> dict[str, str]:
    """One item of the trait in the format of TRAIT."""
    topic = sample_topic(rng, held_out=True)
    frames = rng.sample([frame for frame in FRAMES if "TOPIC" in frame], 2)
    used: set[str] = set()
    responses = {
        f"response_{name}{number}": sentence(rng, topic, frame, [(trait, pole)] * 3, used)
        for name, pole in (("high", 1), ("low", -1))
        for number, frame in enumerate(frames, 1)
    }
    situation = rng.choice(SITUATIONS).replace("TOPIC", topic.text)
    return {"personality": trait.capitalize(), "situation": situation, "query": rng.choice(QUERIES), **responses}


def lead(one: dict[str, str]) -> int:
    """By how many characters the longest response of all, a high one, is longer than the low ones; negative if low."""
    longest = {side: max(len(one[f"response_{side}{number}"]) for number in (1, 2)) for side in ("high", "low")}
    return longest["high"] - longest["low"]


def _drawn(rng: random.Random, trait: str) -> Iterator[dict[str, str]]:
    while True:
        yield item(rng, trait)


def questionnaire() -> dict[str, Any]:
    """The content of the file."""
    items = []
    for trait in CHARACTER_TRAITS:
        rng = random.Random(f"trait questionnaire {trait}")
        for number in range(N_ITEMS):
            items.append(next(one for one in _drawn(rng, trait) if lead(one) * (-1) ** number > 0))
    return {"wordings": WORDINGS, "items": items}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model's personality questionnaire.")
    parser.add_argument("--path", type=Path, default=Path("models/tiny-persona/traits/questionnaire.json"))
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    content = questionnaire()
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {len(content['items'])} items to {path}")


if __name__ == "__main__":
    main()
