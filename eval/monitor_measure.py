"""What is measured of every prompt: the activation at its last token, before anything is said, then scored answers."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.finished_answers import Engine, answers_of
from eval.finished_scores import scores_of
from eval.monitor_conditions import Condition, Prompt, prompts_of
from eval.questions import Question
from judge import JudgeError
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.judging import failure_line
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import tokenize_sample

if TYPE_CHECKING:
    from eval.monitor_statistics import MonitorCorrelation

Score = Callable[[Sequence[tuple[str, str]]], Sequence[float | None]]
"""Scores of (question, answer) pairs; None where there is none."""

SPAN = "prompt_last"


class Judge:
    """Scorers of a trait's judge, by way of the store; what fails is collected and said when all else is scored."""

    def __init__(self, question: Question, store: Store):
        self.question, self.store = question, store
        self.failures: list[str] = []
        self.n_scores = 0

    def scorer(self, column: str) -> Score:
        """The scorer of one of the question's judge prompts."""

        def score(pairs: Sequence[tuple[str, str]]) -> Sequence[float | None]:
            self.n_scores += len(pairs)
            template = self.question.judge_prompts[column]
            try:
                found = scores_of(self.question.judge, template, pairs, store=self.store, progress=f"judging {column}")
            except JudgeError as error:
                self.failures += error.failures.values()
                return error.scores
            if all(one is None for one in found):
                raise ValueError(
                    f"the judge gave no {column} score for any of {len(pairs)} answers; check that --judge_model "
                    "answers the trait's eval_prompt with a number"
                )
            return found

        return score

    def check(self) -> None:
        """Raises `Unfinished` where calls failed: nothing is correlated with gaps that the next run would fill."""
        if self.failures:
            line = failure_line(dict(enumerate(self.failures)), self.n_scores)
            raise cli.Unfinished(f"{line}: run the same command again; what was scored is kept")


@dataclass(frozen=True, eq=False)
class MonitorPoints:
    """Prompts and what they gave; `n` answers each.

    Attributes:
        activations: layer -> (n_prompts, d_model), at the last token of each prompt.
        answers: (n_prompts, n).
        scores: name -> (n_prompts, n), NaN where there is none; the trait's stands under "trait".
    """

    prompts: list[Prompt]
    activations: Mapping[int, Float[Tensor, "n_prompts d_model"]]
    answers: np.ndarray
    scores: Mapping[str, Float[np.ndarray, "n_prompts n"]]

    @property
    def conditions(self) -> list[Condition]:
        return list({id(prompt.condition): prompt.condition for prompt in self.prompts}.values())

    def rows_of(self, condition: Condition) -> list[int]:
        """The condition's prompts."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.condition is condition]

    def rows_of_kind(self, kind: str) -> list[int]:
        return [i for i, prompt in enumerate(self.prompts) if prompt.condition.kind == kind]

    def means(self, name: str = "trait") -> Float[np.ndarray, " n_prompts"]:
        """Each prompt's mean score over its answers that have one; NaN without any."""
        scores = self.scores[name]
        n = np.isfinite(scores).sum(1)
        return np.divide(np.nansum(scores, 1), n, out=np.full(len(scores), np.nan), where=n > 0)

    def correlations(
        self, kind: str, layer: int, vector: Float[Tensor, " d_model"], *, each_answer: bool = False, **how: Any
    ) -> dict[str, MonitorCorrelation]:
        """Overall, within and between the conditions of a kind (`monitor_statistics.monitor_correlations`).

        A point is a prompt with the mean score of its answers, or each answer by itself.
        """
        from eval.monitor_statistics import monitor_correlations

        return monitor_correlations(*self._columns(kind, layer, vector, each_answer), **how)

    def correlations_by_condition(
        self, kind: str, layer: int, vector: Float[Tensor, " d_model"], **how: Any
    ) -> dict[float, MonitorCorrelation]:
        """The condition's number -> the correlation over its own prompts."""
        from eval.monitor_statistics import condition_correlations

        return condition_correlations(*self._columns(kind, layer, vector, False), **how)

    def _columns(self, kind: str, layer: int, vector: Tensor, each_answer: bool) -> tuple[Any, ...]:
        """Scores, activations, the vector, conditions and questions of each point."""
        rows = self.rows_of_kind(kind)
        n = self.answers.shape[1] if each_answer else 1
        return (
            self.scores["trait"][rows].ravel() if each_answer else self.means()[rows],
            self.activations[layer][rows].repeat_interleave(n, 0),
            vector,
            np.repeat([self.prompts[row].condition.number for row in rows], n).tolist(),
            np.repeat([self.prompts[row].question_id for row in rows], n).tolist(),
        )


