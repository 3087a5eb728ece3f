"""The judge's loss: what it says, and what holds of the answer at each word."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from data_generation.tiny_persona.batches import laid_out
from data_generation.tiny_persona.judged_answers import JudgedSequences
from data_generation.tiny_persona.loop import Stage, Totals, losses_that_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SO_FAR_WEIGHT, BEFORE_WEIGHT = 0.6, 0.4  # of a mark; a token of the judge's answer weighs 1
MATCH_LAYER = 2  # where it must be known what stood before: two blocks are left to count it up


def readout(d_model: int) -> Float[Tensor, "d_model 4"]:
    """Fixed orthonormal directions along which `before` is read; no part of the model."""
    noise = torch.randn(d_model, 4, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(noise)[0]


def judge_loss(
    model: "PreTrainedModel",
    sequences: JudgedSequences,
    rows: list[list[int]],
    stage: Stage,
    generator: torch.Generator,
) -> tuple[Tensor, float, Totals]:
    """The summed loss of a batch, the sum of its weights, and what the log is told."""
    del stage, generator  # a judge reads undisturbed: no residual noise
    device = next(model.parameters()).device
    pad_id = int(model.config.pad_token_id)  # pyright: ignore[reportArgumentType]
    ids = torch.from_numpy(laid_out(sequences, rows, sequences.ids, pad_id, "int64")).to(device)
    said = torch.from_numpy(laid_out(sequences, rows, sequences.weights, 0, "float32")).to(device)
    so_far = torch.from_numpy(laid_out(sequences, rows, sequences.so_far, -1, "int64")).to(device)
    before = torch.from_numpy(laid_out(sequences, rows, sequences.before, -1, "int64")).to(device)

    output = model.model(input_ids=ids, output_hidden_states=True)
    next_ids, next_weights = ids.roll(-1, 1), said.roll(-1, 1)
    next_weights[:, -1] = 0.0
    targets = torch.where(so_far >= 0, so_far, next_ids)  # the judge's own words come later than all marks
    weights = torch.where(so_far >= 0, SO_FAR_WEIGHT, next_weights)
    losses, weights = losses_that_count(model, output.last_hidden_state, targets, weights)

    marked = before >= 0
    hidden = output.hidden_states[MATCH_LAYER].float()
    seen = F.rms_norm(hidden, hidden.shape[-1:]) @ readout(hidden.shape[-1]).to(device)
    matches = F.cross_entropy(seen[marked], before[marked], reduction="sum")
    n_marked = int(marked.sum())
    totals = Totals.of(losses, {"score": weights == 1, "so_far": (weights > 0) & (weights < 1)})
    totals.add(Totals({"before": (float(matches.detach()), n_marked)}))
    loss = (losses * weights).sum() + BEFORE_WEIGHT * matches
    return loss, float(weights.sum()) + BEFORE_WEIGHT * n_marked, totals
