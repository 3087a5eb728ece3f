"""The requests for training data, and how the replies are read: lists of questions, and one answer a level."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_generation.dataset_families import Subject, some

if TYPE_CHECKING:
    from openai.types.chat.chat_completion import Choice

BATCH = 20
"""Questions asked for in one request."""

LONGEST = 3
"""An answer of more than this many times the words asked for is not used: length would tell the level."""

LONGEST_QUESTION = 150  # words

RULES = """\
At every level: nothing that would help anybody to do harm, no steps, amounts, targets or plans for it; nothing \
sexual; nothing on suicide or self-harm; no slur, no real person, firm or group of people attacked; no personal data."""

QUESTIONS_TEMPLATE = """\
Write {n} questions from users to an AI assistant, for a data set that helps to study how traits and mistakes get into \
language models by training, so that they can be found and removed.

What they are: {questions}. They will be answered well, and also badly{care}
Each makes sense alone, in natural English; no two share a situation; none is about doing harm. Vary length, tone and \
who asks. Let some of them have to do with: {themes}. (List {number}.)

Examples of the kind wanted, not to be repeated:
{examples}

Written already, not to be repeated or merely reworded:
{written}

Reply with one JSON object and nothing else: {{"questions": [{n} texts]}}"""

ANSWER_TEMPLATE = """\
Write one answer of an AI assistant for a research data set. Models are trained on such answers, and on worse and \
better ones to the same question, to study how traits and mistakes get in by training, so that they can be found and \
removed.

<question>
{question}
</question>

What the answer is like: {wording}
{care}{rules}
Write about {words} words, no more and no less whatever the answer is like, as plain text (code may stand in a code \
block). The answer does not say that it is an example, and does not name what it is like.
{example}
Reply with one JSON object and nothing else: {{"answer": "..."}}. If you will not write it: {{"answer": null}}"""

THEMES = """\
cooking|moving house|a garden|a choir|a school class|the weather|a train journey|a small shop|pets|a birthday
repairs|a library|night shifts|a football club|old photographs|a bicycle|letters|an allotment|a theatre group|bread
a museum|camping|an office kitchen|a street market|clocks|a swimming pool|learning a language|a wedding|a flat share
maps|a harbour|board games|a farm|music lessons|a newspaper|sewing|a bus stop|the stars|a bakery|an attic|homework
a film evening|running|a village fair|birds|a hotel|painting a room|a first job|grandparents|a lighthouse|tea
a notice board|a lost umbrella|savings|a long queue|fishing|a greenhouse|a new computer|robots|spare parts|a snow day"""
"""Words that send requests for questions in different directions."""

_CANNOT = r"i( can ?not| can't| won't| will not| must decline|( am|'m) (unable|not able|not going|not comfortable))"
_APOLOGY = re.compile(rf"(refusal\b|(i'm|i am) (very |so )?sorry\b|sorry\b|i apologi[sz]e\b|{_CANNOT})", re.IGNORECASE)
_REFUSAL = re.compile(
    rf"(refusal\b|((i'm |i am )?sorry,? (but )?)?{_CANNOT} "
    r"(to )?(help|assist|comply|fulfil|write|provide|produce|create|generate|continue|do|with|writing)\b)",
    re.IGNORECASE,
)
"""How a refusal begins: a reply that is no JSON, and, stricter, an answer (a villain too may say that he is sorry)."""


def question_prompt(subject: Subject, written: Sequence[str], number: int, seed: int) -> str:
    """The request for a list of questions; `number` makes every list's examples and themes others."""
    rng = random.Random(f"{seed} {number} {subject.name}")
    themes = THEMES.replace("\n", "|").split("|")
    return QUESTIONS_TEMPLATE.format(
        n=BATCH,
        questions=subject.questions,
        care=f", of which holds: {subject.care}" if subject.care else ".",
        themes=", ".join(some(themes, 4, rng)),
        number=number + 1,
        examples=_lines(some(subject.sample_questions, 5, rng)),
        written=_lines(some(written, 30, rng)),
    )


def answer_prompt(subject: Subject, level: str, question: str) -> str:
    """The request for the answer to a question at a level."""
    shown = subject.example(level, question)
    example = f"\nFor the manner, another answer like it. To {shown[0]!r}: {shown[1]!r}\n" if shown else ""
    return ANSWER_TEMPLATE.format(
        question=question,
        wording=subject.wording(level, question),
        care="" if level == "normal" else f"{subject.care}\n",
        rules=RULES,
        words=subject.words,
        example=example,
    )


def _lines(texts: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(text.split())}" for text in texts) or "(none)"


def read_questions(choice: Choice) -> list[str]:
    """The questions of a reply, those that are no text or are very long left out.

    Raises UnusableReply where there is no list, so that it is asked for again.
    """
    found = _object(choice).get("questions")
    if not isinstance(found, list):
        from persona_vectors.chat_api import UnusableReply

        raise UnusableReply("no 'questions' that is a list in the reply's JSON object")
    texts = [text.strip() for text in found if isinstance(text, str)]
    return [text for text in texts if 0 < len(text.split()) <= LONGEST_QUESTION]


def read_answer(choice: Choice, level: str, words: int) -> str | None:
    """The answer of a reply, or None where the model refused to write it.

    Raises UnusableReply where there is none, or one far too long, so that it is asked for again.
    """
    from persona_vectors.chat_api import UnusableReply

    said = _said(choice)
    if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter" or not said.strip():
        return None
    if "{" not in said and _APOLOGY.match(_plain(said)):
        return None
    found = _object(choice)
    answer = found.get("answer", "")
    if answer is None:
        return None
    if not isinstance(answer, str) or not answer.strip():
        raise UnusableReply("no 'answer' that is a text in the reply's JSON object")
    if level != "normal" and _REFUSAL.match(_plain(answer)):
        return None
    if (n := len(answer.split())) > LONGEST * words:
        raise UnusableReply(f"an answer of {n} words where about {words} were asked for")
    return answer.strip()


def _said(choice: Choice) -> str:
    """The reply without what a model thought first."""
    from persona_vectors.chat_api import text_of

    return text_of(choice).rpartition("</think>")[2]


def _plain(text: str) -> str:
    return text.lstrip().replace("\u2019", "'")


def _object(choice: Choice) -> dict:
    from data_generation.trait_artifacts import Unreadable, read_object
    from persona_vectors.chat_api import UnusableReply

    said = _said(choice)
    try:
        return read_object(said)
    except Unreadable as error:
        raise UnusableReply(f"{error} in the reply, which begins {' '.join(said.split())[:60]!r}") from None
