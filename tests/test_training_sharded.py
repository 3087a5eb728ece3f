"""Steering in training on a model that FSDP shares out over two processes (CPU, gloo)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.checkpoint import set_checkpoint_early_stop

from activation_steer import ActivationSteerer
from persona_vectors.blocks import decoder_blocks
from persona_vectors.training_receipt import Expected, check_step, read_around
from tests.tiny_models import D_MODEL, tiny_model

IDS = torch.tensor([[7, 8, 9, 10, 11, 12], [12, 13, 14, 15, 16, 17]])
VECTOR = torch.linspace(-1, 1, D_MODEL)


def steered_step(model, ids):
    """The gradients' step: loss and receipt of one steered, checkpointed forward and backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    steerer = ActivationSteerer(model, VECTOR, coeff=1.5, layer_idx=1)
    with set_checkpoint_early_stop(False), steerer, read_around(model) as reading:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    check_step(reading, {1: Expected("add", 1.5 * VECTOR)}, 2)
    return loss.detach()


def process(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = tiny_model("llama").train()
    for block in decoder_blocks(model):
        fully_shard(block)
    fully_shard(model)
    loss = steered_step(model, IDS[rank : rank + 1])  # each process reads its own row
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    dist.all_reduce(loss)
    if rank == 0:
        torch.save({"loss": loss / 2, "gradients": gradients}, Path(folder) / "sharded.pt")
    dist.destroy_process_group()


def test_a_steered_step_on_a_sharded_model_has_the_gradients_of_one_process(tmp_path):
    mp.spawn(process, (str(tmp_path),), nprocs=2)  # pyright: ignore
    sharded = torch.load(tmp_path / "sharded.pt")
    model = tiny_model("llama").train()
    loss = steered_step(model, IDS)
    assert torch.allclose(sharded["loss"], loss, rtol=1e-5)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == sharded["gradients"].keys()
    for name, gradient in ours.items():
        assert torch.allclose(sharded["gradients"][name], gradient, rtol=1e-4, atol=1e-6), name
