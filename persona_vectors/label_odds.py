"""A local model's exact probability of each label as its whole answer, by forward passes; nothing is generated.

One pass over the prompts gives the first token. Where labels take several tokens ("8" then "7"), the branches that have
probability are followed one token at a time on the same KV cache, which is cropped on the way back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.scores import MIN_MASS, AnswerTree, Path, answer_tree, label_probabilities, labels_of
from persona_vectors.tokens import pad_batch, render_prompt, tokenize_prompt, tokenize_sample

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

_NEGLIGIBLE = 1e-6  # branches with less probability are not followed: at most 1e-4 points of a score
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
    prompts = {text: render_prompt(tokenizer, [{"role": "user", "content": text}]) for text in names}
    ids = {text: tokenize_prompt(tokenizer, prompt) for text, prompt in prompts.items()}
    tree = label_tree(tokenizer, eval_type)
    _check_room(model, {names[text]: len(row) + tree.depth for text, row in ids.items()})
    budget = token_budget or _TOKENS_PER_BATCH["cuda" if model.device.type == "cuda" else "cpu"]
    pad_id = int(tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
    walk = _Walk(model, pad_id, tree)
    for texts in _batches({text: len(row) for text, row in ids.items()}, budget):
        for part, odds in _in_memory(walk, texts, ids):
            yield from ((text, {label: float(p[row]) for label, p in odds.items()}) for row, text in enumerate(part))


def label_tree(tokenizer: PreTrainedTokenizerBase, eval_type: str) -> AnswerTree:
    """The token paths of the labels of `eval_type`, as this tokenizer writes them right after a prompt."""
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "?"}])
    paths: dict[str, Path] = {}
    for label in labels_of(eval_type):
        sample = tokenize_sample(tokenizer, prompt, label)
        path = sample.ids[sample.prompt_len :]
        paths[label] = () if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in path else path
    return answer_tree(paths)


def _check_room(model: PreTrainedModel, lengths: Mapping[str, int]) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, length in lengths.items():
        if context is not None and length > context:
            raise ValueError(
                f"{name}: the judge's prompt takes {length} tokens and the judge's context holds {context}; "
                "shorten the answer (--max_tokens) or take a judge with a longer context"
            )


def _batches(lengths: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Texts of similar length together, longest first: memory runs out on the first batch or never."""
    order = sorted(lengths, key=lambda text: -lengths[text])
    start = 0
    while start < len(order):
        size = max(1, budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _in_memory(
    walk: _Walk, texts: list[str], ids: Mapping[str, Sequence[int]]
) -> Iterator[tuple[list[str], dict[str, Float[Tensor, " batch"]]]]:
    """The batch's label probabilities; a batch that does not fit the device is halved until it does."""
    try:
        odds = walk([ids[text] for text in texts])
    except torch.OutOfMemoryError:
        if len(texts) == 1:
            raise
        odds = None
    if odds is not None:
        yield texts, odds
        return
    torch.cuda.empty_cache()
    middle = len(texts) // 2
    yield from _in_memory(walk, texts[:middle], ids)
    yield from _in_memory(walk, texts[middle:], ids)


class _Walk:
    """Walks one batch of prompts through the tree of labels."""

    def __init__(self, model: PreTrainedModel, pad_id: int, tree: AnswerTree):
        self.model = model
        self.pad_id = pad_id
        self.tree = tree
        base: Any = model
        if hasattr(model, "get_base_model"):  # PEFT's own forward takes anything
            base = base.get_base_model()
        self.accepts = set(inspect.signature(base.forward).parameters)

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]]) -> dict[str, Float[Tensor, " batch"]]:
        cache = _empty_cache(self.model) if self.tree.depth else None
        conditionals = {(): self._children_odds(ids, (), cache)}
        mass = conditionals[()].sum(1)  # no label can get more than this
        reach = torch.where(mass >= MIN_MASS, 1.0, 0.0).to(torch.float64)
        self._follow((), reach, ids, cache, conditionals)
        return label_probabilities(self.tree, conditionals)

    def _follow(
        self,
        path: Path,
        reach: Float[Tensor, " batch"],
        ids: Sequence[Sequence[int]],
        cache: DynamicCache | None,
        conditionals: dict[Path, Tensor],
    ) -> None:
        """Fills in the conditionals of every branch below `path` that some row reaches, depth first."""
        for k, token in enumerate(self.tree.children[path]):
            child = (*path, token)
            child_reach = reach * conditionals[path][:, k]
            reached = child_reach >= _NEGLIGIBLE  # row by row, so that a score does not depend on its batch
            if child not in self.tree.children or not reached.any():
                continue
            odds = self._children_odds(ids, child, cache)
            conditionals[child] = torch.where(reached[:, None], odds, 0.0)
            self._follow(child, torch.where(reached, child_reach, 0.0), ids, cache, conditionals)
            if cache is not None:
                cache.crop(-1)

    def _children_odds(
        self, ids: Sequence[Sequence[int]], path: Path, cache: DynamicCache | None
    ) -> Float[Tensor, "batch children"]:
        """P(child | prompt, path) for the children of `path`, in float64 on the CPU.

        With a cache that holds the prompt and all of `path` but its last token, only that token is fed. Padding is on
        the left, so that every row ends at the same column and sliding windows see what they would alone.
        """
        input_ids, mask = pad_batch([[*row, *path] for row in ids], self.pad_id, "left")
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if "position_ids" in self.accepts:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if cache is not None and path:
            inputs |= {name: inputs[name][:, -1:] for name in ("input_ids", "position_ids") if name in inputs}
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        output = self.model(**inputs, past_key_values=cache, use_cache=cache is not None)
        log_odds = output.logits[:, -1].float().log_softmax(-1)  # (batch, vocab)
        odds = log_odds[:, list(self.tree.children[path])].exp().to("cpu", torch.float64)
        if odds.isnan().any():
            raise ValueError("the judge's logits are NaN; load it in float32 or bfloat16")
        return odds


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
