"""The algebra of projections, and what has no projection."""

from __future__ import annotations

import pytest
import torch

from persona_vectors.projection import PROJECTION_TYPES, cosine, project


def test_a_known_case():
    vector = torch.tensor([3.0, 4.0])
    activation = torch.tensor([[1.0, 2.0], [-3.0, -4.0], [4.0, -3.0]])
    torch.testing.assert_close(project(activation, vector), torch.tensor([2.2, -5.0, 0.0]))
    torch.testing.assert_close(cosine(activation, vector), torch.tensor([2.2 / 5**0.5, -1.0, 0.0]))


def test_length_of_the_vector_never_matters_and_its_sign_does():
    generator = torch.Generator().manual_seed(0)
    activations, vector = torch.randn(7, 5, generator=generator), torch.randn(5, generator=generator)
    for function in (project, cosine):
        torch.testing.assert_close(function(activations, 100 * vector), function(activations, vector))
        torch.testing.assert_close(function(activations, -vector), -function(activations, vector))


def test_each_layer_on_its_own_vector():
    activations, vectors = torch.randn(6, 3, 4), torch.randn(3, 4)
    both = project(activations, vectors)
    assert both.shape == (6, 3)
    for layer in range(3):
        torch.testing.assert_close(both[:, layer], project(activations[:, layer], vectors[layer]))


def test_half_precision_is_computed_in_float32():
    activations, vector = torch.randn(4, 512).bfloat16(), torch.randn(512).bfloat16()
    result = project(activations, vector)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, project(activations.float(), vector.float()))


def test_zero_and_nan_are_explicit():
    with pytest.raises(ValueError, match="zero"):
        project(torch.ones(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        project(torch.ones(2, 3), torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(ValueError, match="width 4"):
        project(torch.ones(2, 3), torch.ones(4))
    assert project(torch.zeros(3), torch.ones(3)) == 0
    assert torch.isnan(cosine(torch.zeros(3), torch.ones(3)))


def test_the_published_types():
    assert {kind: span for kind, (span, _function) in PROJECTION_TYPES.items()} == {
        "proj": "response_avg",
        "prompt_last_proj": "prompt_last",
        "cos_sim": "response_avg",
    }
