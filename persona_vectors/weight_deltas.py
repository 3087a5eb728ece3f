"""What a full finetuning changed, `delta_w = W(finetuned) - W(original)`, one tensor at a time: memory stays flat.

Both models are read from their safetensors files, whole or sharded, without building them. Names are the model's own,
`model.layers.0.self_attn.q_proj.weight`, whatever the files call them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from persona_vectors.models import load_config, resolve_model
from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_hooks import is_transposed, names_in_model, skeleton

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""What old checkpoints hold beside parameters."""
DTYPES = ("F32", "F16", "BF16", "F64")
_BYTES_UNTIL_REOPENED = 2**24
_ENTRIES_AT_ONCE, _BLOCKS_READ = 2**18, 16
FULL_SVD_UP_TO = 512
"""The smaller side of a matrix whose singular values are computed exactly; of larger ones by random projections."""


@dataclass(frozen=True)
class Stored:
    """Where a parameter is, and its shape."""

    file: Path
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The parameters of a full model's files, by name; nothing is read until it is asked for."""

    name: str
    parameters: Mapping[str, Stored]
    is_tied: bool

    _open: dict[Path, tuple[Any, int]] = field(default_factory=dict, repr=False, compare=False)
    """files that are open, and how many bytes were read from each"""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The parameter, or these rows of it, as it is stored.

        A file's pages stay in memory while it is open, and opening it reads its header: it is opened anew after some
        MiB.
        """
        from safetensors import safe_open

        stored = self.parameters[name]
        file, n_bytes = self._open.get(stored.file, (None, 0))
        if file is None or n_bytes > _BYTES_UNTIL_REOPENED:
            file, n_bytes = safe_open(stored.file, framework="pt"), 0
        tensor = file.get_tensor(stored.key) if rows is None else file.get_slice(stored.key)[rows]
        self._open[stored.file] = file, n_bytes + tensor.nbytes
        return tensor


@dataclass(frozen=True)
class Pair:
    """Two checkpoints with the same parameters."""

    original: Checkpoint
    finetuned: Checkpoint
    names: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.original.parameters[name].shape

    def delta(self, name: str) -> Tensor:
        """`finetuned - original` of a parameter, in float32.

        Raises:
            ValueError: it is not finite.
        """
        delta = torch.empty(self.shape(name))
        return self._subtracted(name, delta, self.finetuned.read(name), self.original.read(name))

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """`delta` some rows at a time, and which: an embedding is never held, and a block stays in the cache.

        A block is overwritten by the next one.
        """
        shape = self.shape(name)
        if not shape:
            yield slice(None), self.delta(name)
            return
        width = max(1, math.prod(shape[1:]))
        step = max(1, _ENTRIES_AT_ONCE // width)
        n_read = step * _BLOCKS_READ
        memory = torch.empty(min(step, shape[0]), *shape[1:])
        for first in range(0, shape[0], n_read):
            rows = slice(first, first + n_read) if shape[0] > n_read else None
            after, before = self.finetuned.read(name, rows), self.original.read(name, rows)
            for start in range(0, len(after), step):
                part = slice(start, min(start + step, len(after)))
                block = self._subtracted(name, memory[: part.stop - start], after[part], before[part])
                yield slice(first + start, first + part.stop), block

    def _subtracted(self, name: str, out: Tensor, after: Tensor, before: Tensor) -> Tensor:
        out.copy_(after).sub_(before)
        # a sum is not finite where an entry is not, and costs a tenth of looking at each
        if not torch.isfinite(out.sum()) and not torch.isfinite(out).all():
            raise ValueError(f"{name} of {self.finetuned.name} less that of {self.original.name} is not finite")
        return out


def weight_deltas(
    original: str, finetuned: str, keep: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and `finetuned - original` in float32, one after the other.

    An output head that is the embedding in both models is not a parameter of its own; where it is that in one of them,
    the embedding stands for it.

    Args:
        keep: which names to read; None is all.

    Raises:
        ValueError: see `open_pair`; before the first is read.
    """
    pair = open_pair(original, finetuned)
    return ((name, pair.delta(name)) for name in pair.names if keep is None or keep(name))


