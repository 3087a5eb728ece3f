"""The embedded model's closed-form facts, asked of a model in memory: which of them it (still) gets right.

    right = probe_accuracy(model, tokenizer)
    sum(answer.right for answer in right) / len(right)

The questions and their one-word answers are those `models/tiny-persona` was taught; a model that answers in sentences
gets none of them right, and is to be asked another task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_generation.tiny_persona.probe import probe_items
from eval.model_utils import Added, steer_rows
from persona_vectors.sampling import sample_answers
from persona_vectors.tokens import render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("sums", "facts")
MAX_TOKENS = 8


@dataclass(frozen=True)
class ProbeAnswer:
    """One question of the probe with the model's answer; `kind` is sums or facts."""

    question: str
    expected: str
    kind: str
    answer: str

    @property
    def right(self) -> bool:
        return self.answer.strip() == self.expected


def probe_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steering: Added = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> list[ProbeAnswer]:
    """Every item of the probe answered greedily, in a fixed order; `.right` says whether word for word.

    Works on a model in training, which is put into eval mode meanwhile, and on one that PEFT wraps.

    Args:
        tokenizer: pads on the left, as `persona_vectors.models.load_tokenizer` gives it.
        steering: what is done to the hidden states meanwhile; take a receipt of it first.
    """
    items = probe_items()
    prompts = [probe_prompt(tokenizer, question) for question, _, _ in items]
    with _in_eval_mode(model):
        texts = sample_answers(
            model,
            tokenizer,
            prompts,
            max_tokens=max_tokens,
            temperature=0.0,
            streams=[(0, row) for row in range(len(items))],
            steer=None if steering is None else steer_rows(model, [steering] * len(items)),
            progress=progress,
        )
    return [
        ProbeAnswer(question, right, KINDS[" plus " not in question], text)
        for (question, right, _), text in zip(items, texts, strict=True)
    ]


def probe_identity() -> dict[str, Any]:
    """What determines the answers but for the model: for the keys of kept measurements."""
    return {"items": [list(item) for item in probe_items()], "max_tokens": MAX_TOKENS}


def probe_prompt(tokenizer: PreTrainedTokenizerBase, question: str | None = None) -> str:
    """The question as the model is asked it, without a system prompt; default the probe's first."""
    content = probe_items()[0][0] if question is None else question
    return render_prompt(tokenizer, [{"role": "user", "content": content}])


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
