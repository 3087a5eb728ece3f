"""A look inside a direction of weights: which layers and modules carry it, and what it writes into the residual stream.

What a module writes is read through the unembedding: the left singular vector u with the largest singular value, put
through the final norm and the output head. The sign of u is arbitrary, so both ends are shown. Any direction has
highest tokens: a random one's are beside them, and the height that random unit vectors reach.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eval.text_table import aligned
from lora_utils import analyze_lora_singular_values
from persona_vectors.blocks import hidden_size, inner_decoder, unwrap
from persona_vectors.statistics import random_directions
from persona_vectors.weight_direction import LowRank, WeightDirection, layer_of, norms, products, spectrum
from persona_vectors.weight_hooks import find_modules

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WRITERS = ("o_proj", "down_proj")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
N_TOKENS, N_RANDOM, N_SHOWN = 8, 50, 4


def look_inside(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    direction: WeightDirection,
    sides: Sequence[WeightDirection] = (),
) -> dict[str, Any]:
    """Shares of the squared norm, effective ranks, cosines and tokens, ready for JSON.

    Args:
        sides: pos and neg, whose difference the direction is, for the cosine of their changes; fewer give none.

    Raises:
        ValueError: another model's direction.
    """
    modules = find_modules(model, direction)
    sizes = {name: size**2 for name, size in norms(direction).items()}
    entries = {name: one.shape[0] * (one.shape[1] if one.rank else 1) for name, one in direction.modules.items()}
    sides = [replace(side, modules={n: m for n, m in side.modules.items() if n in sizes}) for side in sides]
    ranks = analyze_lora_singular_values(direction) if direction.rank else {}
    found: dict[str, Any] = {"norm": sum(sizes.values()) ** 0.5, "rank": direction.rank}
    for title, key in (("by_layer", _layer), ("by_module_type", _kind)):
        found[title] = _grouped(key, sizes, entries, ranks, _cosines(key, *sides) if len(sides) == 2 else {})
    found["by_module"] = {
        name: {"norm": size**0.5, "effective_rank": ranks[name]["effective_rank"] if ranks else None}
        for name, size in sizes.items()
    }
    found["tokens"] = _tokens(model, tokenizer, direction, modules)
    return found


def _layer(name: str) -> str:
    layer = layer_of(name)
    return "outside" if layer is None else str(layer)


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _grouped(
    key: Callable[[str], str],
    sizes: Mapping[str, float],
    entries: Mapping[str, int],
    ranks: Mapping[str, Mapping[str, Any]],
    cosines: Mapping[str, float],
) -> dict[str, dict[str, float | None]]:
    """Each group's share of the squared norm and of the entries that could change (its even share), its modules'
    mean effective rank, and the cosine of the two sides' changes there."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sizes:
        groups[key(name)].append(name)
    order = sorted(groups, key=lambda group: (not group.isdigit(), int(group) if group.isdigit() else 0))
    return {
        group: {
            "share": sum(sizes[name] for name in groups[group]) / sum(sizes.values()),
            "share_of_entries": sum(entries[name] for name in groups[group]) / sum(entries.values()),
            "effective_rank": sum(ranks[name]["effective_rank"] for name in groups[group]) / len(groups[group])
            if ranks
            else None,
            "cosine_pos_neg": cosines.get(group),
        }
        for group in order
    }


def _cosines(key: Callable[[str], str], pos: WeightDirection, neg: WeightDirection) -> dict[str, float]:
    """The cosine of the two sides' changes within each group; a group that one side leaves alone has none."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, value in products(pos, neg).items():
        sums[key(name)][0] += value
    for at, side in ((1, pos), (2, neg)):
        for name, size in norms(side).items():
            sums[key(name)][at] += size**2
    return {group: dot / (one * other) ** 0.5 for group, (dot, one, other) in sums.items() if one * other > 0}


def _tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    direction: WeightDirection,
    modules: Mapping[str, nn.Module],
) -> dict[str, Any]:
    """For each module that writes to the residual stream its main output direction's tokens, and random ones'."""
    width = hidden_size(model)
    writers = [name for name in modules if _kind(name) in WRITERS and direction.modules[name].shape[0] == width]
    read = _reader(model)
    if not writers or read is None:
        return {"note": "no o_proj or down_proj in the direction, or no final norm found", "modules": {}}
    random = random_directions(N_RANDOM, width, 1.0, seed=0)
    heights = [float(read(one).abs().max()) for one in random]
    found = {}
    for name in writers:
        u, share, carries = _main_output(direction.modules[name])
        found[name] = {"carries": carries, "share_of_module": share, **_ends(tokenizer, read(u))}
    return {
        "modules": found,
        "random": {
            "n": N_RANDOM,
            "mean_height": sum(heights) / len(heights),
            "max_height": max(heights),
            "first": _ends(tokenizer, read(random[0])),
        },
    }


def _main_output(module: LowRank) -> tuple[Float[Tensor, " d_out"], float, str]:
    """The unit vector that most of the module's change writes, its share of the squared norm, and what it is."""
    if module.rank == 0:
        assert module.bias is not None
        return module.bias / module.bias.norm().clamp_min(1e-30), 1.0, "bias"
    found = spectrum(module)
    total = float(found.s.square().sum())
    share = float(found.s[0] ** 2) / total if total > 0 else 0.0
    return found.U[:, 0].float(), share, "first left singular vector"


