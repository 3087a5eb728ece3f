"""vLLM's worker with steerable layers: hooks on the blocks of the stock model, set before it is compiled.

Loaded by vLLM inside its engine process, by name; `persona_vectors.vllm_steering` says so, and talks to it by
`collective_rpc` (the methods whose names begin with `steering_`).

Hooks look rows up in tables (`persona_vectors.vllm_tables`) and read the probe; both are buffers of fixed size, so the
graph that is compiled or captured once serves every request.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.platforms import current_platform

from persona_vectors.blocks import decoder_blocks
from persona_vectors.vllm_adapters import unserved_modules
from persona_vectors.vllm_capture import Capture
from persona_vectors.vllm_probe import Probe
from persona_vectors.vllm_spec import KEY, Spec, parse_spec
from persona_vectors.vllm_tables import LayerTables, SteeringRows, program_of

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

_SLACK = 1024  # tokens by which a captured graph may be padded beyond max_num_batched_tokens


class Steering:
    """The steering of one worker: tables, rows and vectors, and what fills them before each step."""

    def __init__(self, runner: Any, blocks: dict[int, nn.Module], settings: dict[str, Any]):
        config = runner.vllm_config
        self.runner = runner
        self.vectors: dict[str, Tensor] = {}
        device, d_model = runner.device, config.model_config.get_hidden_size()
        n_tokens = config.scheduler_config.max_num_batched_tokens + _SLACK
        n_rows = 1 + 3 * config.scheduler_config.max_num_seqs
        self.rows = SteeringRows(n_rows, self._write)
        self.row_of_token = torch.zeros(n_tokens, dtype=torch.int32, device=device)
        self._host = np.zeros(n_tokens, dtype=np.int32)
        self._filled = 0  # how many entries of row_of_token may not be 0
        layers = [layer for layer in blocks if layer in settings["layers"]]
        self.tables = {
            layer: LayerTables(n_rows, d_model, settings["projections"], config.model_config.dtype, device)
            for layer in layers
        }
        self._written: dict[int, set[int]] = {}  # row -> layers where it does something
        self.probe = Probe(layers, d_model, device)
        self.capture = (
            Capture([0, *blocks], d_model, config.scheduler_config.max_num_seqs, n_tokens, device)
            if settings["capture"]
            else None
        )
        for layer, block in blocks.items():
            if layer in self.tables or self.capture is not None:
                block.register_forward_hook(self._hook(layer))
        if self.capture is not None:
            blocks[1].register_forward_pre_hook(_embeddings_hook(self.capture), with_kwargs=True)

    def _hook(self, layer: int) -> Callable[..., Any]:
        """What is done to one block's output: steer, and read it before and after. Traced into the graph."""
        tables, rows = self.tables.get(layer), self.row_of_token
        probe, capture = self.probe, self.capture

        def hook(_block: nn.Module, _args: tuple, output: Any) -> Any:
            hidden, residual = (output[0], output[1]) if isinstance(output, tuple) else (output, None)
            steered = hidden
            if tables is not None:
                steered = tables.apply(hidden, residual, rows[: hidden.shape[0]])
                probe.read(layer, hidden, steered, residual)
            if capture is not None:
                capture.read(layer, steered, residual)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook

    def _write(self, row: int, steps: Spec) -> None:
        """Makes a row do the steps, at every layer."""
        layers = {step.layer for step in steps}
        for layer in self._written.get(row, set()) - layers:
            self.tables[layer].write(row, None)
        for layer in layers:
            own = [step for step in steps if step.layer == layer]
            self.tables[layer].write(row, program_of(own, self._vector_at))
        self._written[row] = layers

    def _vector_at(self, name: str, layer: int) -> Tensor:
        vector = self.vectors[name]
        return vector if vector.ndim == 1 else vector[layer]

    def learn(self, scheduled: Any) -> None:
        """Takes in which requests begin, are preempted, go on and end with this step."""
        for request in scheduled.finished_req_ids:
            self.rows.stop(request)
        for request in scheduled.preempted_req_ids or ():
            self.rows.pause(request)
        for new in scheduled.scheduled_new_reqs:
            extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            self.rows.start(new.req_id, len(new.prompt_token_ids), parse_spec(extra.get(KEY)))
        for request in scheduled.scheduled_cached_reqs.req_ids:
            self.rows.resume(request)
        self.probe.learn(scheduled)
        if self.capture is not None:
            self.capture.learn(scheduled)

    def fill(self, n_scheduled: np.ndarray) -> None:
        """Writes the row of every token of the batch, in the batch's order."""
        batch = self.runner.input_batch
        order = list(batch.req_ids), n_scheduled.tolist(), batch.num_computed_tokens_cpu[: len(n_scheduled)].tolist()
        n_tokens = int(np.sum(n_scheduled))
        size = max(n_tokens, self._filled)
        if self._filled or self.rows.any_running:
            self._host[:size] = 0
            steered = self.rows.of_tokens(*order, self._host[:n_tokens])
            # a fresh copy each step: the device may still be reading the one before
            self.row_of_token[:size].copy_(torch.from_numpy(self._host[:size].copy()), non_blocking=True)
            self._filled = n_tokens if steered else 0
        self.probe.fill(*order)
        if self.capture is not None:
            self.capture.fill(*order)


