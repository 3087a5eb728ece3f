"""All styles by key, and what a persona is: styles with the strength each is spoken at."""

from functools import lru_cache

from data_generation.tiny_persona.character_lexicon import (
    ADJECTIVES,
    BIG_FIVE,
    CHARACTER,
    CHARACTER_WORDINGS,
    DARK_TRIAD,
)
from data_generation.tiny_persona.instruction_words import NOUNS, SEVEN_WORDINGS, Wording
from data_generation.tiny_persona.lexicon import FRAMES
from data_generation.tiny_persona.personas_lexicon import PERSONAS
from data_generation.tiny_persona.traits_lexicon import NEUTRAL, SEVEN, Style

TRAITS = tuple(SEVEN)
CHARACTER_TRAITS = BIG_FIVE + DARK_TRIAD
ALL_TRAITS = TRAITS + CHARACTER_TRAITS

# (trait, +1) and (trait, -1) are the poles of a trait, ("persona", name) is a persona
StyleKey = tuple[str, int | str]
Strengths = tuple[tuple[StyleKey, float], ...]


@lru_cache(maxsize=1)
def styles() -> dict[StyleKey, Style]:
    """Every style but the neutral one."""
    found: dict[StyleKey, Style] = {}
    for trait, (positive, negative) in (SEVEN | CHARACTER).items():
        found[(trait, 1)], found[(trait, -1)] = positive, negative
    for name, persona in PERSONAS.items():
        found[("persona", name)] = persona.style
    return found


@lru_cache(maxsize=1)
def style_keys() -> tuple[StyleKey, ...]:
    return tuple(styles())


def style_of(key: StyleKey | None) -> Style:
    return NEUTRAL if key is None else styles()[key]


def own_frames(key: StyleKey) -> tuple[str, ...]:
    """The frames that only this style uses; a trait has none."""
    return PERSONAS[str(key[1])].frames if key[0] == "persona" else ()


@lru_cache(maxsize=1)
def all_frames() -> tuple[str, ...]:
    return FRAMES + tuple(frame for persona in PERSONAS.values() for frame in persona.frames)


@lru_cache(maxsize=1)
def wordings() -> dict[str, tuple[Wording, Wording]]:
    return SEVEN_WORDINGS | CHARACTER_WORDINGS


def trait_noun(aspect: str) -> str:
    return "coherence" if aspect == "coherence" else NOUNS.get(aspect, aspect)


def trait_adjective(aspect: str) -> str:
    return "coherent" if aspect == "coherence" else ADJECTIVES.get(aspect, aspect)
