"""The engine that samples with vLLM: what a command adds to a row, as a request that vLLM steers by itself.

Vectors become steps of the request; directions of weights become adapters, rescaled exactly, in the same batch.
vLLM is imported when an engine is started.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.model_utils import Added, Steering, parts_of, weights_of
from eval.receipt import Receipt
from persona_vectors.captured_means import CapturedAnswer, Reader
from persona_vectors.models import fingerprint, resolve_model
from persona_vectors.sampling import OnBatch, Outbox
from persona_vectors.tokens import TokenizedSample, tokenize_prompt
from persona_vectors.vllm_spec import Spec, Step
from persona_vectors.vllm_steering import Answer, Lora, Request, SteeredLLM
from persona_vectors.weight_direction import combine, content_hash
from persona_vectors.weight_files import save_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


OnMeans = Callable[[Mapping[int, CapturedAnswer]], None]
"""Is given the means of rows that were captured, before `on_batch` is given their answers."""

_MOST_ADAPTERS = 8  # in one batch on a GPU: each takes memory at every module


class VllmSampler:
    """A vLLM engine for one model, with the folder that holds the adapters it is given."""

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        dtype: str,
        steerings: Sequence[Added],
        capture: bool = False,
    ):
        check_servable(model, steerings)
        self.tokenizer = tokenizer
        self._rank, self._caps = adapter_rank(steerings), most_caps(steerings)
        self._folder = tempfile.TemporaryDirectory(prefix="persona-adapters-")
        self._adapters = {self._adapter_name(added) for added in steerings} - {None}
        n_places = min(len(self._adapters), _MOST_ADAPTERS if torch.cuda.is_available() else len(self._adapters))
        self.llm = SteeredLLM(
            model,
            dtype=dtype,
            projections=self._caps,
            capture=capture,
            max_loras=n_places,
            max_lora_rank=max(self._rank, 8),
        )
        self.reader = Reader(fingerprint(model), self._dtype)
        self._steps: dict[int, Spec] = {}
        self._kept: list[Added] = []  # so that an id in _steps stays that of its object

    @property
    def _dtype(self) -> str:
        return str(self.llm.llm.llm_engine.model_config.dtype).removeprefix("torch.")

    def serves(self, steerings: Sequence[Added], capture: bool = False) -> bool:
        """Whether the engine was started for these adapters and caps, and captures if it has to."""
        if (capture and not self.llm.capture) or most_caps(steerings) > self._caps:
            return False
        known = {self._adapter_name(added) for added in steerings} - {None} <= self._adapters
        return known and adapter_rank(steerings) <= self._rank

    def sample(
        self,
        prompts: Sequence[str],
        streams: Sequence[Sequence[int]],
        steerings: Sequence[Added],
        *,
        max_tokens: int,
        temperature: float,
        on_batch: OnBatch,
        on_means: OnMeans | None = None,
        progress: bool = True,
    ) -> None:
        """Samples an answer a row, as one job; `on_batch` receives rows and texts as they finish.

        Of an engine that captures, `on_means` receives the unsteered rows' means, the prompt's with its first row.
        """
        from tqdm import tqdm

        ids = {prompt: tokenize_prompt(self.tokenizer, prompt) for prompt in dict.fromkeys(prompts)}
        requests, seen = [], set()
        for prompt, stream, added in zip(prompts, streams, steerings, strict=True):
            request = Request(ids[prompt], self._spec(added), self._lora(added), _seed(stream), capture_prompt=False)
            if prompt not in seen and _is_plain(request):
                seen.add(prompt)
                request = replace(request, capture_prompt=True)
            requests.append(request)
        captured: dict[int, CapturedAnswer] = {}

        def hand_on(rows: Sequence[int], texts: Sequence[str]) -> None:
            if on_means is not None:
                on_means({row: captured.pop(row) for row in rows if row in captured})
            on_batch(rows, texts)

        shown = tqdm(total=len(requests), desc="sampling (vLLM)", unit="answer", disable=not progress)
        with shown as bar, Outbox(hand_on) as outbox:
            for row, answer in self.llm.stream(requests, max_tokens=max_tokens, temperature=temperature):
                if on_means is not None and _is_plain(requests[row]) and answer.response_avg is not None:
                    captured[row] = self._captured(requests[row], answer, answer.response_avg)
                outbox.put({row: answer.text})
                bar.update()

    def _captured(self, request: Request, answer: Answer, response_avg: Tensor) -> CapturedAnswer:
        prompt = None
        if answer.prompt_avg is not None and answer.prompt_last is not None:
            prompt = answer.prompt_avg, answer.prompt_last
        sample = TokenizedSample((*request.ids, *answer.ids), len(request.ids))
        return CapturedAnswer(self.reader, sample, response_avg, prompt)

    def receipts(self, prompt: str, steerings: Sequence[Added]) -> list[Receipt]:
        """A receipt for each steering by vectors, of several together one a layer; measured inside the engine.

        Raises:
            ValueError: a steering that does something else than it says.
        """
        ids = tokenize_prompt(self.tokenizer, prompt)
        return [receipt for added in steerings for receipt in self._receipts(ids, added)]

    def check_adapters(self, prompt: str, steerings: Sequence[Added]) -> None:
        """Returns if every adapter changes what the model says next; how it does is not measured here.

        Raises:
            ValueError: an adapter with which the likeliest next tokens are what they are without it, to the bit.
        """
        ids = tokenize_prompt(self.tokenizer, prompt)
        plain = self.llm.next_logprobs(Request(ids))
        for added in steerings:
            lora = self._lora(added)
            if lora is not None and self.llm.next_logprobs(Request(ids, lora=lora)) == plain:
                raise ValueError(
                    "an adapter changes nothing in vLLM: the next token's probabilities are those without it; does "
                    "vLLM support LoRA at the modules it changes?"
                )

    def _receipts(self, ids: Sequence[int], added: Added) -> list[Receipt]:
        parts = {part.layer: part for part in parts_of(added)}
        measured = self.llm.receipt(ids, self._spec(added))
        return [
            Receipt(
                layer=one.layer,
                coef=float(parts[one.layer].coef),
                positions=parts[one.layer].positions,
                expected=one.expected,
                prefill=one.prefill,
                decode=one.decode,
                relative_error=one.relative_error,
                tolerance=one.tolerance,
                hidden_norm=one.hidden_norm,
                n_prompt_tokens=len(ids),
                dtype=self._dtype,
            )
            for one in measured
        ]

    def _spec(self, added: Added) -> Spec:
        if id(added) not in self._steps:
            self._kept.append(added)
            self._steps[id(added)] = tuple(self._step(part) for part in parts_of(added))
        return self._steps[id(added)]

    def _step(self, part: Steering) -> Step:
        name = self.llm.register(part.vector)
        return Step(name, part.layer, float(part.coef), part.positions, part.kind, part.floor, part.ceiling)

    def _lora(self, added: Added) -> Lora | None:
        name = self._adapter_name(added)
        if name is None:
            return None
        folder = Path(self._folder.name) / name
        if not folder.exists():
            save_adapter(combine([(one.direction, one.coef) for one in weights_of(added)]), folder)
        return Lora(name, str(folder))

    @staticmethod
    def _adapter_name(added: Added) -> str | None:
        """A name of the weights' content, None where they stay as they are."""
        parts = [f"{content_hash(one.direction)}*{one.coef!r}" for one in weights_of(added) if one.coef]
        return hashlib.sha256(" + ".join(parts).encode()).hexdigest()[:24] if parts else None

    def close(self) -> None:
        """Ends the engine and removes its adapters."""
        self.llm.close()
        self._folder.cleanup()


