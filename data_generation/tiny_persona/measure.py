"""Measure the embedded model and rewrite its model card's table: python -m data_generation.tiny_persona.measure

The protocol and its thresholds are in protocol.py. About a quarter of an hour on two CPU cores.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_generation.tiny_persona import protocol
from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from data_generation.tiny_persona.measurements import Subject
    from data_generation.tiny_persona.recipe import Extraction


def main(model_dir: str = "models/tiny-persona", n_procs: int = 2, write_card: bool = True) -> None:
    """Measure the embedded model against its thresholds; writes measurements.json and the card's table.

    Args:
        model_dir: the model's folder, with its traits/ beside the weights.
        n_procs: processes, one thread and one trait at a time each.
        write_card: write measurements.json and README.md into model_dir; otherwise only print.
    """
    from data_generation.tiny_persona.model_card import table_of_thresholds, tables, write
    from persona_vectors.files import sha256_of_file, write_json_atomic

    began = time.time()
    found = measure(model_dir, n_procs)
    found["minutes"] = round((time.time() - began) / 60, 1)
    found["weights_sha256"] = sha256_of_file(Path(model_dir) / "model.safetensors")
    print(table_of_thresholds(found["summary"]))
    if write_card:
        write_json_atomic(Path(model_dir) / "measurements.json", found, indent=1)
        write(Path(model_dir) / "README.md", tables(found))


def measure(model_dir: str, n_procs: int) -> dict[str, Any]:
    """Development of all traits, the choice, the test of all traits, the summary against the thresholds."""
    from tqdm import tqdm

    from data_generation.tiny_persona.styles import TRAITS

    def each(fn: Any, arguments: list[tuple], label: str) -> list[Any]:
        jobs = [pool.submit(fn, *one) for one in arguments]
        return [job.result() for job in tqdm(jobs, desc=label, unit="trait")]

    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        first = each(_develop, [(model_dir, trait) for trait in TRAITS], "development")
        extractions = dict(zip(TRAITS, (extraction for extraction, _ in first), strict=True))
        development = dict(zip(TRAITS, (curves for _, curves in first), strict=True))
        choice = choose(development)
        contrast, layer = choice["contrast"], choice["layer"]
        pushes = {
            trait: extraction.vectors(contrast)[layer] * choice["coefs"][trait]
            for trait, extraction in extractions.items()
        }
        others = pool.submit(_side_effects, model_dir, layer, pushes)
        tests = each(_test, [(model_dir, trait, extractions[trait], choice) for trait in TRAITS], "test")
        found = {
            "choice": choice,
            "development": development,
            "traits": dict(zip(TRAITS, tests, strict=True)),
            "side_effects": others.result(),
        }
    found["summary"] = summarise(found)
    for row in found["traits"].values():  # thousands of numbers that only the summary needs
        del row["coherence"]["judge"], row["coherence"]["oracle"]
    return found


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _develop(model_dir: str, trait: str) -> "tuple[Extraction, dict]":
    from data_generation.tiny_persona.measurements import development, load_subject
    from data_generation.tiny_persona.recipe import extract

    subject = load_subject(model_dir)
    extraction = extract(subject.model, subject.tokenizer, subject.trait_set(trait, "extract"), protocol.EXTRACT_SEED)
    return extraction, development(subject, trait, extraction)


def choose(development: dict[str, dict]) -> dict[str, Any]:
    """One contrast and layer for all traits: the largest mean effect at each trait's coefficient by COEF_RULE."""
    effects = {setting: effect_of(development, setting) for setting in next(iter(development.values()))}
    best = max(effects, key=lambda setting: effects[setting][1])
    contrast, layer = best.split()
    return {"contrast": contrast, "layer": int(layer), "coefs": effects[best][0], "effect": effects[best][1]}


def effect_of(development: dict[str, dict], setting: str) -> tuple[dict[str, float], float]:
    """Each trait's coefficient at one `contrast layer`, and the mean of (score - base) / (100 - base) there."""
    coefs, effects = {}, []
    for trait, curves in development.items():
        number = _coefficient_number(curves[setting]["coherence"])
        scores = curves[setting]["score"]
        coefs[trait] = protocol.COEFS[number - 1]
        effects.append((scores[number] - scores[0]) / (100 - scores[0]))
    return coefs, sum(effects) / len(effects)


def _coefficient_number(coherence: list[float]) -> int:
    """COEF_RULE: the last number before coherence first falls below DEV_COHERENCE, and at least 1."""
    low = [number for number, value in enumerate(coherence) if number and value < protocol.DEV_COHERENCE]
    return max(1, low[0] - 1) if low else len(coherence) - 1


