"""What every judge shares: how it is asked (JudgeOptions), its prompt, and what a failed call is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

JudgeMode = Literal["auto", "logprobs", "text"]


@dataclass(frozen=True)
class JudgeOptions:
    """How an API judge is asked; a local judge (scored in process) takes `auto` and `logprobs`, which mean the same.

    Attributes:
        mode: logprobs takes the expectation over the first token's top 20; text reads the score from the reply; auto
            is logprobs, and stops with one line that names text where the server has none.
        n_samples: replies of text mode: 1 at temperature 0, or the mean of several at temperature 1.
        max_concurrent: calls in flight at once.
        max_requests_per_minute: calls sent in a minute at most; None is no limit.
    """

    mode: JudgeMode = "auto"
    n_samples: int = 1
    max_concurrent: int = 100
    max_requests_per_minute: int | None = None

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
