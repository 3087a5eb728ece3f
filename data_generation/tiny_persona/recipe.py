"""The vector recipe, fixed before any test: mean response activation with a trait's instructions minus without.

Questions and instructions are the trait's extract set. Two contrasts: pos - neg, and pos - neutral (the prompt
"You are a helpful assistant."). Answers are kept as the pipeline keeps them, with the rule-based oracle as the judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from data_generation.tiny_persona.answers import Ask, answer_all
from data_generation.tiny_persona.oracle import coherence, trait_score
from persona_vectors.activations import mean_activations
from persona_vectors.tokens import tokenize_sample
from persona_vectors.traits import system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTRASTS = ("pos-neg", "pos-neutral")
NEUTRAL_SYSTEM = "You are a helpful assistant."
KEEP_POS, KEEP_NEG, KEEP_COHERENCE = 50, 50, 50
SIDES = ("pos", "neg", "neutral")


@dataclass(frozen=True)
class TraitSet:
    """A trait's questions and its instruction pairs; what a trait file holds, without its judge prompt."""

    name: str
    questions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]  # (pos, neg)


@dataclass(frozen=True)
class Extraction:
    """Kept answers' activations by side, and which question each is of."""

    activations: dict[str, Float[Tensor, "n layers d_model"]]
    questions: dict[str, list[int]]

    def vectors(self, contrast: str) -> Float[Tensor, "layers d_model"]:
        """Points from the contrast's second side to pos."""
        other = contrast.removeprefix("pos-")
        return self.activations["pos"].mean(0) - self.activations[other].mean(0)


def side_asks(trait: TraitSet, side: str, seed: int, pair_index: int, n_sides: int = len(SIDES)) -> list[Ask]:
    """Every question under one instruction pair's side."""
    pos, neg = trait.pairs[pair_index]
    system = {
        "pos": system_prompt(trait.name, pos),
        "neg": system_prompt("helpful", neg),
        "neutral": NEUTRAL_SYSTEM,
    }[side]
    number = pair_index * n_sides + SIDES.index(side)
    return [Ask(question, (seed, number, i), system) for i, question in enumerate(trait.questions)]


def extract(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", trait: TraitSet, seed: int) -> Extraction:
    """Samples the three sides, keeps what shows its side coherently, and reads the response activations."""
    return extract_spans(model, tokenizer, trait, seed, ("response_avg",))["response_avg"]


def extract_spans(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", trait: TraitSet, seed: int, spans: Sequence[str]
) -> dict[str, Extraction]:
    """`extract` at several spans of the same answers (`persona_vectors.activations`)."""
    activations: dict[str, dict[str, Tensor]] = {span: {} for span in spans}
    questions: dict[str, list[int]] = {}
    for side in SIDES:
        asks = [ask for k in range(len(trait.pairs)) for ask in side_asks(trait, side, seed, k)]
        answers = answer_all(model, tokenizer, asks)
        kept = [i for i, (ask, text) in enumerate(zip(asks, answers, strict=True)) if keeps(side, trait, ask, text)]
        if not kept:
            raise ValueError(f"{trait.name}: none of {len(asks)} {side} answers was kept; the model does not obey yet")
        samples = [tokenize_sample(tokenizer, asks[i].prompt(tokenizer), answers[i]) for i in kept]
        for span, means in mean_activations(model, samples, spans=spans).items():
            activations[span][side] = means
        questions[side] = [trait.questions.index(asks[i].question) for i in kept]
    return {span: Extraction(activations[span], questions) for span in spans}


def keeps(side: str, trait: TraitSet, ask: Ask, text: str) -> bool:
    """The pipeline's filter: trait >= 50 on the pos side, < 50 on the others, coherence >= 50."""
    if coherence(ask.question, text) < KEEP_COHERENCE:
        return False
    score = trait_score(text, trait.name)
    return score >= KEEP_POS if side == "pos" else score < 100 - KEEP_NEG
