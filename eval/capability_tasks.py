"""Tasks of lm-evaluation-harness (optional extra `lm-eval`) on a model in memory, steered by our own steerer.

Every forward pass and every generation that the harness asks for is steered by `steer_rows`, the path that receipts
measure. Log-likelihoods come from teacher-forced passes, in which nothing tells prompt from answer: where only one of
them is steered, the requests say where the answer begins, and are run here, a batch at a time, with `prompt_lens`.
"""

from __future__ import annotations

import importlib.util
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from activation_steer import ActivationSteerer
from eval.capability_identity import set_fewshot
from eval.capability_table import Measure
from eval.model_utils import Added, Steering, steer_rows
from persona_vectors.arguments import near
from persona_vectors.blocks import block_index, device_of
from persona_vectors.cli import one_line
from persona_vectors.tokens import pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tasks(names: Sequence[str], include_path: str | None, steering_type: str) -> dict[str, dict[str, Any]]:
    """The parts of the harness's tasks of these names with their data sets, before any model is loaded.

    Raises:
        ValueError: the harness is not installed, an unknown name, a data set that cannot be had, or a task that cannot
            be run as asked.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            f"--tasks {' '.join(names)} needs lm-evaluation-harness: pip install -c constraints.txt -e '.[lm-eval]' "
            "(the task probe works without)"
        )
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"--include_path {include_path} is not a folder; give the folder of your task YAML files")
    manager = _manager(names, include_path)
    return {name: _load(manager, name, steering_type) for name in names}


def _manager(names: Sequence[str], include_path: str | None) -> Any:
    """A task manager that knows all of `names`; the harness's own 15,000 are read only where a name is among them."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(
                f"unknown task {name!r}: neither probe nor one of lm-evaluation-harness"
                f"{near(name, [*manager.all_tasks, 'probe'])}"
            )
    return manager


def _load(manager: Any, name: str, steering_type: str) -> dict[str, Any]:
    import yaml
    from datasets.exceptions import DatasetsError

    try:
        leaves = manager.load([name])["tasks"]
    except (OSError, ValueError, KeyError, TypeError, ImportError, DatasetsError, yaml.YAMLError) as error:
        raise ValueError(f"task {name} cannot be loaded: {type(error).__name__}: {_short(error)}") from error
    for leaf, task in leaves.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {leaf} runs code that the model writes; use lm_eval itself for it, in a sandbox")
        if getattr(task, "MULTIMODAL", False):
            raise ValueError(f"task {leaf} is about more than text; expected a text task")
        if steering_type != "all" and task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise ValueError(
                f"task {leaf} scores whole texts, which have no prompt and no response; use --steering_type all"
            )
    return leaves


def _short(error: BaseException) -> str:
    text = one_line(error) if isinstance(error, Exception) else str(error)
    return text if len(text) <= 300 else text[:300] + " ..."


def harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16) -> Any:
    """The loaded model as the harness takes one; set its `steering` to steer all that follows, None to stop."""
    from lm_eval.models.huggingface import HFLM

    base: Any = HFLM

    class SteeredHFLM(base):
        steering: Added = None

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with _steered(self.model, self.steering, len(inps)):
                return super()._model_call(inps, attn_mask, labels)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            with _steered(self.model, self.steering, len(context)):
                return super()._model_generate(context, *args, **kwargs)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            steering = self.steering
            if not isinstance(steering, Steering) or steering.positions == "all":  # several together act on all tokens
                return super()._loglikelihood_tokens(requests, *args, **kwargs)
            pairs = [(context, continuation) for _, context, continuation in requests]
            return split_loglikelihoods(
                self.model, pairs, steering, batch_size=self.batch_size, max_length=self.max_length
            )

    with _quiet():
        return SteeredHFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)  # pyright: ignore


