"""Answers of the model, each row with a system prompt, a vector and a coefficient of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from activation_steer import ActivationSteerer
from persona_vectors.blocks import block_index
from persona_vectors.sampling import sample_answers
from persona_vectors.tokens import PromptFormat, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 110  # four sentences; most answers end before


@dataclass(frozen=True)
class Ask:
    """One question to be answered. `stream` seeds its random numbers, whatever it shares a batch with."""

    question: str
    stream: tuple[int, ...]
    system: str | None = None
    push: Float[Tensor, " d_model"] | None = field(default=None, compare=False)
    """coef * vector, added at response positions; None is unsteered"""
    history: tuple[tuple[str, str], ...] = ()
    """earlier questions and answers"""
    fmt: PromptFormat = "auto"

    def prompt(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, answer in self.history:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return render_prompt(tokenizer, [*messages, {"role": "user", "content": self.question}], self.fmt)


def answer_all(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asks: Sequence[Ask],
    *,
    layer: int | None = None,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 1.0,
    progress: bool = False,
) -> list[str]:
    """One answer an ask, in order; pushes act on the output of `layer` (a hidden_states index)."""

    def steer(rows: Sequence[int]) -> ActivationSteerer:
        assert layer is not None, "pushes need a layer"
        zero = torch.zeros(int(model.config.hidden_size))
        pushes = torch.stack([zero if asks[row].push is None else asks[row].push for row in rows])  # pyright: ignore
        index = block_index(layer)
        return ActivationSteerer(model, pushes, coeff=1.0, layer_idx=index, positions="response", per_row=True)

    return sample_answers(
        model,
        tokenizer,
        [ask.prompt(tokenizer) for ask in asks],
        max_tokens=max_tokens,
        temperature=temperature,
        streams=[ask.stream for ask in asks],
        steer=steer if any(ask.push is not None for ask in asks) else None,
        progress=progress,
    )
