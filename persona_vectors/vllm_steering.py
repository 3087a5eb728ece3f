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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jaxtyping import Float
from torch import Tensor

from persona_vectors.models import load_tokenizer, resolve_model
from persona_vectors.vllm_adapters import check_config, check_modules
from persona_vectors.vllm_capture import CAPTURE_KEY, span_means
from persona_vectors.vllm_options import (
    adapter_name,
    adapter_rank,
    catalog_for,
    end_ids,
    engine_options,
    lora_rank,
    on_cuda,
    whole_prompts,
)
from persona_vectors.vllm_spec import KEY, Spec, spec_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from persona_vectors.vllm_receipt import Measured


@dataclass(frozen=True)
class Lora:
    """A PEFT adapter that a request is computed with; `name` must be of its content, the prefix cache goes by it."""

    name: str
    folder: str


@dataclass(frozen=True)
class Request:
    """One prompt, and what is done while its answer is sampled.

    Attributes:
        capture_prompt: where the engine captures, whether the prompt's own means are wanted too; without them, what the
            prefix cache holds of the prompt need not be computed.
    """

    ids: Sequence[int]
    spec: Spec = ()
    lora: Lora | None = None
    seed: int | None = None
    capture_prompt: bool = True


@dataclass(frozen=True, eq=False)
class Answer:
    """One sampled answer.

    Attributes:
        ids: its tokens, without the one that ended it.
        response_avg: mean hidden state of `ids`, (n_layers + 1, d_model) by `layer`; 0 where there are none.
        prompt_avg, prompt_last: of the prompt's tokens, and of its last one.
            All three are None unless captured, and where the model's context has cut the answer off.
    """

    ids: tuple[int, ...]
    text: str
    response_avg: Float[Tensor, "layers d_model"] | None = None
    prompt_avg: Float[Tensor, "layers d_model"] | None = None
    prompt_last: Float[Tensor, "layers d_model"] | None = None


class SteeredLLM:
    """A vLLM engine that steers each request as it asks.

    Args:
        model: hub id, model folder, adapter folder, or training folder; an adapter is used for every request that
            names no other.
        dtype: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16.
        layers: hidden_states indices that can be steered; None is all of them.
        projections: most ablations and caps at one layer of one request; 0 saves their tables.
        capture: sum hidden states while sampling, for every request, as they are with its steering.
        max_loras: most different adapters in one batch; on a CPU, most in the engine's life.
        max_lora_rank: the largest rank of an adapter.
        options: any other argument of `vllm.LLM`.

    Raises:
        ValueError: vLLM cannot be used here or cannot compute the model's adapter, the model has not these layers, or
            its layers lie in several workers and are to be captured.
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
        if capture and options.get("pipeline_parallel_size", 1) > 1:
            raise ValueError("capture reads the layers of one worker; leave out pipeline_parallel_size")
        self.capture = capture
        steering = engine_options(self.catalog, capture=capture)
        from vllm import LLM

        source = resolve_model(model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self._own = None if source.adapter is None else Lora(adapter_name(source.adapter), str(source.adapter))
        if source.adapter is not None:
            check_config(source.adapter)
            max_loras, max_lora_rank = max_loras + 1, max(max_lora_rank, adapter_rank(source.adapter))
        self._max_loras = max_loras
        if max_loras:  # one place more: vLLM on CPU has requests without an adapter read the last one, kept empty so
            steering |= {"enable_lora": True, "max_loras": max_loras + 1, "max_lora_rank": lora_rank(max_lora_rank)}
        if not options.get("enable_chunked_prefill"):
            options = {**whole_prompts(model, options.get("max_model_len")), **options}
        self._loras: dict[str, int] = {}
        self._n_requests = 0
        self.llm = LLM(
            source.base,
            dtype="float32" if dtype == "auto" and not on_cuda() else dtype,  # pyright: ignore[reportArgumentType]
            **{**steering, **options},
        )
        self._ends = end_ids(model, self.tokenizer)
        self._seeds_refused = not on_cuda() and self.llm.llm_engine.vllm_config.scheduler_config.enable_chunked_prefill
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
            ValueError: before anything is sampled, for steering or adapters that the engine cannot carry out, or a
                prompt that leaves no room; later, for a request whose steering overflows.
        """
        specs = [self.catalog.resolve(request.spec) for request in requests]
        self._check_room(requests)
        loras = [self._lora(request) for request in requests]
        if self._seeds_refused and temperature > 0 and any(request.seed is not None for request in requests):
            raise ValueError("vLLM on a CPU cannot sample by seed with chunked prefill; start it without that option")
        engine, rows = self.llm.llm_engine, {}
        try:
            for row, (request, spec, lora) in enumerate(zip(requests, specs, loras, strict=True)):
                name = f"persona-{self._n_requests}"
                self._n_requests += 1
                params = self._params(request, spec, name, max_tokens, temperature, min_tokens, extra or {})
                engine.add_request(name, {"prompt_token_ids": list(request.ids)}, params, lora_request=lora)
                rows[name] = row
            while rows:
                ended = [output for output in engine.step() if output.finished]
                self._check_finite(ended)
                names = [output.request_id for output in ended]
                captured = self._captured(names) if self.capture and names else {}
                for output in ended:
                    row = rows.pop(output.request_id)
                    yield row, self._answer(output, requests[row], max_tokens, captured.get(output.request_id))
        finally:
            if rows:
                engine.abort_request(list(rows))
                if self.capture:
                    self.rpc("steering_forget", list(rows))

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
            # what the cache holds is not computed, and so not summed
            skip_reading_prefix_cache=True if self.capture and request.capture_prompt else None,
            extra_args=args or None,
        )

    def _answer(self, output: Any, request: Request, max_tokens: int, captured: Mapping[str, Any] | None) -> Answer:
        ids = tuple(output.outputs[0].token_ids)
        ended = ids and ids[-1] in self._ends
        cut = not ended and len(ids) <= max_tokens  # by the model's context: the last token was not computed
        ids = ids[:-1] if ended else ids[:max_tokens]
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        if captured is None or cut:
            return Answer(ids, text)
        n_prompt = len(request.ids) if request.capture_prompt else None
        return Answer(ids, text, **span_means(captured, self.catalog.d_model, n_prompt, len(ids)))

    def _captured(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return self.rpc("steering_captured", list(names))

    def _lora(self, request: Request) -> Any:
        from vllm.lora.request import LoRARequest

        lora = request.lora or self._own
        if lora is None:
            return None
        if lora.name not in self._loras and self._max_loras:
            check_config(Path(lora.folder), self.llm.llm_engine.vllm_config.lora_config.max_lora_rank)
            check_modules(lora.folder, self.llm.collective_rpc("steering_unserved", args=(lora.folder,)))
        number = self._loras.get(lora.name, len(self._loras) + 1)
        if number > self._max_loras and not (on_cuda() and self._max_loras):
            raise ValueError(
                f"this engine was started for {self._max_loras} adapters and is asked for a {number}th; start it with "
                "a larger max_loras"
            )
        self._loras[lora.name] = number
        return LoRARequest(lora.name, number, lora.folder)

    @staticmethod
    def _check_finite(ended: Sequence[Any]) -> None:
        if any(output.outputs[0].finish_reason == "error" for output in ended):
            raise ValueError(
                "hidden states of a request became NaN or infinite, so it has no answer; lower the coefficients, or "
                "compute in bfloat16 or float32"
            )

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
        self._check_finite([output])
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
