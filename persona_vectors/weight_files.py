"""Directions in weight space as files: PEFT adapter folders, and `.pt` files of their factors.

An adapter folder that is written here is an ordinary LoRA adapter with its scale folded in (`lora_alpha = r`, no
rs-LoRA), so PEFT and servers load it as it is. `.pt`: `{"format": "persona-lora/1", "base", "modules": {name: {"A":
(r, d_in), "B": (d_out, r)}}}`, loaded with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_vectors.files import read_sidecar, write_bytes_atomic, write_sidecar
from persona_vectors.weight_direction import LowRank, WeightDirection, layer_of

FORMAT = "persona-lora/1"
PREFIX = "base_model.model."
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_FILES = ("adapter_config.json", *_WEIGHTS)
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
Direction = WeightDirection | str | Path
_PARTS = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_B.bias": "bias"}


def load_direction(path: str | Path) -> WeightDirection:
    """The direction in a PEFT adapter folder or in a `.pt` file of factors.

    Raises:
        ValueError: nothing there, another format, NaN, or an adapter whose change of the weights is not low-rank alone.
    """
    path = Path(path)
    if path.is_dir():
        return load_adapter(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give an adapter folder or a .pt file of extract_persona_lora.py")
    return _load_factors(path)


def as_direction(lora_diff: Direction) -> WeightDirection:
    """The direction itself, or the one in an adapter folder or `.pt` file."""
    return lora_diff if isinstance(lora_diff, WeightDirection) else load_direction(lora_diff)


def content_stamp(path: str | Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when the direction's file, or one of its adapter folder's, is written again: name, inode, size and time
    of each; () where nothing is there."""
    path = Path(path)
    files = [path / name for name in _ADAPTER_FILES] if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, told.st_ino, told.st_size, told.st_mtime_ns) for name, told in found)


def load_adapter(folder: str | Path) -> WeightDirection:
    """What a PEFT LoRA adapter adds to its base: `scale * B @ A` of each module, rank and alpha patterns respected.

    Modules outside of the text decoder's blocks whose change is exactly zero are left out: those of a vision tower,
    which match the same target names and learn nothing from text.

    Raises:
        ValueError: no adapter there, another kind of adapter, a missing scale or factor, or tensors that are no LoRA
            factors (whole modules, embeddings, trained biases of the base); the message names the keys.
    """
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    folder = Path(folder)
    config = read_adapter_config(folder)
    adapter_weights(folder)
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{folder}/adapter_model.safetensors is damaged ({error}); make it again") from None
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        name, part = _module_of(key, folder)
        factors.setdefault(name, {})[part] = value
    if not factors:
        raise ValueError(f"adapter {folder} holds no LoRA weights")
    modules = {name: _scaled(name, parts, config, folder) for name, parts in factors.items()}
    trained = {name: one for name, one in modules.items() if layer_of(name) is not None or _is_trained(one)}
    base = str(config.get("base_model_name_or_path") or "")
    return _finite(WeightDirection(trained or modules, base, {"adapter": str(folder)}), folder)


def _is_trained(change: LowRank) -> bool:
    """False of B = 0, which every LoRA starts from."""
    return bool(change.B.any()) or (change.bias is not None and bool(change.bias.any()))


def adapter_weights(folder: Path) -> Path:
    """The file of the adapter's weights.

    Raises:
        ValueError: there is none.
    """
    there = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not there:
        raise ValueError(f"{folder} has an adapter_config.json and no adapter_model.safetensors")
    return there[0]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config, if it is a LoRA adapter whose change of the weights is `scale * B @ A`."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter: expected adapter_config.json and adapter_model.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is a {type(config).__name__}; expected a JSON object of PEFT's settings")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path} is of a {kind} adapter; expected LORA")
    if missing := [key for key in ("r", "lora_alpha") if not config.get(key)]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}, so the scale of its weights is not known")
    if config.get("use_dora"):
        raise ValueError(f"{path} is of a DoRA adapter, whose change of the weights is not B @ A alone")
    if config.get("alora_invocation_tokens"):
        raise ValueError(f"{path} is of an activated LoRA, which acts on some tokens only; expected a plain LoRA")
    if config.get("layer_replication"):
        raise ValueError(
            f"{path} has layer_replication, which repeats layers of the base, so its modules are not the base's own; "
            "expected a LoRA of the model as it is"
        )
    if str(start := config.get("init_lora_weights")).lower().startswith(_CHANGE_THE_BASE):
        raise ValueError(
            f"{path} has init_lora_weights {start}, which changed the base too, so what it adds is not B @ A; save it "
            "with PEFT's path_initial_model_for_weight_conversion"
        )
    return config


def _module_of(key: str, folder: Path) -> tuple[str, str]:
    """The module's name in the base model, and which factor the tensor is."""
    for ending, part in _PARTS.items():
        if key.endswith(ending):
            return key.removeprefix(PREFIX).removesuffix(ending), part
    raise ValueError(
        f"adapter {folder} has {key}, which is no LoRA factor of a linear module; train it with lora_bias none, "
        "without modules_to_save and embeddings"
    )