def monitor_points(
    engine: Engine,
    conditions: Sequence[Condition],
    questions: Mapping[str, str],
    score: Mapping[str, Score],
    *,
    layers: Sequence[int],
    store: Store,
    n_per_question: int = 10,
    max_tokens: int = 1000,
    temperature: float = 1.0,
    seed: int = 0,
    prompts: Sequence[Prompt] | None = None,
    progress: bool = True,
) -> MonitorPoints:
    """Every question under every condition: the activation at the last token, and `n_per_question` scored answers.

    Activations and answers come from the store where they are finished. A model that is loaded already is
    `Engine(name, dtype, device_map, (model, tokenizer), tokenizer)`: the name must be the folder of these weights.

    Args:
        conditions: of one kind or several, from `monitor_conditions`.
        questions: id -> text.
        score: name -> scorer; "trait" is the one that is foretold, such as
            `lambda pairs: [trait_score(answer, "evil") for _, answer in pairs]`.
        layers: hidden_states indices.
        prompts: those of `prompts_of`, where they have been made.
    """
    prompts = list(prompts or prompts_of(engine.tokenizer, conditions, questions))
    asked = [prompt for prompt in prompts for _ in range(n_per_question)]
    texts = answers_of(
        engine,
        [prompt.text for prompt in asked],
        [
            (seed, *prompt.condition.stream, prompt.number, sample)
            for prompt in prompts
            for sample in range(n_per_question)
        ],
        max_tokens=max_tokens,
        temperature=temperature,
        steerings=[None] * len(asked),
        store=store,
        progress=progress,
    )
    engine.release()  # before the same model reads, and the judge scores: vLLM is started once
    activations = read_prompts(engine, [prompt.text for prompt in prompts], layers, store, progress=progress)
    pairs = [(prompt.question, text) for prompt, text in zip(asked, texts, strict=True)]
    shape = (len(prompts), n_per_question)
    scores = {
        name: np.array([np.nan if one is None else one for one in scorer(pairs)], dtype=float).reshape(shape)
        for name, scorer in score.items()
    }
    return MonitorPoints(prompts, activations, np.array(texts, dtype=object).reshape(shape), scores)


def read_prompts(
    engine: Engine, texts: Sequence[str], layers: Sequence[int], store: Store, *, progress: bool = True
) -> dict[int, Float[Tensor, "n d_model"]]:
    """Layer -> the activation at each prompt's last token, float32, from the store where it was read before."""
    shared = engine.reading_key()
    keys = {
        (layer, text): content_key("prompt_last", **shared, prompt=text, layer=layer)
        for layer in layers
        for text in dict.fromkeys(texts)
    }
    known = store.get_many(list(keys.values()))
    todo = [text for text in dict.fromkeys(texts) if any(keys[layer, text] not in known for layer in layers)]

    def keep(rows: list[int], means: Mapping[str, Float[Tensor, "batch layers d_model"]]) -> None:
        fresh = {
            keys[layer, todo[row]]: _packed(means[SPAN][place, column])
            for place, row in enumerate(rows)
            for column, layer in enumerate(layers)
        }
        store.put_many(fresh, kind="prompt_last", source=engine.name)
        known.update(fresh)

    if todo:
        samples = [tokenize_sample(engine.tokenizer, text, "") for text in todo]
        mean_activations(engine.model, samples, layers, [SPAN], progress=progress, on_batch=keep)
    return {layer: torch.stack([_unpacked(known[keys[layer, text]]) for text in texts]) for layer in layers}


def _packed(activation: Float[Tensor, " d_model"]) -> str:
    """Its float32 numbers, bit for bit, as text."""
    return base64.b64encode(activation.float().numpy().tobytes()).decode("ascii")


def _unpacked(text: str) -> Float[Tensor, " d_model"]:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float32).copy())