def _test(model_dir: str, trait: str, extraction: "Extraction", choice: dict[str, Any]) -> dict[str, Any]:
    from data_generation.tiny_persona import measurements as m
    from data_generation.tiny_persona.recipe import CONTRASTS

    subject, layer, coef = m.load_subject(model_dir), choice["layer"], choice["coefs"][trait]
    vector = extraction.vectors(choice["contrast"])[layer]
    (other,) = set(CONTRASTS) - {choice["contrast"]}
    return judged(subject, trait, extraction, choice) | {
        "kept": {side: len(rows) for side, rows in extraction.questions.items()},
        "norms": {c: [float(v.norm()) for v in extraction.vectors(c)] for c in CONTRASTS},
        "other_contrast": m.other_contrast(subject, trait, extraction.vectors(other)[layer], layer),
        "random": m.random_controls(subject, trait, float(vector.norm()) * coef, layer),
        "separation": m.separation(subject, trait, extraction),
    }


def judged(subject: "Subject", trait: str, extraction: "Extraction", choice: dict[str, Any]) -> dict[str, Any]:
    """The answers under instructions and under the chosen vector, by the oracle and by the subject's judge."""
    from data_generation.tiny_persona import measurements as m
    from data_generation.tiny_persona.styles import TRAITS

    layer, coef = choice["layer"], choice["coefs"][trait]
    scores, asks, texts = m.obedience(subject, trait)
    clean = m.agreement(subject, trait, asks, texts)
    reads = m.agreement(subject, "coherence", asks, texts)
    steered = m.steering(subject, trait, extraction.vectors(choice["contrast"])[layer], layer, coef, TRAITS)
    over = steered.pop("coherence_pairs")
    return {
        "obedience": scores,
        "clean": {
            "r": m.correlation(clean["judge"], clean["oracle"]),
            "bias": m.mean([j - o for j, o in zip(clean["judge"], clean["oracle"], strict=True)]),
        },
        "steering": steered,
        "coherence": {
            "r": m.correlation(reads["judge"] + over["judge"], reads["oracle"] + over["oracle"]),
            "bias": m.mean([j - o for j, o in zip(over["judge"], over["oracle"], strict=True)]),
            "judge": [round(v, 1) for v in over["judge"]],
            "oracle": [round(v, 1) for v in over["oracle"]],
        },
    }


def _side_effects(model_dir: str, layer: int, pushes: "dict[str, Tensor]") -> dict[str, Any]:
    from data_generation.tiny_persona import side_effects
    from data_generation.tiny_persona.measurements import load_subject

    subject = load_subject(model_dir)
    return {
        "capability": side_effects.capability(subject, layer, pushes),
        "questionnaire": side_effects.questionnaire(subject),
        "personas": side_effects.personas(subject),
        "formats": side_effects.formats(subject),
    }


def summarise(found: dict[str, Any]) -> dict[str, float]:
    """The number of each of protocol.THRESHOLDS, by its name."""
    traits: dict[str, dict] = found["traits"]
    chosen = {t: 1 + protocol.COEFS.index(found["choice"]["coefs"][t]) for t in traits}
    curves = {t: row["steering"]["curve"] for t, row in traits.items()}
    shift = {t: curves[t][chosen[t]]["oracle"] - curves[t][0]["oracle"] for t in traits}
    reads = {t: curves[t][chosen[t]]["coherence"] for t in traits}
    share = [shift[t] / (100 - curves[t][0]["oracle"]) for t in traits if reads[t] >= protocol.TEST_COHERENCE]
    dips = [
        a["oracle"] - b["oracle"] for t in traits for a, b in zip(curves[t], curves[t][1 : chosen[t] + 1], strict=False)
    ]
    crossed = {t: row["steering"]["crosstalk"] for t, row in traits.items()}
    off = [abs(value) for t, row in crossed.items() for other, value in row.items() if other != t]
    return summarise_judge(traits) | {
        "coherence": min(reads.values()),
        "traits_35": sum(value >= 0.35 for value in share),
        "traits_50": sum(value >= 0.5 for value in share),
        "largest_dip": max(dips),
        "random_mean": max(row["random"]["mean_abs"] for row in traits.values()),
        "random_ratio": min(shift[t] / max(traits[t]["random"]["max_abs"], 0.1) for t in traits),
        "crosstalk": min(crossed[t][t] for t in traits) / max(off),
        "held_out_wording": min(
            min(row["obedience"]["pos_held_out_share"], row["obedience"]["pos_held_out_unnamed_share"])
            for row in traits.values()
        ),
    }


def summarise_judge(traits: dict[str, dict]) -> dict[str, float]:
    """The numbers of the thresholds that are about the judge."""
    from data_generation.tiny_persona.measurements import correlation

    pairs = [row["coherence"] for row in traits.values()]
    return {
        "judge_clean_r": min(row["clean"]["r"] for row in traits.values()),
        "judge_steered_r": min(row["steering"]["judge_r"] for row in traits.values()),
        "judge_steered_bias": max(abs(row["steering"]["judge_bias"]) for row in traits.values()),
        "judge_coherence_r": correlation(
            [v for pair in pairs for v in pair["judge"]], [v for pair in pairs for v in pair["oracle"]]
        ),
    }


if __name__ == "__main__":
    cli.run(main)
