"""Persona vectors from a questionnaire's items: activations of high responses less those of low ones.

The texts are given, not sampled: what separates them may be what they say. So layer 0, the words alone, stands beside
every layer, and items that made a direction never judge it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.finished_answers import Engine
from eval.quick_report import layer_lines, layer_numbers
from eval.quick_report import sentences as found_sentences
from persona_vectors.activations import mean_activations
from persona_vectors.files import write_bytes_atomic, write_json_atomic, write_sidecar
from persona_vectors.models import load_config, resolve_model
from persona_vectors.questionnaire import Item, Wording
from persona_vectors.separation import HOW, LayerSeparation, Separations, separations
from persona_vectors.tokens import render_prompt, tokenize_sample
from persona_vectors.vectors import LAYER_CONVENTION

PUBLISHED_LAYERS = (10, 20)


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """A trait's vectors from its items, and how well each layer's parts unseen items.

    Attributes:
        pos, neg: response_avg of the high and the low responses, row i of both a pair of one item, at `layers`.
        words: the same at layer 0, the embeddings of the words.
    """

    trait: str
    layers: list[int]
    pos: Float[Tensor, "n layers d_model"]
    neg: Float[Tensor, "n layers d_model"]
    found: Separations
    words: LayerSeparation

    @property
    def vectors(self) -> Float[Tensor, "layers d_model"]:
        """mean(high) - mean(low) at each of `layers`."""
        return (self.pos.double().mean(0) - self.neg.double().mean(0)).float()


def wanted_layers(model: str, first: int | None, last: int | None) -> tuple[list[int], list[str]]:
    """(the layers to read, what there is to say of them): the range with both its ends, cut where the model ends.

    Without either end it is the published 10 to 20 where the model has them, otherwise every layer but the embeddings.

    Raises:
        ValueError: a range that is empty or begins above the model's last layer.
    """
    n_layers, label = load_config(model).num_hidden_layers, resolve_model(model).label
    if first is None and last is None and n_layers < PUBLISHED_LAYERS[1]:
        few = f"{label} has {n_layers} layers, fewer than the default {PUBLISHED_LAYERS[0]} to {PUBLISHED_LAYERS[1]}"
        return list(range(1, n_layers + 1)), [f"{few}: all are read"]
    start = PUBLISHED_LAYERS[0] if first is None else first
    end = PUBLISHED_LAYERS[1] if last is None else last
    if not 0 <= start <= min(end, n_layers):
        raise ValueError(
            f"--layer_start {start} --layer_end {end}: {label} has layers 0..{n_layers}; "
            f"try --layer_start 1 --layer_end {n_layers}"
        )
    cut = [f"{label} has {n_layers} layers: {start} to {n_layers} are read"] if end > n_layers else []
    return list(range(start, min(end, n_layers) + 1)), cut


def item_vectors(
    engine: Engine, items: Sequence[Item], wording: Wording, layers: Sequence[int], seed: int = 0
) -> ItemVectors:
    """The vectors of one trait's items, each response read as the answer to its question.

    Raises:
        ValueError: fewer than two items, or an item that does not fit the model's context.
    """
    if len(items) < 2:
        raise ValueError(f"holding items out takes 2 of them; got {len(items)} of {items[0].trait}")
    read = list(dict.fromkeys([0, *layers]))
    prompts = [
        render_prompt(engine.tokenizer, [{"role": "user", "content": wording.open.format(question=item.question)}])
        for item in items
    ]
    samples = [
        tokenize_sample(engine.tokenizer, prompt, response)
        for prompt, item in zip(prompts, items, strict=True)
        for response in item.responses
    ]
    means = mean_activations(engine.model, samples, read, ["response_avg"], progress=True)["response_avg"]
    by_response = means.unflatten(0, (len(items), 4))  # (n_items, 4, layers, d_model)
    pos, neg = by_response[:, :2].flatten(0, 1), by_response[:, 2:].flatten(0, 1)
    questions = [item.question for item in items for _ in range(2)]
    own = [read.index(layer) for layer in layers]
    return ItemVectors(
        trait=items[0].trait,
        layers=list(layers),
        pos=pos[:, own],
        neg=neg[:, own],
        found=separations(pos[:, own], neg[:, own], questions, layers, seed=seed),
        words=separations(pos[:, :1], neg[:, :1], questions, [0], seed=seed).layers[0],
    )


def results(vectors: ItemVectors) -> dict[str, dict[str, Any]]:
    """`layer_L` -> the published keys, of which `auc` is the held-out one, and what stands beside them."""
    return {f"layer_{one.layer}": _published(one) for one in vectors.found.layers}


def _published(one: LayerSeparation) -> dict[str, Any]:
    record = one.record()
    own = {
        "auc": record.pop("auc"),
        "mean_diff": one.high[0] - one.low[0],
        "std_on": record.pop("proj_high_std"),
        "std_off": record.pop("proj_low_std"),
        "proj_on_mean": record.pop("proj_high_mean"),
        "proj_off_mean": record.pop("proj_low_mean"),
    }
    return own | record


def lines(vectors: ItemVectors) -> list[str]:
    """A line a layer, the words alone first, the best one marked, and what was found."""
    words = [] if 0 in vectors.layers else [f"Layer 0 (the words alone): {layer_numbers(vectors.words)}"]
    return [*words, *layer_lines(vectors.found), *sentences(vectors)]


def with_words(vectors: ItemVectors) -> Separations:
    """What was found, with layer 0 before the layers that were asked for."""
    layers = vectors.found.layers
    return vectors.found if 0 in vectors.layers else replace(vectors.found, layers=[vectors.words, *layers])


def sentences(vectors: ItemVectors) -> list[str]:
    """What was found, in words."""
    words, best = vectors.words, vectors.found.best
    if words.auc is None or best is None or best.auc is None:
        return found_sentences(vectors.found)
    less = best.auc.mean <= words.auc.mean
    return [
        *found_sentences(vectors.found),
        f"the words alone (layer 0) part the responses with a held-out AUC of {words.auc.text(2)} and a separation of "
        f"{_number(words.separation)}, layer {best.layer} with {best.auc.text(2)} and {_number(best.separation)}"
        + (": the AUC shows nothing that the words do not" if less else ""),
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def write(vectors: ItemVectors, folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """`persona_vectors_<trait>.npz` (`layer_L`) and `analysis_results_<trait>.json`, each with its sidecar."""
    best = vectors.found.best
    content = io.BytesIO()
    arrays: dict[str, Any] = {
        f"layer_{layer}": row.numpy() for layer, row in zip(vectors.layers, vectors.vectors, strict=True)
    }
    np.savez(content, **arrays)
    told = {
        "kind": "persona vectors of questionnaire items",
        "trait": vectors.trait,
        "sign": "mean(high responses) - mean(low responses): points from low to high",
        "span": "response_avg",
        "layers": LAYER_CONVENTION,
        "best_layer": None if best is None else best.layer,
        "n_items": vectors.found.n_questions,
        **record,
    }
    npz = write_bytes_atomic(folder / f"persona_vectors_{vectors.trait}.npz", content.getvalue())
    table = write_json_atomic(folder / f"analysis_results_{vectors.trait}.json", results(vectors))
    write_sidecar(npz, told)
    beside = {
        "words_alone": _published(vectors.words),
        "chosen_layer_auc": vectors.found.chosen_auc,
        "missing": vectors.found.missing,
    }
    how = {**HOW, "mean_diff": "proj_on_mean - proj_off_mean, in sample: the norm of the vector"}
    write_sidecar(table, {**told, "kind": "analysis of persona vectors", **beside, "how": how})
    return [npz, table]


def projections(vectors: ItemVectors, layer: int) -> dict[str, Float[Tensor, " n"]]:
    """Projections of low and high responses on the layer's unit vector, in sample."""
    at = vectors.layers.index(layer)
    unit = torch.nn.functional.normalize(vectors.vectors[at].double(), dim=0)
    return {"low": vectors.neg[:, at].double() @ unit, "high": vectors.pos[:, at].double() @ unit}