def _scaled(name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> LowRank:
    from peft.utils.other import get_pattern_key

    if missing := {"A", "B"} - set(parts):
        raise ValueError(f"adapter {folder}: {name} has no lora_{missing.pop()}.weight")
    A, B = parts["A"].float(), parts["B"].float()
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise ValueError(
            f"adapter {folder}: {name} has factors {tuple(A.shape)} and {tuple(B.shape)}; expected rank {rank}, as its "
            "config says"
        )
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    bias = parts.get("bias")
    if bias is not None and not B.any():
        A, B = A[:0], B[:, :0]  # a bias alone was trained
    return _checked(LowRank(A, scale * B, None if bias is None else scale * bias.float()), name, folder)


def _checked(change: LowRank, name: str, path: Path) -> LowRank:
    """The change, if its bias is a number for each output feature."""
    if change.bias is not None and change.bias.shape != (change.shape[0],):
        raise ValueError(f"{path}: {name} has a bias {tuple(change.bias.shape)}; expected ({change.shape[0]},)")
    return change


def _load_factors(path: Path) -> WeightDirection:
    import pickle

    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        with path.open("rb") as file:
            began_well = file.read(2) == b"PK"  # torch.save writes a zip archive
        if began_well and isinstance(error, RuntimeError | EOFError):
            raise ValueError(f"{path} is damaged (cut short, or changed since it was written); make it again") from None
        raise ValueError(f"{path} is no file of factors: it was not written by torch.save, or is damaged") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} {_what_else(content)}; make one with python extract_persona_lora.py")
    listed = content.get("modules")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{path} changes no module")
    modules = {name: _factors(name, parts, path) for name, parts in listed.items()}
    return _finite(WeightDirection(modules, content.get("base", ""), read_sidecar(path)), path)


def _factors(name: str, parts: Mapping[str, Tensor], path: Path) -> LowRank:
    if not isinstance(parts, dict) or not all(isinstance(one, Tensor) for one in parts.values()):
        raise ValueError(f"{path}: {name} is no table of tensors A and B")
    if missing := {"A", "B"} - set(parts):
        raise ValueError(f"{path}: {name} has no {missing.pop()}")
    A, B = parts["A"].float(), parts["B"].float()
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        raise ValueError(f"{path}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}; expected (r, in) and (out, r)")
    return _checked(LowRank(A, B, parts["bias"].float() if "bias" in parts else None), name, path)


def _what_else(content: Any) -> str:
    """What a file that is no direction seems to be."""
    if isinstance(content, Tensor):
        return (
            f"is a tensor {tuple(content.shape)}, as vectors in activation space are; expected a direction of weights"
        )
    if isinstance(content, dict) and any("lora_A" in str(key) for key in content):
        return (
            "has A and B subtracted separately, as other tools write it, which is not the difference of the weights: "
            "(B+ - B-)(A+ - A-) is not B+A+ - B-A-"
        )
    return f"is not of format {FORMAT}"


def _finite(direction: WeightDirection, path: Path) -> WeightDirection:
    for name, module in direction.modules.items():
        for tensor in (module.A, module.B, module.bias):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ValueError(f"{path}: {name} has values that are not finite; make it again")
    return direction


def save_factors(direction: WeightDirection, path: str | Path) -> Path:
    """The path, now a `.pt` file of the direction's factors, with a sidecar."""
    modules = {
        name: {"A": m.A.contiguous().clone(), "B": m.B.contiguous().clone()}
        | ({} if m.bias is None else {"bias": m.bias.clone()})
        for name, m in direction.modules.items()
    }
    content = io.BytesIO()
    torch.save({"format": FORMAT, "base": direction.base, "modules": modules}, content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, content.getvalue())
    write_sidecar(path, {"kind": "weight direction", **direction.record})
    return path


def save_adapter(direction: WeightDirection, folder: str | Path) -> Path:
    """The folder, now a PEFT adapter that adds the direction to its base: whole or not at all.

    Every module has the direction's highest rank, smaller ones filled up with zeros, since servers know one rank an
    adapter. A direction with biases is written with `lora_bias`, which PEFT loads and vLLM does not.
    """
    import safetensors.torch
    from peft import LoraConfig

    if not direction.base:
        raise ValueError("the direction does not say which model it belongs to, and an adapter must name its base")
    rank = max(direction.rank, 1)
    tensors = {}
    for name, module in direction.modules.items():
        A, B = torch.zeros(rank, module.shape[1]), torch.zeros(module.shape[0], rank)
        A[: module.rank], B[:, : module.rank] = module.A, module.B
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
        if direction.has_bias:
            bias = torch.zeros(module.shape[0]) if module.bias is None else module.bias.clone()
            tensors[f"{PREFIX}{name}.lora_B.bias"] = bias
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        lora_bias=direction.has_bias,
        target_modules=_targets(direction),
        base_model_name_or_path=direction.base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder = Path(folder)
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    safetensors.torch.save_file(tensors, half / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(half))
    _sort_targets(half / "adapter_config.json")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(half.iterdir(), key=lambda path: path.name == "adapter_config.json"):
        os.replace(file, folder / file.name)
    half.rmdir()
    write_sidecar(folder / "adapter_model.safetensors", {"kind": "weight direction", **direction.record})
    return folder


def _sort_targets(config: Path) -> None:
    """Writes the target modules in one order: PEFT keeps them as a set, which would differ from run to run."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["target_modules"] = sorted(content["target_modules"])
    config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _targets(direction: WeightDirection) -> list[str]:
    """Full names, which match these modules and no others."""
    return sorted(direction.modules)
