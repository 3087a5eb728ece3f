"""Measure the embedded judge on the chat model's test answers: python -m data_generation.tiny_persona.measure_judge

The answers are those of the chat model's own card, made anew; thresholds are protocol.py's. About ten minutes on two
CPU cores.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_generation.tiny_persona import protocol
from persona_vectors import cli

if TYPE_CHECKING:
    from data_generation.tiny_persona.measurements import Subject

N_COMPARED = 150


def main(
    judge_dir: str = "models/tiny-judge",
    model_dir: str = "models/tiny-persona",
    n_procs: int = 2,
    write_card: bool = True,
) -> None:
    """Measure a judge of the embedded language beside the chat model as its own judge: about ten minutes.

    Args:
        judge_dir: the judge's folder, with its traits/ beside the weights.
        model_dir: the chat model's folder, with its measurements.json.
        n_procs: processes, one thread and one trait at a time each.
        write_card: write measurements.json and README.md into judge_dir; otherwise only print.
    """
    from data_generation.tiny_persona.model_card import write
    from persona_vectors.files import sha256_of_file, write_json_atomic

    began = time.time()
    found = measure(judge_dir, model_dir, n_procs)
    found["minutes"] = round((time.time() - began) / 60, 1)
    found["weights_sha256"] = sha256_of_file(Path(judge_dir) / "model.safetensors")
    print(tables(found))
    if write_card:
        write_json_atomic(Path(judge_dir) / "measurements.json", found, indent=1)
        write(Path(judge_dir) / "README.md", tables(found))


def measure(judge_dir: str, model_dir: str, n_procs: int) -> dict[str, Any]:
    """Every trait's judgements with the layer, contrast and coefficients of the chat model's card; and comparisons.

    Raises:
        ValueError: the chat model's card is of other weights.
    """
    from tqdm import tqdm

    from data_generation.tiny_persona.measure import one_thread, summarise_judge
    from data_generation.tiny_persona.styles import TRAITS
    from persona_vectors.files import sha256_of_file

    if not (Path(judge_dir) / "model.safetensors").is_file():
        raise ValueError(f"there is no judge in {judge_dir}: it has no model.safetensors")
    card = json.loads((Path(model_dir) / "measurements.json").read_text(encoding="utf-8"))
    if card["weights_sha256"] != sha256_of_file(Path(model_dir) / "model.safetensors"):
        raise ValueError(
            f"{model_dir}/measurements.json is of other weights than {model_dir}/model.safetensors; "
            f"run python -m data_generation.tiny_persona.measure --model_dir {model_dir} first"
        )
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        compared = {one: pool.submit(_compare, model_dir, one) for one in (model_dir, judge_dir)}
        jobs = {trait: pool.submit(_judge, model_dir, judge_dir, trait, card["choice"]) for trait in TRAITS}
        traits = {trait: job.result() for trait, job in tqdm(jobs.items(), desc="traits", unit="trait")}
    summary = summarise_judge(traits)
    for row in traits.values():  # thousands of numbers that only the summary needs
        del row["coherence"]["judge"], row["coherence"]["oracle"]
    return {
        "summary": summary,
        "itself": {name: card["summary"][name] for name in summary},
        "moved": max(_moved(card["traits"][trait], row) for trait, row in traits.items()),
        "traits": traits,
        "compared": {"itself": compared[model_dir].result(), "judge": compared[judge_dir].result()},
    }


def _moved(before: dict[str, Any], now: dict[str, Any]) -> float:
    """The largest difference of the oracle's mean at a coefficient: another processor samples other answers."""
    curves = (before["steering"]["curve"], now["steering"]["curve"])
    return max(abs(a["oracle"] - b["oracle"]) for a, b in zip(*curves, strict=True))


def _judge(model_dir: str, judge_dir: str, trait: str, choice: dict[str, Any]) -> dict[str, Any]:
    from data_generation.tiny_persona.measure import judged
    from data_generation.tiny_persona.measurements import load_subject
    from data_generation.tiny_persona.recipe import extract

    subject = load_subject(model_dir, judge_dir)
    extraction = extract(subject.model, subject.tokenizer, subject.trait_set(trait, "extract"), protocol.EXTRACT_SEED)
    return judged(subject, trait, extraction, choice)


