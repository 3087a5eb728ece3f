"""What directions of weights are claimed to do, on models/tiny-persona, with thresholds set beforehand:

    python -m benchmarks.weight_personas      (about 25 minutes of one idle core; what is finished is kept)

1. The trait score rises with the coefficient. 2. Two directions at once move both traits. 3. The projection of a
finetuned model's change on a direction goes with the trait score it has afterwards. 4. Merged generation is as fast as
steering by a hook. Each with its controls: the unsteered model, random directions of the same singular values, the norm
of the change alone. Held-out questions, scored by the rule-based oracle. Settings: weight_personas_settings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import weight_personas_settings as settings
from benchmarks.study import study_folder
from benchmarks.weight_personas_claims import Columns, Dose, Moved, dose, moved
from benchmarks.weight_personas_models import (
    Asked,
    adapter,
    asked,
    base,
    direction,
    finetuning_sets,
    kept,
    mean_direction,
    projections,
    rows_of,
)
from persona_vectors import cli

Parts = list[tuple[Any, float]]


class Study:
    """The measurements of the study, each made once and kept under `work`."""

    def __init__(self, work: Path):
        from data_generation.tiny_persona.measurements import test_questions

        self.work = work
        self.questions = test_questions()
        self.direction = cache(self._direction)
        self.random = cache(self._random)

    def _direction(self, trait: str, seed: int) -> Any:
        """The trait's direction of a training seed."""
        return direction(self.work, trait, seed, settings.STEPS, settings.LEARNING_RATE)

    def _random(self, trait: str, seed: int, number: int) -> Any:
        """A random direction with the singular values of the trait's."""
        from persona_vectors.weight_direction import random_like

        return random_like(self.direction(trait, seed), seed=1000 * (seed + 1) + number)

    def asked(self, name: str, seed: int, parts: Callable[[], Parts], n: int | None = None) -> Asked:
        """What a merge of the directions answers, to the first n questions or all; its file has this name."""
        path = self.work / "asked" / f"{name.replace(' ', '_')}_{seed}.json"
        return kept(path, lambda: asked(parts(), self.questions[:n], seed, settings.TRAITS))

    def at(self, trait: str, seed: int, c: float) -> Asked:
        """The direction at one coefficient; the unsteered model is asked once a seed."""
        if not c:
            return self.asked("unsteered", seed, list)
        return self.asked(f"{trait} {c:g}", seed, lambda: [(self.direction(trait, seed), c)])

    def random_at(self, trait: str, seed: int, number: int, c: float) -> Asked:
        """A random direction at one coefficient, on some of the questions."""
        name, n = f"random{number} {trait} {c:g}", settings.RANDOM_QUESTIONS
        return self.asked(name, seed, lambda: [(self.random(trait, seed, number), c)], n)

    def doses(self, trait: str, seed: int) -> None:
        """One trait and seed at every coefficient, and its random directions."""
        for c in settings.COEFS:
            self.at(trait, seed, c)
            for k in range(settings.N_RANDOM) if c else ():
                self.random_at(trait, seed, k, c)

    def pair(self, number: int, seed: int) -> dict[str, Asked]:
        """Two directions at their shares: both, each alone, two random ones at once."""
        shares = dict(zip(settings.PAIRS[number], settings.SHARES[number], strict=True))
        label = " ".join(f"{trait} {share:g}" for trait, share in shares.items())

        def parts(source: Callable[[str], Any]) -> Parts:
            return [(source(trait), share) for trait, share in shares.items()]

        return {
            "both": self.asked(f"both {label}", seed, lambda: parts(lambda trait: self.direction(trait, seed))),
            "random": self.asked(f"randoms {label}", seed, lambda: parts(lambda trait: self.random(trait, seed, 0))),
            **{trait: self.at(trait, seed, share) for trait, share in shares.items()},
        }

    def finetuned(self, name: str, seed: int) -> tuple[Any, Asked]:
        """(change, answers) of a model that was finetuned on a data set."""
        file = name.replace(" ", "_").replace("%", "")
        path = self.work / "finetuned" / f"{file}_{seed}"
        change = adapter(
            path, lambda: rows_of(name, seed), seed, settings.FINETUNING_STEPS, settings.FINETUNING_LEARNING_RATE
        )
        return change, self.asked(f"finetuned {file}", seed, lambda: [(change, 1.0)])

    def latency(self) -> dict[str, dict[str, Any]]:
        """Each way of steering: seconds a token in every round."""
        return kept(self.work / "latency.json", self._latency)

    def _latency(self) -> dict[str, Any]:
        import torch

        from data_generation.tiny_persona.answers import Ask
        from eval.compare_latency import measure_latency
        from eval.model_utils import Steering

        model, tokenizer = base()
        prompts = [Ask(question, ()).prompt(tokenizer) for question in self.questions[: settings.LATENCY_PROMPTS]]
        vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        found = measure_latency(
            model,
            tokenizer,
            prompts,
            Steering(vector / vector.norm(), settings.HOOK_LAYER, 1.0),
            self.direction(settings.TRAITS[0], settings.SEEDS[0]),
            rounds=settings.LATENCY_ROUNDS,
            new_tokens=settings.LATENCY_TOKENS,
        )
        return {one.variant: {"seconds": one.seconds, "ratios": one.ratios} for one in found}


