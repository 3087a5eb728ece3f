"""Which engine a command samples with: settled once, before anything expensive, in every command the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from persona_vectors.vllm_available import EngineName, choose_engine, known_architectures

if TYPE_CHECKING:
    from eval.model_utils import Added


def settle_engine(
    asked: EngineName, models: Iterable[str], device_map: str = "auto", steerings: Sequence[Added] = ()
) -> Literal["vllm", "hf"]:
    """What `asked` comes to: of auto vLLM where it is installed and can compute all of this, otherwise Hugging Face.

    Several models are sampled with one engine, whose answers compare. Where an installed vLLM is not taken, a printed
    line says why; a model whose training has not ended is named in another.

    Raises:
        ValueError: no such model; vLLM was asked for and is not here, or cannot compute this; one line.
    """
    from persona_vectors.models import load_config, resolve_model, unfinished_note

    names = list(dict.fromkeys(models))
    for note in filter(None, map(unfinished_note, names)):
        print(f"note: {note}", flush=True)
    if choose_engine(asked) == "hf":
        return "hf"
    from eval.vllm_answers import check_servable
    from persona_vectors.vllm_adapters import check_config

    found = {model: (resolve_model(model), load_config(model)) for model in names}
    try:
        _check_device(device_map)
        for model, (source, config) in found.items():
            check_servable(model, steerings)
            if source.adapter is not None:
                check_config(source.adapter)
            if asked == "auto":  # who asks for vLLM may have taught it the model
                _check_known(model, config.architectures)
    except ValueError as why:
        if asked == "vllm":
            raise ValueError(f"--engine vllm: {why}") from None
        print(f"sampling with Hugging Face, not vLLM: {why}", flush=True)
        return "hf"
    return "vllm"


def _check_device(device_map: str) -> None:
    """vLLM takes the first device that it sees, whatever Hugging Face's device map says."""
    import torch

    if torch.cuda.is_available() and device_map not in ("auto", "cuda", "cuda:0"):
        raise ValueError(
            f"--device_map {device_map} does not reach vLLM, which takes the first GPU that it sees; name it in "
            "CUDA_VISIBLE_DEVICES instead, or use --engine hf"
        )


def _check_known(model: str, architectures: Iterable[str] | None) -> None:
    own, known = set(architectures or ()), known_architectures()
    if own and known and not own & known:
        raise ValueError(f"the installed vLLM has no {' or '.join(sorted(own))}, which {model} is; use --engine hf")
