"""The training config: published keys and defaults, and one line that names the field for whatever is wrong."""

from __future__ import annotations

import json

import pytest

from persona_vectors.training_config import SteeringConfig, TrainingConfig, load_training_config
from tests.conftest import ROOT

LEAST = {"model": "m", "training_file": "x.jsonl"}
BLOCK = {"steering_vector_path": "v.pt", "layers": [2]}
PUBLISHED_DEFAULTS = {
    "max_seq_length": 2048,
    "load_in_4bit": False,
    "loss": "sft",
    "is_peft": True,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_bias": "none",
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0,
    "use_rslora": True,
    "merge_before_push": True,
    "push_to_private": True,
    "epochs": 1,
    "max_steps": None,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "warmup_steps": 5,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "optim": "adamw_8bit",
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "seed": 3407,
    "beta": 0.1,
    "save_steps": 5000,
    "output_dir": "./tmp",
    "train_on_responses_only": True,
    "no_test_split": False,
    "steering_config": None,
    "enable_steering_during_training": False,
    "finetuned_model_id": None,
    "test_file": None,
}


def load(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_training_config(path)


def test_the_published_defaults():
    config = TrainingConfig(**LEAST)
    assert {name: getattr(config, name) for name in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS


def test_a_negative_learning_rate_is_a_power_of_ten():
    assert TrainingConfig(**LEAST, learning_rate=-5).learning_rate == pytest.approx(1e-5)


def test_the_steering_block_acts_only_where_it_is_switched_on():
    off = TrainingConfig(**LEAST, steering_config=SteeringConfig(**BLOCK))
    assert off.steering is None
    on = TrainingConfig(**LEAST, steering_config=SteeringConfig(**BLOCK), enable_steering_during_training=True)
    assert on.steering is not None and on.steering.coefs == [1.0]
    two = SteeringConfig(steering_vector_path=["a.pt", "b.pt"], steering_coef=2, layers="all", incremental=True)
    assert two.coefs == [2, 2]


BAD = {
    "unknown key": ({"lr": 3}, "unknown key lr"),
    "near key": ({"learning_rat": 3}, "unknown key learning_rat; did you mean learning_rate"),
    "wrong type": ({"r": "a"}, '^[^:]*: r should be .*integer.*got "a"'),
    "out of range": ({"lora_dropout": 1.5}, "lora_dropout should be less than 1.*got 1.5"),
    "zero rate": ({"learning_rate": 0}, "learning_rate: 0 learns nothing"),
    "nan": ('{"model": "m", "training_file": "x", "learning_rate": NaN}', "learning_rate"),
    "loss": ({"loss": "ppo"}, "loss should be 'sft', 'dpo' or 'orpo'"),
    "no block": ({"enable_steering_during_training": True}, "there is no steering_config"),
    "block key": ({"steering_config": BLOCK | {"coef": 1}}, "unknown key steering_config.coef"),
    "block layers": ({"steering_config": {"steering_vector_path": "v"}}, "steering_config.layers is missing"),
    "block type": ({"steering_config": BLOCK | {"type": "push"}}, "steering_config.type"),
    "every type": (
        {"steering_config": BLOCK | {"type": "lorra"}},
        r"expected 'steer', 'ablate', 'cap', 'penalty' \(with .*_vector_path\), or 'lora' \(with lora_path\); got",
    ),
    "coefs": ({"steering_config": BLOCK | {"steering_coef": [1, 2]}}, "2 steering_coef for 1 steering_vector_path"),
    "twice": ({"steering_config": BLOCK | {"layers": [2, 2]}}, "names a layer twice"),
    "incremental": ({"steering_config": BLOCK | {"type": "ablate", "incremental": True}}, "incremental is for"),
    "cap bounds": ({"steering_config": BLOCK | {"type": "cap"}}, "needs floor, ceiling or both"),
    "bounds": ({"steering_config": BLOCK | {"floor": 1}}, "floor and ceiling are for type cap"),
    "reward": ({"steering_config": BLOCK | {"type": "penalty", "steering_coef": -1}}, "would reward the drift"),
    "penalty": (
        {"steering_config": BLOCK | {"type": "penalty"}, "enable_steering_during_training": True, "is_peft": False},
        "needs is_peft: true",
    ),
    "merged": ({"save_merged": True, "is_peft": False}, "save_merged is for adapters"),
    "4bit": ({"load_in_4bit": True, "is_peft": False}, "load_in_4bit trains an adapter"),
    "dpo packing": ({"loss": "dpo", "packing": True}, "packing is for loss sft; got dpo"),
    "dpo biases": ({"loss": "dpo", "lora_bias": "all"}, "whose biases lora_bias all would train"),
    "dpo bias alone": ({"loss": "dpo", "bias_only": True}, "bias_only is not for loss dpo"),
    "penalised bias": (
        {"steering_config": BLOCK | {"type": "penalty"}, "enable_steering_during_training": True, "bias_only": True},
        "bias_only is not for steering type penalty",
    ),
    "nothing held out": ({"eval_steps": 5, "no_test_split": True}, "eval_steps reads held-out rows"),
    "two tests": ({"test_file": "t.jsonl", "no_test_split": True}, "leave one out"),
    "push": ({"push_to_hub": True}, "finetuned_model_id as org/name; got None"),
    "not JSON": ("{", "is not JSON"),
    "a list": ("[]", "expected a JSON object"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=list(BAD))
def test_what_is_wrong_is_said_in_one_line_with_its_field(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, LEAST | content if isinstance(content, dict) else content)
    assert "\n" not in str(error.value) and "c.json" in str(error.value)


def test_a_missing_key_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="training_file is missing"):
        load(tmp_path, {"model": "m"})
    with pytest.raises(ValueError, match="does not exist"):
        load_training_config(tmp_path / "none.json")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.json")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    config = load_training_config(path)
    assert all((ROOT / file).is_file() for file in config.training_files)
    assert config.output_dir.startswith("ckpt/")
