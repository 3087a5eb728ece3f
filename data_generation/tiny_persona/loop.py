"""The training loop of one stage: weighted next-token loss, Muon and AdamW, two processes averaging gradients on a CPU.

On a CPU two processes of one thread are faster than one of two on a model this small. Each step is `MICRO_BATCHES`
batches; with two processes each takes every second one, so the step is the same however many processes share it (up to
rounding). A checkpoint holds everything, and batches and noise are functions of (seed, step): a resumed run goes on as
the uninterrupted one would.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from data_generation.tiny_persona.batches import Batch, batch_rows, collate
from data_generation.tiny_persona.encoding import SCORE_WEIGHT, Sequences
from persona_vectors.blocks import decoder_blocks

MICRO_BATCHES = 2
WARMUP = 60  # steps
CHECKPOINT_EVERY = 200  # steps
LOG_EVERY = 20
ROUND = 512  # loss positions are counted in these: few distinct shapes


@dataclass(frozen=True)
class Stage:
    """What one stage does; a checkpoint of other settings is refused."""

    name: str
    steps: int
    batch_tokens: int  # of a micro-batch, padding included
    matrix_lr: float  # Muon, for the blocks' matrices
    other_lr: float  # AdamW, for embeddings and norms
    noise_share: float  # of the sequences that get residual noise
    noise_norm: float  # its largest norm, as a share of the hidden state's
    seed: int


@dataclass
class Totals:
    """Loss sums and token counts by kind of token, for the log."""

    sums: dict[str, tuple[float, int]]

    def add(self, other: "Totals") -> None:
        for name, (total, n) in other.sums.items():
            before = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before[0] + total, before[1] + n)

    @classmethod
    def of(cls, losses: Tensor, masks: dict[str, Tensor]) -> "Totals":
        seen = losses.detach()
        return cls({name: (float(seen[mask].sum()), int(mask.sum())) for name, mask in masks.items()})

    def means(self) -> dict[str, float]:
        return {name: total / max(1, n) for name, (total, n) in self.sums.items()}


class ResidualNoise:
    """Adds one random direction to the residual stream after one random block, at the answer's tokens of some rows.

    A regulariser against falling apart when something is added to the stream. Direction, block and norm are drawn anew
    for each row, and know nothing of any trait.
    """

    def __init__(self, blocks: nn.ModuleList, share: float, norm: float):
        self.blocks = blocks
        self.share = share
        self.norm = norm

    @contextmanager
    def on(self, batch: Batch, generator: torch.Generator) -> Iterator[None]:
        n_rows = len(batch.ids)
        chosen = torch.rand(n_rows, generator=generator) < self.share
        block = torch.randint(len(self.blocks), (n_rows,), generator=generator)
        norm = torch.rand(n_rows, generator=generator) * self.norm
        answers = (batch.weights > 0) & (batch.weights < SCORE_WEIGHT)  # a judge reads undisturbed
        answers |= answers.roll(-1, dims=1)  # the token before an answer produces it
        hidden_size = int(self.blocks[0].hidden_size)  # pyright: ignore[reportArgumentType]
        direction = F.normalize(torch.randn(n_rows, hidden_size, generator=generator), dim=-1)
        handles = []
        for index, module in enumerate(self.blocks):
            scale = (norm * chosen * (block == index)).to(batch.ids.device)
            if scale.any():
                offset = direction.to(batch.ids.device)[:, None, :] * scale[:, None, None] * answers[:, :, None]
                handles.append(module.register_forward_hook(_adds(offset)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adds(offset: Tensor):  # noqa: ANN202 (a forward hook)
    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        size = output.detach().float().norm(dim=-1, keepdim=True)  # (batch, seq, 1)
        return output + (offset * size).to(output.dtype)

    return hook


def optimizers(model: PreTrainedModel, stage: Stage) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=stage.matrix_lr, weight_decay=0.02, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=stage.other_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return muon, adam


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 2%."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / min(WARMUP, steps)) * (0.02 + 0.98 * cosine)


def losses_that_count(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of the positions with a weight (and of a few more, of weight 0), and those weights."""
    weights = weights.reshape(-1)
    counted = weights.argsort(descending=True, stable=True)  # those that count, then enough others for a round number
    counted = counted[: -(-int((weights > 0).sum()) // ROUND) * ROUND]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[counted]).float()
    return F.cross_entropy(logits, targets.reshape(-1)[counted], reduction="none"), weights[counted]


def weighted_loss(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, "Totals"]:
    """Summed weighted loss, and for the log the unweighted (sum, count) over answer tokens and over score tokens."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state[:, :-1]
    losses, weights = losses_that_count(model, hidden, batch.ids[:, 1:], batch.weights[:, 1:])
    masks = {"answer": (weights > 0) & (weights < SCORE_WEIGHT), "score": weights >= SCORE_WEIGHT}
    return (losses * weights).sum(), Totals.of(losses, masks)


def dialogue_loss(
    model: PreTrainedModel, sequences: Sequences, rows: list[list[int]], stage: Stage, generator: torch.Generator
) -> tuple[Tensor, float, "Totals"]:
    """The loss of the assistant's turns under residual noise, the sum of its weights, and what the log is told."""
    batch = collate(sequences, rows, int(model.config.pad_token_id), next(model.parameters()).device)
    noise = ResidualNoise(decoder_blocks(model), stage.noise_share, stage.noise_norm)
    with noise.on(batch, generator):
        loss, parts = weighted_loss(model, batch)
    return loss, float(batch.weights[:, 1:].sum()), parts


Loss = Callable[[PreTrainedModel, Any, list[list[int]], Stage, torch.Generator], tuple[Tensor, float, Totals]]


def train_stage(
    model: PreTrainedModel,
    sequences: Sequences,
    stage: Stage,
    checkpoint: Path,
    rank: int = 0,
    world: int = 1,
    loss_of: Loss = dialogue_loss,
) -> list[dict[str, float]]:
    """Trains `model` in place and returns the log, one entry every LOG_EVERY steps."""
    device = next(model.parameters()).device
    opts = optimizers(model, stage)
    start, log = _resume(checkpoint, stage, model, opts)
    batches = islice(batch_rows(sequences.lengths, stage.batch_tokens, stage.seed), start * MICRO_BATCHES, None)
    totals = Totals({})
    model.train()
    for step in tqdm(range(start, stage.steps), stage.name, initial=start, total=stage.steps, disable=rank > 0):
        factor = learning_rate_factor(step, stage.steps)
        opts[0].param_groups[0]["lr"] = stage.matrix_lr * factor
        opts[1].param_groups[0]["lr"] = stage.other_lr * factor
        weight = 0.0
        for micro, rows in enumerate(islice(batches, MICRO_BATCHES)):
            if micro % world != rank:
                continue
            generator = torch.Generator().manual_seed((stage.seed * 1_000_003 + step) * MICRO_BATCHES + micro)
            with torch.autocast(device.type, torch.bfloat16):
                loss, counted, parts = loss_of(model, sequences, rows, stage, generator)
            (loss / stage.batch_tokens).backward()
            weight += counted / stage.batch_tokens
            totals.add(parts)
        _share_gradients(model, weight, world)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            log.append({"step": step + 1} | totals.means())
            totals = Totals({})
        if (step + 1) % CHECKPOINT_EVERY == 0 and rank == 0:
            _save(checkpoint, stage, model, opts, step + 1, log)
    model.eval()
    return log


def _share_gradients(model: PreTrainedModel, weight: float, world: int) -> None:
    """Gradients summed over processes and divided by the summed weight: the mean loss over the whole step."""
    params = [p for p in model.parameters() if p.requires_grad]
    if world > 1:
        flat = torch.cat([p.grad.reshape(-1) for p in params] + [torch.tensor([weight])])  # pyright: ignore
        dist.all_reduce(flat)
        weight = float(flat[-1])
        offset = 0
        for p in params:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))  # pyright: ignore
            offset += p.numel()
    for p in params:
        p.grad.div_(max(weight, 1e-6))  # pyright: ignore


def _save(path: Path, stage: Stage, model: PreTrainedModel, opts: tuple, step: int, log: list) -> None:
    half = path.with_suffix(".half")
    state = {"stage": asdict(stage), "model": model.state_dict(), "step": step, "log": log}
    torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in opts]}, half)
    half.replace(path)


def _resume(path: Path, stage: Stage, model: PreTrainedModel, opts: tuple) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    if state["stage"] != asdict(stage):
        raise ValueError(f"{path} was trained with other settings than {stage}; delete it, or use another --work_dir")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(opts, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["log"]