def _steered(model: PreTrainedModel, steering: Added, n_rows: int) -> AbstractContextManager:
    if steering is None:
        return nullcontext()
    return steer_rows(model, [steering] * n_rows)(range(n_rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's warnings that a loaded model is not a name."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@torch.inference_mode()
def split_loglikelihoods(
    model: PreTrainedModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    steering: Steering,
    *,
    batch_size: int,
    max_length: int,
) -> list[tuple[float, bool]]:
    """(log-likelihood of the continuation, whether it is the greedy one) of each (context, continuation), steered at
    the prompt's tokens (the context) or the response's (from the context's last token on) and nowhere else.

    A pair that is too long loses the left of its context, as in the harness.
    """
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    inputs = [(context + continuation)[-(max_length + 1) :][:-1] for context, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda row: -len(inputs[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, _mask = pad_batch([inputs[row] for row in rows], 0, "right")
        lens = [len(inputs[row]) - len(pairs[row][1]) + 1 for row in rows]  # the last token of a pair is never read
        with ActivationSteerer(
            model,
            steering.vector,
            coeff=steering.coef,
            layer_idx=block_index(steering.layer),
            positions=steering.positions,
            prompt_lens=lens,
        ):
            logits = model(input_ids=input_ids.to(device_of(model))).logits  # (rows, seq, vocab)
        for row, prompt_len, own in zip(rows, lens, logits, strict=True):
            answer = torch.tensor(pairs[row][1], device=own.device)
            scores = own[prompt_len - 1 : len(inputs[row])].log_softmax(-1)  # (answer, vocab)
            total = scores.gather(-1, answer[:, None]).sum()
            found[row] = (float(total), bool((scores.argmax(-1) == answer).all()))
    return found


def run_leaf(
    lm: Any,
    name: str,
    leaf: str,
    task: Any,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
) -> list[Measure]:
    """Every metric of one of the task's parts; of a task that is no group, of the task.

    Python's, numpy's and torch's random numbers are seeded anew, so that every setting is asked the same.
    """
    from lm_eval.evaluator import evaluate

    set_fewshot(task, num_fewshot, seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    chat: dict[str, Any] = {"apply_chat_template": apply_chat_template, "fewshot_as_multiturn": apply_chat_template}
    try:
        found: Any = evaluate(lm, {"tasks": {leaf: task}}, limit=limit, bootstrap_iters=0, log_samples=True, **chat)
    except AssertionError as error:  # what the harness says of, for one, a context too short for the task's answers
        raise ValueError(f"task {name}: {_short(error)}") from error
    measures = list(_measures(name, leaf, found["results"][leaf], found["samples"][leaf]))
    if not measures:
        raise ValueError(f"task {name}: {leaf} gave no metric that is a number; check its metric_list")
    return measures


def pooled(name: str, parts: Sequence[Measure], n_leaves: int) -> list[Measure]:
    """The task's metrics: of all its items together, and, of a group, of each of its parts apart."""
    if n_leaves == 1:
        return [replace(own, part="") for own in parts]
    return [*_pooled(name, parts, n_leaves), *parts]


def _measures(
    name: str, leaf: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Iterator[Measure]:
    """Each metric of one task, with its items where the metric is their mean."""
    for key, value in results.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        own = {f"{leaf}/{sample['doc_id']}": sample for sample in samples if sample["filter"] == chosen}
        raw = {item: sample.get(metric) for item, sample in own.items()}
        texts = {item: text for item, sample in own.items() if isinstance(text := sample["filtered_resps"][0], str)}
        numbers = {
            item: float(score) for item, score in raw.items() if isinstance(score, int | float | np.number | np.bool_)
        }
        whole = len(numbers) == len(raw) > 0 and abs(float(np.mean(list(numbers.values()))) - value) < 1e-9
        called = metric if chosen == "none" else key
        yield Measure(name, leaf, called, float(value), numbers if whole else {}, len(raw), texts)


def _pooled(name: str, parts: Sequence[Measure], n_leaves: int) -> Iterator[Measure]:
    """The metrics that every task of the group has, over all items together."""
    for metric in dict.fromkeys(part.metric for part in parts):
        own = [part for part in parts if part.metric == metric and part.items]
        if len(own) == n_leaves:
            items = {item: value for part in own for item, value in part.items.items()}
            texts = {item: text for part in own for item, text in part.answers.items()}
            yield Measure(name, "", metric, float(np.mean(list(items.values()))), items, len(items), texts)
