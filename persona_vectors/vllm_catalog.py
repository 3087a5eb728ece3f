"""The vectors an engine can steer with, by content and by name; requests are checked against it before they start.

vLLM is not imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.vllm_spec import Spec, Step, at_class, parse_spec


def content_name(vector: Float[Tensor, "*layers d_model"]) -> str:
    """The name a vector has inside the engine: two vectors share it only if they are equal."""
    data = vector.detach().float().cpu().contiguous()
    return hashlib.sha256(repr(tuple(data.shape)).encode() + data.numpy().tobytes()).hexdigest()[:24]


@dataclass
class Catalog:
    """What an engine can do, and the vectors it holds.

    Attributes:
        n_layers: decoder blocks of the model; the highest `layer`.
        layers: hidden_states indices that can be steered in this engine.
        projections: most ablations and caps at one layer of one request.
        vectors: content name -> (d_model,), for any layer, or (n_layers + 1, d_model), indexed by layer.
        names: what users call them -> content name.
    """

    model: str
    n_layers: int
    d_model: int
    layers: Sequence[int]
    projections: int
    vectors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, vector: Float[Tensor, "*layers d_model"], name: str | None = None) -> str:
        """The content name of a vector, which the engine can be given from now on; under `name` too.

        Raises:
            ValueError: a vector of another width or number of layers, or with NaN or infinite numbers; a name taken.
        """
        label = f"vector {name}" if name else "the vector"
        shapes = ((self.d_model,), (self.n_layers + 1, self.d_model))
        if tuple(vector.shape) not in shapes:
            raise ValueError(
                f"{label} has shape {tuple(vector.shape)}; "
                f"{self.model} takes {shapes[0]}, or {shapes[1]} for all layers"
            )
        if not torch.isfinite(vector).all():
            raise ValueError(f"{label} has NaN or infinite numbers; make it again")
        own = content_name(vector)
        if name is not None and self.names.get(name, own) != own:
            raise ValueError(f"two vectors are called {name}; give one another name")
        self.vectors.setdefault(own, vector.detach().float().cpu().clone())
        if name is not None:
            self.names[name] = own
        return own

    def at(self, name: str, layer: int) -> Float[Tensor, " d_model"]:
        """The vector of a content name at a layer."""
        vector = self.vectors[name]
        return vector if vector.ndim == 1 else vector[layer]

    def resolve(self, spec: Spec) -> Spec:
        """The steps with vectors by content name, after checking that the engine can carry them out.

        Steps come back as `parse_spec` gives them, for what this lets through is read again in the engine.

        Raises:
            ValueError: what `parse_spec` refuses, an unknown vector, a layer the model has not or that cannot be
                steered here, a zero vector, or more ablations and caps at a layer than the engine was started for.
        """
        steps = tuple(self._resolved(step) for step in parse_spec([asdict(step) for step in spec]))
        for layer in {step.layer for step in steps}:
            own = [step for step in steps if step.layer == layer and step.kind != "add"]
            most = max(len(at_class(tuple(own), token_class)) for token_class in "PBG")
            if most > self.projections:
                raise ValueError(
                    f"steering asks for {most} ablations or caps at layer {layer}; this engine was started for "
                    f"{self.projections} (projections)"
                )
        return steps

    def _resolved(self, step: Step) -> Step:
        own = step.vector if step.vector in self.vectors else self.names.get(step.vector)
        if own is None:
            known = ", ".join(sorted(self.names)) or "none"
            raise ValueError(f"steering names the vector {step.vector!r}, which is not loaded; loaded are: {known}")
        if step.layer not in self.layers:
            there = (
                f"layers 1 to {self.n_layers}" if len(self.layers) == self.n_layers else f"layers {_spans(self.layers)}"
            )
            raise ValueError(f"steering layer {step.layer}: {self.model} can be steered here at {there}")
        if not self.at(own, step.layer).any():
            raise ValueError(f"vector {step.vector} is zero at layer {step.layer}: there is nothing to {step.kind}")
        return replace(step, vector=own)

    def listing(self) -> list[Mapping[str, object]]:
        """For each named vector: its name, content name, and whether it has a row for each layer."""
        return [
            {"name": name, "content": own, "layers": "any" if self.vectors[own].ndim == 1 else list(self.layers)}
            for name, own in sorted(self.names.items())
        ]


def _spans(layers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(layers)))