def _embeddings_hook(capture: Capture) -> Callable[..., None]:
    """What reads layer 0: the first block's input, which models pass at different places beside integer positions."""

    def hook(_block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point()]
        capture.read(0, given[0], None)

    return hook


class SteeringWorker(Worker):
    """vLLM's worker, steered as each request asks."""

    _steering: Steering

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        runner: Any = self.model_runner
        if not hasattr(runner, "_prepare_inputs"):
            raise RuntimeError(
                f"steering knows vLLM's V1 model runner, and this is {type(runner).__module__}; set "
                "VLLM_USE_V2_MODEL_RUNNER=0"
            )
        settings = self.vllm_config.additional_config["steering"]
        blocks = {
            index + 1: block
            for index, block in enumerate(decoder_blocks(runner.get_model()))
            if type(block).__name__ != "PPMissingLayer"
        }
        self._steering = steering = Steering(runner, blocks, settings)
        prepare = runner._prepare_inputs

        def prepare_inputs(scheduled: Any, n_scheduled: np.ndarray, *rest: Any, **named: Any) -> Any:
            steering.fill(n_scheduled)
            return prepare(scheduled, n_scheduled, *rest, **named)

        runner._prepare_inputs = prepare_inputs

    def execute_model(self, scheduler_output: Any) -> Any:
        self._steering.learn(scheduler_output)
        output = super().execute_model(scheduler_output)
        self._steering.probe.keep()
        return output

    def steering_register(self, name: str, data: bytes, shape: tuple[int, ...]) -> None:
        """Takes a vector, float32, under its content name."""
        self._steering.vectors[name] = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)

    def steering_probed(self) -> list[dict[str, Any]]:
        """What the probe has read since it was last asked (`Probe.take`)."""
        return self._steering.probe.take()

    def steering_captured(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """The sums of requests that have ended (`Capture.take`)."""
        return self._capture().take(names)

    def steering_forget(self, names: list[str]) -> None:
        """Drops the sums of requests that were aborted (`Capture.forget`)."""
        self._capture().forget(names)

    def _capture(self) -> Capture:
        if self._steering.capture is None:
            raise RuntimeError("this engine captures nothing; start it with capture=True")
        return self._steering.capture

    def steering_unserved(self, folder: str) -> list[str]:
        """What a PEFT adapter changes and this worker would not (`unserved_modules`)."""
        return unserved_modules(self.model_runner.get_model().lora_manager, folder)

    def steering_state(self) -> dict[str, Any]:
        """Layers, rows in use, vectors held, requests whose sums are held, and the tables' size in MiB."""
        own = self._steering
        tensors = [t for table in own.tables.values() for t in (table.delta, *table.units, *table.numbers)]
        return {
            "layers": sorted(own.tables),
            "rows_used": own.rows.n_used,
            "vectors": sorted(own.vectors),
            "captured": 0 if own.capture is None else own.capture.n_held,
            "tables_mib": sum(t.numel() * t.element_size() for t in tensors) / 2**20,
            "runner": type(self.model_runner).__module__,
        }
