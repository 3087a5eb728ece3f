"""Load a chat model and its tokenizer, from whatever a researcher calls a model.

A name is a hub id (`Qwen/Qwen2.5-7B-Instruct`), a folder with a full or merged model, a PEFT adapter folder (its base
is read from `adapter_config.json`), or a training folder, of which the latest `checkpoint-N` is taken.
A name that looks like a local path and does not exist fails at once, without asking a hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors.model_files import update_with_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights come from: `base` is a folder or hub id, `adapter` a PEFT folder on top of it or None."""

    name: str
    base: str
    adapter: Path | None = None

    @property
    def label(self) -> str:
        """The short name used in columns, titles and folders: the last part of the name as it was given, of `.` and
        `..` that of the folder they mean."""
        given = Path(self.name.rstrip("/")).name
        return given if given.strip(".") else Path(self.name).resolve().name

    @property
    def is_local(self) -> bool:
        return Path(self.base).is_dir()


def looks_local(name: str) -> bool:
    """True for a name that can only be meant as a path: it exists, it is spelled like one, or its parent folder exists.

    A hub id has at most one slash, and `org` is not a folder here.
    """
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        return True
    return "/" in name and path.parent.is_dir()


def resolve_model(name: str) -> ModelSource:
    """The source that `name` means.

    Raises:
        ValueError: a local-looking path that does not exist or holds no model, or an adapter without a base.
    """
    if not name:
        raise ValueError("the model name is empty; give a hub id such as Qwen/Qwen2.5-7B-Instruct or a model folder")
    if not looks_local(name):
        return ModelSource(name, base=name)
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"model folder {name} does not exist; give an existing folder or a hub id such as org/name")
    if not path.is_dir():
        raise ValueError(f"model {name} is a file; expected a folder with config.json or adapter_config.json")
    folder = _model_folder(path)
    if (folder / "adapter_config.json").exists():
        return ModelSource(name, base=_adapter_base(folder), adapter=folder)
    return ModelSource(name, base=str(folder))


def _model_folder(path: Path) -> Path:
    """`path` itself if it holds a model or adapter, otherwise its latest checkpoint."""

    def holds_model(folder: Path) -> bool:
        return (folder / "config.json").exists() or (folder / "adapter_config.json").exists()

    if holds_model(path):
        return path
    checkpoints = {int(m[1]): p for p in path.iterdir() if (m := _CHECKPOINT.search(p.name)) and holds_model(p)}
    if not checkpoints:
        raise ValueError(f"{path} holds no model: expected config.json, adapter_config.json or checkpoint-N folders")
    return checkpoints[max(checkpoints)]


def unfinished_note(name: str) -> str | None:
    """What to say of a training folder whose latest checkpoint is taken before its last step; None of any other model.

    Who names a checkpoint itself has chosen it.
    """
    path = Path(name).expanduser()
    if not path.is_dir() or (taken := _model_folder(path)) == path:
        return None
    state = taken / "trainer_state.json"
    told = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    step, last = told.get("global_step"), told.get("max_steps")
    if step is None or last is None or step >= last:
        return None
    return f"{name} is not trained to the end: its {taken.name} is taken, of {last} steps; training.py goes on with it"


def _adapter_base(folder: Path) -> str:
    """The base model an adapter names; a relative path counts from the working folder, then from the adapter."""
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder}/adapter_config.json names no base_model_name_or_path; add the model it was trained on"
        )
    if (folder / base).is_dir() and not Path(base).is_dir():
        base = str((folder / base).resolve())
    source = resolve_model(base)
    if source.adapter is not None:
        raise ValueError(f"the base {base} of adapter {folder} is itself an adapter; merge it first")
    return source.base


def load_config(name: str) -> PretrainedConfig:
    """The text model's config, read without its weights: `num_hidden_layers` and `hidden_size` are known from here."""
    return load_whole_config(name).get_text_config()


