"""From a judge's probabilities to a score: the published rules, and exact label probabilities from a token tree.

Both judges end here: `aggregate` turns label probabilities into a score or None, whether they are the top tokens an
API returned or the exact probabilities that `label_probabilities` computes for a local model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor

EVAL_TYPES = ("0_100", "0_10", "binary", "binary_text")
MIN_MASS = 0.25
"""Least probability that must lie on the labels; below it the judge said something else and there is no score."""

Path = tuple[int, ...]
"""Token ids from the start of the judge's answer."""

_INTEGER = re.compile(r"\s*\d+\s*", re.ASCII)
_DECIMAL = re.compile(r"\d{1,3}(\.\d+)?", re.ASCII)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REFUSAL = "REFUSAL"
_TEXT_ANSWERS = {"<answer>REFUSAL</answer>": None, "<answer>NO</answer>": 0.0, "<answer>YES</answer>": 1.0}


def check_eval_type(eval_type: str) -> str:
    """`eval_type` itself; ValueError if it is not one of EVAL_TYPES."""
    if eval_type not in EVAL_TYPES:
        raise ValueError(f"eval_type must be one of {', '.join(EVAL_TYPES)}; got {eval_type}")
    return eval_type


def aggregate(probabilities: Mapping[str, float], eval_type: str) -> float | None:
    """The score that label probabilities stand for, or None where the judge gave none.

    0_100:  sum(n * p(n)) / sum(p(n)) over integers n in 0..100; None if sum(p(n)) < 0.25.
    0_10:   the same over 0..9; None also if REFUSAL is likelier than each of them.
    binary: p(YES) / (p(YES) + p(NO)); None if REFUSAL is likelier than both or p(YES) + p(NO) < 0.25.

    The probabilities need not sum to one: keys that are no label (other tokens) are left out.
    """
    check_eval_type(eval_type)
    if eval_type == "binary_text":
        raise ValueError("binary_text is read from the judge's text: use text_score")
    if eval_type == "binary":
        yes, no = probabilities.get("YES", 0.0), probabilities.get("NO", 0.0)
        refused = probabilities.get("REFUSAL", 0.0) > max(yes, no)
        return None if refused or yes + no < MIN_MASS else yes / (yes + no)
    highest = 100 if eval_type == "0_100" else 9
    numbers = [(int(key), p) for key, p in probabilities.items() if _INTEGER.fullmatch(key) and int(key) <= highest]
    if eval_type == "0_10" and probabilities.get("REFUSAL", 0.0) > max((p for _, p in numbers), default=0.0):
        return None
    mass = sum(p for _, p in numbers)
    return None if mass < MIN_MASS else sum(n * p for n, p in numbers) / mass


def text_score(text: str) -> float | None:
    """1.0 for `<answer>YES</answer>` in the text, 0.0 for NO, None for REFUSAL or none of them (REFUSAL, NO, YES in
    that order where there are several, as published)."""
    return next((score for tag, score in _TEXT_ANSWERS.items() if tag in text), None)


def text_mean(texts: Sequence[str], eval_type: str) -> float | None:
    """The mean score of a judge's replies, or None where they give none: the rules of `aggregate`, on samples.

    None if fewer than a quarter of them have a score, and, but for 0_100, if more of them are a REFUSAL.
    """
    read = [_text_label(text, eval_type) for text in texts]
    values = [value for value in read if isinstance(value, float)]
    refused = eval_type != "0_100" and read.count(_REFUSAL) > len(values)
    return None if refused or not values or len(values) < MIN_MASS * len(texts) else sum(values) / len(values)


def _text_label(text: str, eval_type: str) -> float | str | None:
    """What one reply says: a score, REFUSAL, or None. A label counts alone or in `<answer>`, never out of a sentence.

    Numbers may be decimal, bold, end in a full stop or in "/100"; what stands before `</think>` is not looked at.
    """
    check_eval_type(eval_type)
    text = text.rpartition("</think>")[2]
    if eval_type == "binary_text":
        return _REFUSAL if "<answer>REFUSAL</answer>" in text else text_score(text)
    tagged = {match.strip() for match in _TAGGED.findall(text)}
    said = (tagged.pop() if len(tagged) == 1 else "" if tagged else text).strip().strip("*`\"'").rstrip(".").strip("*")
    if said.upper() == _REFUSAL:
        return _REFUSAL
    if eval_type == "binary":
        return {"YES": 1.0, "NO": 0.0}.get(said.upper())
    highest = 100 if eval_type == "0_100" else 10
    number = said.removesuffix(f"/{highest}").rstrip()
    return float(number) if _DECIMAL.fullmatch(number) and float(number) <= highest else None


def labels_of(eval_type: str) -> tuple[str, ...]:
    """The answers a judge can give under `eval_type`, as it would write them."""
    check_eval_type(eval_type)
    if eval_type == "0_100":
        return tuple(str(n) for n in range(101))
    if eval_type == "0_10":
        return (*(str(n) for n in range(10)), "REFUSAL")
    return ("YES", "NO", "REFUSAL")


@dataclass(frozen=True)
class AnswerTree:
    """The token paths that spell labels, as a tree.

    labels: the path where a label is complete -> the label. It may go on: "8" is complete and goes on to "87".
    children: a path that goes on, the empty one first and shorter ones before longer -> the tokens it goes on with.
    """

    labels: dict[Path, str]
    children: dict[Path, tuple[int, ...]]

    @property
    def depth(self) -> int:
        """Most tokens that are read after the prompt: one less than the longest path."""
        return max(len(path) for path in self.children)


def answer_tree(paths: Mapping[str, Path]) -> AnswerTree:
    """The tree of the labels' token paths.

    Raises:
        ValueError: a label without tokens, or two labels with the same tokens (a tokenizer that cannot write them).
    """
    labels: dict[Path, str] = {}
    children: dict[Path, set[int]] = {}
    for label, path in paths.items():
        if not path or path in labels:
            other = f"the same tokens as {labels[path]}" if path else "no tokens"
            raise ValueError(f"the judge's tokenizer gives {label} {other}; use a judge that can write its answers")
        labels[path] = label
        for end in range(len(path)):
            children.setdefault(path[:end], set()).add(path[end])
    ordered = sorted(children, key=lambda path: (len(path), path))
    return AnswerTree(labels, {path: tuple(sorted(children[path])) for path in ordered})


def label_probabilities(
    tree: AnswerTree, conditionals: Mapping[Path, Float[Tensor, "batch children"]]
) -> dict[str, Float[Tensor, " batch"]]:
    """P(label) for each row: the product along its path, times the probability that the answer ends there.

    An answer ends at a path if the next token does not go on to another label: P(end | path) = 1 - sum_c P(c | path)
    over the path's children c. So "8" keeps what "80".."89" do not take, and nothing is counted twice.

    Args:
        conditionals: path -> P(child | path), children in the tree's order. A path that is missing is taken to end
            where it is (its further labels get nothing).
    """
    first = conditionals[()].double()
    reach: dict[Path, Tensor] = {(): first.new_ones(len(first))}
    stays: dict[Path, Tensor] = {}
    for path, tokens in tree.children.items():
        if path not in reach or path not in conditionals:
            continue
        taken = reach[path][:, None] * conditionals[path].double()  # (batch, children)
        reach.update({(*path, token): taken[:, k] for k, token in enumerate(tokens)})
        stays[path] = (reach[path] - taken.sum(1)).clamp(min=0)
    nothing = first.new_zeros(len(first))
    return {label: stays.get(path, reach.get(path, nothing)) for path, label in tree.labels.items()}
