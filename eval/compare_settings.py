"""What a comparison of steering methods runs: the settings of both, with their controls, checked before a model is
loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.model_utils import Steering, WeightSteering, load_vector_for
from eval.questions import Question, load_persona_questions
from eval.sweep import Setting, check_once, random_seed
from persona_vectors.statistics import random_directions
from persona_vectors.weight_direction import WeightDirection, random_like
from persona_vectors.weight_hooks import check_fits

if TYPE_CHECKING:
    from torch import Tensor

    from persona_vectors.vllm_available import EngineName

ACTIVATION, WEIGHTS = "activation", "lora"
METHODS = (ACTIVATION, WEIGHTS)
NO_ANSWER_DEPENDS_ON = ("output_dir", "overwrite", "test_latency", "analyze_spaces", "capability", "min_coherence")


@dataclass(frozen=True)
class Asked:
    """The arguments of `compare_steering_methods.main`."""

    model: str
    trait: str
    activation_vector_path: str
    lora_diff_path: str
    coefficients: Sequence[float]
    lora_coefficients: Sequence[float] | None
    layer: int
    output_dir: str
    n_per_question: int
    test_latency: bool
    analyze_spaces: bool
    capability: bool
    judge_model: str
    max_tokens: int
    n_random: int
    min_coherence: float
    seed: int
    overwrite: bool
    dtype: str
    device_map: str
    engine: EngineName

    def coefs(self, method: str) -> list[float]:
        """The method's coefficients, lowest first."""
        own = self.lora_coefficients if method == WEIGHTS and self.lora_coefficients is not None else self.coefficients
        return sorted(float(coef) for coef in own)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)


@dataclass(frozen=True, eq=False)
class Checked:
    """A comparison whose arguments hold.

    Attributes:
        name: the trait's, which is the column of its scores.
        vector: (d_model,) at the layer asked for.
        vectors: (n_layers + 1, d_model), the whole file.
        settings: unsteered first, then each method's own and its controls.
        record: settings and hashes, for sidecars.
    """

    asked: Asked
    name: str
    questions: list[Question]
    vector: Tensor
    vectors: Tensor
    direction: WeightDirection
    settings: list[Setting]
    record: Mapping[str, Any]


def check(asked: Asked) -> Checked:
    """The comparison's parts; a ValueError, one line, for a mistake that can be known without the model."""
    from eval.engine_choice import settle_engine
    from eval.weight_settings import say_other_bases
    from judge import JudgeOptions, check_judge
    from lora_utils import as_direction
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model
    from persona_vectors.vectors import load_vectors

    _check_numbers(asked)
    resolve_model(asked.model)
    check_output_path(asked.folder / "report.html")
    check_judge(asked.judge_model, JudgeOptions())
    questions = load_persona_questions(
        asked.trait,
        temperature=0.0 if asked.n_per_question == 1 else 1.0,
        judge_model=asked.judge_model,
        version="eval",
        model=asked.model,
    )
    name = next(iter(questions[0].judge_prompts))
    vector = load_vector_for(asked.model, asked.activation_vector_path, asked.layer)
    direction = as_direction(asked.lora_diff_path)
    check_fits(asked.model, {asked.lora_diff_path: direction})
    say_other_bases(asked.model, {asked.lora_diff_path: direction})
    settings = settings_of(asked, name, vector, direction)
    kind = settle_engine(asked.engine, [asked.model], asked.device_map, [setting.steering for setting in settings])
    asked = replace(asked, engine=kind)
    record = _record(asked, questions, vector, direction)
    _refuse_other(asked, record)
    vectors = load_vectors(asked.activation_vector_path)
    return Checked(asked, name, questions, vector, vectors, direction, settings, record)


def _check_numbers(asked: Asked) -> None:
    if min(asked.n_per_question, asked.max_tokens) < 1:
        raise ValueError("--n_per_question and --max_tokens must be at least 1")
    if asked.n_random < 1:
        raise ValueError(f"--n_random must be at least 1, both methods are compared with them; got {asked.n_random}")
    if not 0 <= asked.min_coherence <= 100:
        raise ValueError(f"--min_coherence must lie between 0 and 100; got {asked.min_coherence:g}")
    for flag, method in (("coefficients", ACTIVATION), ("lora_coefficients", WEIGHTS)):
        coefs = asked.coefs(method)
        check_once(flag, coefs)
        if unusable := [coef for coef in coefs if not math.isfinite(coef)]:
            raise ValueError(f"--{flag} {unusable[0]} is not a finite number")
        if not any(coefs):
            raise ValueError(f"--{flag} has no coefficient other than 0, so there is nothing to compare")


