"""vLLM's scheduler with a prefix cache that knows steering: a block is reused only where it was steered the same.

Loaded by vLLM inside its engine process, by name; `persona_vectors.vllm_steering` says so.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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


class _SteeredCache:
    """Gives every steered request its own hasher, before it waits in the queue."""

    cache_config: Any
    hash_block_size: int

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        spec = parse_spec((params.extra_args or {}).get(KEY)) if params is not None else ()
        if spec and request._block_hasher is not None:
            hash_fn = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
            request._block_hasher = partial(block_hashes, self.hash_block_size, hash_fn, spec)
            request.block_hashes = []
            request.update_block_hashes()
        super().add_request(request)  # pyright: ignore[reportAttributeAccessIssue]


class SteeringScheduler(_SteeredCache, Scheduler):
    """Schedules one step after the other."""


class AsyncSteeringScheduler(_SteeredCache, AsyncScheduler):
    """Schedules a step while the one before is still computed."""
