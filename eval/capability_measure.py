"""Capability of one model, steered or not, task by task, by way of the store.

A task of lm-evaluation-harness takes from minutes to hours: what is measured is kept, part by part of a group such as
mmlu, under a hash of everything that determines it. A run that was interrupted goes on; one whose model, vector, task
or data changed finds nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.capability_table import PROBE, Measure
from persona_vectors.store import Store, content_key

if TYPE_CHECKING:
    from eval.capability_identity import Leaves
    from eval.finished_answers import Engine
    from eval.model_utils import Added
    from eval.sweep import Setting


@dataclass
class Measured:
    """A model that is loaded when something is first measured.

    Attributes:
        options: limit, num_fewshot, apply_chat_template and seed, of harness tasks.
        batch_size: rows of a harness task in a forward pass.
        overwrite: measure again what is known.
        before: called once if anything has to be measured, with nothing measured yet.
        n_earlier, n_now: parts of tasks that were known, and that were measured.
    """

    engine: Engine
    store: Store
    options: Mapping[str, Any]
    batch_size: int = 16
    overwrite: bool = False
    before: Callable[[], None] | None = None
    n_earlier: int = 0
    n_now: int = 0
    _lm: Any = None

    def task(self, added: Added, name: str, leaves: Leaves) -> list[Measure]:
        """Every metric of a task (`leaves` are its parts, none of the probe's) under what is added to hidden states.

        Raises:
            ValueError: a task that cannot be run as asked.
            TypeError: a direction of weights, which whoever merges it must leave out here.
        """
        from eval.model_utils import weights_of

        if weights_of(added):
            raise TypeError("a direction of weights is merged by the caller; this would measure the unsteered model")
        if name == PROBE:
            from eval.capability_probe import probe_identity

            return self._kept(added, {"task": PROBE, **probe_identity()}, partial(self._probe, added))
        from eval.capability_tasks import pooled

        parts = []
        for part, leaf in leaves.items():
            asked = {"task": name, "part": part, **leaf.identity}
            parts += self._kept(added, asked, partial(self._harness, added, name, part, leaf.task))
        return pooled(name, parts, len(leaves))

    def _kept(self, added: Added, asked: Mapping[str, Any], measure: Callable[[], list[Measure]]) -> list[Measure]:
        """From the store where it is known; otherwise measured, and stored."""
        from eval.model_utils import key_of

        key = content_key("capability", **self.engine.reading_key(), steering=key_of(added), **asked)
        known = {} if self.overwrite else self.store.get_many([key])
        if key in known:
            self.n_earlier += 1
            return [Measure(**{**one, "value": float(one["value"])}) for one in known[key]]
        if not self.n_now and self.before is not None:
            self.before()
        self.n_now += 1
        found = measure()
        written = [asdict(one) | {"value": repr(one.value)} for one in found]  # it may be NaN, which JSON has not
        self.store.put_many({key: written}, kind="capability", source=self.engine.name)
        return found

    def _probe(self, added: Added) -> list[Measure]:
        """The probe's items together, and each kind apart."""
        from eval.capability_probe import KINDS, probe_accuracy

        found = probe_accuracy(self.engine.model, self.engine.tokenizer, steering=added)
        measures = []
        for kind in ("", *KINDS):
            items = {own.question: float(own.right) for own in found if kind in ("", own.kind)}
            answers = {own.question: own.answer for own in found} if not kind else {}
            value = sum(items.values()) / len(items)
            measures.append(Measure(PROBE, kind, "exact_match", value, items, answers=answers))
        return measures

    def _harness(self, added: Added, name: str, part: str, task: Any) -> list[Measure]:
        from eval.capability_tasks import harness_model, run_leaf

        if self._lm is None:
            self._lm = harness_model(self.engine.model, self.engine.tokenizer, batch_size=self.batch_size)
        self._lm.steering = added
        return run_leaf(self._lm, name, part, task, **self.options)


@dataclass(frozen=True)
class ProbeReceipts:
    """What each steering of a model is measured to add at the probe's first question; kept with what it vouches for."""

    engine: Engine
    store: Store
    settings: Sequence[Setting]

    def take(self) -> None:
        """Measured now, stored, and said in a line a vector.

        Raises:
            ValueError: a steering that does not add what it says.
        """
        from eval.capability_probe import probe_prompt
        from eval.receipt import take_receipts
        from eval.sweep_receipts import lines

        keys = self._keys()
        if not keys:
            return
        prompt = probe_prompt(self.engine.tokenizer)
        steerings = [setting.steering for _, setting in keys if setting.steering is not None]
        found = take_receipts(self.engine.model, self.engine.tokenizer, prompt, steerings)
        taken = {key: asdict(one) for (key, _), one in zip(keys, found, strict=True)}
        self.store.put_many(taken, kind="receipt", source=self.engine.name)
        print("\n".join(lines(self.known())), flush=True)

    def known(self) -> list[dict[str, Any]]:
        """Those of this run, or of the one that measured."""
        keys = self._keys()
        known = self.store.get_many([key for key, _ in keys])
        return [
            {"model": self.engine.name, "vector": one.vector, "control": one.control, "matched": one.matched}
            | known[key]
            for key, one in keys
            if key in known
        ]

    def _keys(self) -> list[tuple[str, Setting]]:
        from eval.model_utils import key_of

        same = {**self.engine.reading_key(), "at": "the probe's first question"}
        return [
            (content_key("receipt", **same, steering=key_of(setting.steering)), setting)
            for setting in self.settings
            if setting.steering is not None
        ]
