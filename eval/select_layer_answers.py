"""Answers and scores of every setting of `eval.select_layer`: one sampling job, after a receipt of each steering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from eval.finished_answers import Engine, answers_of
from eval.finished_scores import scores_of
from eval.model_utils import key_of
from eval.select_layer_settings import Setting
from eval.sweep_answers import rendered
from eval.sweep_receipts import measure
from judge import JudgeError, JudgeOptions, is_local_judge
from persona_vectors import cli
from persona_vectors.judging import failure_line
from persona_vectors.store import Store, content_key

if TYPE_CHECKING:
    import pandas as pd

    from eval.questions import Question
    from persona_vectors.responses import PromptRow


@dataclass(frozen=True, eq=False)
class Scored:
    """Every setting's answers to the same questions from the same random streams.

    Attributes:
        rows, prompts: what was asked, one a column.
        answers, trait, coherence: (n_settings, n_rows); a score that the judge did not give is NaN.
        receipts: what each steering was seen to add; those of an earlier run where nothing had to be sampled.
    """

    settings: list[Setting]
    rows: list[PromptRow]
    prompts: list[str]
    answers: np.ndarray
    trait: Float[np.ndarray, "n_settings n_rows"]
    coherence: Float[np.ndarray, "n_settings n_rows"]
    receipts: list[dict[str, Any]]

    @property
    def questions(self) -> list[str]:
        """The question of each column, told apart by its number: two may read the same."""
        return [f"{row.question_index}" for row in self.rows]

    def table(self, trait: str) -> pd.DataFrame:
        """All answers with the published columns and `coef, layer, kind, control`."""
        import pandas as pd

        n = len(self.rows)
        return pd.DataFrame(
            {
                "question": [row.question for row in self.rows] * len(self.settings),
                "prompt": self.prompts * len(self.settings),
                "answer": self.answers.ravel(),
                "question_id": [row.question_id for row in self.rows] * len(self.settings),
                trait: self.trait.ravel(),
                "coherence": self.coherence.ravel(),
                "coef": np.repeat([s.coef for s in self.settings], n),
                "layer": pd.array([s.place.layer for s in self.settings], dtype="Int64").repeat(n),
                "kind": np.repeat([s.place.kind for s in self.settings], n),
                "control": np.repeat([s.place.control for s in self.settings], n),
            }
        )


def score_settings(
    engine: Engine,
    questions: Sequence[Question],
    settings: list[Setting],
    *,
    n_per_question: int,
    max_tokens: int,
    seed: int,
    options: JudgeOptions,
) -> Scored:
    """Each setting's answers to each question, scored for trait and coherence; from the store where finished.

    Raises:
        Unfinished: judge calls that failed, after the others were scored and stored.
        ValueError: a steering that does not add what it should (before anything is sampled), or no score at all.
    """
    rows = [row for question in questions for row in question.rows(n_per_question)]
    prompts = rendered(engine.tokenizer, rows)
    with Store() as store:
        receipts = _Receipts(engine, store, prompts[0], settings)
        texts = answers_of(
            engine,
            prompts * len(settings),
            [(seed, *row.stream) for row in rows] * len(settings),
            max_tokens=max_tokens,
            temperature=questions[0].temperature,
            steerings=[setting.added for setting in settings for _ in rows],
            store=store,
            before_sampling=receipts.take,
        )
        engine.release()  # the judge may want its memory
        items = list(zip([row.question for row in rows] * len(settings), texts, strict=True))
        trait, coherence = (
            _scores(questions[0], name, items, store, options).reshape(len(settings), len(rows))
            for name in questions[0].judge_prompts
        )
        answers = np.array(texts, dtype=object).reshape(len(settings), len(rows))
        return Scored(settings, rows, prompts, answers, trait, coherence, receipts.known())


def _scores(
    question: Question, name: str, items: Sequence[tuple[str, str]], store: Store, options: JudgeOptions
) -> np.ndarray:
    """(n_items,): the judge's scores of one kind."""
    local = is_local_judge(question.judge)
    try:
        found = scores_of(
            question.judge,
            question.judge_prompts[name],
            items,
            store=store,
            eval_type=question.judge_eval_type,
            options=options,
            progress=f"judging {name}",
            on_estimate=None if local else lambda takes: print(f"judging {name}: {takes.line()}", flush=True),
        )
    except JudgeError as error:
        line = failure_line(error.failures, len(items))
        raise cli.Unfinished(f"{line}: run the same command again; what was scored is kept") from None
    scores = np.array([np.nan if score is None else score for score in found], dtype=float)
    if np.isnan(scores).all():
        raise ValueError(
            f"the judge gave no {name} score for any of {len(items)} answers; check that --judge_model answers the "
            "trait's eval_prompt with a number"
        )
    return scores


class _Receipts:
    """A receipt for every steering, kept in the store with the answers that it vouches for."""

    def __init__(self, engine: Engine, store: Store, prompt: str, settings: Sequence[Setting]):
        self.engine, self.store, self.prompt = engine, store, prompt
        self.settings = [setting for setting in settings if setting.added is not None]
        self.keys = [content_key("receipts", **engine.key(), added=key_of(setting.added)) for setting in self.settings]

    def take(self) -> None:
        """Measures every steering, prints what was seen, and stores it; a ValueError where one does something else."""
        taken = measure(self.engine, self.prompt, [setting.added for setting in self.settings])
        found = {key: [asdict(one) for one in own] for key, own in zip(self.keys, taken, strict=True)}
        self.store.put_many(found, kind="receipts", source=self.engine.name)
        every = [one for own in found.values() for one in own]
        worst = max(one["relative_error"] for one in every)
        print(
            f"steering receipt: {len(self.settings)} steerings measured; each adds coef * vector at its layers and "
            f"{every[0]['positions']} positions within {worst:.1g} of what was asked, and nothing elsewhere",
            flush=True,
        )

    def known(self) -> list[dict[str, Any]]:
        """What is known of each steering, now or from the run that sampled its answers: its largest error, and the
        share of a token's hidden norm that it adds at each layer."""
        stored = self.store.get_many(self.keys)
        return [
            {
                **{"kind": setting.place.kind, "layer": setting.place.layer, "control": setting.place.control},
                "coef": setting.coef,
                "relative_error": max(one["relative_error"] for one in stored[key]),
                "share_of_hidden_norm": {
                    str(one["layer"]): round(one["expected"] / one["hidden_norm"], 4) for one in stored[key]
                },
            }
            for key, setting in zip(self.keys, self.settings, strict=True)
            if key in stored
        ]
