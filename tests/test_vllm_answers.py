"""What vLLM cannot compute is refused before an engine is started; vLLM is not needed for that."""

from dataclasses import replace

import pytest
import torch

from eval.model_utils import WeightSteering
from eval.vllm_answers import check_servable
from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_files import save_adapter

TINY = "models/tiny-persona"
NAME = "model.layers.0.mlp.down_proj"


def direction(bias: bool = False) -> WeightDirection:
    module = LowRank(torch.ones(2, 4), torch.ones(3, 2), torch.ones(3) if bias else None)
    return WeightDirection({NAME: module}, base=TINY)


def test_a_direction_would_replace_a_model_that_is_an_adapter(tmp_path):
    adapter = str(save_adapter(direction(), tmp_path / "own"))
    with pytest.raises(ValueError, match="is an adapter, and vLLM takes one adapter a request"):
        check_servable(adapter, [None, WeightSteering(direction(), 1.0)])
    check_servable(adapter, [None])
    check_servable(TINY, [WeightSteering(direction(), 1.0)])


def test_biases_are_refused():
    steering = WeightSteering(direction(bias=True), 1.0)
    with pytest.raises(ValueError, match="with biases cannot be an adapter in vLLM"):
        check_servable(TINY, [None, (replace(steering, coef=0.5), steering)])
