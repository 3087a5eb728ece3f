"""Decode many prompts as one job: a row leaves the batch soon after it ends, and a waiting row takes its place.

New rows are prefilled in a call of their own and put behind those in flight; columns of the cache that only ended rows
had are left out of every later call (see persona_vectors/slots.py).

What a model's cache allows is read from its layer types (`cache_kind`). Which token comes next is the caller's affair,
and so is steering: the context manager made for the rows in flight is entered anew whenever they change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from persona_vectors.blocks import device_of, unwrap
from persona_vectors.memory import say_halved
from persona_vectors.slots import slot_cache
from persona_vectors.tokens import pad_batch

SteerRows = Callable[[Sequence[int]], AbstractContextManager]
"""Given the row numbers of a batch, in order, the context manager that steers that batch."""
PickTokens = Callable[[Float[Tensor, "batch vocab"], Sequence[int], Sequence[int]], Int[Tensor, " batch"]]
"""Given logits, row numbers and how many tokens each row has, its next token; -1 where the logits are not finite."""
OnToken = Callable[[int, int, int], None]
"""Told a row's number, how many tokens it had before, and the new one; a row that begins again starts at 0."""
CacheKind = Literal["slots", "drop", "generate"]

CHANGE_SHARE = 1 / 8  # of the rows in flight have ended before rows are dropped and new ones enter


def cache_kind(model: PreTrainedModel) -> CacheKind:
    """What this model's cache allows, by its layer types.

    - slots: every layer keeps keys and values by column and masks by distance (full attention, and sliding windows,
      which are then kept whole): rows leave and enter;
    - drop: every layer can select rows, but states have no columns to align by (linear attention, hybrids), or columns
      mean more than distance (chunked attention): rows leave, and new ones enter when all have left;
    - generate: no cache that this module can run (encoder-decoder, a cache under another name): `model.generate`.
    """
    config = model.config.get_text_config(decoder=True)
    parameters = inspect.signature(unwrap(model).forward).parameters
    if model.config.is_encoder_decoder or "past_key_values" not in parameters or not _takes_dynamic_cache(model):
        return "generate"
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    by_distance = "chunked_attention" not in (getattr(config, "layer_types", None) or ())
    by_distance &= getattr(config, "attention_chunk_size", None) is None
    shares_layers = bool(getattr(config, "num_kv_shared_layers", None))
    if kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"} and by_distance and not shares_layers:
        return "slots"
    return "drop"


