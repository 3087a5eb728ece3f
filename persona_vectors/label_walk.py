"""The walk over a tree of label tokens: which branches are followed, whatever model answers.

Local judges give it the probabilities of each branch, from transformers (`label_odds`) or from vLLM (`vllm_odds`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_vectors.scores import MIN_MASS, AnswerTree, Path, label_probabilities

_NEGLIGIBLE = 1e-6  # branches with less probability are not followed: at most 1e-4 points of a score

Ask = Callable[[Mapping[Path, Bool[Tensor, " batch"]]], Mapping[Path, Float[Tensor, "batch children"]]]
"""P(child | prompt, path) for the children of each path, in the rows that it is asked for; other rows are not read."""


def walk(tree: AnswerTree, n_rows: int, ask: Ask) -> dict[str, Float[Tensor, " batch"]]:
    """P(label) of each prompt of a batch: `label_probabilities` of the branches that have probability.

    `ask` is called once for each depth of the tree at most: with the empty path for every row, then with the paths that
    are one token longer, each for the rows that reach it with a probability of 1e-6 or more. Rows decide for
    themselves, so that no probability depends on its batch.

    Raises:
        ValueError: a probability that is NaN.
    """
    conditionals = _asked(ask, {(): torch.ones(n_rows, dtype=torch.bool)})
    mass = conditionals[()].sum(1)  # no label can get more than this
    reach = {(): torch.where(mass >= MIN_MASS, 1.0, 0.0).to(torch.float64)}
    while reach := dict(_followed(tree, reach, conditionals)):
        conditionals |= _asked(ask, {path: odds > 0 for path, odds in reach.items()})
    return label_probabilities(tree, conditionals)


def _followed(
    tree: AnswerTree, reach: Mapping[Path, Float[Tensor, " batch"]], conditionals: Mapping[Path, Tensor]
) -> Iterator[tuple[Path, Float[Tensor, " batch"]]]:
    """The paths that are one token longer and go on, with P(path | prompt) where not negligible and 0 elsewhere."""
    for path, before in reach.items():
        for k, token in enumerate(tree.children[path]):
            child = (*path, token)
            odds = before * conditionals[path][:, k]
            odds = torch.where(odds >= _NEGLIGIBLE, odds, 0.0)
            if child in tree.children and odds.any():
                yield child, odds


def _asked(ask: Ask, wanted: Mapping[Path, Bool[Tensor, " batch"]]) -> dict[Path, Float[Tensor, "batch children"]]:
    """What `ask` answers in the rows that are wanted, and 0 elsewhere."""
    found = ask(wanted)
    if any(found[path][rows].isnan().any() for path, rows in wanted.items()):
        raise ValueError("the judge's logits are NaN; load it in float32 or bfloat16")
    return {path: torch.where(rows[:, None], found[path].double(), 0.0) for path, rows in wanted.items()}
