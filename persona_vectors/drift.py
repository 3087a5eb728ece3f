"""Where a conversation stands along an axis, token by token and turn by turn, and whether it drifts.

    turns = project_transcript(model, tokenizer, messages, axis, layer=20)
    [(turn.role, turn.mean) for turn in turns]

A conversation is read in one forward pass. Hooks on the blocks reduce each hidden state to its projections at once:
what is kept of a layer is (tokens, vectors), never (tokens, d_model), and the pass ends at the highest wanted layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from persona_vectors.blocks import check_layer, decoder_blocks, device_of, hidden_size, model_label, unwrap
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.decoding import context_length
from persona_vectors.projection import unit
from persona_vectors.span_means import reduced_pass
from persona_vectors.statistics import Interval
from persona_vectors.tokens import Message, PromptFormat, Turn, pad_batch, tokenize_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SEQ_LEN = 8192

_TOKENS_PER_PASS_CPU, _TOKENS_PER_PASS_CUDA = 4_096, 16_384  # of several conversations that are padded to one length


@dataclass(frozen=True)
class TurnProjection:
    """One turn of a conversation on an axis.

    Attributes:
        index: the message's place in the conversation, from 0.
        mean: over `tokens`; NaN where the turn has none.
        tokens: projection h.v/|v| of each token; positive along the axis.
        pieces: the text of each token.
    """

    index: int
    role: str
    content: str
    mean: float
    tokens: tuple[float, ...]
    pieces: tuple[str, ...]


def project_transcript(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    axis: Float[Tensor, "*layers d_model"],
    format_mode: PromptFormat = "raw",
    layer: int | None = None,
    max_seq_len: int = MAX_SEQ_LEN,
) -> list[TurnProjection]:
    """Each turn's projection on an axis, h.v/|v| per token and its mean: positive along the axis (for the assistant
    axis, towards the assistant).

    Args:
        conversation: `{"role": "system" | "user" | "assistant", "content": text}` messages.
        axis: (d_model,), or (n_layers + 1, d_model) indexed by layer.
        format_mode: raw (`System: ...\\n\\nUser: ...`), chat (the tokenizer's template), or auto.
        layer: hidden_states index to read; default where `PersonaVectorConfig` reads.
        max_seq_len: most tokens; the model's own context bounds it, too.

    Raises:
        ValueError: a conversation that is malformed or longer than that (nothing is cut), a layer the model has not,
            an axis of another width, or one that is zero.
    """
    n_layers = len(decoder_blocks(model))
    layer = PersonaVectorConfig().get_extraction_layer(n_layers) if layer is None else layer
    check_layer(layer, n_layers, model_label(model), steering=False)
    if axis.ndim == 2 and len(axis) != n_layers + 1:
        raise ValueError(f"the axis has {len(axis)} layers; {model_label(model)} has {n_layers + 1}")
    ids, turns = tokenize_turns(tokenizer, conversation, format_mode)
    bare: Any = unwrap(model)
    check_room(ids, turns, min(max_seq_len, context_length(bare) or max_seq_len))
    own = axis[layer] if axis.ndim == 2 else axis
    [values] = project_tokens(model, [ids], {layer: own[None]})
    tokens = values[:, 0, 0]  # (tokens,)
    means = turn_means(values, turns)[:, 0, 0]
    return [
        TurnProjection(
            turn.index,
            turn.role,
            str(conversation[turn.index]["content"]),
            mean,
            tuple(tokens[turn.start : turn.end].tolist()),
            turn.pieces,
        )
        for turn, mean in zip(turns, means.tolist(), strict=True)
    ]


def project_tokens(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    directions: Mapping[int, Float[Tensor, "vectors d_model"]],
    *,
    token_budget: int | None = None,
    progress: bool = False,
) -> list[Float[Tensor, "tokens layers vectors"]]:
    """h.v/|v| of every token of each sequence, on each vector at each layer: float32, on the CPU, in input order.

    Sequences are not cut. Short ones share a forward pass, padded on the right, where nothing attends to padding; a
    sequence longer than the budget has a pass of its own. A steerer that was entered before this call is seen.

    Args:
        directions: layer (a hidden_states index) -> the vectors there, as many at each layer.
        token_budget: padded tokens in one pass; a default for the device if None.

    Raises:
        ValueError: an empty sequence, a layer the model has not, vectors of another width or number, zero or not
            finite, or hidden states that are not finite.
    """
    units = _checked_units(model, directions)
    if any(len(ids) == 0 for ids in sequences):
        raise ValueError("a sequence has no tokens; there is nothing to project")
    if token_budget is None:
        token_budget = _TOKENS_PER_PASS_CPU if device_of(model).type == "cpu" else _TOKENS_PER_PASS_CUDA
    found: dict[int, Tensor] = {}
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    with tqdm(total=len(sequences), desc="projecting", unit="text", disable=not progress) as bar:
        while order:
            n_rows = max(1, token_budget // len(sequences[order[0]]))
            rows, order = order[:n_rows], order[n_rows:]
            projected = _pass(model, [sequences[row] for row in rows], units)
            for row, own in zip(rows, projected, strict=True):
                if not torch.isfinite(own).all():
                    raise ValueError("hidden states are NaN or infinite; use --dtype bfloat16 or float32, not float16")
                found[row] = own
            bar.update(len(rows))
    return [found[row] for row in range(len(sequences))]


def _checked_units(model: nn.Module, directions: Mapping[int, Tensor]) -> dict[int, Float[Tensor, "vectors d_model"]]:
    n_layers, width = len(decoder_blocks(model)), hidden_size(model)
    if not directions:
        raise ValueError("no directions to project on")
    for layer, vectors in directions.items():
        check_layer(layer, n_layers, model_label(model), steering=False)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(
                f"vectors at layer {layer} have shape {tuple(vectors.shape)}; {model_label(model)} needs (n, {width})"
            )
    if len({len(vectors) for vectors in directions.values()}) > 1:
        raise ValueError("layers have different numbers of vectors; give as many at each")
    return {layer: unit(vectors) for layer, vectors in directions.items()}


@torch.inference_mode()
def _pass(
    model: nn.Module, batch: Sequence[Sequence[int]], units: Mapping[int, Tensor]
) -> list[Float[Tensor, "tokens layers vectors"]]:
    """One forward pass. The mask says that padding is real, so that the model takes its fast causal kernels."""

    def reduce(layer: int, hidden: Tensor) -> Tensor:
        return (hidden.float() @ units[layer].to(hidden.device).T).cpu()  # (batch, seq, vectors)

    input_ids, _mask = pad_batch(batch, 0, "right")
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
    reduced = reduced_pass(model, list(units), reduce, inputs)
    values = torch.stack([reduced[layer] for layer in units], dim=2)  # (batch, seq, layers, vectors)
    return [values[row, : len(ids)].clone() for row, ids in enumerate(batch)]


def turn_means(
    values: Float[Tensor, "tokens layers vectors"], turns: Sequence[Turn]
) -> Float[Tensor, "turns layers vectors"]:
    """The mean over each turn's own tokens; NaN for a turn without any."""
    return torch.stack([values[turn.start : turn.end].mean(0) for turn in turns])


def check_room(ids: Sequence[int], turns: Sequence[Turn], limit: int) -> None:
    """Refuses, with a ValueError that names the turns that would be cut, a conversation of more than `limit` tokens."""
    if len(ids) <= limit:
        return
    cut = [turn.index + 1 for turn in turns if turn.end > limit]
    which = f"turns {cut[0]} to {cut[-1]}" if len(cut) > 1 else f"turn {cut[0]}"
    raise ValueError(
        f"the conversation has {len(ids)} tokens and {limit} can be read (max_seq_len, the model's context): "
        f"{which} of {len(turns)} would be cut; shorten or split it"
    )


def slopes(ys: Float[np.ndarray, "turns n"]) -> Float[np.ndarray, " n"]:
    """Least-squares slope of each column over 0, 1, 2, ...: change a turn.

    Raises:
        ValueError: fewer than two turns.
    """
    if len(ys) < 2:
        raise ValueError(f"a slope needs two turns; got {len(ys)}")
    xs = np.arange(len(ys)) - (len(ys) - 1) / 2
    return xs @ (ys - ys.mean(0)) / (xs @ xs)


def slope_interval(ys: Float[np.ndarray, " turns"], level: float = 0.95) -> Interval:
    """The least-squares slope over turns 0, 1, 2, ... with Student's interval; no interval for fewer than three turns.

    It takes turns for independent around the line. Turns of a conversation are not, so it is too narrow rather than too
    wide: read it beside slopes of random directions, which turn with the same turns.
    """
    from scipy.special import stdtrit

    slope, n = float(slopes(ys[:, None])[0]), len(ys)
    if n < 3:
        return Interval(slope, np.nan, np.nan, n, n)
    xs = np.arange(n) - (n - 1) / 2
    rest = ys - ys.mean() - slope * xs
    half = float(stdtrit(n - 2, (1 + level) / 2) * np.sqrt(rest @ rest / (n - 2) / (xs @ xs)))
    return Interval(slope, slope - half, slope + half, n, n)
