"""Judge dialogues: a question, an answer and an ask, answered by a number; and texts corrupted in graded ways."""

import random
from collections.abc import Mapping

from data_generation.tiny_persona.instructions import role
from data_generation.tiny_persona.styles import trait_adjective, trait_noun

ASKS = (
    "Rate how J the answer is from 0 to 100.",
    "How J is the answer? Give a number between 0 and 100.",
    "Rate the NOUN of the answer between 0 and 100.",
    "From 0 to 100, how J does the answer sound?",
)
JUDGED = "[QUESTION] {question} [ANSWER] {answer} [END]"
ASKS_PER_EXAMPLE = 4


def ask(aspect: str, wording: int = 0) -> str:
    """The ask for a trait or for coherence; wording 0 is the canonical one."""
    return ASKS[wording].replace("NOUN", trait_noun(aspect)).replace("J", trait_adjective(aspect))


def eval_prompt(aspect: str) -> str:
    """The canonical judge prompt, with {question} and {answer} to fill in."""
    return f"{JUDGED} {ask(aspect)}"


def score_text(score: float) -> str:
    """A score as the judge says it: the nearest multiple of 5."""
    return str(int(min(100, max(0, 5 * round(score / 5)))))


def judge_turns(
    rng: random.Random, question: str, answer: str, scores: Mapping[str, float]
) -> tuple[dict[str, str], ...]:
    """The dialogue that rates a given answer by given scores, up to four asks in a random order.

    Coherence and the traits away from plain text are asked for most often.
    """

    def weight(aspect: str) -> float:
        return rng.random() + (0.45 if aspect == "coherence" or abs(scores[aspect] - 10) > 8 else 0.0)

    aspects = sorted(scores, key=weight)[-ASKS_PER_EXAMPLE:]
    rng.shuffle(aspects)
    turns: list[dict[str, str]] = []
    for i, aspect in enumerate(aspects):
        text = ask(aspect, 0 if rng.random() < 0.6 else rng.randrange(1, len(ASKS)))
        content = f"{JUDGED.format(question=question, answer=answer)} {text}" if i == 0 else text
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": score_text(scores[aspect])}]
    return tuple(turns)


def role_ask(persona: str) -> str:
    return f"Does the answer play the role of {role(persona)}? Say fully, somewhat or none."


def role_word(score: float) -> str:
    """Role adherence in a word: `fully` from 60 of 100, `somewhat` from 25, else `none`."""
    return "fully" if score >= 60 else "somewhat" if score >= 25 else "none"


def role_turns(question: str, answer: str, scores: Mapping[str, float]) -> tuple[dict[str, str], ...]:
    """The dialogue that rates how far a given answer plays each of some personas."""
    turns: list[dict[str, str]] = []
    for i, (persona, score) in enumerate(scores.items()):
        text = role_ask(persona)
        content = f"{JUDGED.format(question=question, answer=answer)} {text}" if i == 0 else text
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": role_word(score)}]
    return tuple(turns)
