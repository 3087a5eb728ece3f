"""How a stock vLLM engine is started so that it steers: the options that `vllm.LLM` and vLLM's server share.

vLLM is not imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persona_vectors.models import load_config, resolve_model
from persona_vectors.vllm_available import why_not_vllm
from persona_vectors.vllm_catalog import Catalog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GRAPH_SOURCES = ("vllm_worker.py", "vllm_tables.py", "vllm_probe.py", "vllm_capture.py")
_CPU_BLOCK = 32  # tokens in a block of the prefix cache: of vLLM's own 128, many prompts fill none


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


def stock_options() -> dict[str, Any]:
    """Options of every engine, steered or not: the prefix cache, with blocks that prompts fill.

    Sets VLLM_USE_V2_MODEL_RUNNER=0.

    Raises:
        ValueError: vLLM cannot be used here.
    """
    if (why := why_not_vllm()) is not None:
        raise ValueError(why)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    return {"enable_prefix_caching": True, **({} if on_cuda() else {"block_size": _CPU_BLOCK})}


def engine_options(catalog: Catalog, *, capture: bool = False) -> dict[str, Any]:
    """What makes a stock vLLM engine one that steers: arguments of `vllm.LLM` and of its server alike.

    Sets VLLM_USE_V2_MODEL_RUNNER=0. What determines the compiled graph is in `additional_config`, which vLLM's
    compile cache goes by; the worker's class is not.

    Raises:
        ValueError: vLLM cannot be used here.
    """
    stock = stock_options()
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"  # the steering scheduler ends such requests
    here = Path(__file__).parent
    source = hashlib.sha256(b"".join((here / name).read_bytes() for name in _GRAPH_SOURCES)).hexdigest()[:16]
    settings = {
        "layers": list(catalog.layers),
        "projections": catalog.projections,
        "capture": capture,
        "source": source,
    }
    asynchronous = not capture and on_cuda()  # a step ahead would count the token that ends an answer
    scheduler = "AsyncSteeringScheduler" if asynchronous else "SteeringScheduler"
    return {
        "worker_cls": "persona_vectors.vllm_worker.SteeringWorker",
        "scheduler_cls": f"persona_vectors.vllm_scheduler.{scheduler}",
        "async_scheduling": asynchronous,
        "additional_config": {"steering": settings},
        **stock,
    }


def on_cuda() -> bool:
    """Whether vLLM computes on a GPU."""
    return torch.cuda.is_available()


def whole_prompts(model: str, max_model_len: int | None) -> dict[str, Any]:
    """Options under which a request may have a seed of its own: on a CPU, prompts that are computed in one piece.

    There, a seed and a prompt in several pieces end vLLM's engine ("CPU Generator does not use offset").
    """
    if on_cuda():
        return {}
    room = max_model_len or getattr(load_config(model), "max_position_embeddings", None) or 0
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, room)}


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


def adapter_rank(adapter: Path) -> int:
    """The highest rank of a module in a PEFT adapter folder."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))


def adapter_name(adapter: Path) -> str:
    """A name of the adapter's content: its weights, and the config that scales them."""
    content = [(adapter / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
    return f"{adapter.name}-{hashlib.sha256(b''.join(content)).hexdigest()[:16]}"


def end_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
