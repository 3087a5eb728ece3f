"""Shares of options: a place cancels, a preference stays, missing labels are counted, chance is 0.5."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.option_shares import BALANCED, option_shares, orders_of, permuted_scores, trait_score
from persona_vectors.questionnaire import Item
from persona_vectors.scores import MIN_MASS

WEIGHTS = st.lists(st.floats(-8, 8), min_size=4, max_size=4)


def item(number: int = 0, responses: tuple[str, ...] = ("a", "b", "c", "d")) -> Item:
    return Item("openness", f"question {number}", responses)  # pyright: ignore[reportArgumentType]


def placed(values, orders) -> np.ndarray:
    """(n_items, n_orders, 4): each place's score, a sum of its own weight and its option's."""
    place, option = values
    return np.array([[[place[p] + option[o] for p, o in enumerate(order)] for order in own] for own in orders])


def test_every_option_once_at_every_place_and_each_order_reversed():
    for place in range(4):
        assert {order[place] for order in BALANCED} == {0, 1, 2, 3}
    assert set(BALANCED) == {order[::-1] for order in BALANCED}
    assert set(Counter(pair for order in BALANCED for pair in pairwise(order)).values()) == {1}


def test_orders_are_shuffled_by_item_and_seed_and_stay_balanced():
    found = {orders_of(item(number)) for number in range(20)}
    assert len(found) > 10 and orders_of(item(1), 0) != orders_of(item(1), 1)
    assert orders_of(item(1), 3) == orders_of(item(1), 3)
    for orders in found:
        assert all({order[place] for order in orders} == {0, 1, 2, 3} for place in range(4))


@settings(max_examples=25)
@given(WEIGHTS)
def test_who_goes_by_place_alone_scores_a_half(weights):
    orders = [orders_of(item(number)) for number in range(3)]
    shares = option_shares(placed((weights, [0.0] * 4), orders), orders, labels=False)
    assert shares.options == pytest.approx(np.full((3, 4), 0.25))
    expected = np.exp(weights) / np.exp(weights).sum()
    assert shares.places == pytest.approx(expected)


@settings(max_examples=25)
@given(WEIGHTS, st.integers(0, 5))
def test_who_goes_by_content_alone_has_its_shares_whatever_the_order(weights, seed):
    orders = [orders_of(item(number), seed) for number in range(3)]
    shares = option_shares(placed(([0.0] * 4, weights), orders), orders, labels=False)
    expected = np.exp(weights) / np.exp(weights).sum()
    assert shares.options == pytest.approx(np.tile(expected, (3, 1)))
    assert shares.places == pytest.approx(np.full(4, 0.25))
    assert shares.high == pytest.approx(np.full(3, expected[:2].sum()))


def test_items_without_letters_are_counted_and_left_out():
    orders = [orders_of(item(number)) for number in range(3)]
    scores = np.log(np.full((3, 4, 4), 0.2))
    scores[1, 2] = np.log(MIN_MASS / 4 - 0.01)  # one order of one item: something else was said
    shares = option_shares(scores, orders, labels=True)
    assert shares.n_missing == 1 and np.isnan(shares.options[1]).all() and not np.isnan(shares.options[[0, 2]]).any()
    assert shares.mass == pytest.approx((11 * 0.8 + 4 * (MIN_MASS / 4 - 0.01)) / 12)
    scored = trait_score([item(number) for number in range(3)], shares, 12)
    assert (scored.score.n, scored.score.n_dropped, scored.n_missing, scored.n_asked) == (2, 1, 1, 12)
    assert option_shares(scores, orders, labels=False).n_missing == 0


def test_no_item_with_letters_has_no_score():
    orders = [orders_of(item(number)) for number in range(2)]
    shares = option_shares(np.full((2, 4, 4), -20.0), orders, labels=True)
    scored = trait_score([item(0), item(1)], shares, 8)
    assert np.isnan(scored.score.mean) and scored.score.n == 0 and scored.p == 1.0 and scored.places is None


def test_a_score_stands_beside_swapped_labels():
    items = [item(number, ("long one", "b", "c", "d")) for number in range(10)]
    orders = [orders_of(own) for own in items]
    clear = trait_score(items, option_shares(placed(([0, 0, 0, 0], [1, 1, 0, 0]), orders), orders, labels=False), 40)
    assert clear.score.mean == pytest.approx(np.e / (np.e + 1)) and clear.p < 0.01
    assert clear.permuted_low < 0.5 < clear.permuted_high < clear.score.mean
    assert clear.longest == 1.0
    none = trait_score(items, option_shares(placed(([3, 0, 0, 0], [1, 0, 1, 0]), orders), orders, labels=False), 40)
    assert none.score.mean == pytest.approx(0.5) and none.p > 0.5


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=4, max_size=8))
def test_swapped_labels_give_a_half_in_the_mean(rows):
    options = np.array(rows) / np.array(rows).sum(1, keepdims=True)
    assert permuted_scores(options).mean() == pytest.approx(0.5, abs=0.03)
