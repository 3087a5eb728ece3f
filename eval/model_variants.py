"""The same answers read by several variants of a model: what each makes of them, kept so that none is read twice."""

from __future__ import annotations

import gc
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activation_steer import ActivationSteerer
from eval.cached_files import is_finished
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import block_index, check_layer
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.files import check_sidecar, read_sidecar, sha256_of_file, write_bytes_atomic, write_sidecar
from persona_vectors.models import resolve_model
from persona_vectors.persona_extraction import ActivationExtractor, answered, check_answers
from persona_vectors.persona_files import content_hash, save_persona_vectors
from persona_vectors.personas import PersonaSet
from persona_vectors.store import content_key
from persona_vectors.vectors import load_vector

ByQuestion = dict[str, Float[Tensor, "n_questions d_model"]]


@dataclass(frozen=True)
class Steering:
    """A vector added while a model reads, at every token.

    Attributes:
        layer: a hidden_states index, where it is added.
        coef: what it is multiplied by.
    """

    vector_path: Path
    layer: int
    coef: float


@dataclass(frozen=True)
class Variant:
    """A model under the name that figures give it. `make_variant` checks that all of it fits.

    Attributes:
        name: as in titles and file names.
        config: of the model, and of how its prompts are written.
        layer: a hidden_states index, where it is read.
    """

    name: str
    config: PersonaVectorConfig
    layer: int
    steering: Steering | None = None


def make_variant(
    name: str,
    config: PersonaVectorConfig,
    layer: int | None = None,
    added: tuple[str, int | None, float] | None = None,
) -> Variant:
    """The variant, without loading more than the model's config.

    Args:
        layer: by default the config's own.
        added: path of a vector, the layer at which it is added (by default the one that is read), and its coefficient.

    Raises:
        ValueError: no such model, a layer that it has not, or a vector that does not fit it.
    """
    resolve_model(config.model_name)
    extractor = ActivationExtractor(config)
    layer = extractor.get_extraction_layer() if layer is None else layer
    check_layer(layer, extractor.num_layers, name, steering=False)
    if added is None:
        return Variant(name, config, layer)
    path, at, coef = added
    steering = Steering(Path(path), check_layer(layer if at is None else at, extractor.num_layers, name), coef)
    load_vector(steering.vector_path, steering.layer, extractor.d_model, extractor.num_layers)
    return Variant(name, config, layer, steering)


def parse_variants(given: Sequence[str], what: str = "models") -> dict[str, str]:
    """Name -> path, of `name=path` each.

    Raises:
        ValueError: one that is not so, a name twice, or two names that are one in file names.
    """
    pairs = [text.partition("=") for text in given]
    if bad := [text for text, (name, _, path) in zip(given, pairs, strict=True) if not (name.strip() and path.strip())]:
        raise ValueError(f"--{what} {bad[0]!r}: expected name=path, such as base=models/tiny-persona")
    names = [name for name, _, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--{what} has {', '.join(sorted(twice))} twice; give each its own name")
    by_tag: dict[str, list[str]] = {}
    for name in names:
        by_tag.setdefault(tag(name), []).append(name)
    if same := [own for own in by_tag.values() if len(own) > 1]:
        raise ValueError(
            f"--{what} {' and '.join(same[0])} are both {tag(same[0][0])} in file names; give them names that differ "
            "in letters or digits"
        )
    return {name: path for name, _, path in pairs}


def tag(name: str) -> str:
    """The variant's name in file names."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def read_variant(
    variant: Variant,
    people: PersonaSet,
    responses: Mapping[tuple[str, str], str],
    folder: Path,
    experiment: str,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
) -> tuple[Path, bool]:
    """The file of the variant's persona vectors, and whether the model had to be read for it.

    Beside it stands `_by_question.npz`, persona -> (n_questions, d_model), for intervals. Both are kept under a hash
    of model, answers, layer, format and steering, and are read anew when one of them changes or is not as written.

    Raises:
        ValueError: a persona without all its answers, or a JSON file of something else where a sidecar goes.
    """
    extractor = ActivationExtractor(variant.config, dtype=dtype)
    n_questions = len(people.questions)
    check_answers(answered(people.personas, people.questions, responses), n_questions, n_questions)
    path = folder / f"{experiment}_{tag(variant.name)}_layer{variant.layer}.pt"
    said = {(name, question): responses[name, question] for name in people.personas for question in people.questions}
    record: dict[str, Any] = {
        "model": variant.config.model_name,
        "name": variant.name,
        "layer": variant.layer,
        "prompt_format": variant.config.prompt_format,
        "n_questions": n_questions,
        "steering": _told(variant.steering),
    }
    inputs = {"reading": extractor.key(), "answers": content_hash(said), "people": people.hash}
    record["key"] = content_key("variant_vectors", **record, **inputs)
    files = (path, by_question_path(path))
    if not overwrite and all(is_finished(file, record["key"]) for file in files):
        return path, False
    for file in files:
        check_sidecar(file)
    by_question = _read(extractor, variant, people, said)
    _save_by_question(by_question, files[1], record)
    save_persona_vectors({name: answers.mean(0) for name, answers in by_question.items()}, path, record)
    del extractor
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return path, True


def _told(steering: Steering | None) -> dict[str, Any] | None:
    """What the sidecar says of it."""
    if steering is None:
        return None
    sha256 = sha256_of_file(steering.vector_path)
    return {"vector": str(steering.vector_path), "sha256": sha256, "layer": steering.layer, "coef": steering.coef}


def _read(
    extractor: ActivationExtractor, variant: Variant, people: PersonaSet, said: Mapping[tuple[str, str], str]
) -> ByQuestion:
    samples = extractor.samples([people.personas[name] for name, _ in said], [q for _, q in said], list(said.values()))
    steered = nullcontext()
    if (steering := variant.steering) is not None:
        vector = load_vector(steering.vector_path, steering.layer, extractor.d_model, extractor.num_layers)
        block = block_index(steering.layer)
        steered = ActivationSteerer(extractor.model, vector, coeff=steering.coef, layer_idx=block, positions="all")
    with steered:
        means = mean_activations(extractor.model, samples, [variant.layer], ["response_avg"], progress=True)
    rows = means["response_avg"][:, 0].reshape(
        len(people.personas), len(people.questions), -1
    )  # (n, n_questions, d_model)
    return dict(zip(people.personas, rows, strict=True))


def by_question_path(vectors_path: str | Path) -> Path:
    """Where the vectors of every question stand, beside the file of their means."""
    path = Path(vectors_path)
    return path.with_name(f"{path.stem}_by_question.npz")


def _save_by_question(by_question: ByQuestion, path: Path, record: Mapping[str, Any]) -> None:
    content = io.BytesIO()
    np.savez(content, **{name: answers.numpy() for name, answers in by_question.items()})  # pyright: ignore
    write_bytes_atomic(path, content.getvalue())
    write_sidecar(path, {"kind": "persona means of each question", **record})


def load_by_question(vectors_path: str | Path) -> ByQuestion | None:
    """Persona -> (n_questions, d_model) beside a file of vectors, or None where there is none.

    Raises:
        ValueError: they were read from other answers, or another model, than the vectors.
    """
    path = by_question_path(vectors_path)
    if not path.is_file():
        return None
    if read_sidecar(path).get("key") != read_sidecar(vectors_path).get("key"):
        raise ValueError(
            f"{path} is not of the reading that {Path(vectors_path).name} is of (a run was interrupted between them); "
            "run experiments/001_olmo3_variants.py again, or delete it"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
