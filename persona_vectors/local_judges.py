"""What local judges are computed with, held once for all judges of a process: loaded models, and a vLLM engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from persona_vectors.vllm_odds import LabelEngine

_HELD: dict[tuple[str, ...], tuple[str, Any]] = {}  # by name and how it was loaded, with the version of its files


def load_shared(name: str, dtype: str, device_map: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model under that name and its tokenizer, loaded once, and again if its files have changed since."""
    return _held(name, ("hf", dtype, device_map), lambda: models.load_model(name, dtype=dtype, device_map=device_map))


def share_engine(name: str, dtype: str) -> LabelEngine:
    """The vLLM engine for the model under that name, likewise; any other one ends, for each takes all the memory."""
    from persona_vectors.vllm_odds import LabelEngine

    def new() -> LabelEngine:
        for key in [key for key in _HELD if key[1] == "vllm"]:
            _let_go(key)
        return LabelEngine(name, dtype=dtype)

    return _held(name, ("vllm", dtype), new)


def _held(name: str, how: tuple[str, ...], load: Callable[[], Any]) -> Any:
    path = Path(name).expanduser()
    key = (str(path.resolve()) if path.is_dir() else name, *how)
    version = models.fingerprint(name) if path.is_dir() else ""
    if key not in _HELD or _HELD[key][0] != version:
        _let_go(key)  # its memory is free before the new weights come
        _HELD[key] = (version, load())
    return _HELD[key][1]


def _let_go(key: tuple[str, ...]) -> None:
    _, held = _HELD.pop(key, ("", None))
    if held is not None and key[1] == "vllm":
        held.close()


def release_local_judges() -> None:
    """Lets go of every local judge's weights and ends its vLLM engine, so that their memory can be used again."""
    for key in list(_HELD):
        _let_go(key)
