"""A request's steering as data: what parses, what is refused, and what the prefix cache is told of it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.interventions import POSITIONS
from persona_vectors.vllm_spec import Step, at_class, block_key, parse_spec, spec_text

GOOD = {"vector": "evil", "layer": 2}


@st.composite
def steps(draw):
    kind = draw(st.sampled_from(("add", "ablate", "cap")))
    bounds = {}
    if kind == "cap":
        low, high = sorted(draw(st.lists(st.sampled_from((-2.0, 0.0, 1.5)), min_size=2, max_size=2)))
        bounds = draw(st.sampled_from(({"floor": low}, {"ceiling": high}, {"floor": low, "ceiling": high})))
    coef = draw(st.sampled_from((-1.0, 0.5, 2.0)))
    name, layer = draw(st.sampled_from("ab")), draw(st.integers(1, 3))
    return Step(name, layer, coef, draw(st.sampled_from(POSITIONS)), kind, **bounds)


def ordered(found):
    return tuple(sorted(found, key=lambda step: step.layer))


specs = st.lists(steps(), max_size=3).map(ordered)


@settings(max_examples=40, deadline=None)
@given(specs)
def test_the_text_of_a_spec_is_read_back_as_the_spec(spec):
    assert parse_spec(spec_text(spec)) == spec
    assert spec_text(parse_spec(spec_text(spec))) == spec_text(spec)


def test_an_entry_of_several_layers_is_a_step_at_each_lowest_first_and_order_on_a_layer_is_kept():
    found = parse_spec([{"vector": "a", "layer": [3, 1]}, {"vector": "b", "layer": 1, "kind": "ablate"}])
    assert found == (Step("a", 1), Step("b", 1, kind="ablate"), Step("a", 3))
    assert parse_spec(GOOD) == parse_spec([GOOD]) == parse_spec(json.dumps(GOOD)) == (Step("evil", 2),)


@pytest.mark.parametrize("raw", [None, "", [], "[]", [{**GOOD, "coef": 0}], [{**GOOD, "coef": -0.0, "kind": "ablate"}]])
def test_no_steering_is_no_steps(raw):
    assert parse_spec(raw) == ()


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ("[{", "steering is not JSON"),
        ("7", "must be a list of steps; got int"),
        (True, "must be a list of steps; got bool"),
        ([3], "step 0 must be an object with vector and layer; got int"),
        ([GOOD, {**GOOD, "coeff": 2}], "step 1 has unknown field 'coeff'; have vector, layer, coef"),
        ([{"layer": 2}], "step 0 needs the name of a vector; got None"),
        ([{**GOOD, "vector": ""}], "needs the name of a vector; got ''"),
        ([{**GOOD, "vector": 4}], "needs the name of a vector; got 4"),
        ([{"vector": "evil"}], "needs a layer, a whole number or several; got None"),
        ([{**GOOD, "layer": []}], r"got \[\]"),
        ([{**GOOD, "layer": True}], "got True"),
        ([{**GOOD, "layer": 2.0}], "got 2.0"),
        ([{**GOOD, "layer": [1, "2"]}], r"got \[1, '2'\]"),
        ([{**GOOD, "coef": None}], "has coef null; expected a number"),
        ([{**GOOD, "coef": "2"}], "has coef '2'; expected a finite number"),
        ([{**GOOD, "coef": True}], "has coef True; expected a finite number"),
        ('[{"vector": "a", "layer": 1, "coef": NaN}]', "has coef nan; expected a finite number"),
        ('[{"vector": "a", "layer": 1, "coef": 1e999}]', "has coef inf; expected a finite number"),
        ([{**GOOD, "coef": 10**400}], "expected a finite number"),
        ([{**GOOD, "positions": "answer"}], "has positions 'answer'; expected all, prompt, response"),
        ([{**GOOD, "positions": ["all"]}], r"has positions \['all'\]"),
        ([{**GOOD, "kind": "sub"}], "has kind 'sub'; expected add, ablate, cap"),
        ([{**GOOD, "floor": 1}], "floor or ceiling, which belong to kind cap; got kind add"),
        ([{**GOOD, "kind": "cap"}], "step 0: cap needs a floor, a ceiling or both"),
        ([{**GOOD, "kind": "cap", "floor": 2, "ceiling": 1}], "step 0: floor 2 is above ceiling 1"),
        ([{**GOOD, "kind": "cap", "floor": [1]}], r"has floor \[1\]; expected a finite number"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(raw, part):
    with pytest.raises(ValueError, match=part) as error:
        parse_spec(raw)
    assert str(error.value).startswith("steering") and "\n" not in str(error.value)


def test_classes_of_tokens_are_those_of_the_positions():
    spec = tuple(Step(name, 1, positions=name) for name in POSITIONS)
    named = {letter: {step.vector for step in at_class(spec, letter)} for letter in "PBG"}
    assert named == {"P": {"all", "prompt"}, "B": {"all", "prompt", "response"}, "G": {"all", "response"}}


def test_blocks_before_the_last_prompt_token_have_no_key_under_response_and_those_after_the_prompt_none_under_prompt():
    response, prompt = (Step("a", 1, positions="response"),), (Step("a", 1, positions="prompt"),)
    assert block_key(response, 65, 0, 32) is None and block_key(response, 65, 32, 64) is None
    assert block_key(response, 64, 32, 64) is not None and block_key(response, 65, 64, 96) is not None
    assert block_key(prompt, 64, 64, 96) is None and block_key(prompt, 65, 64, 96) is not None
    assert block_key((), 65, 64, 96) is None


def steps_of_tokens(spec, prompt_len, start, end):
    """The steps of each token of a block, one by one."""

    def letter(token):
        return "P" if token < prompt_len - 1 else "B" if token == prompt_len - 1 else "G"

    return [at_class(spec, letter(token)) for token in range(start, end)]


blocks = st.tuples(specs, st.integers(1, 14))


@settings(max_examples=80, deadline=None)
@given(blocks, blocks, st.integers(0, 3))
def test_two_blocks_have_one_key_only_if_each_token_is_steered_the_same(one, other, number):
    start, end = 4 * number, 4 * number + 4
    keys = [block_key(spec, prompt_len, start, end) for spec, prompt_len in (one, other)]
    tokens = [steps_of_tokens(spec, prompt_len, start, end) for spec, prompt_len in (one, other)]
    assert (keys[0] == keys[1]) == (tokens[0] == tokens[1])
    assert (keys[0] is None) == (not any(tokens[0]))


@settings(max_examples=40, deadline=None)
@given(specs, st.integers(1, 14), st.integers(1, 14))
def test_one_spec_with_two_prompt_lengths_shares_exactly_the_blocks_that_are_steered_alike(spec, one, other):
    for start in (0, 4, 8):
        same = steps_of_tokens(spec, one, start, start + 4) == steps_of_tokens(spec, other, start, start + 4)
        assert (block_key(spec, one, start, start + 4) == block_key(spec, other, start, start + 4)) == same


def test_the_key_of_all_does_not_know_the_prompt_length():
    spec = (Step("a", 1, positions="all"), Step("b", 2, kind="ablate", positions="all"))
    keys = {block_key(spec, prompt_len, start, start + 4) for prompt_len in range(1, 20) for start in (0, 4, 8)}
    assert len(keys) == 1 and None not in keys
