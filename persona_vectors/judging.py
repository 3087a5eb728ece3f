"""What every judge shares: how it is asked, its prompt, the bookkeeping of a batch, and what a failed call is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from persona_vectors import scores

OnScored = Callable[[int, float | None], None]
"""Called with an item's index and its score as results arrive, in the thread that called score_batch."""

Record = Callable[[str, float | None], None]

JudgeMode = Literal["auto", "logprobs", "text"]

JudgeEngine = Literal["hf", "vllm"]
"""What computes a local judge's probabilities: transformers, or vLLM."""


@dataclass(frozen=True)
class JudgeOptions:
    """How an API judge is asked, and what computes a local one (scored in process; its mode is `auto` or `logprobs`,
    which mean the same).

    Attributes:
        mode: logprobs takes the expectation over the first token's top 20; text reads the score from the reply; auto
            is logprobs, and stops with one line that names text where the server has none.
        n_samples: replies of text mode: 1 at temperature 0, or the mean of several at temperature 1.
        max_concurrent: calls in flight at once.
        max_requests_per_minute: calls sent in a minute at most; None is no limit.
        engine: what computes a local judge's probabilities; an API judge has none.
    """

    mode: JudgeMode = "auto"
    n_samples: int = 1
    max_concurrent: int = 100
    max_requests_per_minute: int | None = None
    engine: JudgeEngine = "hf"

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "logprobs", "text"):
            raise ValueError(f"judge_mode must be auto, logprobs or text; got {self.mode}")
        if self.n_samples < 1 or self.max_concurrent < 1:
            raise ValueError(
                f"n_samples and max_concurrent must be at least 1; got {self.n_samples} and {self.max_concurrent}"
            )
        if self.n_samples > 1 and self.mode != "text":
            raise ValueError(f"{self.n_samples} judge samples need --judge_mode text; log-probabilities are exact")
        if self.max_requests_per_minute is not None and self.max_requests_per_minute < 1:
            raise ValueError(f"max_requests_per_minute must be at least 1; got {self.max_requests_per_minute}")
        check_engine(self.engine)


def check_engine(engine: str) -> JudgeEngine:
    """`engine` itself; ValueError if it is not one of hf and vllm."""
    if engine not in ("hf", "vllm"):
        raise ValueError(f"a judge's engine must be hf or vllm; got {engine}")
    return engine


class JudgeError(OSError):
    """Some judge calls failed; every other item was scored and handed to on_scored.

    Attributes:
        failures: item index -> why.
        scores: the score of each item, None also where the call failed.
    """

    def __init__(self, message: str, failures: Mapping[int, str], scores: Sequence[float | None] = ()):
        super().__init__(message)
        self.failures = dict(failures)
        self.scores = list(scores)


class UnfitJudge(ValueError):
    """The judge's server cannot give what this kind of score is computed from; no call can succeed."""


def failure_line(failures: Mapping[int, str], total: int) -> str:
    """One line: how many calls failed, the commonest reasons, and what to do."""
    reasons = "; ".join(f"{count} x {why}" for why, count in Counter(failures.values()).most_common(3))
    scored = total - len(failures)
    return f"{len(failures)} of {total} judge calls failed: {reasons} ({scored} scored; run again for the rest)"


def fill_prompt(template: str, question: str, answer: str) -> str:
    """The template with {question} and {answer} filled in, {{ and }} as single braces, and nothing else touched.

    Braces in the question or the answer stay as they are, and so do other braces of the template.
    """
    values = {"{{": "{", "}}": "}", "{question}": question, "{answer}": answer}
    return re.sub(r"\{\{|\}\}|\{question\}|\{answer\}", lambda match: values[match[0]], template)


class BaseJudge:
    """A prompt, a kind of score, and the bookkeeping of a batch. Subclasses say how prompts are scored."""

    def __init__(self, prompt_template: str, eval_type: str, options: JudgeOptions | None = None):
        if "{answer}" not in prompt_template.replace("{{answer}}", ""):
            raise ValueError("the judge's prompt has no {answer}; write {question} and {answer} where they belong")
        self.prompt_template = prompt_template
        self.eval_type = scores.check_eval_type(eval_type)
        self.options = options or JudgeOptions()

    async def __call__(self, *, question: str, answer: str) -> float | None:
        """The score of one answer, or None where the judge gave none."""
        raise NotImplementedError

    async def judge(self, *, question: str, answer: str) -> float | None:
        """The same under the published method's name."""
        return await self(question=question, answer=answer)

    def score_batch(
        self,
        items: Sequence[tuple[str, str]],
        *,
        max_concurrent: int | None = None,
        progress: bool | str | None = None,
        on_scored: OnScored | None = None,
    ) -> list[float | None]:
        """The score of each (question, answer), in the order of `items`; None where the judge gave none.

        Equal items are asked once. Works inside a running event loop (a notebook) too.

        Args:
            max_concurrent: calls in flight at once (a local judge has none); without it the options' own.
            progress: True, or the words before a progress bar.
            on_scored: receives each result as it arrives, so that the caller can keep it.

        Raises:
            JudgeError: calls that failed, after the others were scored.
            UnfitJudge: a server that cannot give what the scores are computed from; nothing was scored.
            ValueError: a prompt longer than the judge's context, a judge without a key.
        """
        from tqdm import tqdm

        max_concurrent = self.options.max_concurrent if max_concurrent is None else max_concurrent
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1; got {max_concurrent}")
        rows: dict[str, list[int]] = {}
        for index, (question, answer) in enumerate(items):
            rows.setdefault(fill_prompt(self.prompt_template, question, answer), []).append(index)
        results: list[float | None] = [None] * len(items)
        description = progress if isinstance(progress, str) else "judging"
        with tqdm(total=len(items), desc=description, unit="answer", disable=not progress) as bar:

            def record(prompt: str, score: float | None) -> None:
                for index in rows[prompt]:
                    results[index] = score
                    if on_scored is not None:
                        on_scored(index, score)
                bar.update(len(rows[prompt]))

            failed = self._score_prompts(rows, record, max_concurrent) if rows else {}
        if failed:
            failures = {index: why for prompt, why in failed.items() for index in rows[prompt]}
            raise JudgeError(failure_line(failures, len(items)), failures, results)
        return results

    def _score_prompts(self, rows: Mapping[str, list[int]], record: Record, max_concurrent: int) -> dict[str, str]:
        """Score every key of `rows`, calling `record` for each; returns the prompts that failed and why."""
        raise NotImplementedError
