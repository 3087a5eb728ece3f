"""The measurements of the embedded model, each a function of a loaded subject that returns plain numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from data_generation.tiny_persona import protocol
from data_generation.tiny_persona.answers import Ask, answer_all
from data_generation.tiny_persona.instructions import instruction, suppression
from data_generation.tiny_persona.oracle import coherence, trait_score
from data_generation.tiny_persona.recipe import CONTRASTS, NEUTRAL_SYSTEM, Extraction, TraitSet
from data_generation.tiny_persona.topics import held_out_questions
from judge import LocalJudge
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import hidden_size, num_layers
from persona_vectors.models import load_model
from persona_vectors.statistics import auc, cluster_bootstrap_mean, random_directions
from persona_vectors.tokens import tokenize_sample
from persona_vectors.traits import load_coherence_prompt, load_trait, system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """The model under test with its own trait files, and the judge of its answers: itself, or another of its kind."""

    folder: Path
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    judge_folder: Path
    judge_model: "PreTrainedModel"

    @property
    def layers(self) -> list[int]:
        return list(range(1, num_layers(self.model) + 1))

    def trait_set(self, trait: str, version: str) -> TraitSet:
        loaded = load_trait(trait, version, model=self.folder)
        return TraitSet(trait, tuple(loaded.questions), tuple((pair.pos, pair.neg) for pair in loaded.instruction))

    def judge(self, aspect: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of (question, answer) pairs, NaN where the judge gave none."""
        prompt = load_coherence_prompt(self.judge_folder) if aspect == "coherence" else None
        if prompt is None:
            prompt = load_trait(aspect, "eval", model=self.folder, judge_model=str(self.judge_folder)).eval_prompt
        scores = LocalJudge(self.judge_model, prompt, tokenizer=self.tokenizer).score_batch(pairs)
        return [float("nan") if score is None else score for score in scores]


def load_subject(folder: str | Path, judge_folder: str | Path | None = None) -> Subject:
    """The model of a folder; without a judge's folder it judges itself."""
    model, tokenizer = load_model(str(folder), device_map="cpu", dtype="float32")
    if judge_folder is None:
        return Subject(Path(folder), model, tokenizer, Path(folder), model)
    judge_model, _ = load_model(str(judge_folder), device_map="cpu", dtype="float32")
    return Subject(Path(folder), model, tokenizer, Path(judge_folder), judge_model)


def test_questions() -> list[str]:
    """Held-out questions that development does not use."""
    used = set(dev_questions())
    drawn = held_out_questions(protocol.TEST_QUESTIONS + len(used), protocol.TEST_SEED)
    return [question for question in drawn if question not in used][: protocol.TEST_QUESTIONS]


def dev_questions() -> list[str]:
    return held_out_questions(protocol.DEV_QUESTIONS, protocol.DEV_SEED)


def mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.nanmean(np.asarray(values, dtype=np.float64)))


def correlation(one: Sequence[float], two: Sequence[float]) -> float:
    """Pearson's r over the rows where both are there; NaN if one of them does not vary."""
    a, b = np.asarray(one, float), np.asarray(two, float)
    there = ~(np.isnan(a) | np.isnan(b))
    a, b = a[there], b[there]
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 0 and b.std() > 0 else float("nan")


def agreement(subject: Subject, aspect: str, asks: Sequence[Ask], texts: Sequence[str]) -> dict[str, list[float]]:
    """Judge and oracle, side by side, over the same answers."""
    pairs = [(ask.question, text) for ask, text in zip(asks, texts, strict=True)]
    truth = [coherence(*pair) if aspect == "coherence" else trait_score(pair[1], aspect) for pair in pairs]
    return {"judge": subject.judge(aspect, pairs), "oracle": truth}


