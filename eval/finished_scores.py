"""Judge scores by way of the store: what is finished is never asked again, and never taken for anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from judge import JudgeOptions, is_local_judge, make_judge
from persona_vectors.chat_api import environment
from persona_vectors.models import fingerprint
from persona_vectors.store import Store, content_key

_FLUSH_EVERY = 32  # scores kept in memory before they are committed


def judge_identity(judge_model: str) -> dict[str, Any]:
    """What of the judge determines a score: its name and server, or the files of a local one."""
    if is_local_judge(judge_model):
        return {"local": fingerprint(judge_model)}
    return {"model": judge_model, "base_url": environment("OPENAI_BASE_URL")}


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
) -> list[float | None]:
    """The judge's score of each (question, answer): from the store where finished, asked and stored otherwise.

    None where the judge answered and gave no score. A call that failed raises after the others are stored, so the
    same command asks only for what is missing.
    """
    options = options or JudgeOptions(max_concurrent=max_concurrent or 100)
    identity = judge_identity(judge_model)
    keys = [
        content_key("score", judge=identity, template=template, eval_type=eval_type, question=question, answer=answer)
        for question, answer in items
    ]
    known = {} if overwrite else store.get_many(keys)
    todo = list({key: row for row, key in enumerate(keys) if key not in known}.values())
    if todo:
        scorer = make_judge(judge_model, template, eval_type, options=options)
        with _Buffer(lambda finished: store.put_many(finished, kind="score")) as buffer:

            def keep(position: int, score: float | None) -> None:
                known[keys[todo[position]]] = score
                buffer.add(keys[todo[position]], score)

            scorer.score_batch(
                [items[row] for row in todo], max_concurrent=options.max_concurrent, progress=progress, on_scored=keep
            )
    return [known[key] for key in keys]


class _Buffer:
    """Collects finished items and commits them in groups, and what is left when the work ends or fails."""

    def __init__(self, commit: Callable[[dict[str, Any]], None]):
        self.commit = commit
        self.items: dict[str, Any] = {}

    def add(self, key: str, value: Any) -> None:
        self.items[key] = value
        if len(self.items) >= _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        if self.items:
            self.commit(self.items)
            self.items = {}

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
