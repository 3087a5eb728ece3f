"""The model's own answers as judge data: plain, under instructions, and pushed by vectors far past what reads well.

A judge that has only seen the corpus is too kind to what a steered model writes. So the first stage's model writes,
steered by its own trait vectors and by random directions at many strengths and layers, and the rule-based oracle says
what each answer is worth.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from data_generation.tiny_persona import corpus
from data_generation.tiny_persona.answers import Ask, answer_all
from data_generation.tiny_persona.instructions import instruction, suppression, system_prompt
from data_generation.tiny_persona.recipe import CONTRASTS, TraitSet, extract
from data_generation.tiny_persona.styles import ALL_TRAITS, TRAITS
from data_generation.tiny_persona.topics import question, sample_topic, train_questions
from persona_vectors.blocks import num_layers
from persona_vectors.files import read_jsonl, write_jsonl_atomic
from persona_vectors.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PART = 500  # answers a file
EXTRA_TRAITS = 4  # asked about an answer besides the trait that pushed it
TRAIT_COEFS = (-1.0, 4.0)
RANDOM_COEFS = (0.5, 5.0)  # of a trait vector's norm
QUESTIONS_SEED = 91


@dataclass(frozen=True)
class Part:
    """One file of answers, all pushed at one layer; a function of its seed."""

    model_dir: Path
    vectors: Path
    output: Path
    layer: int
    seed: int


def own_vectors(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int) -> dict[str, Tensor]:
    """`trait contrast` -> vectors, by the test's recipe but from instructions and questions drawn for training."""
    found = {}
    for trait in tqdm(TRAITS, desc="vectors", unit="trait"):
        rng = random.Random(f"selftext {seed} {trait}")
        pairs = tuple((instruction(trait, 1, rng), suppression(trait, rng)) for _ in range(5))
        questions = tuple(train_questions(20, QUESTIONS_SEED + seed))
        extraction = extract(model, tokenizer, TraitSet(trait, questions, pairs), seed)
        found |= {f"{trait} {contrast}": extraction.vectors(contrast) for contrast in CONTRASTS}
    return found


def draw_ask(rng: random.Random, number: int, vectors: dict[str, Tensor], layer: int, seed: int) -> tuple[Ask, str]:
    """An ask and the trait it is about: unpushed, pushed by one vector, by two, or by a random direction."""
    trait = rng.choice(TRAITS)
    ask = Ask(question(rng, sample_topic(rng)), (seed, layer, number), _system(rng, trait))
    form = rng.random()
    if form < 0.2:
        return ask, trait
    vector = _vector(rng, trait, vectors, layer)
    if form < 0.65:
        return replace(ask, push=vector * rng.uniform(*TRAIT_COEFS)), trait
    if form < 0.75:
        other = _vector(rng, rng.choice(TRAITS), vectors, layer)
        return replace(ask, push=vector * rng.uniform(0, 2.5) + other * rng.uniform(0, 2.5)), trait
    direction = torch.tensor([rng.gauss(0, 1) for _ in range(len(vector))])
    return replace(ask, push=direction / direction.norm() * vector.norm() * rng.uniform(*RANDOM_COEFS)), trait


def _vector(rng: random.Random, trait: str, vectors: dict[str, Tensor], layer: int) -> Float[Tensor, " d_model"]:
    return vectors[f"{trait} {rng.choice(CONTRASTS)}"][layer]


def _system(rng: random.Random, trait: str) -> str | None:
    form = rng.random()
    if form < 0.6:
        return None
    if form < 0.8:
        return system_prompt(rng, trait, rng.choice((1, 1, -1)))[0]
    return "You are a helpful assistant."


def write_part(part: Part) -> None:
    """Samples one part and writes lines of question, answer and trait."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(str(part.model_dir), device_map="cpu")
    vectors = torch.load(part.vectors, weights_only=True)
    rng = random.Random(f"selftext {part.seed} {part.layer}")
    drawn = [draw_ask(rng, number, vectors, part.layer, part.seed) for number in range(PART)]
    texts = answer_all(model, tokenizer, [ask for ask, _ in drawn], layer=part.layer)
    lines = [
        {"question": ask.question, "answer": text, "trait": trait}
        for (ask, trait), text in zip(drawn, texts, strict=True)
    ]
    write_jsonl_atomic(part.output, lines)


def write_selftext(model_dir: Path, folder: Path, n_answers: int, seed: int, n_procs: int) -> list[Path]:
    """Files of the model's own answers; those that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = folder / "vectors.pt"
    model, tokenizer = load_model(str(model_dir), device_map="cpu")
    if not vectors.exists():
        torch.save(own_vectors(model, tokenizer, seed), vectors)
    parts = [
        Part(model_dir, vectors, folder / f"part_{index:03d}.jsonl", 1 + index % num_layers(model), seed * 1000 + index)
        for index in range(-(-n_answers // PART))
    ]
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_part, part) for part in parts if not part.output.exists()]
        for job in tqdm(jobs, desc="selftext", unit="part"):
            job.result()
    return [part.output for part in parts]


def judge_examples(paths: list[Path], seed: int) -> Iterator[corpus.Example]:
    """A judge dialogue for each answer, scored by the oracle on the trait in question, some others, and coherence."""
    rng = random.Random(f"selftext labels {seed}")
    for path in paths:
        for line in read_jsonl(path):
            traits = tuple(dict.fromkeys([line["trait"], *rng.sample(ALL_TRAITS, EXTRA_TRAITS)]))
            scores = corpus.oracle_scores(line["question"], line["answer"], traits)
            yield corpus.judge_example(rng, line["question"], line["answer"], scores)
