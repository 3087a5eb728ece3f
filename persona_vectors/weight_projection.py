"""How far a finetuning moved the weights along a persona's direction: its projection, cosine and norm.

    projection = <dW, L> / |L|,     cosine = <dW, L> / (|dW| |L|)

dW is what the finetuning changed and L the direction `B @ A`, both over all modules; a module that one of them does
not change adds nothing to the product. A projection is in units of dW's norm. An adapter's dW is never materialised
(`sum((B^T B') * (A A'^T))`); a full finetuning's is read a module at a time (`sum((dW A^T) * B)`).

A cosine between changes of millions of weights is small, and says something only beside those of random directions
with L's singular values, module by module, which are measured in the same pass. They know nothing of one thing: an
adapter's A hardly leaves its initialisation, so two trainings from one seed share it and have a high cosine whatever
they learned (models/tiny-persona, seven traits: A 0.997, dW 0.81 to 0.86; from another seed 0.002 and 0.004 to 0.023).
Compare finetunings that were made alike, with a direction of other seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from persona_vectors.weight_direction import LowRank, WeightDirection, layer_of, product, random_module, singular_values
from persona_vectors.weight_shifts import Dense, Shift

T = TypeVar("T")
_MOST_AT_ONCE = 2**25  # numbers of one product with random directions


@dataclass(frozen=True)
class Part:
    """One module's, or several modules' together.

    Attributes:
        product: <dW, L>.
        shift: |dW|^2.
        direction: |L|^2.
        n_entries: weights of dW.
    """

    product: float = 0.0
    shift: float = 0.0
    direction: float = 0.0
    n_entries: int = 0

    @property
    def cosine(self) -> float | None:
        """None where one of them is zero."""
        size = (self.shift * self.direction) ** 0.5
        return self.product / size if size > 0 else None


def _together(parts: Sequence[Part]) -> Part:
    return Part(
        sum(one.product for one in parts),
        sum(one.shift for one in parts),
        sum(one.direction for one in parts),
        sum(one.n_entries for one in parts),
    )


@dataclass(frozen=True)
class Projection:
    """A finetuning's change against a direction.

    Attributes:
        modules: every module that one of them has.
        random: <dW, R> / |R| of random directions R with L's singular values in every module.
    """

    modules: Mapping[str, Part]
    random: Float[np.ndarray, " n_random"] = field(default_factory=lambda: np.zeros(0))

    @property
    def whole(self) -> Part:
        return _together(list(self.modules.values()))

    @property
    def norm(self) -> float:
        """|dW|."""
        return self.whole.shift**0.5

    @property
    def total(self) -> float:
        """<dW, L> / |L|."""
        return self.whole.product / self.whole.direction**0.5

    @property
    def cosine(self) -> float | None:
        return self.whole.cosine

    @property
    def random_cosines(self) -> Float[np.ndarray, " n_random"]:
        """Of dW with the random directions; empty where dW is zero."""
        return self.random / self.norm if self.norm > 0 else np.zeros(0)

    @property
    def common(self) -> list[str]:
        """The modules that both have."""
        return [name for name, part in self.modules.items() if part.direction > 0 and part.n_entries]

    def by_layer(self) -> dict[int | None, Part]:
        """Layer (hidden_states index; None outside of blocks) -> its modules together, lowest first."""
        groups: dict[int | None, list[Part]] = {}
        for name, part in self.modules.items():
            groups.setdefault(layer_of(name), []).append(part)
        order = sorted(groups, key=lambda layer: (layer is None, layer or 0))
        return {layer: _together(groups[layer]) for layer in order}

    def layer_projections(self) -> dict[int | None, float]:
        """<dW, L> of each layer that L changes, over the norm of the whole L: they add up to `total`."""
        size = self.whole.direction**0.5
        return {layer: part.product / size for layer, part in self.by_layer().items() if part.direction > 0}


def project(
    shifts: Mapping[str, Shift],
    directions: Mapping[str, WeightDirection],
    *,
    layers: Sequence[int] | None = None,
    n_random: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> dict[tuple[str, str], Projection]:
    """(finetuning, direction) -> its projection: one pass over the modules for all of them.

    Args:
        layers: only these layers' modules, of dW and of L; None is all modules.
        n_random: random directions a direction, the same ones for every finetuning.

    Raises:
        ValueError: a direction that is zero, or that has no module in common with a finetuning, or has it in another
            shape; before anything is read.
    """
    entries = {key: _kept(shift.entries(), layers) for key, shift in shifts.items()}
    modules = {key: _kept(one.modules, layers) for key, one in directions.items()}
    _check(shifts, entries, directions, modules, layers)
    sizes = {key: {name: max(product(m, m), 0.0) for name, m in one.items()} for key, one in modules.items()}
    norms = {key: sum(one.values()) ** 0.5 for key, one in sizes.items()}
    if zero := [key for key, size in norms.items() if not size > 0]:
        raise ValueError(f"direction {zero[0]} is zero everywhere{_where(layers)}, so nothing projects on it")
    parts: dict[tuple[str, str], dict[str, Part]] = {(s, d): {} for s in shifts for d in directions}
    random = {pair: np.zeros(n_random) for pair in parts}
    names = list(dict.fromkeys(name for each in (*modules.values(), *entries.values()) for name in each))
    for name in tqdm(names, desc="projecting", unit="module", disable=not progress):
        own = {key: one[name] for key, one in modules.items() if name in one}
        drawn = {key: list(_random_parts(name, one, n_random, seed)) for key, one in own.items()}
        for s, shift in shifts.items():
            size, dots = 0.0, dict.fromkeys(directions, 0.0)
            for rows, change in shift.blocks(name) if name in entries[s] else ():
                size += _squared(change)
                for d, module in own.items():
                    dots[d] += inner(change, module.at_rows(rows))
                    random[s, d] += _inners(change, [one.at_rows(rows) for one in drawn[d]])
            for d in directions:
                if name in entries[s] or d in own:
                    parts[s, d][name] = Part(dots[d], size, sizes[d].get(name, 0.0), entries[s].get(name, 0))
    return {pair: Projection(own, random[pair] / norms[pair[1]]) for pair, own in parts.items()}


def _kept(modules: Mapping[str, T], layers: Sequence[int] | None) -> dict[str, T]:
    return {name: one for name, one in modules.items() if layers is None or layer_of(name) in layers}


def _where(layers: Sequence[int] | None) -> str:
    return "" if layers is None else f" at layer {', '.join(map(str, layers))}"


def _check(
    shifts: Mapping[str, Shift],
    entries: Mapping[str, Mapping[str, int]],
    directions: Mapping[str, WeightDirection],
    modules: Mapping[str, Mapping[str, LowRank]],
    layers: Sequence[int] | None,
) -> None:
    for d, direction in directions.items():
        if not modules[d]:
            have = ", ".join(map(str, direction.layers)) or "none"
            raise ValueError(f"direction {d} changes no module{_where(layers)}; it has layers {have}")
        for s, shift in shifts.items():
            common = [name for name in modules[d] if name in entries[s]]
            if not common:
                raise ValueError(
                    f"{shift.name} and direction {d} have no module in common{_where(layers)}: one changes "
                    f"{_some(entries[s] or shift.entries())}, the other {_some(modules[d])}"
                )
            for name in common:
                if shift.shape(name) != modules[d][name].shape:
                    raise ValueError(
                        f"{name} has shape {shift.shape(name)} in {shift.name} and {modules[d][name].shape} in "
                        f"direction {d}; expected both of one model"
                    )


def _some(names: Mapping[str, object]) -> str:
    return f"{', '.join(list(names)[:2])}, ... ({len(names)} modules)" if names else "none"


def _squared(change: LowRank | Dense) -> float:
    return change.squared() if isinstance(change, Dense) else max(product(change, change), 0.0)


def inner(change: LowRank | Dense, direction: LowRank) -> float:
    """`<dW, B @ A>` of one module, its bias included: `sum((dW A^T) * B)`, in float32 with float64 sums where dW is
    dense, and by `product` where it is low-rank."""
    if isinstance(change, LowRank):
        return product(change, direction)
    return float(_inners(change, [direction])[0])


def _inners(change: LowRank | Dense, directions: Sequence[LowRank]) -> Float[np.ndarray, " n"]:
    """`<dW, B_i @ A_i>` of directions that have one rank, many in one product."""
    found = np.zeros(len(directions))
    if not directions:
        return found
    rank, (d_out, _) = directions[0].rank, directions[0].shape
    device = "cuda" if torch.cuda.is_available() and isinstance(change, Dense) else "cpu"
    weight = change.weight.to(device) if isinstance(change, Dense) and change.weight is not None else None
    step = max(1, _MOST_AT_ONCE // max(1, rank * d_out))
    for start in range(0, len(directions), step) if rank else ():
        some = directions[start : start + step]
        A, B = some[0].A, some[0].B
        if len(some) > 1:  # one alone needs no copy
            A, B = torch.cat([one.A for one in some]), torch.cat([one.B for one in some], dim=1)
        A, B = A.to(device), B.to(device)  # (n r, d_in), (d_out, n r)
        if isinstance(change, LowRank):
            terms = (change.B.T @ B) * (change.A @ A.T)  # (r', n r)
        elif weight is not None:
            terms = (weight @ A.T) * B  # (d_out, n r)
        else:
            break
        found[start : start + len(some)] = terms.sum(0, dtype=torch.float64).view(len(some), rank).sum(1).cpu().numpy()
    if change.bias is not None:
        biases = [0.0 if one.bias is None else float(one.bias.double() @ change.bias.double()) for one in directions]
        found += np.array(biases)
    return found


def _random_parts(name: str, module: LowRank, n_random: int, seed: int) -> Iterator[LowRank]:
    """Random changes of a module with its singular values; its name is in the seed, or equal shapes would get equal
    vectors."""
    if n_random == 0:
        return
    s = singular_values(module)
    for number in range(n_random):
        digest = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
        yield random_module(module, s, torch.Generator().manual_seed(int.from_bytes(digest[:7])))