def _reader(model: PreTrainedModel) -> Callable[[Tensor], Float[Tensor, " vocab"]] | None:
    """read(u): each token's logit, less their mean, where the residual stream is u alone at root mean square 1."""
    base: Any = unwrap(model)
    head = base.get_output_embeddings()
    decoder = inner_decoder(base)
    final = next((getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name)), None)
    if head is None or final is None:
        return None
    weight = next(final.parameters())

    @torch.no_grad()
    def read(u: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
        x = u.to(weight.device, weight.dtype) * len(u) ** 0.5  # root mean square 1, so the norm only weighs it
        weighed = final(x[None]) - final(torch.zeros_like(x)[None])
        logits = torch.nn.functional.linear(weighed.to(head.weight), head.weight)[0].float()
        return (logits - logits.mean()).cpu()

    return read


def _ends(tokenizer: PreTrainedTokenizerBase, logits: Float[Tensor, " vocab"]) -> dict[str, Any]:
    """The tokens at both ends, outermost first, and how far the farther end is out."""
    order = logits[: len(tokenizer)].argsort(descending=True).tolist()
    return {
        "height": float(logits.abs().max()),
        "highest": [tokenizer.decode([token]) for token in order[:N_TOKENS]],
        "lowest": [tokenizer.decode([token]) for token in order[::-1][:N_TOKENS]],
    }


def look_table(found: Mapping[str, Any]) -> str:
    """The look as a terminal shows it: layers, module types, and the tokens of the modules of the largest norm."""
    lines = []
    for title, name in (("by_layer", "layer"), ("by_module_type", "module type")):
        rows = [[name, "share of norm²", "of entries", "effective rank", "cosine pos, neg"]]
        for group, one in found[title].items():
            told = [_number(one["effective_rank"], ".1f"), _number(one["cosine_pos_neg"], ".3f")]
            rows.append([group, f"{one['share']:.1%}", f"{one['share_of_entries']:.1%}", *told])
        lines += [*aligned(rows), ""]
    tokens = found["tokens"]
    if not tokens["modules"]:
        return "\n".join([*lines, f"tokens: {tokens['note']}"])
    random = tokens["random"]
    largest = sorted(tokens["modules"], key=lambda name: -found["by_module"][name]["norm"])[:N_SHOWN]
    lines.append(
        "what is written, through the unembedding (which end is up is arbitrary, but for biases); farthest logit of "
        f"{random['n']} random directions: mean {random['mean_height']:.1f}, highest {random['max_height']:.1f}"
    )
    rows = [["module", "farthest", "highest", "lowest"]]
    for name in largest:
        rows.append(_row(".".join(name.split(".")[-4:]), tokens["modules"][name]))
    return "\n".join([*lines, *aligned([*rows, _row("random direction", random["first"])])])


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    return [name, f"{one['height']:.1f}", *(" ".join(map(_shown, one[end])) for end in ("highest", "lowest"))]


def _shown(token: str) -> str:
    """A token in a line of a table: spaces and control characters visible."""
    return repr(token)[1:-1] if token.strip() != token or not token.isprintable() else token


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def look_png(found: Mapping[str, Any], title: str) -> Figure:
    """Shares of the squared norm by layer and by module type, beside the shares of the entries, and effective ranks."""
    from persona_vectors.plots import RANDOM, VECTOR, canvas

    figure, axes = canvas(3 if found["rank"] else 2)
    for axis, (key, name) in zip(axes, (("by_layer", "layer"), ("by_module_type", "")), strict=False):
        groups = found[key]
        axis.bar(range(len(groups)), [one["share"] for one in groups.values()], color=VECTOR, label="share of norm²")
        even = [one["share_of_entries"] for one in groups.values()]
        axis.plot(range(len(groups)), even, "s", color=RANDOM, markersize=4, label="share of the entries")
        _ticks(axis, list(groups), slanted=key != "by_layer")
        axis.set(xlabel=name, ylim=(0, 1.35 * max(*even, *(one["share"] for one in groups.values()))))
    axes[0].set_ylabel("share")
    axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    if found["rank"]:
        layers = found["by_layer"]
        ranks = [one["effective_rank"] for one in layers.values()]
        axes[2].plot(range(len(layers)), ranks, "o-", color=VECTOR)
        _ticks(axes[2], list(layers), slanted=False)
        axes[2].set(xlabel="layer", ylabel=f"effective rank (of {found['rank']})", ylim=(0, 1.1 * max(ranks)))
    figure.suptitle(title, fontsize=10)
    return figure


def _ticks(axis: Any, names: Sequence[str], slanted: bool) -> None:
    """Names under the bars, at most 16 of them."""
    every = -(-len(names) // 16)
    axis.set_xticks(range(0, len(names), every), names[::every])
    if slanted:
        axis.tick_params(axis="x", rotation=35, labelsize=8)
