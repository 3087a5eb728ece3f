"""A local model's exact probability of each label as its whole answer, by forward passes; nothing is generated.

One pass over the prompts gives the first token. Where labels take several tokens ("8" then "7"), the branches that have
probability (`label_walk`) are read one after the other on the same KV cache, cropped to what they share with the last.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_vectors.label_walk import walk
from persona_vectors.memory import say_halved
from persona_vectors.scores import AnswerTree, Path, answer_tree, labels_of
from persona_vectors.tokens import pad_batch, render_prompt, tokenize_prompt, tokenize_sample

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_PER_BATCH = {"cpu": 8_192, "cuda": 32_768}  # prompt tokens held in the KV cache at once


def label_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Mapping[str, str],
    eval_type: str,
    *,
    token_budget: int | None = None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """(text, label -> P(label)) of every user message in `names`, as batches finish: similar lengths together.

    P(label) is the product along the tokens that the tokenizer writes it with at the start of an answer, times the
    probability that it does not go on to a longer label (`scores.label_probabilities`). The rest of the probability,
    on anything else the model could say, is not in the dict.

    Args:
        names: user message -> what to call it in an error.
        token_budget: most prompt tokens in a batch, padding included.

    Raises:
        ValueError: a prompt longer than the model's context (found before any pass), or logits that are NaN.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids, tree = tokens_of(tokenizer, names, eval_type, context)
    budget = token_budget or _TOKENS_PER_BATCH["cuda" if model.device.type == "cuda" else "cpu"]
    pad_id = int(tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
    for texts in _batches({text: len(row) for text, row in ids.items()}, budget):
        for part, odds in _in_memory(partial(_walked, model, pad_id, tree), texts, ids):
            yield from ((text, {label: float(p[row]) for label, p in odds.items()}) for row, text in enumerate(part))


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, names: Mapping[str, str], eval_type: str, context: int | None
) -> tuple[dict[str, list[int]], AnswerTree]:
    """The token ids of each user message of `names` as a prompt, and the tree of the labels' tokens.

    Raises:
        ValueError: a prompt that, with the tokens read after it, is longer than `context`.
    """
    prompts = {text: render_prompt(tokenizer, [{"role": "user", "content": text}]) for text in names}
    ids = {text: tokenize_prompt(tokenizer, prompt) for text, prompt in prompts.items()}
    tree = label_tree(tokenizer, eval_type)
    for text, row in ids.items():
        if context is not None and len(row) + tree.depth > context:
            raise ValueError(
                f"{names[text]}: the judge's prompt takes {len(row) + tree.depth} tokens and the judge's context holds "
                f"{context}; shorten the answer (--max_tokens) or take a judge with a longer context"
            )
    return ids, tree


def label_tree(tokenizer: PreTrainedTokenizerBase, eval_type: str) -> AnswerTree:
    """The token paths of the labels of `eval_type`, as this tokenizer writes them right after a prompt."""
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "?"}])
    paths: dict[str, Path] = {}
    for label in labels_of(eval_type):
        sample = tokenize_sample(tokenizer, prompt, label)
        path = sample.ids[sample.prompt_len :]
        paths[label] = () if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in path else path
    return answer_tree(paths)


def _batches(lengths: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Texts of similar length together, longest first: memory runs out on the first batch or never."""
    order = sorted(lengths, key=lambda text: -lengths[text])
    start = 0
    while start < len(order):
        size = max(1, budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


Odds = dict[str, Float[Tensor, " batch"]]


def _in_memory(
    walked: Callable[[Sequence[Sequence[int]]], Odds], texts: list[str], ids: Mapping[str, Sequence[int]]
) -> Iterator[tuple[list[str], Odds]]:
    """The batch's label probabilities; a batch that does not fit the device is halved until it does, which is said."""
    try:
        odds = walked([ids[text] for text in texts])
    except torch.OutOfMemoryError:
        if len(texts) == 1:
            raise
        odds = None
    if odds is not None:
        yield texts, odds
        return
    say_halved("scoring", len(texts))
    middle = len(texts) // 2
    yield from _in_memory(walked, texts[:middle], ids)
    yield from _in_memory(walked, texts[middle:], ids)


def _walked(model: PreTrainedModel, pad_id: int, tree: AnswerTree, ids: Sequence[Sequence[int]]) -> Odds:
    return walk(tree, len(ids), _Forward(model, pad_id, tree, ids))


class _Forward:
    """Reads one batch of prompts, and its branches on the same KV cache."""

    def __init__(self, model: PreTrainedModel, pad_id: int, tree: AnswerTree, ids: Sequence[Sequence[int]]):
        self.model = model
        self.pad_id = pad_id
        self.tree = tree
        self.ids = ids
        self.cache = _empty_cache(model) if tree.depth else None
        self.held: Path = ()  # what the cache holds after the prompts
        base: Any = model
        if hasattr(model, "get_base_model"):  # PEFT's own forward takes anything
            base = base.get_base_model()
        self.accepts = set(inspect.signature(base.forward).parameters)

    def __call__(self, wanted: Mapping[Path, Bool[Tensor, " batch"]]) -> dict[Path, Float[Tensor, "batch children"]]:
        """P(child | prompt, path) for the children of each path, in every row."""
        return {path: self._children_odds(path) for path in wanted}

    @torch.inference_mode()
    def _children_odds(self, path: Path) -> Float[Tensor, "batch children"]:
        """The same for one path, in float64 on the CPU. With a cache, only what it does not hold of the path is fed.

        Padding is on the left, so that every row ends at the same column and sliding windows see what they would alone.
        """
        input_ids, mask = pad_batch([[*row, *path] for row in self.ids], self.pad_id, "left")
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if "position_ids" in self.accepts:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self.cache is not None and path:
            n_fed = len(path) - self._crop_to(path)
            inputs |= {name: inputs[name][:, -n_fed:] for name in ("input_ids", "position_ids") if name in inputs}
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        output = self.model(**inputs, past_key_values=self.cache, use_cache=self.cache is not None)
        self.held = path
        log_odds = output.logits[:, -1].float().log_softmax(-1)  # (batch, vocab)
        return log_odds[:, list(self.tree.children[path])].exp().to("cpu", torch.float64)

    def _crop_to(self, path: Path) -> int:
        """How many tokens of `path` the cache holds, all but the last at most, after cropping it to them."""
        assert self.cache is not None
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.held, path[:-1], strict=False)))
        if shared < len(self.held):
            self.cache.crop(shared - len(self.held))
        return shared


def _empty_cache(model: PreTrainedModel) -> DynamicCache | None:
    """A cache that can be cropped by one token at any length; None for models with other state (Mamba, linear
    attention), whose branches are read from the whole prompt again.

    Without a config, sliding-window layers keep all keys (the mask still hides what is out of the window).
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return DynamicCache() if plain else None