def obedience(subject: Subject, trait: str) -> tuple[dict[str, float], list[Ask], list[str]]:
    """Mean oracle score under no prompt and under pos, neg and suppress instructions, seen and held-out wording.

    Also returns the answers, on which judge and oracle are compared.
    """
    rng = random.Random(f"obedience {trait}")
    questions = test_questions()[: protocol.OBEDIENCE_QUESTIONS]
    systems = {
        "none": lambda: None,
        "pos_seen": lambda: system_prompt(trait, instruction(trait, 1, rng)),
        "pos_held_out": lambda: system_prompt(trait, instruction(trait, 1, rng, held_out=True)),
        "pos_held_out_unnamed": lambda: instruction(trait, 1, rng, held_out=True),
        "neg_seen": lambda: system_prompt("helpful", instruction(trait, -1, rng)),
        "neg_held_out": lambda: system_prompt("helpful", instruction(trait, -1, rng, held_out=True)),
        "suppress_held_out": lambda: system_prompt("helpful", suppression(trait, rng, held_out=True)),
    }
    asks = [
        Ask(question, (protocol.TEST_SEED, number, i), system())
        for number, system in enumerate(systems.values())
        for i, question in enumerate(questions)
    ]
    texts = answer_all(subject.model, subject.tokenizer, asks)
    scores = np.array([trait_score(text, trait) for text in texts]).reshape(len(systems), -1).mean(1)
    found = dict(zip(systems, scores.tolist(), strict=True))
    for kind in ("pos_held_out", "pos_held_out_unnamed"):
        found[f"{kind}_share"] = (found[kind] - found["none"]) / (found["pos_seen"] - found["none"])
    found["coherence"] = mean([coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)])
    return found, asks, texts


def development(subject: Subject, trait: str, extraction: Extraction) -> dict[str, dict[str, list[float]]]:
    """`contrast layer` -> oracle score and coherence by coefficient (the first is coefficient 0), development split."""
    questions = dev_questions()
    plain = [Ask(question, (protocol.DEV_SEED, i)) for i, question in enumerate(questions)]
    base = _scored(plain, answer_all(subject.model, subject.tokenizer, plain), trait)
    found = {}
    for contrast in CONTRASTS:
        for layer in subject.layers:
            vector = extraction.vectors(contrast)[layer]
            asks = [Ask(ask.question, ask.stream, push=coef * vector) for coef in protocol.COEFS for ask in plain]
            texts = answer_all(subject.model, subject.tokenizer, asks, layer=layer)
            rows = [_scored(asks[part], texts[part], trait) for part in _parts(len(plain))]
            found[f"{contrast} {layer}"] = {
                "score": [base[0], *(row[0] for row in rows)],
                "coherence": [base[1], *(row[1] for row in rows)],
            }
    return found


def _parts(size: int) -> list[slice]:
    return [slice(size * k, size * (k + 1)) for k in range(len(protocol.COEFS))]


def _scored(asks: Sequence[Ask], texts: Sequence[str], trait: str) -> tuple[float, float]:
    reads = [coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)]
    return mean([trait_score(text, trait) for text in texts]), mean(reads)


def steering(
    subject: Subject, trait: str, vector: Float[Tensor, " d_model"], layer: int, coef: float, traits: Sequence[str]
) -> dict:
    """The test: oracle and judge by coefficient with intervals by question, crosstalk, judge against oracle."""
    questions = test_questions()
    plain = [Ask(question, (s, i)) for s in protocol.TEST_STREAMS for i, question in enumerate(questions)]
    asks = plain + [Ask(ask.question, ask.stream, push=c * vector) for c in protocol.COEFS for ask in plain]
    texts = answer_all(subject.model, subject.tokenizer, asks, layer=layer)
    score, reads = agreement(subject, trait, asks, texts), agreement(subject, "coherence", asks, texts)
    curve = []
    for number, c in enumerate((0.0, *protocol.COEFS)):
        part = slice(number * len(plain), (number + 1) * len(plain))
        interval = cluster_bootstrap_mean(score["oracle"][part], [ask.question for ask in asks[part]])
        curve.append(
            {
                "coef": c,
                "oracle": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "judge": mean(score["judge"][part]),
                "coherence": mean(reads["oracle"][part]),
                "judge_coherence": mean(reads["judge"][part]),
            }
        )
    chosen = 1 + protocol.COEFS.index(coef)
    at = slice(chosen * len(plain), (chosen + 1) * len(plain))
    cross = {
        t: mean([trait_score(x, t) for x in texts[at]]) - mean([trait_score(x, t) for x in texts[: len(plain)]])
        for t in traits
    }
    steered = slice(len(plain), None)
    return {
        "n": len(plain),
        "curve": curve,
        "crosstalk": cross,
        "judge_r": correlation(score["judge"][steered], score["oracle"][steered]),
        "judge_bias": mean(np.subtract(score["judge"][steered], score["oracle"][steered])),
        "coherence_pairs": reads,
        "by_seed": [
            mean(score["oracle"][at][k * len(questions) : (k + 1) * len(questions)])
            for k in range(len(protocol.TEST_STREAMS))
        ],
        "example": texts[at][:2],
    }


