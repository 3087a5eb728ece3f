"""The walk over label tokens: exact for any tree and any model behind it, and no question that is not needed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from persona_vectors.label_odds import label_odds, label_tree
from persona_vectors.label_walk import walk
from persona_vectors.scores import MIN_MASS, AnswerTree, Path, answer_tree
from persona_vectors.tokens import render_prompt, tokenize_prompt
from tests.test_local_judge import judging_model, number_tokenizer


class Read:
    """A model that is asked anew for every prompt and path, with the (row, path) pairs that it was asked for."""

    def __init__(self, model, tree: AnswerTree, ids: list[list[int]]):
        self.model, self.tree, self.ids = model, tree, ids
        self.asked: list[set[tuple[int, Path]]] = []

    @torch.inference_mode()
    def __call__(self, wanted: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
        self.asked.append({(row, path) for path, rows in wanted.items() for row in rows.nonzero()[:, 0].tolist()})
        found = {path: torch.full((len(self.ids), len(self.tree.children[path])), torch.nan) for path in wanted}
        for row, path in self.asked[-1]:
            logits = self.model(torch.tensor([[*self.ids[row], *path]])).logits[0, -1].float()
            found[path][row] = logits.softmax(-1)[list(self.tree.children[path])]
        return found


@pytest.mark.parametrize(
    ("split", "eval_type"),
    [("digits", "0_100"), ("whole numbers", "0_100"), ("pairs", "0_100"), ("digits", "0_10"), ("digits", "binary")],
)
def test_any_model_behind_the_walk_gives_the_label_odds(split, eval_type):
    tokenizer = number_tokenizer(split)
    model = judging_model(tokenizer, likely="YESNOREFUSAL" if eval_type == "binary" else "0123456789")
    texts = ["How kind?", "Kind?", "Is this an answer to that?"]
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    tree = label_tree(tokenizer, eval_type)
    read = Read(model, tree, [tokenize_prompt(tokenizer, prompt) for prompt in prompts])
    odds = walk(tree, len(texts), read)
    expected = dict(label_odds(model, tokenizer, dict.fromkeys(texts, "item"), eval_type))
    for row, text in enumerate(texts):
        assert {label: float(p[row]) for label, p in odds.items()} == pytest.approx(expected[text], abs=1e-6)
    assert max(float(p.max()) for p in odds.values()) > 1e-5
    assert len(read.asked) <= tree.depth + 1  # one question for each depth


def test_prompts_that_do_not_fit_are_halved_and_that_is_said(monkeypatch, caplog):
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer)
    names = dict.fromkeys(["How kind?", "Kind?", "Is this an answer to that?"], "item")
    expected, real = dict(label_odds(model, tokenizer, names, "0_100")), model.forward

    def small(input_ids, **inputs):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("no room")
        return real(input_ids=input_ids, **inputs)

    small.__signature__ = inspect.signature(real)  # it says what a model takes
    monkeypatch.setattr(model, "forward", small)
    found = dict(label_odds(model, tokenizer, names, "0_100"))
    assert all(found[text] == pytest.approx(odds, abs=1e-6) for text, odds in expected.items())
    assert "out of memory while scoring 3 at once; going on with 1" in caplog.text


paths = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.sets(paths, min_size=1, max_size=12), st.integers(0, 2**31), st.integers(1, 4))
def test_probabilities_are_those_of_every_path_and_only_likely_branches_are_asked_for(labels, seed, n_rows):
    tree = answer_tree({str(path): path for path in sorted(labels)})
    generator = torch.Generator().manual_seed(seed)
    logits = {path: 4 * torch.randn(n_rows, 5, generator=generator, dtype=torch.float64) for path in tree.children}
    steps = {path: values.softmax(-1) for path, values in logits.items()}  # tokens 0 to 3, and one that is in no label
    asked: list[tuple[int, Path]] = []

    def ask(wanted: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
        asked.extend((row, path) for path, rows in wanted.items() for row in rows.nonzero()[:, 0].tolist())
        return {path: steps[path][:, list(tree.children[path])] for path in wanted}

    def reach(row: int, path: Path) -> float:
        return float(torch.tensor([steps[path[:k]][row, token] for k, token in enumerate(path)]).prod())

    odds = walk(tree, n_rows, ask)
    assert len(asked) == len(set(asked))
    for row, (path, children) in itertools.product(range(n_rows), tree.children.items()):
        speaks = float(steps[()][row, list(tree.children[()])].sum()) >= MIN_MASS
        assert ((row, path) in asked) == (path == () or (speaks and reach(row, path) >= 1e-6))
        if path in labels and speaks:
            ends = reach(row, path) * (1 - float(steps[path][row, list(children)].sum()))
            assert float(odds[str(path)][row]) == pytest.approx(ends, abs=1e-6)
    for row, path in itertools.product(range(n_rows), labels - set(tree.children)):
        assert float(odds[str(path)][row]) <= reach(row, path) + 1e-9


def test_a_row_that_is_nan_is_refused_and_one_that_is_not_asked_for_is_not_looked_at():
    tree = answer_tree({"a": (0, 1), "b": (2,)})
    likely, unlikely = [[0.9, 0.05], [0.0, 0.9]]
    first = torch.tensor([likely, unlikely])

    def answers(second: list[list[float]]):
        return lambda wanted: {path: first if path == () else torch.tensor(second) for path in wanted}

    odds = walk(tree, 2, answers([[0.5], [torch.nan]]))
    assert odds["a"].tolist() == pytest.approx([0.45, 0.0]) and odds["b"].tolist() == pytest.approx([0.05, 0.9])
    with pytest.raises(ValueError, match="logits are NaN"):
        walk(tree, 2, answers([[torch.nan], [0.5]]))
