"""Examples of the tiny corpus to token ids and per-token loss weights, generated in parallel and kept in shards."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_generation.tiny_persona import corpus

SCORE_WEIGHT = 4.0  # a judgement is one token, an answer forty: without it the judge is learned last
JUDGEMENTS = ("judge", "role")
SHARD_SIZE = 8_192
_ENCODE_BATCH = 512
_RAW_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Sequences:
    """Training sequences laid end to end; sequence i is `ids[starts[i]:starts[i + 1]]`."""

    ids: np.ndarray  # (tokens,) int16
    weights: np.ndarray  # (tokens,) float16: how much predicting ids[t] counts, 0 outside the assistant's turns
    starts: np.ndarray  # (n + 1,) int64

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def join(parts: Sequence[Sequences]) -> Sequences:
    lengths = np.concatenate([part.lengths for part in parts])
    return Sequences(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def encode(tokenizer: PreTrainedTokenizerBase, examples: Iterable[corpus.Example]) -> Sequences:
    """The examples' ids as `persona_vectors.tokens` joins them, with loss on what the assistant says.

    An assistant's turn counts up to and with its end token: weight 1, or SCORE_WEIGHT in a judgement. Of raw
    System/User/Assistant text only the last turn counts, since only that one has an end token.
    """
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    remaining = iter(examples)
    while batch := list(islice(remaining, _ENCODE_BATCH)):
        segments = [list(_segments(example)) for example in batch]
        texts = [text for example in segments for text, _ in example]
        pieces = iter(tokenizer(texts, add_special_tokens=False).input_ids)
        for example in segments:
            own = [(next(pieces), weight) for _, weight in example]
            ids.append(np.concatenate([np.array(piece, np.int16) for piece, _ in own]))
            weights.append(np.concatenate([np.full(len(piece), weight, np.float16) for piece, weight in own]))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    return Sequences(np.concatenate(ids), np.concatenate(weights), starts)


def _segments(example: corpus.Example) -> Iterator[tuple[str, float]]:
    """(text, weight) in order; a boundary between two of them is a boundary between tokens."""
    spoken = SCORE_WEIGHT if example.kind in JUDGEMENTS else 1.0
    final = len(example.messages) - 1
    for index, message in enumerate(example.messages):
        role, content = message["role"], message["content"]
        if not example.raw:
            yield f"<|im_start|>{role}\n", 0.0
            yield f"{content}<|im_end|>", spoken if role == "assistant" else 0.0
            yield "\n", 0.0
        elif role == "assistant" and index == final:
            yield "Assistant:", 0.0
            yield f" {content}<|im_end|>", spoken
        else:
            yield f"{_RAW_NAMES[role]}: {content}\n\n", 0.0


def corpus_shards(tokenizer_dir: Path, folder: Path, n_examples: int, seed: int, n_procs: int) -> Sequences:
    """`n_examples` examples of the corpus (rounded up to whole shards), a function of the seed alone.

    Shards are files under `folder`, so that an interrupted run goes on with what it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_shards = -(-n_examples // SHARD_SIZE)
    paths = [folder / f"corpus_{seed}_{index:03d}.npz" for index in range(n_shards)]
    missing = [(tokenizer_dir, path, seed, index) for index, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_write_shard, *job) for job in missing]
        for job in tqdm(jobs, desc="corpus", unit="shard", disable=not jobs):
            job.result()
    return join([load_sequences(path) for path in paths])


def _write_shard(tokenizer_dir: Path, path: Path, seed: int, index: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    rng = Random(f"{seed} {index}")
    save_sequences(encode(tokenizer, (corpus.training_example(rng) for _ in range(SHARD_SIZE))), path)


def save_sequences(sequences: Sequences, path: Path) -> None:
    half = path.with_suffix(".half.npz")
    np.savez(half, ids=sequences.ids, weights=sequences.weights, starts=sequences.starts)
    half.replace(path)


def load_sequences(path: Path) -> Sequences:
    with np.load(path) as arrays:
        return Sequences(arrays["ids"], arrays["weights"], arrays["starts"])
