"""Judge scores by way of the store: what is finished is never asked again, and never taken for anything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from judge import JudgeError, JudgeOptions, fill_prompt, is_local_judge, make_judge
from persona_vectors.chat_api import environment
from persona_vectors.judging import failure_line
from persona_vectors.models import fingerprint
from persona_vectors.store import Store, content_key
from persona_vectors.vllm_available import vllm_version

_FLUSH_EVERY = 32  # scores kept in memory before they are committed
_FLUSH_SECONDS = 1.0  # or when the last commit is this long ago: scores of a slow judge are dear
_CHARACTERS_PER_TOKEN = 4  # of English, in the tokenizers of large models


@dataclass(frozen=True)
class Estimate:
    """What scoring a set will take, before it starts.

    Attributes:
        n_items: scores asked for.
        n_distinct: different ones among them; equal items are asked once.
        n_stored: distinct scores that the store has.
        n_calls: calls to be made, or prompts to be read by a local judge: the rest, times the samples of text mode.
        n_tokens: prompt tokens of these calls, reckoned at 4 characters a token: no tokenizer is asked.
    """

    n_items: int
    n_distinct: int
    n_stored: int
    n_calls: int
    n_tokens: int

    def line(self) -> str:
        """One line for a reader."""
        return (
            f"{self.n_items} items, {self.n_distinct} distinct, {self.n_stored} already in the store: {self.n_calls} "
            f"calls, about {self.n_tokens:,} prompt tokens (an estimate, at {_CHARACTERS_PER_TOKEN} characters a token)"
        )


def judge_identity(judge_model: str, options: JudgeOptions | None = None) -> dict[str, Any]:
    """What of the judge determines a score: its name and server, or the files of a local one and, where it is not
    transformers, what computes it: rounding differs, in 16 bits by more than a little."""
    if is_local_judge(judge_model):
        own = {"local": fingerprint(judge_model)}
        return own if options is None or options.engine == "hf" else own | {"engine": vllm_version()}
    return {"model": judge_model, "base_url": environment("OPENAI_BASE_URL")}


def judge_key(judge_model: str, options: JudgeOptions | None = None) -> dict[str, Any]:
    """What the store's key of a score says of the judge: `judge_identity`, and of a local judge on a GPU that it is
    there, where it computes in its checkpoint's own number type; on a CPU it is float32, as ever."""
    own = judge_identity(judge_model, options)
    if not is_local_judge(judge_model) or "engine" in own:  # vLLM's key says what computes
        return own
    import torch

    return own | {"device": "cuda"} if torch.cuda.is_available() else own


def score_keys(
    judge_model: str,
    template: str,
    items: Sequence[tuple[str, str]],
    *,
    eval_type: str = "0_100",
    options: JudgeOptions | None = None,
) -> list[str]:
    """The store's key of each item's score: a hash of the judge, where it is, mode, samples, engine, and all text."""
    options = options or JudgeOptions()
    judge = judge_key(judge_model, options)
    # Only text mode is named in the key, so that scores from log-probabilities keep theirs. Temperature and seeds
    # follow from the number of samples.
    mode = {"mode": "text", "n_samples": options.n_samples} if options.mode == "text" else {}
    return [
        content_key(
            "score", judge=judge, template=template, eval_type=eval_type, question=question, answer=answer, **mode
        )
        for question, answer in items
    ]


def estimate(
    judge_model: str,
    template: str,
    items: Sequence[tuple[str, str]],
    *,
    store: Store,
    eval_type: str = "0_100",
    options: JudgeOptions | None = None,
    overwrite: bool = False,
) -> Estimate:
    """What `scores_of` with the same arguments would take; nobody is asked."""
    keys = score_keys(judge_model, template, items, eval_type=eval_type, options=options)
    known = set() if overwrite else set(store.get_many(keys))
    return _estimate(template, items, keys, known, (options or JudgeOptions()).n_samples)


def _estimate(
    template: str, items: Sequence[tuple[str, str]], keys: Sequence[str], known: set[str], n_samples: int
) -> Estimate:
    prompts = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    characters = sum(len(fill_prompt(template, *item)) for item in prompts.values())
    return Estimate(
        n_items=len(items),
        n_distinct=len(set(keys)),
        n_stored=len(set(keys) & known),
        n_calls=len(prompts) * n_samples,
        n_tokens=-(-characters * n_samples // _CHARACTERS_PER_TOKEN),
    )


def scores_of(
    judge_model: str,
    template: str,
    items: Sequence[tuple[str, str]],
    *,
    store: Store,
    eval_type: str = "0_100",
    options: JudgeOptions | None = None,
    max_concurrent: int | None = None,
    overwrite: bool = False,
    progress: str | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> list[float | None]:
    """The judge's score of each (question, answer): from the store where finished, asked and stored otherwise.

    None where the judge answered and gave no score. The same command after a failure asks only for what is missing.

    Args:
        options: how the judge is asked or computed; `max_concurrent` is short for options with only that.
        overwrite: ask for all of them anew.
        progress: words before a progress bar.
        on_estimate: receives what it will take, before the first call.

    Raises:
        JudgeError: calls that failed, after the others were scored and stored; its `failures` has the index of every
            item without a result and why, its `scores` those of all items.
        UnfitJudge: a server that cannot give such scores; nothing was stored.
    """
    options = options or JudgeOptions(max_concurrent=100 if max_concurrent is None else max_concurrent)
    keys = score_keys(judge_model, template, items, eval_type=eval_type, options=options)
    known = {} if overwrite else store.get_many(keys)
    if on_estimate is not None:
        on_estimate(_estimate(template, items, keys, set(known), options.n_samples))
    todo = list({key: row for row, key in enumerate(keys) if key not in known}.values())
    if not todo:
        return [known[key] for key in keys]
    scorer = make_judge(judge_model, template, eval_type, options=options)
    failed: dict[str, str] = {}
    with _Buffer(lambda finished: store.put_many(finished, kind="score", source=judge_model)) as buffer:

        def keep(position: int, score: float | None) -> None:
            known[keys[todo[position]]] = score
            buffer.add(keys[todo[position]], score)

        try:
            scorer.score_batch([items[row] for row in todo], progress=progress, on_scored=keep)
        except JudgeError as error:
            failed = {keys[todo[position]]: why for position, why in error.failures.items()}
    scores = [known.get(key) for key in keys]
    if failed:
        failures = {row: failed[key] for row, key in enumerate(keys) if key in failed}
        raise JudgeError(failure_line(failures, len(items)), failures, scores)
    return scores


class _Buffer:
    """Collects finished items and commits them in groups, and what is left when the work ends or fails."""

    def __init__(self, commit: Callable[[dict[str, Any]], None]):
        self.commit = commit
        self.items: dict[str, Any] = {}
        self.flushed = time.monotonic()

    def add(self, key: str, value: Any) -> None:
        self.items[key] = value
        if len(self.items) >= _FLUSH_EVERY or time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.items:
            self.commit(self.items)
            self.items = {}
        self.flushed = time.monotonic()

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
