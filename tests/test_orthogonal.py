"""A vector without what other traits' vectors share with it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.orthogonal import orthogonalize

G = torch.Generator().manual_seed(0)


def draw(n: int, layers: int = 3, d_model: int = 16) -> list[torch.Tensor]:
    return [torch.randn(layers, d_model, generator=G) for _ in range(n)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6))
def test_the_rest_is_orthogonal_to_every_other_and_all_that_is(n):
    vectors, *others = draw(n + 1)
    rest = orthogonalize(vectors, others)
    for other in others:
        torch.testing.assert_close((rest * other).sum(-1), torch.zeros(3), atol=1e-4, rtol=0)
    for layer in range(3):  # what was taken away lies in the others' span: least squares leaves the same rest
        stacked = torch.stack([other[layer] for other in others])
        fit = torch.linalg.lstsq(stacked.T.double(), vectors[layer][:, None].double()).solution
        torch.testing.assert_close(
            rest[layer].double(), vectors[layer].double() - (stacked.T.double() @ fit)[:, 0], atol=1e-5, rtol=0
        )


def test_it_points_as_the_vector_does():
    vectors, other = draw(2)
    rest = orthogonalize(vectors, [other])
    assert ((rest * vectors).sum(-1) > 0).all()
    torch.testing.assert_close((rest * vectors).sum(-1), rest.norm(dim=-1) ** 2, atol=1e-4, rtol=0)


def test_others_that_repeat_each_other_take_away_once():
    vectors, other = draw(2)
    torch.testing.assert_close(orthogonalize(vectors, [other, 2 * other, -other]), orthogonalize(vectors, [other]))


def test_layers_that_are_zero_stay_zero():
    vectors, other = draw(2)
    vectors[0], other[0] = 0, 0
    rest = orthogonalize(vectors, [other])
    assert not rest[0].any() and rest[1].any()


def test_a_shared_part_is_what_goes():
    """Own part e_t, shared part s: v_t = e_t + s. Without the others, hardly anything of s is left."""
    shared = torch.randn(1, 64, generator=G)
    own = [torch.randn(1, 64, generator=G) for _ in range(7)]
    rest = orthogonalize(own[0] + 3 * shared, [one + 3 * shared for one in own[1:]])
    before = torch.cosine_similarity(own[0] + 3 * shared, shared)
    assert before > 0.8 and torch.cosine_similarity(rest, shared).abs() < 0.35


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "at least one other"),
        ([torch.ones(3, 8)], "must be of one model"),
        ([torch.full((3, 16), float("nan"))], "NaN"),
    ],
)
def test_what_cannot_be_projected_out_is_refused(others, message):
    with pytest.raises(ValueError, match=message):
        orthogonalize(draw(1)[0], others)


def test_the_same_trait_among_the_others_is_refused():
    vectors, other = draw(2)
    with pytest.raises(ValueError, match="same trait is among them"):
        orthogonalize(vectors, [other, 1.5 * vectors])