def jobs(study: Study) -> list[tuple[Any, ...]]:
    """Every piece of work, in an order in which the time that is left can be told."""
    found: list[tuple[Any, ...]] = [(study.doses, trait, seed) for seed in settings.SEEDS for trait in settings.TRAITS]
    found += [(study.pair, number, seed) for seed in settings.SEEDS for number in range(len(settings.PAIRS))]
    names = finetuning_sets(settings.TRAITS, settings.DILUTIONS, settings.MIXED)
    found += [(study.finetuned, name, seed) for seed in settings.FINETUNING_SEEDS for name in names]
    return [*found, (study.latency,)]


def all_doses(study: Study) -> dict[str, Dose]:
    """Trait -> its curve, over all seeds."""

    def scores(trait: str, answers: list[Asked]) -> np.ndarray:
        return np.array([one["scores"][trait] for one in answers])

    found = {}
    for trait in settings.TRAITS:
        own = {c: [study.at(trait, seed, c) for seed in settings.SEEDS] for c in settings.COEFS}
        random = {
            c: [
                scores(trait, [study.random_at(trait, seed, k, c) for seed in settings.SEEDS])
                for k in range(settings.N_RANDOM)
            ]
            for c in settings.COEFS
            if c
        }
        coherence = {c: float(np.mean([one["coherence"] for one in answers])) for c, answers in own.items()}
        found[trait] = dose({c: scores(trait, answers) for c, answers in own.items()}, coherence, random)
    return found


def all_pairs(study: Study) -> list[tuple[list[Moved], float]]:
    """Each pair's two traits, and the coherence of the answers under both directions."""
    found = []
    for number, names in enumerate(settings.PAIRS):
        measured = [study.pair(number, seed) for seed in settings.SEEDS]
        unsteered = [study.at(names[0], seed, 0.0) for seed in settings.SEEDS]
        both = []
        for trait, other in (names, names[::-1]):
            ways = [[one[way] for one in measured] for way in ("both", trait, other, "random")]
            scores = [np.array([one["scores"][trait] for one in way]) for way in (unsteered, *ways)]
            both.append(moved(trait, *scores))
        found.append((both, float(np.mean([one["both"]["coherence"] for one in measured]))))
    return found


def all_columns(study: Study) -> tuple[dict[str, dict[str, Columns]], list[str]]:
    """Primary or other quantity -> trait -> its numbers, a finetuned model each; and each model's data set."""
    sets = finetuning_sets(settings.TRAITS, settings.DILUTIONS, settings.MIXED)
    models = [(name, seed) for seed in settings.FINETUNING_SEEDS for name in sets]
    answers = {model: study.finetuned(*model)[1] for model in models}
    projected = kept(study.work / "projections.json", lambda: _projected(study, models))
    found: dict[str, dict[str, Columns]] = {"total": {}, "cosine": {}}
    for trait in settings.TRAITS:
        rows = [projected[f"{name} {seed}"][trait] for name, seed in models]
        y = np.array([np.mean(answers[model]["scores"][trait]) for model in models])
        norm = np.array([row["norm"] for row in rows])
        random = np.array([row["random"] for row in rows])
        for quantity, size in (("total", np.ones(len(rows))), ("cosine", norm)):
            x = np.array([row[quantity] for row in rows])
            found[quantity][trait] = Columns(x, y, norm, random / size[:, None])
    return found, [name for name, _ in models]


def _projected(study: Study, models: list[tuple[str, int]]) -> Asked:
    means = {
        trait: mean_direction([study.direction(trait, seed) for seed in settings.SEEDS]) for trait in settings.TRAITS
    }
    return projections(
        {f"{name} {seed}": study.finetuned(name, seed)[0] for name, seed in models},
        means,
        settings.N_RANDOM_PROJECTIONS,
    )


def main(work_dir: str = ".cache/weight_personas", output: str = "benchmarks/weight_personas") -> None:
    """Run the study, print its tables and write them.

    Args:
        work_dir: where adapters and answers are kept, in a folder for these settings; an interrupted study goes on.
        output: path of the tables (.json, .md, .png), without its ending.
    """
    import torch

    from benchmarks.prevention import silence
    from benchmarks.weight_personas_report import write_report
    from persona_vectors.files import check_output_path

    check_output_path(f"{output}.md")
    torch.set_num_threads(1)
    silence()
    study = Study(study_folder(work_dir, settings))
    for job, *what in tqdm(jobs(study), desc="weight personas", unit="job"):
        job(*what)
    print(write_report(all_doses(study), all_pairs(study), *all_columns(study), study.latency(), Path(output)))


if __name__ == "__main__":
    cli.run(main)