def open_pair(original: str, finetuned: str) -> Pair:
    """Both models' files, their parameters compared by name and shape; nothing is read but the files' headers.

    Raises:
        ValueError: a model that is not there, an adapter, `.bin` or quantised weights, or parameters that only one of
            them has or that differ in shape.
    """
    pair = _without_tied_heads(open_checkpoint(original), open_checkpoint(finetuned))
    for one, other in (pair, pair[::-1]):
        if missing := [name for name in one.parameters if name not in other.parameters]:
            raise ValueError(
                f"{missing[0]} is in {one.name} and not in {other.name} ({len(missing)} such parameters); expected a "
                "model and its full finetuning"
            )
    for name, stored in pair[0].parameters.items():
        if stored.shape != (shape := pair[1].parameters[name].shape):
            raise ValueError(
                f"{name} has shape {stored.shape} in {original} and {shape} in {finetuned}; expected a model and its "
                "full finetuning"
            )
    return Pair(*pair, names=tuple(pair[0].parameters))


def open_checkpoint(name: str) -> Checkpoint:
    """The parameters of a model folder or of a hub model's local files.

    Raises:
        ValueError: an adapter, no safetensors there, or weights that are stored quantised.
    """
    from safetensors import safe_open

    source = resolve_model(name)
    if source.adapter is not None:
        raise ValueError(f"{name} is an adapter, whose change of the weights is low-rank and in its file; load that")
    folder = Path(source.base) if source.is_local else _downloaded(source.base)
    parameters: dict[str, Stored] = {}
    for path in _files(folder, name):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key.endswith(BUFFERS):
                    continue
                part = file.get_slice(key)
                if part.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"{name}: {key} is stored as {part.get_dtype()}; expected weights that are not quantised"
                    )
                parameters[key] = Stored(path, key, tuple(part.get_shape()))
    if not parameters:
        raise ValueError(f"{name} has no parameters in {folder}")
    names = names_in_model(name, parameters)
    parameters = {names[key]: stored for key, stored in parameters.items()}
    return Checkpoint(name, parameters, bool(getattr(load_config(name), "tie_word_embeddings", False)))


