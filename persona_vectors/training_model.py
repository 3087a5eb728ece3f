"""The model that is trained: loaded for it, with a fresh adapter, and its optimizer's settings."""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any

from persona_vectors.models import load_config, load_model, quantised_bits, resolve_model
from persona_vectors.training_config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_model(config: TrainingConfig) -> None:
    """Refuses, with a ValueError, a model, modules or backend that cannot be trained, before weights are loaded."""
    from persona_vectors.weight_hooks import skeleton

    source = resolve_model(config.model)
    if source.adapter is not None:
        raise ValueError(
            f"model {config.model} is an adapter; merge it into its base first, and train the merged model"
        )
    load_config(config.model)
    if config.is_peft:
        target_modules(skeleton(config.model), config)
    quantised_bits(config.load_in_4bit)
    if config.backend == "unsloth" and importlib.util.find_spec("unsloth") is None:
        raise ValueError("backend unsloth is not installed; pip install unsloth, or leave backend out")


def row_limit(config: TrainingConfig) -> int:
    """How many tokens of a row are read: max_seq_length, or all positions of a model that learned fewer one by one.

    Rotary and relative positions have no end that a row could not pass.
    """
    from torch import nn

    from persona_vectors.weight_hooks import skeleton

    model: Any = skeleton(config.model)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_seq_length
    words = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words]
    learned = any(0 <= table.num_embeddings - positions <= 2 for table in tables)  # OPT's begins with two that pad
    return min(config.max_seq_length, positions) if learned else config.max_seq_length


def load_for_training(config: TrainingConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in training form, with a new LoRA adapter where the config asks for one, and its tokenizer.

    Frozen weights keep the checkpoint's dtype on CUDA; what is trained is float32.
    """
    if config.backend == "unsloth":
        return _load_unsloth(config)
    dtype = "float32" if config.dtype == "auto" and not config.is_peft else config.dtype
    model, tokenizer = load_model(config.model, dtype=dtype, device_map=_device_map(), load_in_4bit=config.load_in_4bit)
    if not config.is_peft:
        return model, tokenizer
    return with_lora(model, config), tokenizer


def _device_map() -> str:
    """Where the weights are read to: this process's own device; the CPU where FSDP will share them out."""
    import torch

    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1") or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "auto"


def with_lora(model: PreTrainedModel, config: TrainingConfig) -> Any:
    """The model wrapped with a new adapter, the same for the same seed; the adapter's own weights are float32.

    Raises:
        ValueError: target_modules matches no module, or one of the names matches none.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    target_modules(model, config)
    if config.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.gradient_checkpointing)
    torch.manual_seed(config.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")  # a module without a bias gets one
        wrapped = get_peft_model(model, LoraConfig(**_lora(config), task_type="CAUSAL_LM"))
    if config.bias_only:
        for name, parameter in wrapped.named_parameters():
            parameter.requires_grad_(".lora_B." in name and name.endswith(".bias"))  # B stays 0, so A does nothing
    return wrapped


def target_modules(model: nn.Module, config: TrainingConfig) -> dict[str, nn.Module]:
    """The modules that the config's target_modules mean, by name: those of the name, whole or what follows a dot.

    Raises:
        ValueError: one of the names means none.
    """
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    found = {
        target: [name for name in leaves if name == target or name.endswith(f".{target}")]
        for target in config.target_modules
    }
    if unknown := [target for target, names in found.items() if not names]:
        raise ValueError(
            f"target_modules {', '.join(unknown)}: no such module in {config.model}; have {_linear(model)}"
        )
    return {name: leaves[name] for names in found.values() for name in names}


def _linear(model: nn.Module) -> str:
    import torch

    linear = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return ", ".join(sorted(linear))


def _lora(config: TrainingConfig) -> dict[str, Any]:
    only_bias = {"r": 1, "lora_alpha": 1, "use_rslora": False, "lora_bias": True} if config.bias_only else {}
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "bias": config.lora_bias,
        "target_modules": list(config.target_modules),
        "use_rslora": config.use_rslora,
    } | only_bias


def _load_unsloth(config: TrainingConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    model, tokenizer = FastLanguageModel.from_pretrained(
        config.model,
        dtype=None,
        load_in_4bit=config.load_in_4bit,
        max_seq_length=config.max_seq_length,
        full_finetuning=not config.is_peft,
    )
    if config.is_peft:
        model = FastLanguageModel.get_peft_model(
            model,
            **_lora(config),
            random_state=config.seed,
            use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        )
    return model, tokenizer


def optimizer_settings(config: TrainingConfig) -> tuple[dict[str, Any], str]:
    """(the optimizer as transformers names it, a remark where it is not the one that was asked for)."""
    import torch

    if config.optim != "adamw_8bit":
        return {"optim": {"adamw": "adamw_torch", "adam": "adamw_torch", "sgd": "sgd"}[config.optim]}, ""
    if torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None:
        return {"optim": "adamw_8bit"}, ""
    return {"optim": "adamw_torch"}, "optim adamw_8bit needs CUDA and bitsandbytes; adamw_torch is used instead"


def adam_with_decay_in_the_gradient(config: TrainingConfig) -> tuple[type, dict[str, Any]] | None:
    """Adam proper for `optim: adam`, which transformers has no name for; None for any other."""
    import torch

    if config.optim != "adam":
        return None
    return torch.optim.Adam, {"lr": config.learning_rate, "weight_decay": config.weight_decay}


def training_arguments(config: TrainingConfig, **more: object) -> dict[str, Any]:
    """The arguments that all of trl's trainers share."""
    import torch

    on_cuda = torch.cuda.is_available()
    return {
        "output_dir": config.output_dir,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.lr_scheduler_type,
        "weight_decay": config.weight_decay,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # it would put an earlier loss in the place of a NaN
        "save_steps": config.save_steps,
        "seed": config.seed,
        "data_seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": on_cuda and config.dtype != "float32",
        "use_cpu": not on_cuda,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "disable_tqdm": True,  # the trainer has a bar of its own
        "remove_unused_columns": False,
        **optimizer_settings(config)[0],
        **more,
    }