def other_contrast(subject: Subject, trait: str, vector: Float[Tensor, " d_model"], layer: int) -> list[dict]:
    """The oracle's curve of the contrast that was not chosen: same questions, one seed."""
    plain = [Ask(question, (protocol.TEST_STREAMS[0], i)) for i, question in enumerate(test_questions())]
    asks = [Ask(ask.question, ask.stream, push=c * vector) for c in protocol.COEFS for ask in plain]
    texts = answer_all(subject.model, subject.tokenizer, asks, layer=layer)
    rows = [_scored(asks[part], texts[part], trait) for part in _parts(len(plain))]
    return [{"coef": c, "oracle": row[0], "coherence": row[1]} for c, row in zip(protocol.COEFS, rows, strict=True)]


def random_controls(subject: Subject, trait: str, norm: float, layer: int) -> dict[str, float]:
    """Shifts of the oracle score under 99 random directions of the pushed vector's norm, same questions and streams."""
    questions = test_questions()[: protocol.RANDOM_QUESTIONS]
    plain = [Ask(question, (protocol.TEST_STREAMS[0], i)) for i, question in enumerate(questions)]
    directions = random_directions(protocol.RANDOM_DIRECTIONS, hidden_size(subject.model), norm, protocol.TEST_SEED)
    asks = plain + [Ask(ask.question, ask.stream, push=direction) for direction in directions for ask in plain]
    short = protocol.RANDOM_TOKENS
    texts = answer_all(subject.model, subject.tokenizer, asks, layer=layer, max_tokens=short)
    scores = np.array([trait_score(text, trait) for text in texts]).reshape(-1, len(plain)).mean(1)
    shifts = scores[1:] - scores[0]
    reads = [coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)]
    return {
        "n_questions": len(plain),
        "mean_abs": mean(np.abs(shifts)),
        "max_abs": float(np.abs(shifts).max()),
        "coherence": mean(reads[len(plain) :]),
        "coherence_base": mean(reads[: len(plain)]),
    }


def separation(subject: Subject, trait: str, extraction: Extraction) -> dict[str, list[float]]:
    """AUC by layer (0..L) of projections on the extract set's vectors: held-out questions and wordings, pos or neutral.

    Beside it random directions, oriented on the extract set as the vectors are, and the AUC of the text alone.
    """
    evaluation = subject.trait_set(trait, "eval")
    questions = test_questions()[: protocol.OBEDIENCE_QUESTIONS]
    rows = {}
    scores = {}
    for number, side in enumerate(("pos", "neutral")):
        pairs = evaluation.pairs
        asks = [
            Ask(
                question,
                (protocol.TEST_SEED, 100 + number, i),
                system_prompt(trait, pairs[i % len(pairs)][0]) if side == "pos" else NEUTRAL_SYSTEM,
            )
            for i, question in enumerate(questions)
        ]
        texts = answer_all(subject.model, subject.tokenizer, asks)
        samples = [
            tokenize_sample(subject.tokenizer, ask.prompt(subject.tokenizer), text)
            for ask, text in zip(asks, texts, strict=True)
        ]
        rows[side] = mean_activations(subject.model, samples, spans=("response_avg",))["response_avg"]
        scores[side] = [trait_score(text, trait) for text in texts]
    found: dict[str, list[float]] = {"text": [auc(scores["pos"], scores["neutral"])]}
    for contrast in CONTRASTS:
        vectors = extraction.vectors(contrast)
        found[contrast] = [
            auc(rows["pos"][:, layer] @ vectors[layer], rows["neutral"][:, layer] @ vectors[layer])
            for layer in range(len(vectors))
        ]
    return found | _random_separation(rows, extraction.vectors("pos-neutral"))


def _random_separation(rows: dict[str, Tensor], vectors: Tensor) -> dict[str, list[float]]:
    means, tails = [], []
    for layer, vector in enumerate(vectors):
        directions = random_directions(protocol.AUC_RANDOM, len(vector), 1.0, protocol.TEST_SEED + layer)
        directions = directions * (directions @ vector).sign()[:, None]
        pos, neutral = rows["pos"][:, layer] @ directions.T, rows["neutral"][:, layer] @ directions.T  # (n, k)
        values = [auc(pos[:, k], neutral[:, k]) for k in range(len(directions))]
        means.append(mean(values))
        tails.append(float(np.quantile(values, 0.95)))
    return {"random_mean": means, "random_95": tails}
