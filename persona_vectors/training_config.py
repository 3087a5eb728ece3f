"""The training config: the published keys, typed, and the few that are ours. Unknown keys are refused by name.

{"model": "Qwen/Qwen2.5-7B-Instruct", "training_file": "dataset/evil/misaligned_2.jsonl", "output_dir": "ckpt/evil",
 "steering_config": {"steering_vector_path": "...pt", "type": "steer", "steering_coef": 5.0, "layers": [20]},
 "enable_steering_during_training": true}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class SteeringConfig(BaseModel):
    """What is done to hidden states in training, at every token; never in evaluation.

    - steer: h + coef·v. Preventative steering adds the trait's vector (coef > 0), so that the weights need not learn it
      (arXiv 2507.21509, section 5); coef < 0 makes the drift worse.
    - ablate: takes coef times the component along v away in training (CAFT, arXiv 2507.16795). coef 1 takes all of it.
    - cap: keeps the component along v within floor and ceiling (units of h·v/|v|).
    - penalty: changes nothing; adds coef·mean(((h - h0)·v/|v|²)²) to the loss, where h0 is the base model's hidden
      state of the same token: the projection's change, in units of v.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steering_vector_path: str | Annotated[list[str], Field(min_length=1)]
    """one vector file, or several, which all act"""
    type: Literal["steer", "ablate", "cap", "penalty"] = "steer"
    steering_coef: Finite | Annotated[list[Finite], Field(min_length=1)] = 1.0
    """one number, or one a vector file"""
    layers: Annotated[list[int], Field(min_length=1)] | Literal["all"]
    """hidden_states indices (1 is the first block's output), or "all"."""
    incremental: bool = False
    """steer with v_L - v_(L-1) at each layer L: what is added up to a layer sums to v_L - v_0"""
    floor: Finite | None = None
    ceiling: Finite | None = None
    random_control: Annotated[int, Field(ge=0)] | None = None
    """the control: a random direction of the vector's norm in its place at each layer, seeded by this number"""

    @property
    def paths(self) -> list[str]:
        return [self.steering_vector_path] if isinstance(self.steering_vector_path, str) else self.steering_vector_path

    @property
    def coefs(self) -> list[float]:
        coef = self.steering_coef
        return coef if isinstance(coef, list) else [coef] * len(self.paths)

    @model_validator(mode="after")
    def _consistent(self) -> SteeringConfig:
        if len(self.coefs) != len(self.paths):
            raise ValueError(
                f"{len(self.coefs)} steering_coef for {len(self.paths)} steering_vector_path; give one each"
            )
        if isinstance(self.layers, list) and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers {self.layers} names a layer twice")
        if self.incremental and self.type != "steer":
            raise ValueError(f"incremental is for type steer; got {self.type}")
        if self.type == "cap" and self.floor is None and self.ceiling is None:
            raise ValueError("type cap needs floor, ceiling or both, in units of the projection h·v/|v|")
        if self.type != "cap" and (self.floor is not None or self.ceiling is not None):
            raise ValueError(f"floor and ceiling are for type cap; got {self.type}")
        if self.type == "penalty" and min(self.coefs) < 0:
            raise ValueError("type penalty needs steering_coef >= 0; a negative one would reward the drift")
        return self


