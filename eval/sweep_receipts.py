"""Steering receipts of a run: taken before anything is sampled, kept with the answers they vouch for.

A run that finds all its answers in the store loads no model and takes no receipt; it has those that were taken when
the answers were sampled, with their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from eval.finished_answers import Engine
from eval.model_utils import Added, parts_of, weights_of
from eval.receipt import Receipt, take_receipts
from eval.sweep import Setting, Study, shown_names
from eval.sweep_answers import rendered
from eval.weight_receipt import WeightReceipt, take_weight_receipts
from persona_vectors.store import Store, content_key


def measure(engine: Engine, prompt: str, steerings: Sequence[Added]) -> list[list[Receipt | WeightReceipt]]:
    """What each steering is seen to do in the engine that will sample: a receipt for each layer, and for each direction
    of weights.

    Directions of weights have none in vLLM, where what an adapter does to modules is not read: each is only seen to
    change the next token's probabilities.

    Raises:
        ValueError: a steering that does something else than it says.
    """
    vectors = [added for added in steerings if parts_of(added)]
    weights = [one for added in steerings for one in weights_of(added)]
    if engine.kind == "vllm":
        sampler = engine.vllm(steerings)
        sampler.check_adapters(prompt, weights)
        of_vectors, of_weights = sampler.receipts(prompt, vectors), []
    else:
        how = engine.model, engine.tokenizer, prompt
        of_vectors = take_receipts(*how, vectors) if vectors else []
        of_weights = take_weight_receipts(*how, weights)
    assert len(of_vectors) == sum(len(parts_of(added)) for added in vectors)
    layers, directions = iter(of_vectors), iter(of_weights)
    return [[*islice(layers, len(parts_of(added))), *islice(directions, len(weights_of(added)))] for added in steerings]


class Receipts:
    """The receipts of a run's steered settings: taken once, if anything is sampled."""

    def __init__(self, engine: Engine, store: Store, studies: Sequence[Study]):
        self.engine, self.store = engine, store
        self.settings = [one for study in studies for one in study.settings if one.steering is not None]
        self.prompt = rendered(engine.tokenizer, studies[0].rows(1)[:1])[0]
        self.keys = {
            id(setting): content_key("receipt", **engine.key(), **_described(setting)) for setting in self.settings
        }
        self.known: dict[str, dict[str, Any]] = store.get_many(list(self.keys.values()))
        self.now = False

    def take(self) -> list[str]:
        """A receipt for every steering, measured now and stored; the lines that say so.

        Raises:
            ValueError: a steering that does not add what it should; nothing may be sampled then.
        """
        if not self.settings:
            return []
        found = measure(self.engine, self.prompt, [one.steering for one in self.settings])
        taken = {"taken": datetime.now(UTC).isoformat(timespec="seconds")}
        measured = [(setting, one) for setting, own in zip(self.settings, found, strict=True) for one in own]
        self.known = {self.keys[id(setting)]: asdict(one) | taken for setting, one in measured}
        self.store.put_many(self.known, kind="receipt", source=self.engine.name)
        self.now = True
        return lines(self._named(self.settings))

    def earlier(self) -> list[str]:
        """What to say of a run that sampled nothing and so took no receipt."""
        if self.now or not self.settings:
            return []
        named = self._named(self.settings)
        missing = len(self.settings) - len(named)
        times = sorted({receipt["taken"] for receipt in named})
        when = f"the receipts are those of {times[0]}" if named else "no receipt is known"
        gap = f"; {missing} of {len(self.settings)} settings have none (--overwrite samples anew)" if missing else ""
        return [f"steering receipt: all answers were sampled before and nothing was steered now; {when}{gap}"]

    def record(self, settings: Sequence[Setting]) -> dict[str, Any]:
        """For the sidecar of these settings: their receipts, and whether this run took them."""
        steered = [setting for setting in settings if setting.steering is not None]
        if not steered:
            return {}
        return {"receipts": self._named(steered), "receipts_taken_by": "this run" if self.now else "an earlier run"}

    def _named(self, settings: Sequence[Setting]) -> list[dict[str, Any]]:
        return [
            {"vector": setting.vector, "control": setting.control, "matched": setting.matched, **self.known[key]}
            for setting in settings
            if (key := self.keys[id(setting)]) in self.known
        ]


def _described(setting: Setting) -> dict[str, Any]:
    return {"steering": setting.steering.key() if setting.steering is not None else None}


def lines(receipts: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each vector and layer, and one for the random directions beside it."""
    groups: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for receipt in receipts:
        key = (receipt["vector"], receipt["matched"], receipt.get("layer"))
        groups.setdefault(key, []).append(receipt)
    names = shown_names(vector or matched for vector, matched, _layer in groups)
    return [_line(names.get(key[0] or key[1], ""), bool(key[1]), key[2], found) for key, found in groups.items()]


def _line(of: str, matched: bool, layer: int | None, found: Sequence[dict[str, Any]]) -> str:
    n_random = len({receipt["control"] for receipt in found})
    name = f"{n_random} random, of {of}'s norm," if matched else of
    coefs = _each(f"{receipt['coef']:g}" for receipt in found)
    if layer is None:
        n_modules = found[0]["modules"]
        by_coef: dict[float, list[float]] = {}
        for receipt in found:
            by_coef.setdefault(receipt["coef"], []).append(receipt["relative_change"])
        changes = ", ".join(
            " to ".join(_texts(f"{end:.2g}" for end in (min(one), max(one)))) for one in by_coef.values()
        )
        each = f" (at each coef the lowest to the highest of the {n_random})" if matched and n_random > 1 else ""
        worst = max(receipt["relative_error"] for receipt in found)
        return (
            f"steering receipt: {name} in the weights, coef {coefs}: changes {n_modules} modules by {changes} "
            f"of their outputs{each}, within {worst:.1g} of what was asked, and nothing elsewhere"
        )
    added = _each(f"{receipt['prefill'] or receipt['decode']:.3g}" for receipt in found)
    share = _each(f"{receipt['expected'] / receipt['hidden_norm']:.2g}" for receipt in found)
    worst = max(receipt["relative_error"] for receipt in found)
    return (
        f"steering receipt: {name} at layer {layer}, coef {coefs}: adds {added} ({share} of a token's hidden norm) "
        f"to {found[0]['positions']} tokens, within {worst:.1g} of what was asked, and nothing elsewhere"
    )


def _each(texts: Iterable[str]) -> str:
    """Each text once, in order."""
    return ", ".join(_texts(texts))


def _texts(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