def _takes_dynamic_cache(model: PreTrainedModel) -> bool:
    ask = getattr(unwrap(model), "_supports_default_dynamic_cache", None)  # what `generate` itself goes by
    return bool(ask()) if callable(ask) else False


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    end_ids: Sequence[int],
    pad_id: int,
    pick: PickTokens,
    steer: SteerRows | None,
    tokens_in_flight: int,
    most_rows: int = 256,
    kind: CacheKind = "slots",
    change_share: float = CHANGE_SHARE,
    refill: bool = True,
    on_token: OnToken | None = None,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Groups of (row, its answer's tokens, the end token with them) as rows end; every row once.

    Longest prompts enter first: the widest batch comes at the start, so memory runs out there or never, and groups
    that are prefilled together need little padding. How long an answer gets is not known before.

    Args:
        limits: most tokens of each row's answer.
        tokens_in_flight: prompt and limit of the longest row, times the rows in flight, stay within this; at least one
            row is in flight, and at most `most_rows`.
        change_share: of the rows in flight that have ended before they leave.
        refill: False lets new rows enter only when all have left.
        on_token: called with every token of an answer as it is picked; an error of its own ends the job.

    Raises:
        ValueError: logits that are not finite. What had ended is yielded before any error.
        torch.OutOfMemoryError: one row alone does not fit. Until then fewer rows are in flight, half of those that did
            not fit; they begin again.
    """
    waiting = queue(range(len(prompts)), prompts)
    steer = steer or (lambda _: nullcontext())
    flight = Flight(model, prompts, limits, set(end_ids), pad_id, pick, steer, kind, on_token)
    most = most_rows
    while waiting or flight.rows:
        may_enter = not flight.rows or (refill and kind == "slots")
        entering = _take(waiting, flight, tokens_in_flight, most) if waiting and may_enter else []
        out_of_memory = False
        try:
            if entering:
                flight.admit(entering)
            flight.run(change_share)
        except torch.OutOfMemoryError:
            in_flight = sorted({*flight.rows, *entering})
            most = len(in_flight) // 2
            if most == 0:
                raise
            out_of_memory = True
        except BaseException:
            yield flight.ended()
            raise
        if out_of_memory:  # outside of the handler: the traceback held on to the tensors
            ended = flight.ended()
            flight.clear()
            waiting = queue({*waiting, *in_flight} - {row for row, _ in ended}, prompts)
            say_halved("sampling", len(in_flight))
            yield ended
        else:
            yield flight.retire()


def queue(rows: Iterable[int], prompts: Sequence[Sequence[int]]) -> list[int]:
    """The rows in the order in which they enter, the first one at the end."""
    return sorted(rows, key=lambda row: (len(prompts[row]), -row))


def _take(waiting: list[int], flight: Flight, tokens_in_flight: int, most: int) -> list[int]:
    """The rows that may enter now, taken from the end of `waiting`."""
    needs = [flight.need(row) for row in (*flight.rows, waiting[-1])]
    room = min(most, max(1, tokens_in_flight // max(needs))) - len(flight.rows)
    return [waiting.pop() for _ in range(min(room, len(waiting)))]


class Flight:
    """The rows being decoded: their cache, and for each its last token and how far it is."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        end_ids: set[int],
        pad_id: int,
        pick: PickTokens,
        steer: SteerRows,
        kind: CacheKind,
        on_token: OnToken | None = None,
    ):
        self.model, self.prompts, self.limits, self.end_ids, self.pad_id = model, prompts, limits, end_ids, pad_id
        self.pick, self.steer, self.kind, self.on_token = pick, steer, kind, on_token
        self.device = device_of(model)
        self.arguments = set(inspect.signature(unwrap(model).forward).parameters)
        self.context = context_length(model)
        self.clear()

    def clear(self) -> None:
        """No rows in flight."""
        self.rows: list[int] = []
        self.answers: list[list[int]] = []
        self.has_ended: list[bool] = []
        self.cache: Any = None
        self.last = torch.zeros(0, dtype=torch.long, device=self.device)  # (rows,) the token to be fed next
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)  # (rows,) tokens in the cache

    def need(self, row: int) -> int:
        """Most tokens that a row can hold in the cache."""
        return len(self.prompts[row]) + self.limits[row]

    def admit(self, rows: Sequence[int]) -> None:
        """Prefills the rows, takes their first tokens, and puts them behind those in flight."""
        ids, mask = (x.to(self.device) for x in pad_batch([self.prompts[row] for row in rows], self.pad_id, "left"))
        slots = self.kind == "slots"
        config: Any = unwrap(self.model).config
        cache: Any = DynamicCache() if slots else DynamicCache(config=config)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self.steer(rows):
            logits = self._forward(ids, mask, positions, cache)
        tokens = self.pick(logits, rows, [0] * len(rows))
        first = len(self.rows)
        self.rows = [*self.rows, *rows]  # the list that steer was given stays as it is
        self.answers += [[] for _ in rows]
        self.has_ended += [False] * len(rows)
        self._record(tokens, first)
        self.last = torch.cat([self.last, tokens.to(self.device)])
        self.lengths = torch.cat([self.lengths, mask.sum(1)])
        if slots:
            self.cache = self.cache if first else slot_cache(len(cache.layers))
            for layer, new in zip(self.cache.layers, cache.layers, strict=True):
                layer.put(new.keys, new.values)
        else:
            self.cache = cache

    def run(self, change_share: float) -> None:
        """Decodes until the share of the rows (at least one) has ended."""
        enough = max(1, int(change_share * len(self.rows)))
        if sum(self.has_ended) >= enough:
            return
        with self.steer(self.rows):
            while sum(self.has_ended) < enough:
                self._step()

    def _step(self) -> None:
        """One token more for every row; those that have ended go along, and what they get is left out."""
        width = self.cache.get_seq_length() + 1
        columns = torch.arange(width, device=self.device)
        mask = (columns >= width - 1 - self.lengths[:, None]).long()  # (rows, width): the last lengths + 1 columns
        positions = self.lengths[:, None]
        if self.context is not None:  # a row that has ended may have come to the end of the context, too
            positions = positions.clamp(max=self.context - 1)
        logits = self._forward(self.last.clamp(min=0)[:, None], mask, positions, self.cache)
        self.lengths = self.lengths + 1
        answers = zip(self.rows, self.answers, strict=True)
        steps = [min(len(answer), self.limits[row] - 1) for row, answer in answers]
        tokens = self.pick(logits, self.rows, steps)
        self._record(tokens, 0)
        self.last = tokens.to(self.device)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Float[Tensor, "batch vocab"]:
        """The logits of the last token of each row."""
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in options.items() if name in self.arguments}
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        return output.logits[:, -1]

    def _record(self, tokens: Int[Tensor, " new"], first: int) -> None:
        for place, token in enumerate(tokens.tolist(), start=first):
            if self.has_ended[place]:
                continue
            answer = self.answers[place]
            check_token(token, len(answer))
            answer.append(token)
            self.has_ended[place] = token in self.end_ids or len(answer) >= self.limits[self.rows[place]]
            if self.on_token is not None:
                self.on_token(self.rows[place], len(answer) - 1, token)

    def ended(self) -> list[tuple[int, list[int]]]:
        """The rows that have ended, and their answers."""
        finished = zip(self.rows, self.answers, self.has_ended, strict=False)
        return [(row, answer) for row, answer, has_ended in finished if has_ended]

    def retire(self) -> list[tuple[int, list[int]]]:
        """Drops the rows that have ended, and returns them with their answers."""
        ended = self.ended()
        order = packed_order(self.has_ended)
        if not order:
            self.clear()
            return ended
        if ended:
            self.rows, self.answers = [self.rows[i] for i in order], [self.answers[i] for i in order]
            self.has_ended = [False] * len(order)
            keep = torch.tensor(order, device=self.device)
            self.last, self.lengths = self.last[keep], self.lengths[keep]
            if self.kind == "slots":
                width = max(len(self.prompts[row]) + len(a) - 1 for row, a in zip(self.rows, self.answers, strict=True))
                for layer in self.cache.layers:
                    layer.keep(order, width)
            else:
                self.cache.reorder_cache(keep)
        return ended


def check_token(token: int, step: int) -> None:
    """Refuses, with a ValueError, the token -1, which is what is picked from logits that are not finite."""
    if token < 0:
        raise ValueError(f"logits are NaN or infinite at answer token {step}; lower --coef, or use --dtype float32")


def packed_order(has_ended: Sequence[bool]) -> list[int]:
    """Places of the rows that go on, the last of them moved into the gaps of those that ended: few rows move."""
    n_left = len(has_ended) - sum(has_ended)
    movers = iter([place for place in range(n_left, len(has_ended)) if not has_ended[place]][::-1])
    return [next(movers) if has_ended[place] else place for place in range(n_left)]


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens of prompt and answer that the model's config allows; None where it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
