"""The receipt of a direction of weights: what it really does to every linear module, measured before the run.

One forward pass over a prompt, steered by the path that the run takes. Each module's output is read before and after
the hooks on it; what lies between must be `coef * (x A^T) B^T` where the direction acts, and not a bit anywhere else.
Merged weights cannot be read so: their logits must be those of the same direction beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval.model_utils import WeightSteering, steer_rows
from lora_utils import LoRAMerger
from persona_vectors.blocks import device_of
from persona_vectors.tokens import tokenize_prompt
from persona_vectors.training_weights_receipt import check_modules, read_modules
from persona_vectors.weight_direction import combine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGED_ERROR = {torch.float64: 1e-6, torch.float32: 1e-2}
COARSE_MERGED_ERROR = 0.5
"""of 16-bit weights, which take up the direction as far as their own steps allow"""


@dataclass(frozen=True)
class WeightReceipt:
    """What one direction was seen to do.

    Attributes:
        modules: how many it changes.
        relative_change: |what is added| / |the module's output|, mean over modules.
        relative_error: the largest |added - asked for| / |asked for| of a token at a module.
        merged_error: of pre_merge, |logits - those of dynamic| / |those of dynamic - unsteered ones|; None of dynamic.
    """

    coef: float
    mode: str
    modules: int
    relative_change: float
    relative_error: float
    merged_error: float | None
    n_prompt_tokens: int
    dtype: str


@torch.inference_mode()
def take_weight_receipts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, steerings: Sequence[WeightSteering]
) -> list[WeightReceipt]:
    """A receipt for each steering, in order.

    Raises:
        ValueError: one line, where a direction does nothing, something else, or something elsewhere.
    """
    ids = torch.tensor([tokenize_prompt(tokenizer, prompt)], device=device_of(model))
    plain = _logits(model, ids)
    if not plain.isfinite().all():
        raise ValueError("steering receipt: the model itself gives NaN or infinite logits; use another --dtype")
    return [_receipt(model, ids, plain, steering) for steering in steerings]


def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1].double()


def _receipt(model: PreTrainedModel, ids: Tensor, plain: Tensor, steering: WeightSteering) -> WeightReceipt:
    beside = replace(steering, mode="dynamic")
    change = combine([(steering.direction, steering.coef)])
    with steer_rows(model, [beside])([0]), read_modules(model, change) as reading:
        steered = _logits(model, ids)
    told = check_modules(reading, 1, of=f"steering receipt: coef {steering.coef:g}")["modules"]
    merged_error = None
    if steering.mode == "pre_merge":
        with LoRAMerger(model) as merger:
            merger.merge_lora_diff(steering.direction, steering.coef)
            merged = _logits(model, ids)
        merged_error = float((merged - steered).norm() / (steered - plain).norm())
        allowed = MERGED_ERROR.get(model.dtype, COARSE_MERGED_ERROR)
        if not merged_error <= allowed:
            raise ValueError(
                f"steering receipt: with the direction merged at coef {steering.coef:g} the logits are off by "
                f"{merged_error:.2g} of its effect, at most {allowed:g} is rounding; use --mode dynamic or --dtype "
                "float32"
            )
    return WeightReceipt(
        coef=float(steering.coef),
        mode=steering.mode,
        modules=told["n"],
        relative_change=told["mean_relative_change"],
        relative_error=told["forward_error"],
        merged_error=merged_error,
        n_prompt_tokens=ids.shape[1],
        dtype=str(model.dtype).removeprefix("torch."),
    )
