"""Ranks, thresholds and decisions against naive loops; no row is lost or doubled, whatever the file looks like."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.screen_files import raw_lines
from eval.screen_result import ranked
from eval.screen_rows import Criterion, Measured, read_files
from eval.screen_rule import (
    Rule,
    decide,
    fraction_rule,
    given_rule,
    in_order,
    percentile_rule,
    rank_shares,
    ranks,
    subsets,
    top_count,
)

NAN = float("nan")
numbers = st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(NAN)), min_size=1, max_size=12)
columns = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.one_of(st.integers(-2, 2).map(float), st.just(NAN)), min_size=n, max_size=n), min_size=1, max_size=3
    )
)


def as_values(several) -> dict[str, np.ndarray]:
    return {f"c{i}": np.array(one) for i, one in enumerate(several)}


@given(numbers, numbers)
def test_a_rank_is_the_share_below_ties_counting_half(values, among):
    for others in (values, among):
        known = [one for one in others if one == one]
        expected = [
            NAN if value != value or not known else sum((o < value) + (o == value) / 2 for o in known) / len(known)
            for value in values
        ]
        given_among = None if others is values else np.array(among)
        np.testing.assert_allclose(rank_shares(np.array(values), given_among), expected)


@given(columns, st.sampled_from(["any", "all"]), st.integers(-2, 2))
def test_a_row_is_undecided_exactly_where_a_missing_value_could_change_it(several, combine, threshold):
    values = as_values(several)
    rule = Rule(combine, dict.fromkeys(values, float(threshold)), "given")
    together = any if combine == "any" else all
    for row, decided in zip(zip(*several, strict=True), decide(values, rule), strict=True):
        possible = {together(one > threshold if one == one else instead for one in row) for instead in (False, True)}
        assert decided == (possible.pop() if len(possible) == 1 else None)


def test_mean_rank_is_decided_among_the_rows_and_needs_every_value():
    values = {"a": np.array([1.0, 2.0, 3.0, NAN]), "b": np.array([30.0, 10.0, 20.0, 40.0])}
    shares = ranks(values, "mean_rank")
    np.testing.assert_allclose(shares, [(1 / 6 + 5 / 8) / 2, (3 / 6 + 1 / 8) / 2, (5 / 6 + 3 / 8) / 2, NAN])
    rule = Rule("mean_rank", {"mean_rank": 0.35}, "given")
    assert decide(values, rule) == [True, False, True, None]
    outside = {"a": np.array([9.0, 0.0]), "b": np.array([99.0, 0.0])}  # above all, and below all
    assert ranks(outside, "mean_rank", values).tolist() == [1.0, 0.0]
    assert decide(outside, rule, values) == [True, False]


def test_the_order_follows_the_combination():
    values = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([9.0, 5.0, 7.0])}
    assert in_order(ranks(values, "any")) == [0, 2, 1]
    assert in_order(ranks(values, "all")) == [2, 0, 1]
    assert in_order(np.array([0.5, NAN, 0.9, 0.5])) == [2, 0, 3, 1]


@given(numbers, st.floats(0.01, 0.99))
def test_a_fraction_never_flags_more_than_its_share_and_all_of_it_without_ties(values, fraction):
    known = [one for one in values if one == one]
    if not known:
        with pytest.raises(ValueError, match="no row has a value of c0"):
            fraction_rule(as_values([values]), "any", fraction)
        return
    rule = fraction_rule(as_values([values]), "any", fraction)
    flagged = [value for value, yes in zip(values, decide(as_values([values]), rule), strict=True) if yes]
    k = top_count(len(known), fraction)
    assert len(flagged) <= k
    assert sorted(flagged) == sorted(known)[len(known) - len(flagged) :]
    apart = np.arange(len(known), dtype=float)
    rule = fraction_rule({"c0": apart}, "any", fraction)
    assert sum(map(bool, decide({"c0": apart}, rule))) == min(k, len(known) - 1)


def test_a_percentile_of_the_reference_by_criterion_and_by_mean_rank():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=50), "b": rng.normal(size=50)}
    reference = {"a": np.append(rng.normal(size=40), NAN), "b": rng.normal(size=41)}
    rule = percentile_rule(values, reference, "any", 90, "ref.jsonl")
    assert rule.thresholds["a"] == np.percentile(reference["a"][:40], 90)
    assert rule.thresholds["b"] == np.percentile(reference["b"], 90)
    assert rule.source == "percentile 90 of 40 to 41 reference rows of ref.jsonl"
    assert sum(map(bool, decide({"a": reference["a"][:40]}, rule))) == 4
    rule = percentile_rule(values, reference, "mean_rank", 90, "ref.jsonl")
    own = ranks(reference, "mean_rank", values)
    assert rule.thresholds == {"mean_rank": np.percentile(own[:40], 90)}
    with pytest.raises(ValueError, match="no row of the reference ref.jsonl has a value of a"):
        percentile_rule(values, {"a": np.array([NAN]), "b": np.array([1.0])}, "any", 90, "ref.jsonl")


def test_given_thresholds_are_one_a_criterion():
    assert given_rule(["a", "b"], "all", [1, -2.5]).thresholds == {"a": 1.0, "b": -2.5}
    with pytest.raises(ValueError, match="has 1 numbers; expected 2, in this order: a, b"):
        given_rule(["a", "b"], "any", [1])
    with pytest.raises(ValueError, match="expected 1, in this order: mean_rank"):
        given_rule(["a", "b"], "mean_rank", [0.1, 0.2])
    with pytest.raises(ValueError, match="rank from 0"):
        given_rule(["a", "b"], "mean_rank", [3.0])


def test_subsets_are_the_ends_and_a_seeded_draw_from_all():
    rank = np.array([0.3, NAN, 0.9, 0.1, 0.5, 0.7, 0.2])
    found = subsets(rank, 2, seed=0)
    assert found["high"] == [2, 5] and found["low"] == [3, 6]
    assert found == subsets(rank, 2, seed=0)
    draws = [subsets(rank, 2, seed=seed)["random"] for seed in range(200)]
    assert all(len(set(draw)) == 2 and 1 not in draw for draw in draws)
    assert {row for draw in draws for row in draw} == {0, 2, 3, 4, 5, 6}
    with pytest.raises(ValueError, match="--subsets 4 needs 8 rows with all criteria.*; there are 6"):
        subsets(rank, 4, seed=0)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
turns = st.tuples(texts, texts, st.booleans(), st.booleans())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(turns, st.sampled_from([NAN, -1.0, 0.0, 1.0, 2.0])), min_size=1, max_size=12),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    st.booleans(),
    st.sampled_from(["keep", "flag"]),
    st.integers(-1, 2),
)
def test_kept_and_flagged_are_the_input_as_multisets_of_bytes(tmp_path, rows, ending, bom, unscored, threshold):
    lines = []
    for (question, answer, escaped, spaced), _value in rows:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = json.dumps(
            {"n": 1.0, "messages": messages}, ensure_ascii=escaped, separators=None if spaced else (",", ":")
        )
        lines.append(f"  {text} " if spaced else text)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" * bom + ending.join(lines) + ending).encode())
    (own,) = read_files([str(path)]).values()
    values = {"raw": np.array([value for _turn, value in rows])}
    data = Measured(str(path), own, values, [""] * len(own), [[] for _ in own])
    rule = Rule("any", {"raw": float(threshold)}, "given")
    how = {"action": "split", "unscored_to": unscored}
    screen = ranked(data, [Criterion("raw", "raw")], "any", rule, **how)
    files, raw = screen.files(None, 0), raw_lines(str(path), own)
    assert [line.decode() for line in raw] == lines
    written = Counter(raw[row] for name in ("kept", "flagged") for row in files[name])
    assert written == Counter(line.encode() for line in lines)
    assert sorted(files["kept"] + files["flagged"]) == list(range(len(rows)))
    for row, (_turn, value) in enumerate(rows):
        goes = (unscored == "flag") if value != value else value > threshold
        assert (row in files["flagged"]) == goes
    counts = screen.counts()
    assert counts["n_rows"] == counts["n_kept"] + counts["n_flagged"] == len(rows)
    assert counts["n_unscored"] == sum(value != value for _turn, value in rows)
    order = ranked(data, screen.criteria, "any", None, action="rank", unscored_to=unscored).files(None, 0)["ranked"]
    assert sorted(order) == list(range(len(rows)))


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": 2}) + "\n")
    (rows,) = read_files([str(path)]).values()
    for changed in (json.dumps(row) + "\n", (json.dumps(row) + "\n") * 2):
        path.write_text(changed)
        with pytest.raises(ValueError, match=re.escape("line 2 has changed while it was screened")):
            raw_lines(str(path), rows)
