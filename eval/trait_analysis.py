"""What persona_vector_analysis.py does: vectors of one trait's items, and the scores of its traits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from eval.finished_answers import Engine
from eval.receipt import take_receipts
from eval.sweep import check_once
from eval.talk_settings import shape_of
from eval.talk_start import start
from eval.trait_page import write_analysis, write_profile, write_scores
from eval.trait_profile import UNSTEERED, Profile, steered_conditions, told_conditions
from eval.trait_scoring import Asking, Condition, Scoring, rows_of, score
from eval.trait_vectors import ItemVectors, item_vectors, wanted_layers, write
from persona_vectors.files import check_output_path
from persona_vectors.models import fingerprint, quantised_bits, resolve_model
from persona_vectors.questionnaire import OWN, TRAITS, Item, Questionnaire, Wording, content_hash, load_questionnaire
from persona_vectors.store import Store
from persona_vectors.traits import canonical_name
from persona_vectors.vector_files import VectorFile, read_vector_file

PROFILE = "personality_profile"


@dataclass(frozen=True)
class Asked:
    """The arguments of persona_vector_analysis.py."""

    model_name: str
    persona_trait: str
    layer_start: int | None = None
    layer_end: int | None = None
    max_samples: int | None = None
    prompt_type: int = 1
    save_dir: str = "persona_analysis_results"
    data_file: str | None = None
    scoring: Sequence[Scoring] = ("letter",)
    profile: bool = False
    persona_instruction_type: Sequence[Literal["pos", "neg"]] = ()
    vector_file: str | None = None
    layer: int | None = None
    coef: Sequence[float] | None = None
    steering_type: Literal["response", "prompt", "all"] = "response"
    n_random: int = 4
    seed: int = 0
    overwrite: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str = "auto"
    load_in_8bit: bool = False
    load_in_4bit: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do, after everything that can be known to be wrong was refused.

    Attributes:
        own: the items of the trait that vectors are made of.
        items: those that are scored: of the same trait, or of all.
        layers: hidden_states indices that vectors are made at.
        conditions: unsteered first.
        notes: what a reader must know.
    """

    asked: Asked
    trait: str
    engine: Engine
    questionnaire: Questionnaire
    wording: Wording
    own: list[Item]
    items: list[Item]
    layers: list[int]
    conditions: list[Condition]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """What every sidecar says of the run."""
        return {
            "arguments": {name: value for name, value in asdict(self.asked).items() if value is not None},
            "model": {"name": self.asked.model_name, "fingerprint": fingerprint(self.asked.model_name)},
            "questionnaire": {"source": self.questionnaire.source, "items": content_hash(self.questionnaire.items)},
            "notes": self.notes,
        }

    def line(self) -> str:
        """Which items are asked, in one line."""
        source = self.questionnaire
        return (
            f"{len(self.own)} items of {self.trait} from {source.source} "
            f"({len(source.items)} items of {len(source.traits)} traits)"
        )


def plan(asked: Asked) -> Plan:
    """The plan; no model is loaded.

    Raises:
        ValueError: in one line, whatever can be known to be wrong.
    """
    if asked.max_samples is not None and asked.max_samples < 2:
        raise ValueError(f"--max_samples counts items, and holding some out takes at least 2; got {asked.max_samples}")
    if asked.n_random < 0 or not asked.scoring:
        raise ValueError(f"--n_random {asked.n_random} and {len(asked.scoring)} ways of scoring: expected 0, 1 or more")
    check_once("scoring", asked.scoring)
    check_once("persona_instruction_type", asked.persona_instruction_type)
    bits = quantised_bits(asked.load_in_4bit, asked.load_in_8bit, asked.device_map)
    resolve_model(asked.model_name)
    trait = canonical_name(asked.persona_trait)
    check_output_path(Path(asked.save_dir) / f"persona_vectors_{trait}.npz")
    source = load_questionnaire(asked.data_file, asked.model_name, TRAITS if asked.profile else [trait])
    own = source.of(trait, asked.max_samples)
    wording = source.wording(asked.prompt_type)
    layers, notes = wanted_layers(asked.model_name, asked.layer_start, asked.layer_end)
    told = told_conditions(trait, asked.persona_instruction_type, asked.model_name)
    steered, more = _steered(asked, source)
    return Plan(
        asked=asked,
        trait=trait,
        engine=Engine(asked.model_name, asked.dtype, asked.device_map, bits=bits),
        questionnaire=source,
        wording=wording,
        own=own,
        items=_scored_items(source, trait, own, asked),
        layers=layers,
        conditions=[Condition(UNSTEERED), *told, *steered],
        notes=[*_own_questionnaire(asked, source), *notes, *more],
    )


