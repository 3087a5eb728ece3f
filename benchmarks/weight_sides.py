"""What the benchmark of directions in weight space compares: a random model and directions, and both sides' code.

The plain sides are written as one would write them first: every weight cloned, B @ A materialised and added, the clone
loaded back; both dW materialised, multiplied and summed; both full models loaded and subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_vectors.weight_direction import WeightDirection

COEFS = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 32


def random_model(size: dict[str, int], dtype: str, seed: int) -> Any:
    """A random Qwen2 whose output head is its embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = size["hidden_size"] // 64
    config = AutoConfig.for_model(
        "qwen2", **size, num_attention_heads=heads, num_key_value_heads=max(1, heads // 4), tie_word_embeddings=True
    )
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    return model.eval()


def random_direction(size: dict[str, int], rank: int, seed: int, base: str = "random") -> WeightDirection:
    """Random changes at this rank of all linear modules, about a tenth as large as the weights."""
    import torch

    from persona_vectors.weight_direction import LowRank, WeightDirection

    generator, width, inner = torch.Generator().manual_seed(seed), size["hidden_size"], size["intermediate_size"]
    values = max(1, width // 64 // 4) * 64
    shapes = dict(zip(KINDS, [(width, width), (values, width), (values, width), (width, width)], strict=False))
    shapes |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    modules = {}
    for block in range(size["num_hidden_layers"]):
        for kind in KINDS:
            d_out, d_in = shapes[kind]
            A = torch.randn(rank, d_in, generator=generator) * d_in**-0.5
            B = torch.randn(d_out, rank, generator=generator) * 0.002 * (d_in / rank) ** 0.5
            modules[f"model.layers.{block}.{'self_attn' if len(kind) == 6 else 'mlp'}.{kind}"] = LowRank(A, B)
    return WeightDirection(modules, base)


def persona(size: dict[str, int], seed: int, base: str = "random", rank: int = RANK) -> WeightDirection:
    """The difference of two adapters, at twice their rank."""
    from persona_vectors.weight_direction import difference

    return difference(random_direction(size, rank, seed + 1, base), random_direction(size, rank, seed + 2, base))


def plain_sweep(model: Any, direction: WeightDirection, in_weights_dtype: bool = False) -> Iterator[float]:
    """Each coefficient, while it is merged: all weights cloned, B @ A materialised, the clone loaded back.

    Args:
        in_weights_dtype: the factors are cast before they are multiplied, instead of what they make.
    """
    import torch

    for coef in COEFS:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for name, module in direction.modules.items():
            weight = model.get_submodule(name).weight
            A, B = (one.to(weight.dtype) if in_weights_dtype else one for one in (module.A, module.B))
            with torch.no_grad():
                weight += (coef * (B @ A)).to(weight.dtype)
        yield coef
        model.load_state_dict(before)


def our_sweep(model: Any, direction: WeightDirection) -> Iterator[float]:
    """The same by LoRAMerger: copies at the start and restores at the end."""
    from lora_utils import LoRAMerger

    with LoRAMerger(model) as merger:
        for coef in COEFS:
            merger.merge_lora_diff(direction, coef)
            yield coef


def plain_products(finetuned: WeightDirection, direction: WeightDirection) -> dict[str, float]:
    """`<dW, L>` of every module, both of them materialised."""
    found = {}
    for name, module in direction.modules.items():
        other = finetuned.modules[name]
        found[name] = float(((other.B @ other.A) * (module.B @ module.A)).sum())
    return found


def plain_projection(folder: Path) -> tuple[float, float]:
    """`<dW, L> / |L|` and `|dW|`: both models loaded, every parameter subtracted."""
    import torch
    from transformers import AutoModelForCausalLM

    from persona_vectors.weight_files import load_direction

    direction = load_direction(folder / "direction.pt")
    dtype = torch.bfloat16
    before = dict(AutoModelForCausalLM.from_pretrained(folder / "original", dtype=dtype).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(folder / "finetuned", dtype=dtype).named_parameters())
    product = squared = size = 0.0
    with torch.no_grad():
        for name in before:
            delta = after[name].float() - before[name].float()
            squared += float(delta.square().sum())
            module = direction.modules.get(name.removesuffix(".weight"))
            if module is not None:
                made = module.B @ module.A
                product += float((delta * made).sum())
                size += float(made.square().sum())
    return product / size**0.5, squared**0.5


def our_projection(folder: Path) -> tuple[float, float]:
    """The same, a tensor at a time from the files."""
    from lora_utils import WeightProjector

    projector = WeightProjector(folder / "direction.pt")
    found = projector.measure(str(folder / "finetuned"), str(folder / "original"))
    return found.total, found.norm


PROJECTED: dict[str, Callable[[Path], tuple[float, float]]] = {"plain": plain_projection, "ours": our_projection}


def write_pair(folder: Path, size: dict[str, int], seed: int) -> None:
    """An original, its full finetuning and a direction, in a folder."""
    import torch

    from persona_vectors.weight_files import save_factors

    model = random_model(size, "bfloat16", seed)
    model.save_pretrained(folder / "original")
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, dtype=parameter.dtype) * 0.002
    model.save_pretrained(folder / "finetuned")
    save_factors(persona(size, seed, str(folder / "original")), folder / "direction.pt")