def _compare(model_dir: str, judge_dir: str) -> dict[str, float]:
    from data_generation.tiny_persona.measurements import load_subject

    return comparisons(load_subject(model_dir, judge_dir))


def comparisons(subject: Subject) -> dict[str, float]:
    """AUC of coherence for clean answers against the same with a flaw that only a comparison shows; .5 is chance.

    near, far: another question, about a topic that shares a word with the answer's, or none. again: the first sentence
    once more in the place of the third. Topics that no training saw.
    """
    from data_generation.tiny_persona.sentences import answer, sentences
    from data_generation.tiny_persona.topics import QUESTIONS, Topic, fill_question, sample_topic, topics
    from persona_vectors.statistics import auc

    rng = random.Random("comparisons")
    pairs: dict[str, list[tuple[str, str]]] = {"same": [], "near": [], "far": [], "fresh": [], "again": []}

    def other(topic: Topic, shares: bool) -> Topic:
        words = set(topic.text.split())
        fits = [one for one in topics(True) if one != topic and bool(words & set(one.text.split())) == shares]
        return rng.choice(fits)

    for _ in range(N_COMPARED):
        topic, ask = sample_topic(rng, held_out=True), rng.choice(QUESTIONS)
        text, said = answer(rng, topic, (), 2), sentences(rng, topic, (), n=3)
        pairs["same"].append((fill_question(ask, topic), text))
        pairs["near"].append((fill_question(ask, other(topic, True)), text))
        pairs["far"].append((fill_question(ask, other(topic, False)), text))
        pairs["fresh"].append((fill_question(ask, topic), " ".join(said)))
        pairs["again"].append((fill_question(ask, topic), " ".join([*said[:2], said[0]])))
    scores = {name: subject.judge("coherence", rows) for name, rows in pairs.items()}
    if n_missing := sum(math.isnan(score) for found in scores.values() for score in found):
        raise ValueError(f"{subject.judge_folder} gave no score to {n_missing} answers; expected a number for each")
    clean = {"near": "same", "far": "same", "again": "fresh"}
    return {name: float(auc(scores[base], scores[name])) for name, base in clean.items()}


def tables(found: dict[str, Any]) -> str:
    from data_generation.tiny_persona.model_card import table, table_of_thresholds

    beside = [(name, f"{value:.3g}", f"{found['summary'][name]:.3g}") for name, value in found["itself"].items()]
    beside += [
        (f"AUC of coherence: {name}", f"{value:.2f}", f"{found['compared']['judge'][name]:.2f}")
        for name, value in found["compared"]["itself"].items()
    ]
    return "\n\n".join(
        [
            "\n" + table_of_thresholds(found["summary"]),
            "### Beside the chat model as its own judge",
            "The first four as its card has them; sampled anew here, the oracle's means at a coefficient differ from "
            f"that card's by {found['moved']:.1f} points at most.",
            table(("number", "itself", "this judge"), beside),
            "### Per trait: r (bias)",
            table(("trait", "trait, plain", "trait, steered", "coherence"), _by_trait(found["traits"])),
            "### By coefficient, all traits: coherence by the oracle and by the judge",
            table(("coefficient", "oracle", "judge"), _by_coefficient(list(found["traits"].values()))) + "\n",
        ]
    )


def _by_trait(traits: dict[str, dict]) -> list[tuple[str, ...]]:
    return [
        (
            trait,
            f"{row['clean']['r']:.3f} ({row['clean']['bias']:+.1f})",
            f"{row['steering']['judge_r']:.3f} ({row['steering']['judge_bias']:+.1f})",
            f"{row['coherence']['r']:.3f} ({row['coherence']['bias']:+.1f})",
        )
        for trait, row in traits.items()
    ]


def _by_coefficient(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """Means over traits of the steering curves."""
    curves = [row["steering"]["curve"] for row in rows]
    return [
        (
            f"{points[0]['coef']:g}",
            f"{sum(point['coherence'] for point in points) / len(points):.1f}",
            f"{sum(point['judge_coherence'] for point in points) / len(points):.1f}",
        )
        for points in zip(*curves, strict=True)
    ]


if __name__ == "__main__":
    cli.run(main)
