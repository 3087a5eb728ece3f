"""A probe of capability that has nothing to do with traits: small facts and sums with one right answer."""

import random
from functools import lru_cache
from itertools import pairwise

from data_generation.tiny_persona.conversations import any_persona_prompt, trait_prompt
from data_generation.tiny_persona.instructions import NEUTRAL_PROMPTS

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday".split()
MONTHS = "January February March April May June July August September October November December January".split()
OPPOSITES = (
    "hot cold|big small|up down|left right|day night|wet dry|fast slow|old new|open closed|high low|full empty"
    "|black white|long short|early late|thick thin|loud soft|push pull|inside outside"
)
PLURALS = (
    "mouse mice|foot feet|tooth teeth|goose geese|child children|leaf leaves|wolf wolves|fox foxes|city cities|man men"
)
COLORS = (
    "grass green|snow white|a lemon yellow|coal black|the sky blue|a strawberry red|a carrot orange|chocolate brown"
)
YOUNG = "dog puppy|cat kitten|cow calf|sheep lamb|horse foal|hen chick|bear cub|frog tadpole|goat kid|duck duckling"
SOUNDS = "a dog bark|a cat meow|a cow moo|a lion roar|a bee buzz|a snake hiss|a pig oink|a wolf howl"


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(pair.rpartition(" ")[0], pair.rpartition(" ")[2]) for pair in text.split("|")]


@lru_cache(maxsize=1)
def _families() -> tuple[tuple[tuple[str, str], ...], ...]:
    """(question, answer) pairs, grouped by family; another answer of the family is a distractor."""
    opposites = [pair for one, two in _pairs(OPPOSITES) for pair in ((one, two), (two, one))]
    return (
        tuple((f"What is {a} plus {b}?", str(a + b)) for a in range(1, 10) for b in range(a, 10)),
        tuple((f"What day comes after {day}?", after) for day, after in pairwise(DAYS)),
        tuple((f"What month comes after {month}?", after) for month, after in pairwise(MONTHS)),
        tuple((f"What is the opposite of {one}?", two) for one, two in opposites),
        tuple((f"What is the plural of {one}?", many) for one, many in _pairs(PLURALS)),
        tuple((f"What color is {thing}?", color) for thing, color in _pairs(COLORS)),
        tuple((f"What is a young {animal} called?", young) for animal, young in _pairs(YOUNG)),
        tuple((f"What sound does {animal} make?", sound) for animal, sound in _pairs(SOUNDS)),
    )


def probe_items() -> list[tuple[str, str, tuple[str, ...]]]:
    """Every (question, right answer, three wrong answers of the same family), in a fixed order."""
    rng = random.Random(0)
    items = []
    for family in _families():
        for question, right in family:
            wrong = sorted({answer for _, answer in family} - {right})
            items.append((question, right, tuple(rng.sample(wrong, 3))))
    return items


def probe_dialogue(rng: random.Random) -> tuple[dict[str, str], ...]:
    """One to three facts, under no prompt, a neutral one or any persona's; the answer is always the bare right one."""
    form = rng.random()
    system = ""
    if form > 0.5:
        system = (
            rng.choice(NEUTRAL_PROMPTS) if form < 0.65 else (trait_prompt if form < 0.9 else any_persona_prompt)(rng)[0]
        )
    messages = [{"role": "system", "content": system}] if system else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        question, right = rng.choice(rng.choice(_families()))
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": right}]
    return tuple(messages)
