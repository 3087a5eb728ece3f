"""Real PEFT adapters of tiny random models, with what PEFT says they add, and random directions for their modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_hooks import find_modules, is_transposed
from tests.tiny_models import tiny_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path, architecture: str = "qwen2", seed: int = 0, targets: tuple[str, ...] = ("q_proj",), **config: Any
) -> dict[str, Tensor]:
    """Module -> what a random adapter, now in the folder, adds to its weight: (d_out, d_in) in float64."""
    model = tiny_model(architecture)
    model.name_or_path = f"tiny-{architecture}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(target_modules=list(targets), task_type="CAUSAL_LM", **config))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return {name: one.scaling["default"] * _product(one) for name, one in lora_layers(adapted).items() if one.lora_A}


def _product(layer: Any) -> Tensor:
    return layer.lora_B["default"].weight.detach().double() @ layer.lora_A["default"].weight.detach().double()


def tiny_multimodal() -> PreTrainedModel:
    """A tiny random Gemma 3 of text and images, as its sizes from 4B are: the text model is a part of it."""
    text = tiny_model("gemma3_text").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def lora_layers(adapted: PeftModel) -> dict[str, Any]:
    """The adapted modules of a PEFT model, by the module's name in the base."""
    base: Any = adapted.get_base_model()
    return {name: one for name, one in base.named_modules() if isinstance(one, LoraLayer)}


def random_direction(
    model: nn.Module, targets: tuple[str, ...] = ALL, seed: int = 0, rank: int = 3, bias: bool = False
) -> WeightDirection:
    """A random direction in the linear modules whose name ends so."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            d_out, d_in = module.weight.shape[::-1] if is_transposed(module) else module.weight.shape
            modules[name] = LowRank(
                torch.randn(rank, d_in, generator=generator) * 0.2,
                torch.randn(d_out, rank, generator=generator) * 0.2,
                torch.randn(d_out, generator=generator) * 0.2 if bias else None,
            )
    return WeightDirection(modules, "tiny")


def dense(direction: WeightDirection) -> dict[str, Tensor]:
    """Module -> delta_w in float64."""
    return {name: one.B.double() @ one.A.double() for name, one in direction.modules.items()}


def weights(model: nn.Module, direction: WeightDirection) -> dict[str, Tensor]:
    """Module -> copy of its weight as (d_out, d_in)."""
    found: dict[str, Any] = find_modules(model, direction)
    return {name: (one.weight.T if is_transposed(one) else one.weight).detach().clone() for name, one in found.items()}


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Every entry of the state dict, bit for bit."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {name: one.detach().clone().view(kinds[one.element_size()]) for name, one in model.state_dict().items()}


def same_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = bits(model)
    return set(now) == set(before) and all(torch.equal(one, before[name]) for name, one in now.items())
