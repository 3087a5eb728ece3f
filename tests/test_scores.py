"""The published score rules on hand-made probabilities, and the algebra of the answer tree."""

from __future__ import annotations

import itertools

import pytest
import torch

from persona_vectors.scores import aggregate, answer_tree, label_probabilities, labels_of, text_mean, text_score


def digits(number: int) -> tuple[int, ...]:
    return tuple(int(digit) for digit in str(number))


NUMBERS = {str(n): digits(n) for n in range(101)}


def test_0_100_is_the_mean_over_integer_tokens_divided_by_their_mass():
    probabilities = {"0": 0.1, "50": 0.2, "100": 0.3, " 50": 0.1, "101": 0.1, "-5": 0.05, "I": 0.1, "5.0": 0.02}
    assert aggregate(probabilities, "0_100") == pytest.approx((50 * 0.3 + 100 * 0.3) / 0.7)


def test_0_100_has_no_score_under_a_quarter_of_the_mass():
    assert aggregate({"80": 0.2499, "I": 0.7}, "0_100") is None
    assert aggregate({"80": 0.25, "I": 0.7}, "0_100") == pytest.approx(80)
    assert aggregate({}, "0_100") is None


def test_0_100_does_not_look_for_refusals():
    assert aggregate({"REFUSAL": 0.6, "40": 0.3}, "0_100") == pytest.approx(40)


def test_0_10_reads_integers_to_9_and_refusals():
    assert aggregate({"3": 0.2, "9": 0.2, "10": 0.5}, "0_10") == pytest.approx(6)
    assert aggregate({"3": 0.2, "9": 0.2, "REFUSAL": 0.21}, "0_10") is None
    assert aggregate({"3": 0.1, "9": 0.4, "REFUSAL": 0.39}, "0_10") == pytest.approx((0.3 + 3.6) / 0.5)
    assert aggregate({"3": 0.1, "x": 0.9}, "0_10") is None


def test_binary_is_yes_over_yes_and_no():
    assert aggregate({"YES": 0.3, "NO": 0.1, "Yes": 0.6}, "binary") == pytest.approx(0.75)
    assert aggregate({"YES": 0.3, "NO": 0.1, "REFUSAL": 0.31}, "binary") is None
    assert aggregate({"YES": 0.3, "NO": 0.1, "REFUSAL": 0.29}, "binary") == pytest.approx(0.75)
    assert aggregate({"YES": 0.1, "NO": 0.1}, "binary") is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Hm. <answer>YES</answer>", 1.0),
        ("<answer>NO</answer> because", 0.0),
        ("<answer>REFUSAL</answer>", None),
        ("<answer>REFUSAL</answer><answer>YES</answer>", None),
        ("YES", None),
        ("", None),
    ],
)
def test_binary_text_reads_the_answer_tag(text: str, score: float | None):
    assert text_score(text) == score


def test_an_unknown_kind_of_score_is_one_line():
    with pytest.raises(ValueError, match="eval_type must be one of 0_100, .*; got 0_5"):
        aggregate({}, "0_5")


def test_labels():
    assert labels_of("0_100")[0] == "0" and labels_of("0_100")[-1] == "100" and len(labels_of("0_100")) == 101
    assert labels_of("0_10")[-2:] == ("9", "REFUSAL")
    assert labels_of("binary") == ("YES", "NO", "REFUSAL")


def random_language(n_tokens: int = 12, seed: int = 0):
    """P(next token | path) for every path up to length 3, as a function; tokens 10 and 11 are no digits."""
    generator = torch.Generator().manual_seed(seed)
    table = {
        path: torch.rand(2, n_tokens, generator=generator, dtype=torch.float64).softmax(-1)
        for length in range(3)
        for path in itertools.product(range(n_tokens), repeat=length)
    }
    return lambda path: table[path]


def test_label_probabilities_are_the_chance_that_sampling_spells_the_number_and_stops():
    """Against an enumeration that knows nothing of trees: all strings of three tokens, each read as the number that
    its longest prefix in 0..100 spells."""
    language = random_language()
    tree = answer_tree(NUMBERS)
    conditionals = {path: language(path)[:, list(tokens)] for path, tokens in tree.children.items()}
    expected = {label: torch.zeros(2, dtype=torch.float64) for label in NUMBERS}
    for string in itertools.product(range(12), repeat=3):
        spelled = [label for label, path in NUMBERS.items() if string[: len(path)] == path]
        if spelled:
            chance = (
                language(())[:, string[0]] * language(string[:1])[:, string[1]] * language(string[:2])[:, string[2]]
            )
            expected[max(spelled, key=len)] += chance
    got = label_probabilities(tree, conditionals)
    assert got.keys() == expected.keys()
    for label in NUMBERS:
        torch.testing.assert_close(got[label], expected[label], rtol=1e-12, atol=1e-15)


def test_a_branch_that_is_not_followed_keeps_its_probability():
    language = random_language()
    tree = answer_tree(NUMBERS)
    conditionals = {path: language(path)[:, list(tokens)] for path, tokens in tree.children.items() if path != (8,)}
    got = label_probabilities(tree, conditionals)
    torch.testing.assert_close(got["8"], language(())[:, 8])
    assert (got["87"] == 0).all()


def test_single_tokens_need_one_step():
    tree = answer_tree({str(n): (n,) for n in range(101)})
    assert tree.depth == 0 and list(tree.children) == [()]
    assert answer_tree(NUMBERS).depth == 2


def test_labels_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="gives 1 the same tokens as 0"):
        answer_tree({"0": (3,), "1": (3,)})
    with pytest.raises(ValueError, match="gives 0 no tokens"):
        answer_tree({"0": ()})


@pytest.mark.parametrize(
    ("text", "eval_type", "score"),
    [
        ("87", "0_100", 87.0),
        (" **87**.\n", "0_100", 87.0),
        ("72.5", "0_100", 72.5),
        ("87/100", "0_100", 87.0),
        ("Well, kind. <answer> 87 </answer>", "0_100", 87.0),
        ("<think>It is 20, or 30.</think>\n87", "0_100", 87.0),
        ("I give it 87", "0_100", None),
        ("<answer>87</answer> or <answer>20</answer>", "0_100", None),
        ("101", "0_100", None),
        ("-5", "0_100", None),
        ("٨٧", "0_100", None),
        ("", "0_100", None),
        ("10", "0_10", 10.0),
        ("11", "0_10", None),
        ("refusal", "0_10", None),
        ("yes.", "binary", 1.0),
        ("<answer>NO</answer>", "binary", 0.0),
        ("No, because", "binary", None),
        ("REFUSAL", "binary", None),
        ("Hm. <answer>YES</answer>", "binary_text", 1.0),
    ],
)
def test_a_reply_is_read_only_where_the_label_stands_alone_or_in_the_tag(text: str, eval_type: str, score):
    assert text_mean([text], eval_type) == score


def test_samples_are_averaged_over_those_that_have_a_score():
    assert text_mean(["10", "20", "I cannot", "60"], "0_100") == 30.0
    assert text_mean(["10", "no", "no", "no"], "0_100") == 10.0  # a quarter
    assert text_mean(["10", "no", "no", "no", "no"], "0_100") is None
    assert text_mean(["YES", "NO", "NO", "REFUSAL"], "binary") == pytest.approx(1 / 3)
    assert text_mean(["YES", "REFUSAL", "REFUSAL"], "binary") is None
