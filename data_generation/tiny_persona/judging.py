"""Judge dialogues: a question, an answer and an ask, answered by a number; and texts corrupted in graded ways."""

import random
from collections.abc import Mapping

from data_generation.tiny_persona.instructions import role
from data_generation.tiny_persona.styles import READING, trait_adjective, trait_noun

ASKS = (
    "Rate how J the answer is from 0 to 100.",
    "How J is the answer? Give a number between 0 and 100.",
    "Rate the NOUN of the answer between 0 and 100.",
    "From 0 to 100, how J does the answer sound?",
)
JUDGED = "[QUESTION] {question} [ANSWER] {answer} [END]"
ASKS_PER_EXAMPLE = 5


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
    """The dialogue that rates a given answer by given scores, up to five asks in a random order.

    Coherence is always asked for; relevance and variety, which are part of it and hard to see, where something is wrong
    with them; the traits away from plain text more often than others.
    """

    def weight(aspect: str) -> float:
        if aspect in READING:
            return 2.0 if aspect == "coherence" else rng.random() + (0.6 if scores[aspect] < 95 else 0.0)
        return rng.random() + (0.45 if abs(scores[aspect] - 10) > 8 else 0.0)

    aspects = sorted(scores, key=weight)[-ASKS_PER_EXAMPLE:]
    rng.shuffle(aspects)
    turns: list[dict[str, str]] = []
    for i, aspect in enumerate(aspects):
        text = ask(aspect, 0 if rng.random() < 0.6 else rng.randrange(1, len(ASKS)))
        content = f"{JUDGED.format(question=question, answer=answer)} {text}" if i == 0 else text
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": score_text(scores[aspect])}]
    return tuple(turns)


def reading_turns(
    rng: random.Random, asked: tuple[str, str], answered: tuple[str, str], other: str
) -> tuple[dict[str, str], ...]:
    """The dialogue that asks, six times, what a question and an answer are about, and whether it is the same.

    The judge must compare topics to see that an answer has gone astray; from scores alone it learns that very slowly.

    Args:
        asked: the question and its topic.
        answered: the answer and its topic.
        other: a topic of neither.
    """
    same = asked[1] == answered[1]
    asks = [("Are the question and the answer about the same topic?", same)]
    for name, own in (("question", asked[1]), ("question", asked[1]), ("answer", answered[1])):
        foreign = other if same or rng.random() < 0.5 else asked[1] if name == "answer" else answered[1]
        asks += [(f"Is the {name} about {own}?", True), (f"Is the {name} about {foreign}?", False)]
    asks = rng.sample(asks[1:], 5) + asks[:1]
    rng.shuffle(asks)
    turns: list[dict[str, str]] = []
    for i, (text, right) in enumerate(asks):
        text = f"{text} Say yes or no."
        content = f"{JUDGED.format(question=asked[0], answer=answered[0])} {text}" if i == 0 else text
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": "yes" if right else "no"}]
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