def _is_plain(request: Request) -> bool:
    """Whether the request is computed by the model as it is."""
    return not request.spec and request.lora is None


def check_servable(model: str, steerings: Sequence[Added]) -> None:
    """Returns if vLLM can compute these: it takes one adapter a request, and none with biases.

    Raises:
        ValueError: directions of weights for a model that is an adapter itself, which they would replace; biases.
    """
    directions = [one.direction for added in steerings for one in weights_of(added)]
    if directions and resolve_model(model).adapter is not None:
        raise ValueError(
            f"{model} is an adapter, and vLLM takes one adapter a request: a direction of weights would replace it; "
            "merge the model's own first, or use --engine hf"
        )
    if any(direction.has_bias for direction in directions):
        raise ValueError("a direction with biases cannot be an adapter in vLLM; use --engine hf")


def adapter_rank(steerings: Sequence[Added]) -> int:
    """The largest rank of an adapter that these need; 0 for none."""
    return max((sum(one.direction.rank for one in weights_of(added)) for added in steerings), default=0)


def most_caps(steerings: Sequence[Added]) -> int:
    """The most caps at one layer of a row; 0 for none."""
    layers = [Counter(part.layer for part in parts_of(added) if part.kind != "add") for added in steerings]
    return max((max(own.values(), default=0) for own in layers), default=0)


def _seed(stream: Sequence[int]) -> int:
    """A row's own seed: the same under every setting, so that settings share their random numbers."""
    return int.from_bytes(hashlib.sha256(repr(list(stream)).encode()).digest()[:4], "little")
