"""A direction in weight space: a low-rank change `delta_w = B @ A` of a model's linear modules, and its algebra.

A trait's direction is the difference of what two finetunings learned (arXiv 2511.05408),

    D = delta_w(pos) - delta_w(neg),     W' = W + coef * D,

and points from neg to pos. `B+ @ A+ - B- @ A-` is `[B+, -B-] @ [A+; A-]`, exactly, at rank r+ + r-; it is not
`(B+ - B-) @ (A+ - A-)`. Nothing here materialises delta_w (out x in): products, norms and singular values come from the
factors, in float64. A module's change may have a bias too, which counts as one more column of delta_w.
"""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_NO_TEXT = re.compile(r"vision|visual|image|audio|speech")
"""In the path to a block: it is one of a tower beside the text decoder."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change of one module: `delta_w = B @ A`, with every scale folded in, and that of its bias, if any."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    bias: Float[Tensor, " d_out"] | None = None

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of delta_w."""
        return self.B.shape[0], self.A.shape[1]

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """delta_w itself, for a module that is small enough."""
        return self.B @ self.A

    def at_rows(self, rows: slice) -> LowRank:
        """These rows of delta_w, and of its bias."""
        return LowRank(self.A, self.B[rows], None if self.bias is None else self.bias[rows])

    def times(self, coef: float) -> LowRank:
        """coef * delta_w; coef is folded into B."""
        return LowRank(self.A, coef * self.B, None if self.bias is None else coef * self.bias)


@dataclass(frozen=True, eq=False)
class WeightDirection:
    """Changes of a model's modules, by the module's name in the base model (`model.layers.0.self_attn.q_proj`).

    Attributes:
        modules: name -> change, float32.
        base: the model it belongs to, as it was named; "" where that is not known.
        record: how it was made, for sidecars.
    """

    modules: Mapping[str, LowRank]
    base: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The highest rank of a module's factors."""
        return max(module.rank for module in self.modules.values())

    @property
    def layers(self) -> list[int]:
        """The layers whose blocks it changes, lowest first."""
        return sorted({layer for name in self.modules if (layer := layer_of(name)) is not None})

    @property
    def has_bias(self) -> bool:
        return any(module.bias is not None for module in self.modules.values())


def layer_of(name: str) -> int | None:
    """The `layer` (hidden_states index) whose block has the module: block index + 1; None outside of the text decoder's
    blocks, as in a vision tower."""
    found = _BLOCK.search(name)
    return int(found[1]) + 1 if found and not _NO_TEXT.search(name[: found.start()]) else None


def content_hash(direction: WeightDirection) -> str:
    """sha256 (hex) of the direction's modules, factors and biases; made once for each direction."""
    if direction not in _hashes:
        digest = hashlib.sha256()
        for name, module in sorted(direction.modules.items()):
            digest.update(f"{name}:{module.shape}:{module.rank}:{module.bias is not None}:".encode())
            for factor in (module.A, module.B, module.bias):
                if factor is not None:
                    digest.update(factor.float().contiguous().numpy().tobytes())
        _hashes[direction] = digest.hexdigest()
    return _hashes[direction]


_hashes: weakref.WeakKeyDictionary[WeightDirection, str] = weakref.WeakKeyDictionary()


def combine(parts: Sequence[tuple[WeightDirection, float]]) -> WeightDirection:
    """`sum_i coef_i * D_i`, exactly: factors are put side by side, so ranks add up.

    A module that only some of the directions change has those alone.

    Raises:
        ValueError: no parts, or a module whose shape differs between them.
    """
    if not parts:
        raise ValueError("no direction to combine; give at least one")
    changes: dict[str, list[LowRank]] = {}
    for direction, coef in parts:
        for name, module in direction.modules.items():
            changes.setdefault(name, []).append(module.times(coef))
    modules = {name: _side_by_side(name, found) for name, found in changes.items()}
    return WeightDirection(modules, base=parts[0][0].base)


def difference(pos: WeightDirection, neg: WeightDirection) -> WeightDirection:
    """`delta_w(pos) - delta_w(neg)`, exactly, at rank r+ + r-."""
    return combine([(pos, 1.0), (neg, -1.0)])


def _side_by_side(name: str, changes: Sequence[LowRank]) -> LowRank:
    shapes = {change.shape for change in changes}
    if len(shapes) > 1:
        raise ValueError(f"{name} has shape {' and '.join(map(str, sorted(shapes)))}; expected directions of one model")
    biases = [change.bias for change in changes if change.bias is not None]
    return LowRank(
        torch.cat([change.A for change in changes], dim=0),  # (sum of r, d_in)
        torch.cat([change.B for change in changes], dim=1),  # (d_out, sum of r)
        torch.stack(biases).sum(0) if biases else None,
    )


def restrict(direction: WeightDirection, keep: Callable[[str], bool], wanted: str) -> WeightDirection:
    """The direction's modules whose name passes `keep`; `wanted` says in words which those are.

    Raises:
        ValueError: none passes.
    """
    modules = {name: module for name, module in direction.modules.items() if keep(name)}
    if not modules:
        have = ", ".join(map(str, direction.layers)) or "none"
        raise ValueError(f"the direction changes no module {wanted}; it has {_some(direction.modules)} (layers {have})")
    return replace(direction, modules=modules)