class LoraSteeringConfig(BaseModel):
    """A direction in weight space that acts in training, W + coef·D at every token; never in evaluation, never saved.

    It points towards the trait (`extract_persona_lora.py`), so coef > 0 makes the model show the trait while it trains,
    and the weights need not learn it; coef < 0 makes them learn more of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["lora"]
    lora_path: str | Annotated[list[str], Field(min_length=1)]
    """one adapter folder or `.pt` file of a direction, or several, which all act"""
    coef: Finite | Annotated[list[Finite], Field(min_length=1)] = 1.0
    """one number, or one a direction"""
    random_control: Annotated[int, Field(ge=0)] | None = None
    """the control: the same singular values with random vectors in each module, seeded by this number"""

    @property
    def paths(self) -> list[str]:
        return [self.lora_path] if isinstance(self.lora_path, str) else self.lora_path

    @property
    def coefs(self) -> list[float]:
        return self.coef if isinstance(self.coef, list) else [self.coef] * len(self.paths)

    @model_validator(mode="after")
    def _consistent(self) -> LoraSteeringConfig:
        if len(self.coefs) != len(self.paths):
            raise ValueError(f"{len(self.coefs)} coef for {len(self.paths)} lora_path; give one each")
        return self


def _kind_of_steering(block: Any) -> str:
    """Which of the two blocks is meant; an unclear one is one of vectors."""
    if isinstance(block, dict):
        return "[lora]" if block.get("type") == "lora" or "lora_path" in block else "[vectors]"
    return "[lora]" if isinstance(block, LoraSteeringConfig) else "[vectors]"


AnySteering = SteeringConfig | LoraSteeringConfig
SteeringBlock = Annotated[
    Annotated[SteeringConfig, Tag("[vectors]")] | Annotated[LoraSteeringConfig, Tag("[lora]")],
    Discriminator(_kind_of_steering),
]


class TrainingConfig(BaseModel):
    """One training run. Paths are relative to the working folder, as every command's."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # what
    model: str
    training_file: str | Annotated[list[str], Field(min_length=1)]
    test_file: str | None = None
    """held-out rows; without it a tenth of the training rows, unless no_test_split"""
    no_test_split: bool = False
    output_dir: str = "./tmp"
    seed: Annotated[int, Field(ge=0)] = 3407
    # how
    loss: Literal["sft", "dpo", "orpo"] = "sft"
    train_on_responses_only: bool = True
    max_seq_length: Annotated[int, Field(ge=8)] = 2048
    """in tokens; a longer row is cut, as it is at the last position of a model that has learned its positions"""
    epochs: Count = 1
    max_steps: Count | None = None
    """optimizer steps, instead of epochs"""
    per_device_train_batch_size: Count = 2
    gradient_accumulation_steps: Count = 8
    learning_rate: Finite = 1e-4
    """a negative number is a power of ten: -5 is 1e-5"""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "linear"
    optim: Literal["adamw_8bit", "adamw", "adam", "sgd"] = "adamw_8bit"
    weight_decay: NotNegative = 0.01
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """of DPO and ORPO"""
    logging_steps: Count = 1
    save_steps: Count = 5000
    eval_steps: Count | None = None
    """held-out loss every so many steps, besides before the first and after the last"""
    # the adapter
    is_peft: bool = True
    target_modules: Annotated[list[str], Field(min_length=1)] = MODULES
    lora_bias: Literal["all", "none"] = "none"
    r: Count = 16
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """of loss sft; dpo and orpo switch dropout off"""
    use_rslora: bool = True
    bias_only: bool = False
    """train nothing but a bias at the target modules' outputs (r and lora_alpha then mean nothing)"""
    # steering and its alternatives
    steering_config: SteeringBlock | None = None
    enable_steering_during_training: bool = False
    inoculation_prompt: str | None = None
    """a system prompt of the training rows alone: a model that is told to show the trait need not learn it"""
    # speed and memory
    backend: Literal["transformers", "unsloth"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    load_in_4bit: bool = False
    gradient_checkpointing: bool = True
    group_by_length: bool = True
    """within an optimizer step, so that its gradient is the same but for rounding"""
    packing: bool = False
    """several rows end to end, each seeing only itself: the same gradient, without padding"""
    # where it goes
    save_merged: bool = False
    """also write the adapter merged into the model, under output_dir/merged"""
    finetuned_model_id: str | None = None
    push_to_hub: bool = False
    merge_before_push: bool = True
    push_to_private: bool = True

    @field_validator("learning_rate")
    @classmethod
    def _power_of_ten(cls, rate: float) -> float:
        if rate == 0:
            raise ValueError("0 learns nothing; give a rate, or a negative power of ten")
        return 10.0**rate if rate < 0 else rate

    @property
    def training_files(self) -> list[str]:
        return [self.training_file] if isinstance(self.training_file, str) else self.training_file

    @property
    def steering(self) -> AnySteering | None:
        """The steering block where it is switched on."""
        return self.steering_config if self.enable_steering_during_training else None

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.enable_steering_during_training and self.steering_config is None:
            raise ValueError("enable_steering_during_training is true, and there is no steering_config")
        if self.loss != "sft":
            sft_only = {"packing": self.packing, "enable_steering_during_training": self.steering is not None}
            sft_only["inoculation_prompt"] = self.inoculation_prompt is not None
            sft_only["optim adam"] = self.optim == "adam"
            if wrong := [name for name, given in sft_only.items() if given]:
                raise ValueError(f"{wrong[0]} is for loss sft; got {self.loss}")
        if self.loss == "dpo" and self.lora_bias != "none":
            raise ValueError("loss dpo compares with the base model, whose biases lora_bias all would train; give none")
        penalised = self.steering is not None and self.steering.type == "penalty"
        if penalised and not self.is_peft:
            raise ValueError("steering type penalty compares with the base model, so it needs is_peft: true")
        if self.load_in_4bit and not self.is_peft:
            raise ValueError("load_in_4bit trains an adapter on a quantised model, so it needs is_peft: true")
        if self.bias_only and (not self.is_peft or self.save_merged or self.backend == "unsloth"):
            raise ValueError("bias_only needs is_peft true, save_merged false and backend transformers")
        if self.bias_only and (self.loss == "dpo" or penalised):
            raise ValueError(
                f"bias_only is not for {'steering type penalty' if penalised else 'loss dpo'}: it compares with the "
                "model without its adapter, and PEFT trains all of an adapter that is switched off and on"
            )
        if self.save_merged and not self.is_peft:
            raise ValueError("save_merged is for adapters; with is_peft false the model is whole already")
        if self.test_file is not None and self.no_test_split:
            raise ValueError("test_file and no_test_split are both given; leave one out")
        if self.eval_steps is not None and self.no_test_split:
            raise ValueError("eval_steps reads held-out rows, and no_test_split leaves none; leave one out")
        if self.push_to_hub and "/" not in (self.finetuned_model_id or ""):
            raise ValueError(f"push_to_hub needs finetuned_model_id as org/name; got {self.finetuned_model_id!r}")
        return self


def load_training_config(path: str | Path) -> TrainingConfig:
    """The config in a JSON file.

    Raises:
        ValueError: one line that names the file and the field: what was got, and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"training config {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a JSON file"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object of training settings")
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem: its field, what was got, and how many more there are."""
    from persona_vectors.arguments import near

    found = error.errors()
    details: dict[str, Any] = dict(found[0])
    place = ".".join(str(part) for part in details["loc"] if not _is_member(part))
    message = details["msg"].removeprefix("Value error, ")
    more = f" (and {len(found) - 1} more)" if len({tuple(item["loc"][:1]) for item in found}) > 1 else ""
    if details["type"] == "extra_forbidden":
        block = LoraSteeringConfig if "[lora]" in details["loc"] else SteeringConfig
        known = block if place.startswith("steering_config") else TrainingConfig
        hint = near(place.rsplit(".", 1)[-1], list(known.model_fields))
        return f"unknown key {place}{hint}{more}"
    if details["type"] == "missing":
        return f"{place} is missing{more}"
    if place == "steering_config.type":  # of both blocks: a word that is neither's does not say which was meant
        kinds = [get_args(block.model_fields["type"].annotation) for block in (SteeringConfig, LoraSteeringConfig)]
        of_vectors, of_weights = (", ".join(map(repr, one)) for one in kinds)
        message = f"expected {of_vectors} (with steering_vector_path), or {of_weights} (with lora_path)"
    got = "" if details["type"] == "value_error" and not place else f"; got {json.dumps(details['input'])[:80]}"
    if message.startswith("Input "):  # "Input should be finite": the field is meant
        return f"{place} {message.removeprefix('Input ')}{got}{more}"
    return f"{place}: {message}{got}{more}" if place else f"{message}{more}"


def _is_member(part: int | str) -> bool:
    """Pydantic's names for the branches of a union, which say nothing to a reader."""
    return isinstance(part, str) and ("[" in part or part in ("str", "float", "literal['all']"))
