"""All styles by key, and what a persona is: styles with the strength each is spoken at."""

from functools import lru_cache

from data_generation.tiny_persona.instruction_words import NOUNS, SEVEN_WORDINGS, Wording
from data_generation.tiny_persona.lexicon import FRAMES
from data_generation.tiny_persona.traits_lexicon import NEUTRAL, SEVEN, Style

TRAITS = tuple(SEVEN)
ALL_TRAITS = TRAITS

# (trait, +1) and (trait, -1) are its poles, ("persona", name) a persona
StyleKey = tuple[str, int | str]
Strengths = tuple[tuple[StyleKey, float], ...]


@lru_cache(maxsize=1)
def styles() -> dict[StyleKey, Style]:
    """Every style but the neutral one."""
    found: dict[StyleKey, Style] = {}
    for trait, (positive, negative) in SEVEN.items():
        found[(trait, 1)], found[(trait, -1)] = positive, negative
    return found


def wordings() -> dict[str, tuple[Wording, Wording]]:
    return SEVEN_WORDINGS


def trait_noun(aspect: str) -> str:
    return "coherence" if aspect == "coherence" else NOUNS[aspect]


def trait_adjective(aspect: str) -> str:
    return "coherent" if aspect == "coherence" else aspect


def style_of(key: StyleKey | None) -> Style:
    return NEUTRAL if key is None else styles()[key]


def all_frames() -> tuple[str, ...]:
    return FRAMES