def load_whole_config(name: str) -> PretrainedConfig:
    """The config as stored; of a model with more than text, only this one knows the revision."""
    from huggingface_hub.errors import StrictDataclassError  # a field of the wrong kind, or fields that disagree
    from transformers import AutoConfig

    source = resolve_model(name)
    try:
        return AutoConfig.from_pretrained(source.base)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"cannot read the config of model {name}: {_first_line(error)}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left, with a padding token (the end token where it has none)."""
    from transformers import AutoTokenizer

    source = resolve_model(name)
    has_own = source.adapter is not None and (source.adapter / "tokenizer_config.json").exists()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source.adapter) if has_own else source.base)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of model {name}: {_first_line(error)}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device_map: str = "auto",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in eval mode and its tokenizer.

    Args:
        name: hub id, model folder, adapter folder, or training folder (see the module's docstring).
        dtype: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16.
        device_map: auto (CUDA devices if there are any, sharded if needed, otherwise CPU), or a device such as cuda:0.
        load_in_4bit: quantise the base to NF4 while it is read; needs CUDA and bitsandbytes.
        load_in_8bit: quantise it to LLM.int8; likewise.

    Raises:
        ValueError: nothing to load under that name, adapter weights that match no module of the base, or a quantisation
            that cannot be had here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    bits = quantised_bits(load_in_4bit, load_in_8bit, device_map)
    source = resolve_model(name)
    on_cuda = torch.cuda.is_available() and device_map != "cpu"
    options: dict[str, Any] = {"dtype": resolve_dtype(dtype, on_cuda)}
    if on_cuda:
        options["device_map"] = device_map
    elif device_map not in ("auto", "cpu"):
        raise ValueError(f"device_map {device_map} needs CUDA, and none is available here; use auto or cpu")
    if bits is not None:
        options["quantization_config"] = _quantisation(bits)
    tokenizer = load_tokenizer(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(source.base, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load model {name}: {_first_line(error)}") from error
    if source.adapter is not None:
        model = _with_adapter(model, source.adapter)
    return model.eval(), tokenizer


def quantised_bits(load_in_4bit: bool, load_in_8bit: bool = False, device_map: str = "auto") -> Literal[4, 8] | None:
    """4, 8, or None for weights as they are.

    Raises:
        ValueError: both at once, or one where it cannot be had: without CUDA or bitsandbytes.
    """
    import importlib.util

    import torch

    if load_in_4bit and load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit exclude each other; give one")
    if not (load_in_4bit or load_in_8bit):
        return None
    bits = 4 if load_in_4bit else 8
    if not torch.cuda.is_available():
        raise ValueError(f"load_in_{bits}bit needs CUDA, and none is available here; leave it out")
    if device_map == "cpu":
        raise ValueError(f"load_in_{bits}bit needs CUDA, and device_map is cpu; leave one of them out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"load_in_{bits}bit needs bitsandbytes; pip install 'persona-vectors-toolkit[bnb]'")
    return bits


def _quantisation(bits: Literal[4, 8]) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def resolve_dtype(dtype: str, on_cuda: bool) -> Any:
    """A torch dtype, or "auto" for the checkpoint's own. A CPU computes in float32 unless told otherwise."""
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype}")
    if dtype == "auto":
        return "auto" if on_cuda else torch.float32
    return getattr(torch, dtype)


def _with_adapter(model: PreTrainedModel, adapter: Path) -> Any:
    """The base wrapped with the adapter, every stored tensor checked to have found its module."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    stored = load_peft_weights(str(adapter), device="cpu")
    wrapped = PeftModel.from_pretrained(model, str(adapter))
    loaded = get_peft_model_state_dict(wrapped)
    lost = [
        key
        for key, value in stored.items()
        if key not in loaded or not torch.equal(loaded[key].cpu().float(), value.to(loaded[key].dtype).cpu().float())
    ]
    if not stored or lost:
        matched = len(stored) - len(lost)
        raise ValueError(
            f"adapter {adapter}: {matched} of {len(stored)} tensors matched a module of {model.config._name_or_path}"
            f"{', first missing ' + lost[0] if lost else ''}; check that the adapter was trained on this base"
        )
    return wrapped


def fingerprint(name: str) -> str:
    """A hash that changes when the model's files change: part of every cache key.

    A hub model is its id and resolved revision; a local one is its file names, sizes and contents. What a large file
    holds is hashed once and kept in the store, as long as its place, size and time of change stay the same.
    """
    source = resolve_model(name)
    digest = hashlib.sha256()
    if source.is_local:
        update_with_folder(digest, Path(source.base))
    else:
        digest.update(f"{source.base}@{revision(source.base)}".encode())
    if source.adapter is not None:
        update_with_folder(digest, source.adapter)
    return digest.hexdigest()


def revision(name: str) -> str | None:
    """The commit of a hub model's files, of an adapter its base's; None for a folder."""
    return getattr(load_whole_config(name), "_commit_hash", None)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