def settings_of(asked: Asked, trait: str, vector: Tensor, direction: WeightDirection) -> list[Setting]:
    """Unsteered, then the vector's coefficients and its random vectors', then the direction's and its random ones'."""
    path, layer = asked.activation_vector_path, asked.layer
    seed = random_seed(asked.seed, trait, layer, Path(path).name)
    others = random_directions(asked.n_random, len(vector), float(vector.norm()), seed)
    found = [Setting()]
    for control, own in [("", vector), *_numbered([one.clone() for one in others])]:
        for coef in filter(None, asked.coefs(ACTIVATION)):
            added = Steering(own, layer, coef, "response")
            found.append(Setting(coef, layer, "" if control else path, control, path if control else "", added))
    path, seed = asked.lora_diff_path, control_seed(asked, trait)
    like = [random_like(direction, seed + number) for number in range(asked.n_random)]
    for control, own in [("", direction), *_numbered(like)]:
        for coef in filter(None, asked.coefs(WEIGHTS)):
            added = WeightSteering(own, coef)
            found.append(Setting(coef, None, "" if control else path, control, path if control else "", added))
    return found


def control_seed(asked: Asked, trait: str) -> int:
    """What seeds the first random direction beside the weights'; the second has the next number."""
    return random_seed(asked.seed, trait, 0, Path(asked.lora_diff_path).name)


def _numbered(controls: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"random{number}", one) for number, one in enumerate(controls, start=1)]


def method_of(setting: Setting) -> str:
    """activation or lora; "" for the unsteered setting."""
    if setting.steering is None:
        return ""
    return WEIGHTS if isinstance(setting.steering, WeightSteering) else ACTIVATION


CONTENT = {
    "questions": "questions of the trait",
    "judge_prompts": "judge prompts",
    "model_fingerprint": "model files",
    "judge": "judge files",
    "vector": "vector file",
    "direction": "direction files",
}
"""what a comparison's record has of the files behind the arguments, in words"""


def _record(asked: Asked, questions: Sequence[Question], vector: Tensor, direction: WeightDirection) -> dict[str, Any]:
    from eval.finished_scores import judge_identity
    from persona_vectors.models import fingerprint
    from persona_vectors.store import content_key

    content = {
        "questions": content_key("questions", questions=[[q.id, *q.paraphrases] for q in questions]),
        "judge_prompts": questions[0].judge_prompts,
        "model_fingerprint": fingerprint(asked.model),
        "judge": judge_identity(asked.judge_model),
        "vector": Steering(vector, asked.layer, 1.0).key(),
        "direction": WeightSteering(direction, 1.0).key(),
    }
    kept = {key: value for key, value in asdict(asked).items() if key not in NO_ANSWER_DEPENDS_ON}
    kept |= {"coefficients": asked.coefs(ACTIVATION), "lora_coefficients": asked.coefs(WEIGHTS)}
    return {"settings": {**kept, "content": content_key("settings", **content)}, **content}


def _refuse_other(asked: Asked, record: Mapping[str, Any]) -> None:
    """Another comparison's files are replaced only when asked to."""
    from persona_vectors.files import read_sidecar

    path = asked.folder / "comparison_results.csv"
    if asked.overwrite or not path.exists():
        return
    told, settings = read_sidecar(path), record["settings"]
    before = told.get("settings") or {}
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed == ["content"]:  # the same arguments, with something else in the files behind them
        now = json.loads(json.dumps({name: record[name] for name in CONTENT}))
        changed = [words for name, words in CONTENT.items() if told.get(name) != now[name]] or ["files"]
    changed = [name for name in changed if name != "content"]
    if changed:
        raise ValueError(
            f"{path} holds a comparison with other {', '.join(changed)}; pass --overwrite or another --output_dir"
        )
