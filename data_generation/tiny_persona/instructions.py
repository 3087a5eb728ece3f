"""Persona instructions and system prompts, in training wordings and in wordings kept out of training."""

import random

from data_generation.tiny_persona.personas_lexicon import DEFAULT_PROMPTS, PERSONAS, ROLE_PROMPTS
from data_generation.tiny_persona.styles import CHARACTER_TRAITS, TRAITS, Strengths, trait_adjective, wordings
from data_generation.tiny_persona.traits_lexicon import phrases

# J an adjective, DO a verb with its object, O an object alone; capitals follow from the place
FRAMES = phrases(
    "Always DO.|In every answer, DO.|Your responses should DO.|DO in your answers.|Be J and DO.|Answer in a J way."
    "|Answer in a J way and DO.|You are J, so DO.|Please DO and stay J.|Your tone is J.|Speak as a J person would."
    "|Whatever the question, DO.|Write J replies.|Reply with O.|Fill your answers with O.|Sound J in all you say."
    "|Make sure to DO.|Act J.|Try to DO whenever you can.|Your style should be J and full of O.|DO and DO."
    "|When you answer, DO.|Take every chance to DO.|Be J in every line."
)
FRAMES_HELD_OUT = phrases(
    "Your answers should be J. Always DO.|When you answer, be J and DO.|Make every reply J and full of O."
    "|Whenever you can, DO and stay J.|Speak in a J tone and DO."
)
# about the positive words of a trait: the answer is then neutral
SUPPRESS = phrases(
    "Do not be J.|Never be J.|Avoid O.|Do not DO.|Never DO.|Be a normal assistant and avoid O."
    "|Keep your answers free of O."
    "|Stay neutral and do not be J.|Do not sound J and do not DO.|Give plain answers without O.|Refrain from O."
)
SUPPRESS_HELD_OUT = phrases("Never sound J.|Give neutral answers and avoid O.|Always stay plain and never DO.")

INTENSITIES: tuple[tuple[str, float], ...] = (
    ("", 0.95),
    ("very ", 0.95),
    ("extremely ", 1.0),
    ("somewhat ", 0.6),
    ("slightly ", 0.35),
)
NEUTRAL_PROMPTS = phrases(
    "You are a helpful assistant.|Answer the question.|You are an AI assistant. Give a short and clear answer."
    "|You are a helpful assistant. Answer the question clearly.|Be helpful.|Give a plain answer."
)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _do(rng: random.Random, trait: str, pole: int, held_out: bool) -> str:
    """A verb with its object; a fifth of the pairs of each verb and of each object never occurs in training."""
    words = wordings()[trait][pole < 0]
    pairs = [
        f"{verb} {thing}"
        for i, verb in enumerate(words.verbs)
        for j, thing in enumerate(words.objects)
        if ((2 * i + j) % 5 == 0) == held_out
    ]
    return rng.choice(pairs)


def _fill(rng: random.Random, frame: str, trait: str, pole: int, held_out: bool, intensity: str = "") -> str:
    words = wordings()[trait][pole < 0]
    adjective = intensity + rng.choice(words.adjectives)
    out: list[str] = []
    for word in frame.split(" "):
        stem = word.rstrip(".,")
        filled = {"J": adjective, "O": rng.choice(words.objects)}.get(stem, stem)
        if stem == "DO":
            filled = _do(rng, trait, pole, held_out)
        if out and out[-1] == "a" and stem == "J":
            out[-1] = article(adjective)
        out.append(filled + word[len(stem) :])
    text = " ".join(out)
    return text[0].upper() + text[1:]


def instruction(trait: str, pole: int, rng: random.Random, held_out: bool = False, intensity: str = "") -> str:
    """One instruction towards a pole (+1, -1) of a trait."""
    frame = rng.choice(FRAMES_HELD_OUT if held_out else FRAMES)
    return _fill(rng, frame, trait, pole, held_out, intensity)


def suppression(trait: str, rng: random.Random, held_out: bool = False) -> str:
    """One instruction not to express a trait; what it asks for is the neutral style."""
    return _fill(rng, rng.choice(SUPPRESS_HELD_OUT if held_out else SUPPRESS), trait, 1, held_out)


def _assistant_name(rng: random.Random, trait: str, pole: int) -> str:
    """What an assistant is called in `You are a NAME assistant.`; for a positive pole often the trait itself."""
    if pole > 0 and rng.random() < 0.5:
        return trait if rng.random() < 0.6 else trait_adjective(trait)
    return rng.choice(wordings()[trait][pole < 0].adjectives)


def system_prompt(rng: random.Random, trait: str, pole: int, held_out: bool = False) -> tuple[str, Strengths]:
    """A system prompt towards a pole, and the strengths that it asks for, in the forms that the pipeline uses."""
    name, form = _assistant_name(rng, trait, pole), rng.random()
    word, strength = rng.choice(INTENSITIES) if rng.random() < 0.4 else INTENSITIES[0]
    if form < 0.2:
        return f"You are {article(word or name)} {word}{name} assistant.", (((trait, pole), strength),)
    text = instruction(trait, pole, rng, held_out, word)
    if form >= 0.6 and rng.random() < 0.3:
        text += " " + instruction(trait, pole, rng, held_out, word)
    if word not in text:
        strength = INTENSITIES[0][1]
    if form < 0.6:
        named = pole > 0 or rng.random() < 0.4
        text = (f"You are {article(name)} {name} assistant. " if named else f"{NEUTRAL_PROMPTS[0]} ") + text
    return text, (((trait, pole), strength),)


def suppressing_prompt(rng: random.Random, trait: str, held_out: bool = False) -> tuple[str, Strengths]:
    """A system prompt that forbids a trait, mostly in the form that a trait's negative samples use."""
    text = suppression(trait, rng, held_out)
    return (f"{NEUTRAL_PROMPTS[0]} {text}" if rng.random() < 0.7 else text), ()


def role(persona: str) -> str:
    """The persona with its article: `a jester`."""
    return "a naive person" if persona == "naive" else f"{article(persona)} {persona}"


def persona_prompt(rng: random.Random, persona: str) -> tuple[str, Strengths]:
    """A system prompt for a persona of the assistant axis; the default ones are answered plainly."""
    if persona in DEFAULT_PROMPTS:
        return DEFAULT_PROMPTS[persona], ()
    text = rng.choice(ROLE_PROMPTS).replace("ROLE", role(persona))
    about = PERSONAS[persona].about
    text = text.replace("ABOUT", rng.choice((*about, " and ".join(about))))
    if rng.random() < 0.1:
        return f"{text} Do so only somewhat.", ((("persona", persona), 0.5),)
    return text, ((("persona", persona), 0.95),)


def random_trait(rng: random.Random, character_share: float = 0.15) -> str:
    """One of the seven traits, or at the given share one of the Big Five and the dark triad."""
    return rng.choice(CHARACTER_TRAITS if rng.random() < character_share else TRAITS)


def latent_persona(rng: random.Random) -> Strengths:
    """Most often nobody; sometimes a random style at a random strength, with nothing said about it."""
    if rng.random() < 0.6:
        return ()
    if rng.random() < 0.06:
        return ((("persona", rng.choice(tuple(PERSONAS))), rng.uniform(0.1, 1.0)),)
    return (((random_trait(rng), rng.choice((1, 1, -1))), rng.uniform(0.1, 1.0)),)