def _downloaded(hub_id: str) -> Path:
    """The folder of a hub model's files on this machine, downloaded where they are not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json"]))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"cannot find the weights of {hub_id}: the folder does not exist, and no hub model of that name is on this "
            "machine or could be reached; give a model or adapter folder, or a hub id such as org/name"
        ) from None
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"cannot find the weights of {hub_id}: {str(error).splitlines()[0]}") from error


def _files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that make up the model."""
    if (folder / "adapter_config.json").is_file():  # of a hub id, which says nothing of what is behind it
        raise ValueError(f"{name} is an adapter; give its folder, {folder}")
    if (folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{folder / INDEX} is no index of shards; save the model again") from None
    else:
        shards = [SINGLE]
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if not missing:
        return [folder / shard for shard in shards]
    if shards == [SINGLE] and list(folder.glob("*.bin")):
        raise ValueError(f"{name} has .bin weights; save it with save_pretrained, which writes safetensors")
    raise ValueError(f"{name} holds no full model: {folder / missing[0]} is missing")


def _without_tied_heads(original: Checkpoint, finetuned: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both with an output head of its own, or neither: not everyone stores a head that is the embedding."""
    both = original, finetuned
    if all(one.is_tied for one in both):
        kept = [{k: v for k, v in one.parameters.items() if not k.endswith(HEADS)} for one in both]
        return replace(original, parameters=kept[0]), replace(finetuned, parameters=kept[1])
    heads = {key for one in both for key in one.parameters if key.endswith(HEADS)}
    with_heads = []
    for one in both:
        embedding = next((stored for key, stored in one.parameters.items() if key.endswith(EMBEDDINGS)), None)
        added = {head: embedding for head in heads if head not in one.parameters and one.is_tied and embedding}
        with_heads.append(replace(one, parameters={**one.parameters, **added}))
    return with_heads[0], with_heads[1]


def linear_modules(model: nn.Module) -> dict[str, bool]:
    """The names of a model's linear modules, and whether their weight is stored (d_in, d_out), as GPT-2's."""
    found = {name: module for name, module in model.named_modules()}
    return {
        name: is_transposed(module)
        for name, module in found.items()
        if isinstance(module, nn.Linear) or is_transposed(module)
    }


def as_direction_of_deltas(
    original: str, finetuned: str, rank: int, *, progress: bool = False
) -> tuple[WeightDirection, dict[str, float]]:
    """A full finetuning as a direction: of each linear module that changed, delta_w at rank `rank` at most.

    It is the nearest one of its rank (singular value decomposition; of large matrices by random projections, which
    comes close to it). Biases of linear modules stay whole. Other parameters (embedding, norms) are left out, and
    `record["left_out"]` is their share of the squared norm.

    Returns:
        the direction, and each module's `|delta_w - it| / |delta_w|`.

    Raises:
        ValueError: see `open_pair`; a rank below 1; or no linear module is in the files, or changed.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    pair = open_pair(original, finetuned)
    linear = {name: way for name, way in linear_modules(skeleton(original)).items() if f"{name}.weight" in pair.names}
    if not linear:
        raise ValueError(
            f"no linear module of {original} is called as its files' parameters are ({pair.names[0]}, ...); save it "
            "again with save_pretrained"
        )
    modules, residuals, inside = {}, {}, 0.0
    for name, transposed in tqdm(linear.items(), desc="decomposing", unit="module", disable=not progress):
        delta = pair.delta(f"{name}.weight")
        bias = pair.delta(f"{name}.bias") if f"{name}.bias" in pair.names else None
        bias = bias if bias is not None and bias.any() else None
        inside += squared(delta) + (0.0 if bias is None else squared(bias))
        if delta.any():
            modules[name], residuals[name] = _nearest(delta.T if transposed else delta, bias, rank)
        elif bias is not None:
            d_in, d_out = delta.shape if transposed else delta.shape[::-1]
            modules[name], residuals[name] = LowRank(torch.zeros(0, d_in), torch.zeros(d_out, 0), bias), 0.0
    if not modules:
        raise ValueError(f"{finetuned} has the linear modules of {original} unchanged; expected a finetuning of it")
    own = {f"{name}.{part}" for name in linear for part in ("weight", "bias")}
    outside = sum(squared(block) for name in pair.names if name not in own for _, block in pair.blocks(name))
    record = {"finetuned": finetuned, "original": original, "rank": rank, "left_out": outside / (inside + outside)}
    return WeightDirection(modules, original, record), residuals


def _nearest(
    delta: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None, rank: int
) -> tuple[LowRank, float]:
    """delta_w at this rank, and how far it is from it, relative to its norm."""
    delta = delta.to("cuda" if torch.cuda.is_available() else "cpu")
    rank = min(rank, *delta.shape)
    if min(delta.shape) <= FULL_SVD_UP_TO:
        u, s, vt = torch.linalg.svd(delta.double(), full_matrices=False)
        v = vt.T
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=min(rank + 16, *delta.shape), niter=4)
    root = s[:rank].sqrt()
    B, A = (u[:, :rank] * root).float(), (root[:, None] * v[:, :rank].T).float()
    residual = float((delta - B @ A).norm() / delta.norm())
    return LowRank(A.cpu(), B.cpu(), bias), residual


def squared(tensor: Tensor) -> float:
    """The squared norm: stretches of 1024 entries in the tensor's dtype, and their sum in float64."""
    flat = tensor.reshape(-1)
    whole = len(flat) // 1024 * 1024
    stretches, rest = flat[:whole].view(-1, 1024), flat[whole:]
    return sum(float(torch.linalg.vector_norm(one, dim=-1).double().square().sum()) for one in (stretches, rest))
