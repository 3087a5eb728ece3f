"""A conversation with a steered model: the one engine behind the terminal session and the page. It prints nothing.

Each turn answers at every strength asked for, as rows of one batch that draw from the same random numbers; the
conversation goes on with one of the answers. A turn's random stream is (seed, its number), so the same words under the
same settings get the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from eval.finished_answers import Engine
from eval.model_utils import Added, key_of, steer_rows
from eval.sweep_receipts import lines as receipt_lines
from eval.sweep_receipts import measure
from eval.talk_settings import Settings
from persona_vectors.sampling import end_token_ids, sample_answers
from persona_vectors.tokens import render_prompt

Ended = Literal["end", "length", "stopped"]
Decode = Callable[[list[int]], Any]


class Stopped(Exception):
    """Raised by whoever watches an answer, to end it where it is."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        ended: end (the model ended it), length (max_tokens or the end of the context did), or stopped (a person).
        steering: everything that was added while it was sampled, vectors as hashes; None where nothing was.
    """

    strength: float
    text: str
    n_tokens: int
    ended: Ended
    steering: Any = None


@dataclass(frozen=True, eq=False)
class Turn:
    """What was said, under which settings, and what came back.

    Attributes:
        prompt: the rendered conversation that was continued.
        stream: what seeded the answers' random numbers.
        kept: the strength whose answer the conversation goes on with.
        receipts: lines of the steering receipts taken before this turn; none where all had been taken.
    """

    user: str
    settings: Settings
    prompt: str
    stream: tuple[int, int]
    answers: tuple[Answer, ...]
    kept: float
    receipts: tuple[str, ...] = ()

    @property
    def answer(self) -> Answer:
        return next(one for one in self.answers if one.strength == self.kept)


class Writing:
    """Answers while they are written: what stands there of each strength's."""

    def __init__(self, strengths: Sequence[float], max_tokens: int, ends: Sequence[int], decode: Decode):
        self.strengths = tuple(strengths)
        self._most, self._ends, self._decode = max_tokens, set(ends), decode
        self._tokens: list[list[int]] = [[] for _ in strengths]
        self._whole: dict[int, str] = {}

    def hear(self, row: int, place: int, token: int) -> None:
        """One token more; `place` is below what stands there where a row begins again."""
        self._tokens[row][place:] = [token]

    def finish(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Answers as they are returned in the end."""
        self._whole.update(zip(rows, texts, strict=True))

    def text(self, row: int) -> str:
        """The answer so far, without a character of which the last bytes are still to come."""
        return self._whole[row] if row in self._whole else self._decode(self._tokens[row]).rstrip("\ufffd")

    def is_done(self, row: int) -> bool:
        tokens = self._tokens[row]
        return row in self._whole or len(tokens) >= self._most or (bool(tokens) and tokens[-1] in self._ends)

    def answer(self, row: int, steering: Any) -> Answer:
        """What stands there as an answer, a stopped one where its end was not reached."""
        tokens = self._tokens[row]
        by_itself = bool(tokens) and tokens[-1] in self._ends
        ended: Ended = "stopped" if row not in self._whole else "end" if by_itself else "length"
        return Answer(self.strengths[row], self.text(row), len(tokens), ended, steering)


Watch = Callable[[Writing], None]


@dataclass(eq=False)
class Session:
    """A conversation: the settings of the next turn, and the turns so far."""

    engine: Engine
    settings: Settings
    turns: list[Turn] = field(default_factory=list)
    _receipts: dict[str, list[Any]] = field(default_factory=dict)
    _answering: bool = False

    def messages(self, text: str | None = None) -> list[dict[str, str]]:
        """The conversation as it goes on: system prompt, turns with the answers that were kept, and a new text."""
        system = self.settings.system_prompt
        found = [{"role": "system", "content": system}] if system else []
        for turn in self.turns:
            found.append({"role": "user", "content": turn.user})
            found.append({"role": "assistant", "content": turn.answer.text.strip()})
        return found if text is None else [*found, {"role": "user", "content": text}]

    def ask(self, text: str, watch: Watch | None = None, say: Callable[[str], None] | None = None) -> Turn:
        """The next turn: an answer at every strength. It is part of the conversation once it returns.

        Args:
            watch: shown the answers after every token; raises `Stopped` to end them there, which keeps the turn unless
                nothing is written yet.
            say: given the lines of steering receipts, before anything is sampled.

        Raises:
            ValueError: a conversation that leaves no room in the model's context, or a steering whose receipt does not
                hold. The conversation is as it was.
            Stopped: before the first token.
        """
        self._check_idle()
        self._answering = True
        try:
            turn = self._answered(text, watch or (lambda _: None), say or (lambda _: None))
            self.turns.append(turn)
            return turn
        finally:
            self._answering = False

    def _answered(self, text: str, watch: Watch, say: Callable[[str], None]) -> Turn:
        settings, model, tokenizer = self.settings, self.engine.model, self.engine.tokenizer
        prompt = render_prompt(tokenizer, self.messages(text))
        steerings = [settings.steering(strength) for strength in settings.strengths]
        receipts = self._take_receipts(render_prompt(tokenizer, [{"role": "user", "content": text}]), steerings)
        for line in receipts:
            say(line)
        stream = settings.seed, len(self.turns)
        ends = end_token_ids(model, tokenizer)
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        writing = Writing(settings.strengths, settings.max_tokens, ends, decode)

        def hear(row: int, place: int, token: int) -> None:
            writing.hear(row, place, token)
            watch(writing)

        rows = range(len(steerings))
        try:
            sample_answers(
                model,
                tokenizer,
                [prompt for _ in rows],
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                streams=[stream for _ in rows],
                steer=steer_rows(model, steerings),
                on_batch=writing.finish,
                on_token=hear,
            )
        except Stopped:
            if not any(writing.text(row) for row in rows):
                raise
        answers = tuple(writing.answer(row, key_of(added)) for row, added in enumerate(steerings))
        return Turn(text, settings, prompt, stream, answers, settings.strength, tuple(receipts))

    def _take_receipts(self, prompt: str, steerings: Sequence[Added]) -> list[str]:
        """Lines of the receipts of the steerings that have none in this session yet."""
        keys = {json.dumps(key_of(added)): added for added in steerings if added is not None}
        new = {key: added for key, added in keys.items() if key not in self._receipts}
        if not new:
            return []
        self._receipts |= dict(zip(new, measure(self.engine, prompt, list(new.values())), strict=True))
        return receipt_lines([self._named(receipt) for key in new for receipt in self._receipts[key]])

    def _named(self, receipt: Any) -> dict[str, Any]:
        names = self.settings.names_at(receipt.layer)
        control = self.settings.control and receipt.layer == self.settings.layer
        which = {"vector": "", "control": "random", "matched": names} if control else {"vector": names, "matched": ""}
        return {"control": "", **which, **asdict(receipt)}

    def keep(self, strength: float) -> Turn:
        """The last turn, the conversation now going on with its answer at this strength, as later ones will."""
        self._check_idle()
        turn = self._last()
        if strength not in [one.strength for one in turn.answers]:
            have = " ".join(f"{one.strength:g}" for one in turn.answers)
            raise ValueError(f"the last turn has no answer at strength {strength:g}; it has {have}")
        self.turns[-1] = replace(turn, kept=strength)
        self.settings = replace(self.settings, strength=strength)
        return self.turns[-1]

    def undo(self) -> Turn:
        """The last turn, now taken back."""
        self._check_idle()
        self._last()
        return self.turns.pop()

    def reset(self) -> None:
        """No turns; settings stay."""
        self._check_idle()
        self.turns = []

    def change(self, **fields: Any) -> Settings:
        """The settings of the next turn, with these fields changed; as they were where that raises a ValueError."""
        self.settings = replace(self.settings, **fields)
        return self.settings

    def _last(self) -> Turn:
        if not self.turns:
            raise ValueError("there is no turn yet")
        return self.turns[-1]

    def _check_idle(self) -> None:
        if self._answering:
            raise ValueError("an answer is being written; stop it, or wait for its end")
