"""vLLM's scheduler with a prefix cache that knows steering: a block is reused only where it was steered the same.

It also keeps what one request does from others: steering that overflows ends its own request with an error, and leaves
no NaN to the next one. Loaded by vLLM inside its engine process, by name; `persona_vectors.vllm_steering` says so.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from persona_vectors.vllm_spec import KEY, Spec, block_key, parse_spec


def block_hashes(block_size: int, hash_fn: Callable[[Any], bytes], spec: Spec, request: Request) -> list[BlockHash]:
    """Hashes of the request's new full blocks: vLLM's own, with the steering of each block's tokens among its keys."""
    previous = request.block_hashes[-1] if request.block_hashes else None
    start = len(request.block_hashes) * block_size
    found = []
    while start + block_size <= request.num_tokens:
        end = start + block_size
        keys, _ = generate_block_hash_extra_keys(request, start, end, 0)
        own = block_key(spec, request.num_prompt_tokens, start, end)
        if own is not None:
            keys = (*(keys or ()), (KEY, own))
        previous = hash_block_tokens(hash_fn, previous, request.all_token_ids[start:end], keys)
        found.append(previous)
        start = end
    return found


def zero_new_blocks(scheduler: Any) -> None:
    """Has the cache's blocks emptied when a request gets them, by vLLM's own means for caches of mixed precision.

    On a CPU, attention reads a block to its end and multiplies what lies behind the request's last token by 0: a NaN
    that another request left there, whose steering overflowed, would make the answer NaN.
    """
    scheduler.needs_kv_cache_zeroing = True
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        manager._record_new_block_ids = True


def end_with_parent() -> None:
    """Ends an engine's process, and with it its workers, once the process that started it is gone.

    vLLM's own stays for good where that was killed, and keeps the device's memory. Nothing is done for an engine that
    shares a process with its user.
    """
    starter, first = multiprocessing.parent_process(), os.getppid()
    if starter is None or not multiprocessing.current_process().name.startswith("EngineCore"):
        return

    def watch() -> None:
        while starter.is_alive() and os.getppid() == first:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Steered:
    """What steering changes of a scheduler.

    Every steered request has a hasher of its own before it waits in the queue, and a request whose logits are NaN ends
    with an error before anything that was sampled from them is taken for its answer.
    """

    cache_config: Any
    hash_block_size: int
    grammar_compile_error_reqs: set[str]  # vLLM ends these with an error, whatever it was

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        if current_platform.is_cpu():
            zero_new_blocks(self)
        end_with_parent()

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        spec = parse_spec((params.extra_args or {}).get(KEY)) if params is not None else ()
        if spec and request._block_hasher is not None:
            hash_fn = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
            request._block_hasher = partial(block_hashes, self.hash_block_size, hash_fn, spec)
            request.block_hashes = []
            request.update_block_hashes()
        super().add_request(request)  # pyright: ignore[reportAttributeAccessIssue]

    def update_from_output(self, scheduled: Any, output: Any) -> Any:
        for request, n_nans in (output.num_nans_in_logits or {}).items():
            if n_nans:
                self.grammar_compile_error_reqs.add(request)
                if output.sampled_token_ids:
                    output.sampled_token_ids[output.req_id_to_index[request]] = []
        return super().update_from_output(scheduled, output)  # pyright: ignore[reportAttributeAccessIssue]


class SteeringScheduler(_Steered, Scheduler):
    """Schedules one step after the other."""


class AsyncSteeringScheduler(_Steered, AsyncScheduler):
    """Schedules a step while the one before is still computed."""
