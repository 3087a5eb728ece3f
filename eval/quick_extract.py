"""Quick extraction: a few answers under a trait's instructions and their opposites, read once, and reported by layer.

Answers come from the store where they are finished, so the same command again samples nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eval.engine_choice import settle_engine
from eval.finished_answers import Engine
from eval.questions import DEFAULT_JUDGE, Question, load_persona_questions
from eval.sweep import Setting, Study, check_once, several
from eval.sweep_answers import Answered, Sampling, answered
from judge import check_judge
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import check_layer
from persona_vectors.files import check_output_path
from persona_vectors.judging import failure_line
from persona_vectors.models import load_config, quantised_bits, resolve_model
from persona_vectors.pairs import PairCounts, all_pairs, count_pairs, effective_pairs
from persona_vectors.store import Store
from persona_vectors.tokens import tokenize_sample
from persona_vectors.traits import Trait, load_trait

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PUBLISHED_RANGE = (10, 20)


@dataclass(frozen=True)
class Asked:
    """The arguments of quick_persona_extract.py."""

    model_name: str
    trait: str | list[str]
    layers: list[int] | None = None
    layer_range: list[int] | None = None
    n_samples: int = 5
    save_dir: str = "persona_analysis"
    judge_model: str | None = None
    threshold: float = 50
    methods: list[str] | None = None
    compare_steering: bool = False
    steer_layer: int | None = None
    calibrate: bool = False
    coefs: tuple[float, ...] | list[float] = (0.5, 1, 1.5, 2)
    max_tokens: int = 200
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str = "auto"
    engine: Literal["auto", "vllm", "hf"] = "auto"
    load_in_8bit: bool = False
    load_in_4bit: bool = False


@dataclass(frozen=True)
class TraitPlan:
    """A trait with the questions that are asked under its instructions.

    Attributes:
        given: its name or path, as it was asked for.
        base: what the trait's files begin with, `<save_dir>/<model>_<trait>`.
        pos, neg: one a question and instruction; without judge prompts where nothing is judged.
        n_per_question: answers to each under each instruction.
    """

    given: str
    trait: Trait
    base: Path
    pos: list[Question]
    neg: list[Question]
    n_per_question: int

    @property
    def questions(self) -> list[str]:
        """The questions that are asked, once each."""
        return list(dict.fromkeys(one.paraphrases[0] for one in self.pos))


@dataclass(frozen=True)
class Plan:
    """What a run will do, after everything that can be known to be wrong was refused.

    Attributes:
        layers: hidden_states indices, lowest first.
        notes: what a reader must know, such as which layers were taken for want of others.
    """

    engine: Engine
    layers: list[int]
    traits: list[TraitPlan]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Reading:
    """One trait's answers as activations.

    Attributes:
        pairs: the pairs that count, as `effective_pairs` gives them.
        counts: how many were kept, and why not more; None where nothing was judged.
        tables: the response tables of both sides.
        pos, neg: response_avg of the pairs, row i of both a pair.
    """

    plan: TraitPlan
    pairs: pd.DataFrame
    counts: PairCounts | None
    tables: dict[str, pd.DataFrame]
    pos: Float[Tensor, "n layers d_model"]
    neg: Float[Tensor, "n layers d_model"]

    @property
    def name(self) -> str:
        return self.plan.trait.name

    @property
    def questions(self) -> list[int]:
        """The question of each pair."""
        return self.pairs["question_index"].tolist()


def plan(asked: Asked) -> Plan:
    """The plan; no model is loaded.

    Raises:
        ValueError: in one line, whatever can be known to be wrong.
    """
    if asked.n_samples < 2:
        raise ValueError(f"--n_samples counts questions, and holding some out takes at least 2; got {asked.n_samples}")
    if asked.max_tokens < 1 or not 0 <= asked.threshold <= 100:
        raise ValueError(
            f"max_tokens {asked.max_tokens}, threshold {asked.threshold:g}: expected at least 1, and 0-100"
        )
    if asked.compare_steering and asked.judge_model is None:
        raise ValueError("--compare_steering compares what a judge says of steered answers; give --judge_model")
    bits = quantised_bits(asked.load_in_4bit, asked.load_in_8bit, asked.device_map)
    if bits and asked.engine == "vllm":
        raise ValueError(f"--engine vllm loads weights as they are; leave out --load_in_{bits}bit, or use --engine hf")
    resolve_model(asked.model_name)
    kind = settle_engine("hf" if bits else asked.engine, [asked.model_name], asked.device_map)
    layers, notes = wanted_layers(asked)
    if asked.judge_model is not None:
        check_judge(asked.judge_model)
    if asked.compare_steering and (0 in layers or (asked.steer_layer or layers[0]) not in layers):
        raise ValueError(
            f"layers {' '.join(map(str, layers))}, steer_layer {asked.steer_layer}: expected one of the layers "
            "that are read, and not the embeddings, which cannot be steered"
        )
    traits = [_trait_plan(asked, name) for name in several(asked.trait)]
    check_once("trait", [one.trait.name for one in traits])
    for one in traits:
        check_output_path(one.base.with_name(f"{one.base.name}_vectors.npz"))
    if asked.judge_model is None:
        notes.append(
            "no judge: every answer counts, whether or not it shows the trait (--judge_model keeps those that do)"
        )
    engine = Engine(asked.model_name, asked.dtype, asked.device_map, kind=kind, bits=bits)
    return Plan(engine, layers, traits, notes)


def wanted_layers(asked: Asked) -> tuple[list[int], list[str]]:
    """(the layers to read, lowest first, and what there is to say of them).

    A range names both its ends, and is cut where the model ends. Without either flag it is the published 10 to 20
    where the model has them, and otherwise every layer but the embeddings.
    """
    n_layers, label = load_config(asked.model_name).num_hidden_layers, resolve_model(asked.model_name).label
    if asked.layers is not None and asked.layer_range is not None:
        raise ValueError("--layers and --layer_range exclude each other; give one")
    if asked.layers is not None:
        check_once("layers", asked.layers)
        for layer in asked.layers:
            check_layer(layer, n_layers, label, steering=False)
        return sorted(asked.layers), []
    if asked.layer_range is None:
        first, last = PUBLISHED_RANGE
        if last <= n_layers:
            return list(range(first, last + 1)), []
        return list(range(1, n_layers + 1)), [
            f"{label} has {n_layers} layers, fewer than the default {first} to {last}: all are read"
        ]
    if len(asked.layer_range) != 2 or asked.layer_range[0] > asked.layer_range[1]:
        raise ValueError(
            f"--layer_range takes the first and the last layer; got {' '.join(map(str, asked.layer_range))}"
        )
    first, last = asked.layer_range
    if first < 0 or first > n_layers:
        raise ValueError(
            f"--layer_range {first} {last}: {label} has layers 0..{n_layers}; try --layer_range 1 {n_layers}"
        )
    cut = [f"{label} has {n_layers} layers: {first} to {n_layers} are read"] if last > n_layers else []
    return list(range(first, min(last, n_layers) + 1)), cut


def _trait_plan(asked: Asked, name: str) -> TraitPlan:
    trait = load_trait(name, "extract", model=asked.model_name, judge_model=asked.judge_model)
    if len(trait.questions) < 2:
        raise ValueError(f"{trait.source['questions']} has {len(trait.questions)} question; holding some out takes 2")
    sides = {}
    for pole in ("pos", "neg"):
        questions = load_persona_questions(
            name,
            persona_instruction_type=pole,
            judge_model=asked.judge_model or DEFAULT_JUDGE,
            version="extract",
            model=asked.model_name,
        )
        chosen = [one for one in questions if one.stream[0] < asked.n_samples]
        sides[pole] = [one if asked.judge_model else replace(one, judge_prompts={}) for one in chosen]
    n_per_question = -(-asked.n_samples // len(trait.questions))
    return TraitPlan(name, trait, file_base(asked, trait.name), sides["pos"], sides["neg"], n_per_question)


def file_base(asked: Asked, trait: str) -> Path:
    """`<save_dir>/<model with / as _>_<trait>`."""
    model = Path(asked.model_name).as_posix().replace("/", "_").lstrip(".")
    return Path(asked.save_dir) / f"{model}_{trait}"


def read_traits(asked: Asked, work: Plan, store: Store) -> tuple[list[Reading], list[str]]:
    """(every trait's activations, why those that are missing are): answers are sampled as one job (of traits with as
    many samples a question), then all pairs that count are read.

    Raises:
        cli.Unfinished: judge calls that failed, after the others were stored.
    """
    tables = {one.trait.name: {} for one in work.traits}
    for n_per_question in dict.fromkeys(one.n_per_question for one in work.traits):
        chosen = [one for one in work.traits if one.n_per_question == n_per_question]
        sides = [(one, pole) for one in chosen for pole in ("pos", "neg")]
        studies = [Study(one.trait.name, one.base, getattr(one, pole), [Setting()]) for one, pole in sides]
        how = Sampling(n_per_question, asked.max_tokens, asked.seed)
        found = [settings[0] for settings in answered(work.engine, store, studies, how)]
        _refuse_gaps(found)
        for (one, pole), own in zip(sides, found, strict=True):
            tables[one.trait.name][pole] = own.table
    work.engine.release()
    kept: list[tuple[TraitPlan, pd.DataFrame, PairCounts | None]] = []
    failures = []
    for one in work.traits:
        try:
            pairs, counts = _pairs(one, tables[one.trait.name], asked)
            kept.append((one, _readable(pairs, work.engine.tokenizer), counts))
        except ValueError as error:
            failures.append(f"{one.trait.name}: {error}")
    activations = _read(work, [pairs for _, pairs, _ in kept])
    readings = [
        Reading(one, pairs, counts, tables[one.trait.name], *sides)
        for (one, pairs, counts), sides in zip(kept, activations, strict=True)
    ]
    return readings, failures


def _refuse_gaps(found: Sequence[Answered]) -> None:
    failures = dict(enumerate(why for one in found for why in one.failures))
    if failures:
        total = sum(2 * len(one.table) for one in found)  # trait and coherence
        raise cli.Unfinished(f"{failure_line(failures, total)}: run the same command again; what was scored is kept")


def _pairs(one: TraitPlan, sides: dict[str, pd.DataFrame], asked: Asked) -> tuple[pd.DataFrame, PairCounts | None]:
    """The pairs that count: those that show the trait as judged, or all of them."""
    name = one.trait.name
    if asked.judge_model is None:
        pairs, counts = all_pairs(sides["pos"], sides["neg"], name), None
    else:
        given = sides["pos"], sides["neg"], name, asked.threshold, "pos_neg"
        pairs, counts = effective_pairs(*given), count_pairs(*given)
    return pairs, counts


def _readable(pairs: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """The pairs whose answers are tokens on both sides: a text can be made of what its tokenizer reads as nothing."""
    there = np.ones(len(pairs), dtype=bool)
    for side in ("pos", "neg"):
        told = zip(pairs[f"{side}_prompt"], pairs[f"{side}_answer"], strict=True)
        there &= [tokenize_sample(tokenizer, prompt, answer).response_len > 0 for prompt, answer in told]
    if there.sum() < 2:
        raise ValueError(
            f"{there.sum()} of {len(pairs)} pairs of answers can be read; a mean needs 2: raise --n_samples"
        )
    return pairs.loc[there].reset_index(drop=True)


def _read(work: Plan, pairs: Sequence[pd.DataFrame]) -> list[tuple[Tensor, Tensor]]:
    """(pos, neg) response_avg of each table's pairs, (n, layers, d_model) each."""
    if not pairs:
        return []
    tokenizer = work.engine.tokenizer
    samples = [
        tokenize_sample(tokenizer, prompt, answer)
        for table in pairs
        for side in ("pos", "neg")
        for prompt, answer in zip(table[f"{side}_prompt"], table[f"{side}_answer"], strict=True)
    ]
    means = mean_activations(work.engine.model, samples, work.layers, ["response_avg"], progress=True)["response_avg"]
    sides = torch.split(means, [len(table) for table in pairs for _ in range(2)])
    return list(zip(sides[::2], sides[1::2], strict=True))
