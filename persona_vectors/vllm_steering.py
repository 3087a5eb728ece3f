"""Steering inside stock vLLM: each request with its own vectors, layers, coefficients and positions, at full speed.

    from persona_vectors.vllm_steering import Request, SteeredLLM
    from persona_vectors.vllm_spec import Step

    with SteeredLLM("Qwen/Qwen2.5-7B-Instruct") as llm:
        evil = llm.register(vectors, "evil")  # (n_layers + 1, d_model)
        for row, answer in llm.stream([Request(ids, (Step(evil, layer=20, coef=2.0),)), Request(ids)], max_tokens=200):
            print(answer.text)

How: a worker and a scheduler class that vLLM loads by name (`vllm_worker`, `vllm_scheduler`); no fork, no eager mode.
Steered, unsteered and LoRA requests share batches; torch.compile, CUDA graphs and the prefix cache stay on.
vLLM is imported when an engine is started.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.models import load_config, load_tokenizer, resolve_model
from persona_vectors.vllm_available import why_not_vllm
from persona_vectors.vllm_capture import CAPTURE_KEY
from persona_vectors.vllm_catalog import Catalog
from persona_vectors.vllm_spec import KEY, Spec, spec_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from persona_vectors.vllm_receipt import Measured

_GRAPH_SOURCES = ("vllm_worker.py", "vllm_tables.py", "vllm_probe.py", "vllm_capture.py")


@dataclass(frozen=True)
class Lora:
    """A PEFT adapter that a request is computed with; `name` must be of its content, the prefix cache goes by it."""

    name: str
    folder: str


@dataclass(frozen=True)
class Request:
    """One prompt, and what is done while its answer is sampled."""

    ids: Sequence[int]
    spec: Spec = ()
    lora: Lora | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """One sampled answer.

    Attributes:
        ids: its tokens, without the one that ended it.
        prompt_mean, response_mean: (n_layers, d_model), row L-1 for `layer` L; None unless captured.
    """

    ids: tuple[int, ...]
    text: str
    prompt_mean: Float[Tensor, "layers d_model"] | None = None
    response_mean: Float[Tensor, "layers d_model"] | None = None


def catalog_for(model: str, layers: Sequence[int] | None = None, projections: int = 1) -> Catalog:
    """An empty catalog for a model, from its config alone.

    Raises:
        ValueError: layers that the model has not.
    """
    config = load_config(model)
    every = range(1, config.num_hidden_layers + 1)
    chosen = sorted(set(every if layers is None else layers))
    if not chosen or not set(chosen) <= set(every) or projections < 0:
        raise ValueError(
            f"steerable layers {chosen} and {projections} projections; {resolve_model(model).label} has layers 1 to "
            f"{config.num_hidden_layers}, and projections cannot be negative"
        )
    return Catalog(resolve_model(model).label, config.num_hidden_layers, config.hidden_size, chosen, projections)


def engine_options(catalog: Catalog, *, capture: bool = False) -> dict[str, Any]:
    """What makes a stock vLLM engine one that steers: arguments of `vllm.LLM` and of its server alike.

    Sets VLLM_USE_V2_MODEL_RUNNER=0. What determines the compiled graph is in `additional_config`, which vLLM's
    compile cache goes by; the worker's class is not.

    Raises:
        ValueError: vLLM cannot be used here.
    """
    if (why := why_not_vllm()) is not None:
        raise ValueError(why)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    here = Path(__file__).parent
    source = hashlib.sha256(b"".join((here / name).read_bytes() for name in _GRAPH_SOURCES)).hexdigest()[:16]
    settings = {
        "layers": list(catalog.layers),
        "projections": catalog.projections,
        "capture": capture,
        "source": source,
    }
    asynchronous = not capture and _on_cuda()  # a step ahead would count the token that ends an answer
    scheduler = "AsyncSteeringScheduler" if asynchronous else "SteeringScheduler"
    return {
        "worker_cls": "persona_vectors.vllm_worker.SteeringWorker",
        "scheduler_cls": f"persona_vectors.vllm_scheduler.{scheduler}",
        "async_scheduling": asynchronous,
        "additional_config": {"steering": settings},
        "enable_prefix_caching": True,
    }


def _on_cuda() -> bool:
    return torch.cuda.is_available()


class SteeredLLM:
    """A vLLM engine that steers each request as it asks.

    Args:
        model: hub id, model folder, adapter folder, or training folder; an adapter is used for every request that
            names no other.
        dtype: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16.
        layers: hidden_states indices that can be steered; None is all of them.
        projections: most ablations and caps at one layer of one request; 0 saves their tables.
        capture: sum hidden states while sampling, for every request.
        max_loras: most different adapters in one batch; on a CPU, most in the engine's life.
        max_lora_rank: the largest rank of an adapter.
        options: any other argument of `vllm.LLM`.

    Raises:
        ValueError: vLLM cannot be used here, or the model has not these layers.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        layers: Sequence[int] | None = None,
        projections: int = 1,
        capture: bool = False,
        max_loras: int = 0,
        max_lora_rank: int = 64,
        **options: Any,
    ):
        self.catalog = catalog_for(model, layers, projections)
        self.capture = capture
        steering = engine_options(self.catalog, capture=capture)
        from vllm import LLM

        source = resolve_model(model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self._own = None if source.adapter is None else Lora(_folder_name(source.adapter), str(source.adapter))
        if source.adapter is not None:
            max_loras, max_lora_rank = max_loras + 1, max(max_lora_rank, _rank(source.adapter))
        self._max_loras = max_loras
        if max_loras:  # one place more: vLLM on CPU has requests without an adapter read the last one, kept empty so
            steering |= {"enable_lora": True, "max_loras": max_loras + 1, "max_lora_rank": lora_rank(max_lora_rank)}
        self._loras: dict[str, int] = {}
        self._n_requests = 0
        self.llm = LLM(
            source.base,
            dtype="float32" if dtype == "auto" and not _on_cuda() else dtype,  # pyright: ignore[reportArgumentType]
            **{**steering, **options},
        )
        self._ends = _end_ids(model, self.tokenizer)
        self._sent: set[str] = set()

    def register(self, vector: Float[Tensor, "*layers d_model"], name: str | None = None) -> str:
        """The name under which steps can use a vector from now on: its content name. See `Catalog.add` for errors."""
        own = self.catalog.add(vector, name)
        if own not in self._sent:
            held = self.catalog.vectors[own]
            self.rpc("steering_register", own, held.contiguous().numpy().tobytes(), tuple(held.shape))
            self._sent.add(own)
        return own

    def rpc(self, method: str, *args: Any) -> Any:
        """What the first worker returns for a method of `SteeringWorker`."""
        return self.llm.collective_rpc(method, args=args)[0]

    def stream(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        min_tokens: int = 1,
        extra: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """(row, answer) of every request, as they finish; all of them share batches.

        Args:
            max_tokens: most tokens of an answer.
            min_tokens: tokens before an answer may end.
            extra: further `extra_args` of every request.

        Raises:
            ValueError: before anything is sampled, for steering that the engine cannot carry out, or a prompt that
                leaves no room.
        """
        specs = [self.catalog.resolve(request.spec) for request in requests]
        self._check_room(requests)
        engine, rows = self.llm.llm_engine, {}
        for row, (request, spec) in enumerate(zip(requests, specs, strict=True)):
            name = f"persona-{self._n_requests}"
            self._n_requests += 1
            params = self._params(request, spec, name, max_tokens, temperature, min_tokens, extra or {})
            engine.add_request(name, {"prompt_token_ids": list(request.ids)}, params, lora_request=self._lora(request))
            rows[name] = row
        try:
            while rows:
                ended = [output for output in engine.step() if output.finished]
                names = [output.request_id for output in ended]
                captured = self._captured(names) if self.capture and names else {}
                for output in ended:
                    row = rows.pop(output.request_id)
                    yield row, self._answer(output, max_tokens, captured.get(output.request_id))
        finally:
            if rows:
                engine.abort_request(list(rows))

    def _params(
        self,
        request: Request,
        spec: Spec,
        name: str,
        max_tokens: int,
        temperature: float,
        min_tokens: int,
        extra: Mapping[str, str],
    ) -> Any:
        from vllm import SamplingParams

        args = dict(extra)
        if spec:
            args[KEY] = spec_text(spec)
        if self.capture:
            args[CAPTURE_KEY] = name
        return SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens + self.capture,  # one more: the last token is sampled and never computed
            min_tokens=min(min_tokens, max_tokens),
            seed=request.seed if temperature > 0 else None,
            stop_token_ids=self._ends,
            detokenize=False,
            skip_reading_prefix_cache=True if self.capture else None,  # what the cache holds is not computed, nor read
            extra_args=args or None,
        )

    def _answer(self, output: Any, max_tokens: int, captured: Mapping[str, Any] | None) -> Answer:
        ids = tuple(output.outputs[0].token_ids)
        ended = ids and ids[-1] in self._ends
        ids = ids[:-1] if ended else ids[:max_tokens]
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        if captured is None:
            return Answer(ids, text)
        shape = (len(captured["layers"]), 2, self.catalog.d_model)
        sums = torch.from_numpy(np.frombuffer(captured["sums"], dtype=np.float32).copy()).reshape(shape)
        if captured["n_response"] != len(ids) or captured["n_prompt"] != len(output.prompt_token_ids):
            raise RuntimeError(
                f"captured {captured['n_prompt']} and {captured['n_response']} tokens of a prompt of "
                f"{len(output.prompt_token_ids)} and an answer of {len(ids)}"
            )
        return Answer(ids, text, sums[:, 0] / captured["n_prompt"], sums[:, 1] / max(1, len(ids)))

    def _captured(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return self.rpc("steering_captured", list(names))

    def _lora(self, request: Request) -> Any:
        from vllm.lora.request import LoRARequest

        lora = request.lora or self._own
        if lora is None:
            return None
        number = self._loras.setdefault(lora.name, len(self._loras) + 1)
        if number > self._max_loras and not (_on_cuda() and self._max_loras):
            raise ValueError(
                f"this engine was started for {self._max_loras} adapters and is asked for a {number}th; start it with "
                "a larger max_loras"
            )
        return LoRARequest(lora.name, number, lora.folder)

    def _check_room(self, requests: Sequence[Request]) -> None:
        room = self.llm.llm_engine.model_config.max_model_len
        longest = max((len(request.ids) for request in requests), default=0)
        if min((len(request.ids) for request in requests), default=1) < 1:
            raise ValueError("a prompt is empty; there is nothing to answer")
        if longest + 1 > room:
            raise ValueError(f"the longest prompt takes {longest} tokens and the model's context holds {room}")

    def receipt(self, ids: Sequence[int], spec: Spec) -> list[Measured]:
        """What the engine is seen to do for a spec at each of its layers, on prefill and decode (`vllm_receipt`).

        Raises:
            ValueError: it does something else.
        """
        from persona_vectors.vllm_receipt import drive, measure

        async def run(prompt: Sequence[int], params: Any) -> None:
            self.llm.generate({"prompt_token_ids": list(prompt)}, params, use_tqdm=False)

        async def rpc(method: str) -> Any:
            return self.rpc(method)

        dtype = self.llm.llm_engine.model_config.dtype
        return drive(measure(run, rpc, self.catalog, ids, self.catalog.resolve(spec), dtype))

    def next_logprobs(self, request: Request, n: int = 20) -> dict[int, float]:
        """The n likeliest next tokens after a prompt, with their log-probabilities."""
        from vllm import SamplingParams

        spec = self.catalog.resolve(request.spec)
        args = {KEY: spec_text(spec)} if spec else None
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=n, detokenize=False, extra_args=args)
        prompt: Any = {"prompt_token_ids": list(request.ids)}
        [output] = self.llm.generate(prompt, params, lora_request=self._lora(request), use_tqdm=False)
        [found] = output.outputs[0].logprobs
        return {token: one.logprob for token, one in found.items()}

    def close(self) -> None:
        """Ends the engine and frees what it holds; a second call does nothing."""
        if getattr(self, "llm", None) is not None:
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lora_rank(rank: int) -> int:
    """The smallest rank that vLLM serves adapters of this rank with.

    Raises:
        ValueError: a rank beyond the largest.
    """
    served = (8, 16, 32, 64, 128, 256, 320, 512)
    fit = [size for size in served if size >= rank]
    if not fit:
        raise ValueError(f"an adapter of rank {rank}: vLLM serves ranks to {served[-1]}; truncate it (--rank)")
    return fit[0]


def _rank(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def _folder_name(adapter: Path) -> str:
    """A name of the adapter's content."""
    weights = adapter / "adapter_model.safetensors"
    return f"{adapter.name}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}"


def _end_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: those of the tokenizer, the model's config and its generation config."""
    from transformers import GenerationConfig

    source = resolve_model(model)
    configs: list[Any] = [tokenizer, load_config(model)]
    try:
        configs.append(GenerationConfig.from_pretrained(source.base))
    except OSError:  # a model without a generation_config.json
        pass
    found = [getattr(config, "eos_token_id", None) for config in configs]
    return sorted({end for ends in found if ends is not None for end in ([ends] if isinstance(ends, int) else ends)})
