"""The algebra of add, ablate and cap, and the masks of token positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.interventions import (
    ablate,
    add,
    cap,
    check_bounds,
    check_vector,
    position_mask,
    seen_prompt_lens,
    token_index,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
coefs = st.floats(-8, 8, allow_nan=False, width=32)
seeds = st.integers(0, 10_000)


def draw_hidden(seed, dtype=torch.float32, batch=3, seq=5, width=16):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, seq, width, generator=generator).to(dtype)
    vector = torch.randn(width, generator=generator)
    mask = torch.rand(batch, seq, generator=generator) > 0.5
    return hidden, vector, mask


def component(hidden, vector):
    return (hidden.double() @ vector.double()) / vector.double().norm()


@settings(max_examples=60, deadline=None)
@given(seeds, coefs, st.sampled_from(DTYPES))
def test_add_is_exact_in_the_hidden_dtype_and_leaves_the_rest_bit_for_bit(seed, coef, dtype):
    hidden, vector, mask = draw_hidden(seed, dtype)
    before = hidden.clone()
    changed = add(hidden, vector, coef, mask)
    assert changed.dtype == dtype and torch.equal(hidden, before)
    expected = hidden + (coef * vector).to(dtype)
    assert torch.equal(changed[mask], expected[mask])
    assert torch.equal(changed[~mask], hidden[~mask])
    assert torch.equal(add(hidden, vector, coef)[0], expected[0])


def test_coef_0_keeps_the_sign_of_zero():
    hidden = torch.full((2, 1, 4), -0.0)
    vector = torch.ones(4)
    rows = torch.tensor([0.0, 1.0])
    for changed in (add(hidden, vector, 0.0), add(hidden, vector, rows)[:1], ablate(hidden, vector, coef=0.0)):
        assert torch.signbit(changed).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(coefs, min_size=3, max_size=3), st.sampled_from(("add", "ablate", "cap")))
def test_rows_with_their_own_coefficient_and_vector_equal_separate_calls(seed, row_coefs, kind):
    hidden, _, mask = draw_hidden(seed)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed + 1))

    def act(hidden, vector, coef, mask, floor):
        if kind == "add":
            return add(hidden, vector, coef, mask)
        return ablate(hidden, vector, mask, coef) if kind == "ablate" else cap(hidden, vector, floor, 1.0, mask, coef)

    floors = torch.tensor([-1.0, 0.0, 0.5])
    together = act(hidden, vectors, torch.tensor(row_coefs), mask, floors)
    for row in range(3):
        one = slice(row, row + 1)
        alone = act(hidden[one], vectors[row], row_coefs[row], mask[one], float(floors[row]))
        assert torch.equal(together[one], alone)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.01, 100))
def test_ablate_removes_the_component_and_nothing_else_whatever_the_length(seed, length):
    hidden, vector, mask = draw_hidden(seed)
    ablated = ablate(hidden, length * vector, mask)
    if mask.any():
        assert component(ablated, vector)[mask].abs().max() < 1e-5
        other = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
        other -= (other @ vector.double()) / (vector.double() @ vector.double()) * vector.double()
        torch.testing.assert_close(component(ablated, other), component(hidden, other), atol=1e-5, rtol=1e-5)
    assert torch.equal(ablated[~mask], hidden[~mask])
    torch.testing.assert_close(ablate(hidden, -vector), ablate(hidden, vector), atol=1e-5, rtol=1e-5)
    half = ablate(hidden, vector, coef=0.5)
    torch.testing.assert_close(component(half, vector), component(hidden, vector) / 2, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(-2, 0), st.floats(0, 2), st.sampled_from(("floor", "ceiling", "both")))
def test_cap_clamps_the_component_and_keeps_tokens_within_bounds(seed, low, high, which):
    hidden, vector, mask = draw_hidden(seed)
    floor = low if which != "ceiling" else None
    ceiling = high if which != "floor" else None
    capped = cap(hidden, vector, floor, ceiling, mask)
    before, after = component(hidden, vector), component(capped, vector)
    torch.testing.assert_close(after[mask], before[mask].clamp(floor, ceiling), atol=1e-5, rtol=1e-5)
    above = before > (-99 if floor is None else floor) + 1e-4
    within = above & (before < (99 if ceiling is None else ceiling) - 1e-4)
    assert torch.equal(capped[~mask | within], hidden[~mask | within])
    residual = capped.double() - hidden.double()
    along = (residual @ vector.double())[..., None] * vector.double() / (vector.double() @ vector.double())
    torch.testing.assert_close(residual, along, atol=1e-5, rtol=1e-4)


def test_ablate_accumulates_in_float32():
    hidden, vector, _ = draw_hidden(0, torch.bfloat16, width=512)
    wide = ablate(hidden.float(), vector)
    assert torch.equal(ablate(hidden, vector), wide.to(torch.bfloat16))


def test_tokens_in_one_flat_row_each_as_an_engine_packs_them():
    hidden, vector, mask = draw_hidden(3)
    flat = hidden.reshape(-1, 16)
    row_coefs = torch.arange(15.0)
    changed = add(flat, vector, row_coefs, mask.reshape(-1))
    for token in range(15):
        delta = row_coefs[token] * vector if mask.reshape(-1)[token] else 0
        assert torch.equal(changed[token], flat[token] + delta)


def test_gradients_flow_through_every_kind():
    hidden, vector, mask = draw_hidden(1)
    for act in (lambda h: add(h, vector, 2.0, mask), lambda h: ablate(h, vector), lambda h: cap(h, vector, 0.5)):
        leaf = hidden.clone().requires_grad_()
        act(leaf).sum().backward()
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("vector", "kind", "message"),
    [
        (torch.ones(2, 3, 16), "add", r"shape \(2, 3, 16\); expected \(16,\)"),
        (torch.tensor(1.0), "add", r"shape \(\); expected \(16,\)"),
        (torch.ones(20), "add", "width 20; tiny has hidden size 16"),
        (torch.full((16,), float("nan")), "add", "NaN"),
        (torch.full((16,), float("inf")), "add", "NaN or infinite"),
        (torch.zeros(16), "ablate", "zero; ablate needs a direction"),
        (torch.stack([torch.ones(16), torch.zeros(16)]), "cap", "zero; cap needs a direction"),
    ],
)
def test_a_vector_that_cannot_be_used_is_refused_in_one_line(vector, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        check_vector(vector, 16, kind=kind, label="tiny")
    assert "\n" not in str(error.value)


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="got neither"):
        check_bounds(None, None)
    with pytest.raises(ValueError, match="floor 2 is above ceiling 1"):
        cap(torch.ones(1, 1, 4), torch.ones(4), 2.0, 1.0)
    with pytest.raises(ValueError, match="floor is NaN"):
        check_bounds(float("nan"), 1.0)


def test_the_wrong_number_of_rows_is_refused():
    hidden, vector, _ = draw_hidden(0)
    with pytest.raises(ValueError, match="2 per-row coefficients or bounds for a batch of 3 rows"):
        add(hidden, vector, torch.ones(2))
    with pytest.raises(ValueError, match="4 per-row vectors for a batch of 3 rows"):
        add(hidden, vector.expand(4, 16), 1.0)


rows_of_lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(rows_of_lengths, st.sampled_from(("left", "right")), st.sampled_from(("all", "prompt", "response")))
def test_positions_name_the_same_tokens_on_either_padding_side(lengths, side, positions):
    width = max(prompt + answer for prompt, answer in lengths)
    attention_mask = torch.zeros(len(lengths), width, dtype=torch.long)
    expected = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(lengths):
        start = width - prompt - answer if side == "left" else 0
        attention_mask[row, start : start + prompt + answer] = 1
        for token in range(prompt + answer):
            is_in = {"all": True, "prompt": token < prompt, "response": token >= prompt - 1}[positions]
            expected[row, start + token] = is_in
    index = token_index(width, len(lengths), 0, attention_mask)
    prompt_lens = torch.tensor([prompt for prompt, _ in lengths])
    assert torch.equal(position_mask(positions, index, prompt_lens), expected)


@settings(max_examples=60, deadline=None)
@given(rows_of_lengths, st.data())
def test_a_call_cut_into_chunks_has_the_same_masks(lengths, data):
    width = max(prompt + answer for prompt, answer in lengths)
    attention_mask = torch.tensor([[0] * (width - p - a) + [1] * (p + a) for p, a in lengths])
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, width - 1)), max_size=3))) if width > 1 else []
    whole = token_index(width, len(lengths), 0, attention_mask)
    starts, ends = [0, *cuts], [*cuts, width]
    for as_past in (int, torch.tensor):
        chunks = [
            token_index(end - start, len(lengths), as_past(start), attention_mask[:, :end])
            for start, end in zip(starts, ends, strict=True)
        ]
        assert torch.equal(torch.cat(chunks, 1), whole)


def test_token_index_without_a_2d_mask():
    assert token_index(2, 2, 3).tolist() == [[3, 4], [3, 4]]
    assert token_index(2, 1, torch.tensor(3), attention_mask=torch.ones(1, 1, 2, 5)).tolist() == [[3, 4]]
    assert token_index(3, 2, position_ids=torch.tensor([[0, 0, 1], [0, 1, 2]])).tolist() == [[0, 0, 1], [0, 1, 2]]
    assert token_index(2, 1, 3, attention_mask=torch.ones(1, 2)).tolist() == [[3, 4]]  # this call's tokens only


@pytest.mark.parametrize("as_past", [int, torch.tensor])
def test_without_prompt_lens_an_empty_cache_is_the_prompt(as_past):
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [1, 0, 0]])  # a 1-token prompt on either side
    index = token_index(3, 3, 0, mask)
    lens = seen_prompt_lens(index, as_past(0), padding_known=True)
    assert lens.tolist() == [1, 3, 1]
    assert position_mask("response", index, lens).int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]
    step = token_index(1, 3, 3, torch.cat([mask, torch.ones(3, 1)], 1))
    lens = seen_prompt_lens(step, as_past(3), padding_known=True)
    assert position_mask("response", step, lens).all() and not position_mask("prompt", step, lens).any()


def test_padding_with_unknown_side_is_taken_as_left():
    index = torch.tensor([[1, 1, 0], [0, 1, 2]])  # position ids that give padding 1
    assert seen_prompt_lens(index, 0, padding_known=False).tolist() == [1, 3]


def test_packed_tokens_take_a_length_each():
    index = torch.tensor([0, 1, 2, 0, 1])
    lens = torch.tensor([2, 2, 2, 1, 1])
    assert position_mask("response", index, lens).tolist() == [False, True, True, True, True]


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions 'answer' is unknown; expected all, prompt or response"):
        position_mask("answer", torch.zeros(1, 1, dtype=torch.long), torch.ones(1))
