"""Answers by way of the store: what is finished is never done again, and never taken for anything else.

The key of an answer is a hash of everything that determines it, so a run that was interrupted goes on, and a
run with another seed, coefficient, vector, judge or prompt finds nothing of it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from eval.model_utils import Added, WeightSteering, key_of, steer_rows, weights_of
from lora_utils import LoRAMerger
from persona_vectors.models import fingerprint, load_model, load_tokenizer
from persona_vectors.sampling import sample_answers
from persona_vectors.store import Store, content_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from eval.vllm_answers import OnMeans, VllmSampler


@dataclass
class Engine:
    """A model that is loaded when the first answer is needed: a finished run needs its tokenizer only."""

    name: str
    dtype: str = "auto"
    device_map: str = "auto"
    _loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    _tokenizer: PreTrainedTokenizerBase | None = None
    _fingerprint: str | None = None
    kind: Literal["hf", "vllm"] = "hf"
    bits: Literal[4, 8] | None = None  # of quantised weights; Hugging Face only
    _vllm: VllmSampler | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name)
        return self._tokenizer

    @property
    def model(self) -> PreTrainedModel:
        """The model in this process, for forward passes; vLLM's engine, if one runs, ends first."""
        self.release()
        if self._loaded is None:
            bits = {"load_in_4bit": self.bits == 4, "load_in_8bit": self.bits == 8}
            self._loaded = load_model(self.name, dtype=self.dtype, device_map=self.device_map, **bits)
        return self._loaded[0]

    def vllm(self, steerings: Sequence[Added], capture: bool = False) -> VllmSampler:
        """The vLLM engine that can sample under these; started when first needed, and again for larger adapters or for
        capture.

        Raises:
            ValueError: vLLM does not start with this model; one line.
        """
        from eval.vllm_answers import VllmSampler

        if self._vllm is not None and not self._vllm.serves(steerings, capture):
            self.release()
        if self._vllm is None:
            self._loaded = None  # both would want the device's memory
            try:
                self._vllm = VllmSampler(self.name, self.tokenizer, self.dtype, steerings, capture)
            except (ValidationError, RuntimeError) as error:  # of its options, for a model it does not know; any other
                why = textwrap.shorten(str(error), 300, placeholder=" ...")
                raise ValueError(f"vLLM does not start with {self.name}; use --engine hf ({why})") from error
        return self._vllm

    def release(self) -> None:
        """Ends vLLM's engine, if one runs, and frees its memory."""
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None

    def reading_key(self) -> dict[str, Any]:
        """What of the engine determines what is read in a forward pass: it is Hugging Face's, whatever samples."""
        return {**self.key(), "engine": "hf"}

    def key(self) -> dict[str, Any]:
        """What of the engine determines an answer."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.name)
        import torch

        device = "cuda" if torch.cuda.is_available() and self.device_map != "cpu" else "cpu"
        bits = {} if self.bits is None else {"bits": self.bits}
        return {"engine": self.label, "model": self._fingerprint, "dtype": self.dtype, "device": device, **bits}

    @property
    def label(self) -> str:
        """Which engine samples, with its version where answers may depend on it."""
        if self.kind == "hf":
            return "hf"
        from persona_vectors.vllm_available import vllm_version

        return vllm_version()


def answers_of(
    engine: Engine,
    prompts: Sequence[str],
    streams: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    steerings: Sequence[Added],
    store: Store,
    overwrite: bool = False,
    progress: bool = True,
    before_sampling: Callable[[], None] | None = None,
    on_means: OnMeans | None = None,
) -> list[str]:
    """One answer a prompt, each under its own steering: from the store where finished, sampled and stored otherwise.

    `before_sampling` is called once if anything has to be sampled, with nothing sampled yet. `on_means`, for vLLM
    alone, has unsteered rows that are sampled captured, and receives their means before their answers are stored.
    """
    keys = _answer_keys(engine, prompts, streams, steerings, max_tokens=max_tokens, temperature=float(temperature))
    known = {} if overwrite else store.get_many(keys)
    todo = list({key: row for row, key in reversed(list(enumerate(keys))) if key not in known}.values())[::-1]

    def keep(chosen: Sequence[int], rows: Sequence[int], texts: Sequence[str]) -> None:
        finished = {keys[chosen[row]]: text for row, text in zip(rows, texts, strict=True)}
        store.put_many(finished, kind="answer", source=engine.name)
        known.update(finished)

    if todo:
        if before_sampling is not None:
            before_sampling()
        if engine.kind == "vllm":
            engine.vllm(steerings, capture=on_means is not None).sample(
                [prompts[row] for row in todo],
                [streams[row] for row in todo],
                [steerings[row] for row in todo],
                max_tokens=max_tokens,
                temperature=temperature,
                on_batch=partial(keep, todo),
                on_means=on_means and (lambda found: on_means({todo[row]: one for row, one in found.items()})),
                progress=progress,
            )
            return [known[key] for key in keys]
        with LoRAMerger(engine.model) as merger:  # one coefficient replaces the next, from one copy of the weights
            for places, merged in _by_weights([steerings[row] for row in todo]):
                chosen = [todo[place] for place in places]
                if merged:
                    merger.merge_lora_diff([one.direction for one in merged], [one.coef for one in merged])
                else:
                    merger.restore_original_weights()
                sample_answers(
                    engine.model,
                    engine.tokenizer,
                    [prompts[row] for row in chosen],
                    max_tokens=max_tokens,
                    temperature=temperature,
                    streams=[streams[row] for row in chosen],
                    steer=steer_rows(engine.model, [steerings[row] for row in chosen]),
                    on_batch=partial(keep, chosen),
                    progress=progress,
                )
    return [known[key] for key in keys]


def _by_weights(steerings: Sequence[Added]) -> list[tuple[list[int], tuple[WeightSteering, ...]]]:
    """Rows that can be sampled at once, with what is merged into the weights for them: nothing, for most."""
    groups: dict[str, tuple[list[int], tuple[WeightSteering, ...]]] = {}
    for place, added in enumerate(steerings):
        merged = tuple(one for one in weights_of(added) if one.mode == "pre_merge")
        groups.setdefault(json.dumps([one.key() for one in merged]), ([], merged))[0].append(place)
    return list(groups.values())


def _answer_keys(
    engine: Engine,
    prompts: Sequence[str],
    streams: Sequence[Sequence[int]],
    steerings: Sequence[Added],
    *,
    max_tokens: int,
    temperature: float,
) -> list[str]:
    """The store's key of each row. A steering that many rows share is hashed once."""
    shared = {**engine.key(), "max_tokens": max_tokens, "temperature": temperature}
    described = {id(steering): key_of(steering) for steering in {id(s): s for s in steerings}.values()}
    return [
        content_key(
            "answer",
            **shared,
            prompt=prompt,
            stream=list(stream) if temperature > 0 else None,
            steering=described[id(steering)],
        )
        for prompt, stream, steering in zip(prompts, streams, steerings, strict=True)
    ]
