"""Which PEFT adapters vLLM computes as they are: by their config before an engine starts, by their modules inside it.

An adapter that vLLM refuses while it samples ends its engine, and modules that it does not know it may leave out, so
both are asked first. vLLM is imported when one is.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from persona_vectors.vllm_options import adapter_rank, lora_rank


def check_config(adapter: Path, max_rank: int | None = None) -> None:
    """Returns if vLLM computes adapters of this kind; no engine is needed.

    Args:
        max_rank: the largest rank of the engine; vLLM's largest, unless given.

    Raises:
        ValueError: DoRA, biases, whole modules, a rank beyond the largest; one line.
    """
    from vllm.lora.peft_helper import PEFTHelper

    rank = max_rank or lora_rank(adapter_rank(adapter))
    try:
        PEFTHelper.from_local_dir(str(adapter), None).validate_legal(SimpleNamespace(max_lora_rank=rank))  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError) as error:
        why = str(error).rstrip(".")
        raise ValueError(f"vLLM cannot compute the adapter {adapter}: {why}; use Hugging Face (--engine hf)") from error


def unserved_modules(manager: Any, folder: str) -> list[str]:
    """Names of what the adapter changes and this worker would not: modules, or tensors that are no LoRA factors.

    Args:
        manager: the model's own LoRA manager (vLLM's `LoRAModelManager`).
    """
    from safetensors import safe_open
    from vllm.lora.utils import is_base_embedding_weights, parse_fine_tuned_lora_name

    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = None if mapper is None else mapper.get_rename_mapper()
    served = {part for parts in manager.packed_modules.values() for part in parts}
    served |= manager.modules.keys() - manager.packed_modules.keys()
    missing = set()
    with safe_open(str(Path(folder) / "adapter_model.safetensors"), "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if is_base_embedding_weights(key):  # a copy of the base's own
                continue
            try:
                name, _ = parse_fine_tuned_lora_name(key, mapper)
            except ValueError:
                name = key
            if name not in served:
                missing.add(name)
    return sorted(missing)


def check_modules(adapter: str, unserved: Sequence[Sequence[str]]) -> None:
    """Returns if every module that the adapter changes is served by some worker.

    Args:
        unserved: `unserved_modules` of each worker.

    Raises:
        ValueError: names those that are not; one line.
    """
    missing = sorted(set.intersection(*map(set, unserved)))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"vLLM has no LoRA in this model at {', '.join(missing[:3])}{more}, which the adapter {adapter} changes; "
            "use Hugging Face (--engine hf)"
        )