def at_layers(direction: WeightDirection, layers: Sequence[int]) -> WeightDirection:
    """The direction in the blocks of these layers alone."""
    named = ", ".join(map(str, layers))
    return restrict(direction, lambda name: layer_of(name) in layers, f"at layer {named}")


def products(a: WeightDirection, b: WeightDirection) -> dict[str, float]:
    """`<delta_w_a, delta_w_b>` (Frobenius) of each module that both change: `sum((B_a^T B_b) * (A_a A_b^T))`.

    Raises:
        ValueError: a module's shape differs between the two.
    """
    found = {}
    for name in a.modules:
        if name in b.modules:
            one, other = a.modules[name], b.modules[name]
            if one.shape != other.shape:
                raise ValueError(f"{name} has shape {one.shape} and {other.shape}; expected directions of one model")
            found[name] = product(one, other)
    return found


def product(one: LowRank, other: LowRank) -> float:
    """`<delta_w_1, delta_w_2>` of one module, its bias included, without either delta_w."""
    weights = (one.B.double().T @ other.B.double()) * (one.A.double() @ other.A.double().T)
    total = float(weights.sum())
    if one.bias is not None and other.bias is not None:
        total += float(one.bias.double() @ other.bias.double())
    return total


def norms(direction: WeightDirection) -> dict[str, float]:
    """Frobenius norm of each module's change."""
    return {name: max(product(module, module), 0.0) ** 0.5 for name, module in direction.modules.items()}


def norm(direction: WeightDirection) -> float:
    """Frobenius norm of the whole direction: the root of the sum of its modules' squares."""
    return sum(one**2 for one in norms(direction).values()) ** 0.5


def cosine(a: WeightDirection, b: WeightDirection) -> float:
    """`<a, b> / (|a| |b|)` over all modules; a module that one does not change adds nothing to the product.

    Raises:
        ValueError: one of them is zero.
    """
    sizes = norm(a) * norm(b)
    if not sizes > 0:
        raise ValueError("a direction is zero everywhere, so its cosine is not defined")
    return sum(products(a, b).values()) / sizes


def crosstalk(directions: Mapping[str, WeightDirection]) -> dict[str, dict[str, float]]:
    """Cosine of every two directions, by name: how much of one persona another one carries."""
    return {name: {other: cosine(one, directions[other]) for other in directions} for name, one in directions.items()}


@dataclass(frozen=True, eq=False)
class Spectrum:
    """`delta_w = U @ diag(s) @ V^T` of one module, from its factors: float64, largest singular value first."""

    U: Float[Tensor, "d_out k"]
    s: Float[Tensor, " k"]
    V: Float[Tensor, "d_in k"]


def spectrum(module: LowRank) -> Spectrum:
    """The singular values and vectors of delta_w, from an SVD of the core of two QR decompositions (r x r at most)."""
    qb, rb = torch.linalg.qr(module.B.double())  # (d_out, k), (k, r)
    qa, ra = torch.linalg.qr(module.A.double().T)  # (d_in, k'), (k', r)
    u, s, vt = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return Spectrum(qb @ u, s, qa @ vt.T)


def truncate(direction: WeightDirection, rank: int) -> tuple[WeightDirection, dict[str, float]]:
    """The nearest direction of rank `rank` at most in every module, and each module's `|delta_w - it| / |delta_w|`.

    Biases stay whole. A module that is zero has residual 0.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    kept, residuals = {}, {}
    for name, module in direction.modules.items():
        found = spectrum(module)
        head, total = found.s[:rank], float(found.s.square().sum())
        root = head.sqrt()
        kept[name] = LowRank(
            (root[:, None] * found.V[:, :rank].T).to(module.A.dtype),
            (found.U[:, :rank] * root).to(module.B.dtype),
            module.bias,
        )
        left = float(found.s[rank:].square().sum())
        residuals[name] = (left / total) ** 0.5 if total > 0 else 0.0
    return replace(direction, modules=kept), residuals


def random_like(direction: WeightDirection, seed: int) -> WeightDirection:
    """The control: in every module the same singular values, random singular vectors, and a random bias of its norm.

    So it has the same rank and norm in each module, and points elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, module in direction.modules.items():
        modules[name] = random_module(module, singular_values(module), generator)
    return replace(direction, modules=modules, record={"random_like": dict(direction.record), "seed": seed})


def singular_values(module: LowRank) -> Float[Tensor, " k"]:
    """Those of delta_w, largest first; none of a module whose bias alone changes."""
    return spectrum(module).s if module.rank else torch.zeros(0, dtype=torch.float64)


def random_module(module: LowRank, s: Float[Tensor, " k"], generator: torch.Generator) -> LowRank:
    """A random change of the module's shape with singular values s, and a random bias of its bias's norm."""
    d_out, d_in = module.shape
    u, v = _orthonormal(d_out, len(s), generator), _orthonormal(d_in, len(s), generator)
    bias = None
    if module.bias is not None:
        noise = torch.randn(d_out, generator=generator)
        bias = noise / noise.norm() * module.bias.norm()
    return LowRank((s.sqrt()[:, None] * v.T).float(), (u * s.sqrt()).float(), bias)


def _orthonormal(n: int, k: int, generator: torch.Generator) -> Float[Tensor, "n k"]:
    if k == 0:
        return torch.zeros(n, 0, dtype=torch.float64)
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0]


def _some(names: Mapping[str, object]) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(list(names)[:2])
    return f"{len(names)} modules, such as {shown}" if names else "no modules"
