"""The run behind example.py: responses, vectors and the assistant axis, each from its file where that is of this run.

A file is used again only if its sidecar's `settings` are this run's; otherwise the run stops and says which differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from eval.cached_files import is_cached
from eval.role_adherence import checked_adherence
from judge import JudgeError, check_judge
from persona_vectors import cli
from persona_vectors.axis import assistant_axis
from persona_vectors.axis_statistics import AxisEvidence, check_roles
from persona_vectors.blocks import check_layer
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.files import check_output_path, check_sidecar, read_sidecar
from persona_vectors.models import fingerprint, looks_local, resolve_model
from persona_vectors.persona_extraction import MIN_ANSWERS, ActivationExtractor, answered, extract_persona_layers
from persona_vectors.persona_files import (
    Place,
    content_hash,
    load_persona_vectors,
    load_responses,
    model_slug,
    save_persona_vectors,
    save_responses,
)
from persona_vectors.persona_responses import ResponsesError, answers_locally, find_endpoint, generate_responses
from persona_vectors.personas import ASSISTANT_PERSONAS, PersonaSet, load_personas
from persona_vectors.role_adherence import adherence_counts, playing
from persona_vectors.store import Store
from persona_vectors.vectors import load_vectors, write_vectors

AXIS_SIGN = "mean(assistant personas) - mean(all others): points from role-play to the assistant"


@dataclass(frozen=True)
class Asked:
    """The arguments of example.py."""

    model_name: str
    openrouter_model: str | None = None
    sample_locally: bool = False
    personas_path: str | None = None
    responses_path: str | None = None
    prompt_format: Literal["chat", "raw"] = "chat"
    layer: int | None = None
    layer_fraction: float = 0.65
    max_tokens: int = 256
    temperature: float = 0.7
    max_concurrent_requests: int = 10
    judge_model: str | None = None
    min_answers: int | None = None
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str = "auto"
    data_dir: str = "data"
    images_dir: str = "images"
    vectors_dir: str = "persona_vectors"
    reread: bool = False
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Read:
    """What was made or loaded.

    Attributes:
        vectors: persona -> (d_model,) at `layer`.
        axis: (n_layers + 1, d_model), mean(assistant personas) - mean(all others) at each layer.
        record: how they were made, from the vectors' sidecar.
        notes: what a reader must know.
    """

    layer: int
    vectors: dict[str, Float[Tensor, " d_model"]]
    axis: Float[Tensor, "layers d_model"]
    record: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class AxisRun:
    """A run, after everything that can be known to be wrong was refused; no model is loaded before it is needed."""

    asked: Asked

    def __post_init__(self) -> None:
        if looks_local(self.asked.model_name):
            resolve_model(self.asked.model_name)
        if self.asked.min_answers is not None and self.asked.min_answers < 1:
            raise ValueError(f"--min_answers must be at least 1; got {self.asked.min_answers}")
        if missing := [name for name in ASSISTANT_PERSONAS if name not in self.cast.personas]:
            raise ValueError(f"{self.cast.source} has no {', '.join(missing)}; the axis points to {ASSISTANT_PERSONAS}")
        check_roles(list(self.cast.personas), ASSISTANT_PERSONAS)
        for path in (self.responses_path, self.vectors_path, self.axis_path, self.cached_axis_path):
            check_output_path(path)
            check_sidecar(path)
        for name in ("cosine", "pca", "variance"):
            check_output_path(self.image(name))

    @cached_property
    def config(self) -> PersonaVectorConfig:
        names = ("model_name", "openrouter_model", "layer_fraction", "prompt_format", "max_tokens", "temperature")
        asked = {name: getattr(self.asked, name) for name in (*names, "max_concurrent_requests")}
        return PersonaVectorConfig(**asked)

    @cached_property
    def cast(self) -> PersonaSet:
        return load_personas(self.asked.model_name, self.asked.personas_path)

    @cached_property
    def extractor(self) -> ActivationExtractor:
        """One model for answers and activations."""
        return ActivationExtractor(self.config, dtype=self.asked.dtype, device_map=self.asked.device_map)

    @property
    def slug(self) -> str:
        return model_slug(self.asked.model_name)

    @property
    def responses_path(self) -> Path:
        return Path(self.asked.responses_path or Path(self.asked.data_dir) / "responses" / f"{self.slug}.json")

    @property
    def vectors_path(self) -> Path:
        return Path(self.asked.data_dir) / "persona_vectors" / f"{self.slug}.pt"

    @property
    def cached_axis_path(self) -> Path:
        return self.vectors_path.with_name(f"{self.slug}_assistant_axis.pt")

    @property
    def axis_path(self) -> Path:
        return Path(self.asked.vectors_dir) / self.slug / "assistant_axis.pt"

    def image(self, name: str) -> Path:
        return Path(self.asked.images_dir) / f"{self.slug}_{name}.html"

    @staticmethod
    def _identity(name: str | None) -> str | None:
        """A folder by its content, so that its path does not matter; any other model by its name."""
        return fingerprint(name) if name and looks_local(name) else name

    @property
    def samples_locally(self) -> bool:
        return self.asked.sample_locally or answers_locally(self.config)

    def responses(self) -> tuple[dict[Place, str], str]:
        """(the responses, where they came from): a given file as it is, the cached one, or generated and saved.

        Raises:
            cli.Unfinished: answers that could not be had, after all others were stored.
        """
        path = self.responses_path
        if self.asked.responses_path is not None:
            return self._of_this_cast(load_responses(path)), f"{path}, as given"
        if is_cached(path, self._response_settings(), self.asked.overwrite):
            return self._of_this_cast(load_responses(path)), f"{path}, made before"
        self._check_rest()
        extractor = self.extractor if self.samples_locally else None
        base_url = find_endpoint(self.config).base_url if extractor is None else None
        try:
            found = generate_responses(
                self.cast.personas,
                self.cast.questions,
                self.config,
                extractor=extractor,
                seed=self.asked.seed,
                overwrite=self.asked.overwrite,
            )
        except ResponsesError as error:
            old = f"; delete {path} first, it has the answers of before" if path.is_file() else ""
            raise cli.Unfinished(f"{error}{old}") from error
        record = {"settings": self._response_settings(), "model": self.asked.model_name, "personas": self.cast.source}
        record |= {"base_url": base_url} if base_url is not None else {}
        save_responses(found, path, record)
        return found, f"{path}, made now"

    def _check_rest(self) -> None:
        """Refuses, before anything is asked for, what would stop the run afterwards."""
        if self.asked.judge_model is not None:
            check_judge(self.asked.judge_model)
        settings = self._vector_settings({})
        del settings["responses"]
        self._vectors_cached(settings)
        if self.asked.layer is not None:
            check_layer(self.asked.layer, self.extractor.num_layers, self.slug, steering=False)

    def _of_this_cast(self, responses: dict[Place, str]) -> dict[Place, str]:
        """The responses of this run's personas to its questions.

        Raises:
            ValueError: there is none.
        """
        asked = {(name, question) for name in self.cast.personas for question in self.cast.questions}
        found = {place: text for place, text in responses.items() if place in asked}
        if not found:
            raise ValueError(
                f"none of the {len(responses)} answers in {self.responses_path} is of the personas and questions of "
                f"this run ({self.cast.source}); name those of the file with --personas_path"
            )
        return found

    def _response_settings(self) -> dict[str, Any]:
        sampled = {"max_tokens": self.config.max_tokens, "temperature": float(self.config.temperature)}
        sampled |= {"seed": self.asked.seed, "personas": self.cast.hash}
        if self.samples_locally:
            own = {
                "model": self._identity(self.asked.model_name),
                "dtype": self.asked.dtype,
                "prompt_format": self.asked.prompt_format,
            }
            return {"sampled": "in this process", **own, **sampled}
        return {"sampled": "over an API", "model": self.config.answering_model, **sampled}

    def read(self, responses: Mapping[Place, str]) -> Read:
        """The vectors and the axis: from their files, or extracted and saved.

        Raises:
            cli.Unfinished: judge calls that failed, after the others were stored.
        """
        settings = self._vector_settings(responses)
        if self._vectors_cached(settings):
            record = read_sidecar(self.vectors_path)
            vectors, axis = load_persona_vectors(self.vectors_path), load_vectors(self.cached_axis_path)
            return Read(record["layer"], vectors, axis, record, record.get("notes", []))
        return self._extracted(responses, settings)

    def _vectors_cached(self, settings: Mapping[str, Any]) -> bool:
        anew = self.asked.reread or self.asked.overwrite
        there = [is_cached(p, settings, anew, "--reread") for p in (self.vectors_path, self.cached_axis_path)]
        return all(there)

    def _vector_settings(self, responses: Mapping[Place, str]) -> dict[str, Any]:
        return {
            "model": self._identity(self.asked.model_name),
            "layer": self.asked.layer,
            "layer_fraction": None if self.asked.layer is not None else self.config.layer_fraction,
            "prompt_format": self.asked.prompt_format,
            "dtype": self.asked.dtype,
            "personas": self.cast.hash,
            "responses": content_hash(responses),
            "judge_model": self._identity(self.asked.judge_model),
            **({"judging": self.cast.judging_hash} if self.asked.judge_model is not None else {}),
            "min_answers": self.asked.min_answers,
        }

    def _extracted(self, responses: Mapping[Place, str], settings: Mapping[str, Any]) -> Read:
        layer = self.extractor.get_extraction_layer() if self.asked.layer is None else self.asked.layer
        check_layer(layer, self.extractor.num_layers, self.slug, steering=False)
        kept, adherence, judged = self._playing(responses)
        by_persona = answered(self.cast.personas, self.cast.questions, kept)
        least = self.asked.min_answers or min(MIN_ANSWERS, len(self.cast.questions))
        few = {name: len(own) for name, own in by_persona.items() if len(own) < least}
        if lost := [name for name in ASSISTANT_PERSONAS if name in few]:
            raise ValueError(
                f"{lost[0]} has {few[lost[0]]} answers of at least {least}; the axis needs it: lower --min_answers, or "
                "take answers of another --seed"
            )
        personas = {name: prompt for name, prompt in self.cast.personas.items() if name not in few}
        check_roles(list(personas), ASSISTANT_PERSONAS)
        questions = self.cast.questions
        layers = extract_persona_layers(self.extractor, personas, questions, kept, min_answers=least, progress=True)
        shape = (self.extractor.num_layers + 1, self.extractor.d_model)
        flat = {name: own.flatten() for name, own in layers.items()}
        axis = assistant_axis(flat, ASSISTANT_PERSONAS).reshape(shape)  # of every layer by itself: it is a difference
        blank = Counter(name for (name, _), text in kept.items() if not text.strip())
        notes = judged + [f"{n} answers of {name} are blank and do not count" for name, n in blank.items()]
        notes += [f"left out {name}: {n} answers that count, of at least {least}" for name, n in few.items()]
        record = {
            "settings": dict(settings),
            "model": self.asked.model_name,
            "layer": layer,
            "n_answers": {name: len(by_persona[name]) for name in personas},
            "left_out": few,
            "adherence": adherence,
            "notes": notes,
        }
        vectors = {name: own[layer] for name, own in layers.items()}
        save_persona_vectors(vectors, self.vectors_path, record)
        write_vectors(self.cached_axis_path, axis, {"kind": "assistant axis", "sign": AXIS_SIGN, **record})
        return Read(layer, vectors, axis, record, notes)

    def _playing(
        self, responses: Mapping[Place, str]
    ) -> tuple[dict[Place, str], dict[str, dict[str, int]] | None, list[str]]:
        """The answers that count (with a judge, those that fully play their role), what it said, and its control."""
        judge_model = self.asked.judge_model
        if judge_model is None:
            return dict(responses), None, []
        with Store() as store:
            try:
                labels, line = checked_adherence(
                    judge_model, self.cast, responses, store=store, overwrite=self.asked.overwrite
                )
            except JudgeError as error:
                raise cli.Unfinished(str(error)) from error
        return playing(responses, labels), adherence_counts(labels), [line]

    def write_axis(self, read: Read, evidence: AxisEvidence) -> Path:
        """The axis where the commands look for vectors, from the layers' file that is kept with the vectors; its
        sidecar has what chance gives at the layer that was read."""
        keep = ("settings", "model", "layer", "n_answers", "left_out")
        record = {"kind": "assistant axis", "sign": AXIS_SIGN, "assistant_personas": list(ASSISTANT_PERSONAS)}
        record |= {name: read.record[name] for name in keep}
        record["controls"] = {"layer": read.layer, **evidence.record()}
        return write_vectors(self.axis_path, read.axis, {**record, "arguments": asdict(self.asked)})