def _own_questionnaire(asked: Asked, source: Questionnaire) -> list[str]:
    if asked.data_file is not None or source.source == str(OWN):
        return []
    return [f"{asked.model_name} ships a questionnaire in its own language, which is taken (--data_file {OWN} is ours)"]


def _scored_items(source: Questionnaire, trait: str, own: list[Item], asked: Asked) -> list[Item]:
    if not asked.profile:
        return own
    if len(source.traits) < 3:
        raise ValueError(
            f"--profile draws three traits or more; {source.source} asks about {', '.join(source.traits)}: leave it out"
        )
    return [item for name in source.traits for item in (own if name == trait else source.of(name, asked.max_samples))]


def _steered(asked: Asked, source: Questionnaire) -> tuple[list[Condition], list[str]]:
    """The steered conditions, and what to say of their vector; none without a vector file."""
    if asked.vector_file is None:
        if asked.coef is not None or asked.layer is not None:
            raise ValueError("--coef and --layer are of a vector; give --vector_file as well")
        return [], []
    file = read_vector_file(asked.vector_file)
    begun = start(file, shape_of(asked.model_name), None if asked.layer is None else str(asked.layer))
    calibrated = [] if begun.calibrated is None else [begun.calibrated.coef]
    coefs = list(asked.coef or calibrated or [1.0])
    check_once("coef", coefs)
    if not all(coefs):
        raise ValueError("--coef 0 is the unsteered condition, which is asked in any case; leave it out")
    notes = [file.line, *begun.lines, *_circular(file, source)]
    vector = file.vectors[begun.layer]
    return steered_conditions(vector, begun.layer, coefs, asked.steering_type, asked.n_random, asked.seed), notes


def _circular(file: VectorFile, source: Questionnaire) -> list[str]:
    """A note where the vector was made of the very questionnaire that is to be answered under it."""
    told = file.sidecar.get("questionnaire")
    if not isinstance(told, dict) or told.get("items") != content_hash(source.items):
        return []
    return [f"{file.path} was made of this questionnaire's own responses: that it moves their scores proves little"]


def make_vectors(work: Plan) -> tuple[ItemVectors, list[Path]]:
    """The trait's vectors with their report, and the files written."""
    asked, folder, record = work.asked, Path(work.asked.save_dir), work.record()
    vectors = item_vectors(work.engine, work.own, work.wording, work.layers, asked.seed)
    lead = f"{work.line()}, read by {asked.model_name}."
    return vectors, [*write(vectors, folder, record), *write_analysis(vectors, folder, lead, record["arguments"])]


def score_all(work: Plan, receipts: Sequence[dict[str, Any]]) -> tuple[list[Profile], list[Path]]:
    """The scores by each way of scoring, and the files written."""
    asked, record = work.asked, work.record()
    with Store() as store:
        profiles = [_profile(work, store, scoring) for scoring in asked.scoring]
    base = Path(asked.save_dir) / (PROFILE if asked.profile else f"trait_scores_{work.trait}")
    files = write_scores(profiles, base, {**record, "receipts": list(receipts)})
    if asked.profile:
        lead = f"{len(work.items)} items of {work.questionnaire.source}, answered by {asked.model_name}."
        files += write_profile(profiles, base, lead, work.notes, record["arguments"])
    return profiles, files


def _profile(work: Plan, store: Store, scoring: Scoring) -> Profile:
    asking = Asking(work.wording, scoring, work.asked.seed, work.asked.overwrite, progress=True)
    scored = score(work.engine, store, work.items, work.conditions, asking)
    return Profile(scoring, work.trait, scored, work.asked.seed)


def receipts(work: Plan) -> list[dict[str, Any]]:
    """What each steering is seen to add, measured before anything is asked under it."""
    steered = [condition for condition in work.conditions if condition.steering is not None]
    if not steered:
        return []
    asking = Asking(work.wording, work.asked.scoring[0], work.asked.seed)
    prompt = rows_of(work.engine.tokenizer, work.items[0], 0, asking)[0][0].prompt
    found = take_receipts(work.engine.model, work.engine.tokenizer, prompt, [one.steering for one in steered])
    return [
        {"condition": condition.name, "control": condition.control, **asdict(own), "line": own.line()}
        for condition, own in zip(steered, found, strict=True)
    ]
