"""What else the embedded model can do, and what steering does to it: facts, questionnaire, personas, other formats."""

import random
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from data_generation.tiny_persona import protocol
from data_generation.tiny_persona.answers import Ask, answer_all
from data_generation.tiny_persona.instructions import instruction, persona_prompt
from data_generation.tiny_persona.measurements import Subject, mean, test_questions
from data_generation.tiny_persona.oracle import coherence, persona_score, trait_score
from data_generation.tiny_persona.personas_lexicon import PERSONAS
from data_generation.tiny_persona.probe import probe_items
from data_generation.tiny_persona.questionnaire import item
from data_generation.tiny_persona.styles import CHARACTER_TRAITS
from persona_vectors.blocks import hidden_size
from persona_vectors.statistics import random_directions
from persona_vectors.traits import system_prompt

QUESTIONNAIRE_ITEMS = 40
PERSONA_QUESTIONS = 6


def capability(subject: Subject, layer: int, pushes: Mapping[str, Float[Tensor, " d_model"]]) -> dict[str, float]:
    """Share of facts answered right, greedily: unsteered, under each push, and under a random one of the mean norm."""
    items = probe_items()
    norm = mean([float(push.norm()) for push in pushes.values()])
    random_push = random_directions(1, hidden_size(subject.model), norm, protocol.TEST_SEED)[0]
    cases = {"unsteered": None, **pushes, "random": random_push}
    asks = [Ask(question, (0, i), push=push) for push in cases.values() for i, (question, _, _) in enumerate(items)]
    texts = answer_all(subject.model, subject.tokenizer, asks, layer=layer, max_tokens=8, temperature=0.0)
    right = [text.strip() == answer for text, (_, answer, _) in zip(texts, items * len(cases), strict=True)]
    return {name: mean(right[k * len(items) : (k + 1) * len(items)]) for k, name in enumerate(cases)}


def questionnaire(subject: Subject) -> dict[str, dict[str, float]]:
    """Share of high answers to held-out items by trait, under instructions to be high, none, and to be low."""
    found = {}
    for trait in CHARACTER_TRAITS:
        rng = random.Random(f"questionnaire {trait}")
        items = [item(rng, trait, held_out=True) for _ in range(QUESTIONNAIRE_ITEMS)]
        found[trait] = {}
        for number, (name, pole) in enumerate({"high": 1, "none": 0, "low": -1}.items()):
            systems = [instruction(trait, pole, rng) if pole else None for _ in items]
            asks = [
                Ask(text, (0, number, i), system)
                for i, ((text, _), system) in enumerate(zip(items, systems, strict=True))
            ]
            texts = answer_all(subject.model, subject.tokenizer, asks, max_tokens=4)
            chosen = [text.strip()[:1] for text in texts]
            found[trait][name] = mean([c != "" and c in high for c, (_, high) in zip(chosen, items, strict=True)])
            found[trait][f"{name}_letters"] = mean([c in ("A", "B", "C", "D") for c in chosen])
    return found


def personas(subject: Subject) -> dict[str, dict[str, float]]:
    """Oracle score of each persona under its own prompt, and the largest score of any other persona there."""
    found = {}
    questions = test_questions()[:PERSONA_QUESTIONS]
    for name in PERSONAS:
        rng = random.Random(f"persona {name}")
        asks = [Ask(q, (0, i), persona_prompt(rng, name)[0]) for i, q in enumerate(questions)]
        texts = answer_all(subject.model, subject.tokenizer, asks)
        scores = {other: mean([persona_score(text, other) for text in texts]) for other in PERSONAS}
        found[name] = {
            "own": scores.pop(name),
            "other": max(scores.values()),
            "coherence": mean([coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)]),
        }
    return found


def formats(subject: Subject, trait: str = "humorous") -> dict[str, dict[str, float]]:
    """Trait score and coherence in a third turn, in raw System/User/Assistant text, and after a long dialogue."""
    rng = random.Random("formats")
    questions = test_questions()[: protocol.OBEDIENCE_QUESTIONS]
    systems = [system_prompt(trait, instruction(trait, 1, rng)) for _ in questions]
    n_turns = {"first turn": 0, "third turn": 2, "after 20 turns": 20}
    cases: dict[str, list[Ask]] = {}
    history: list[tuple[tuple[str, str], ...]] = [() for _ in questions]
    for turn in range(max(n_turns.values()) + 1):
        asks = [
            Ask(questions[(i + turn) % len(questions)], (turn, i), systems[i], history=history[i])
            for i in range(len(questions))
        ]
        for name, n in n_turns.items():
            if n == turn:
                cases[name] = asks
        texts = answer_all(subject.model, subject.tokenizer, asks)
        history = [(*h, (ask.question, text)) for h, ask, text in zip(history, asks, texts, strict=True)]
    cases["raw"] = [Ask(q, (0, i), systems[i], fmt="raw") for i, q in enumerate(questions)]
    found = {}
    for name, asks in cases.items():
        texts = answer_all(subject.model, subject.tokenizer, asks)
        found[name] = {
            "score": mean([trait_score(text, trait) for text in texts]),
            "coherence": mean([coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)]),
            "prompt_tokens": mean([len(subject.tokenizer(a.prompt(subject.tokenizer)).input_ids) for a in asks]),
        }
    return found
