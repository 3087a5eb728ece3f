"""A trait's vector files without what other traits' vectors share with them: which others, read and checked, and the
files `<trait>_<span>_diff_orthogonal.pt`.

A path to any of another trait's files stands for that trait: from its folder the file of each span is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from persona_vectors.activations import SPANS
from persona_vectors.files import check_output_path, read_sidecar, sha256_of_file
from persona_vectors.models import fingerprint, load_config, resolve_model
from persona_vectors.orthogonal import orthogonalize
from persona_vectors.vectors import load_vectors, vector_path, write_vectors

_NAME = re.compile(rf"(?P<trait>.+)_({'|'.join(SPANS)})_diff\.pt")
_COPIED = ("trait", "span", "contrast", "pairs", "arguments", "model", "inputs")


@dataclass(frozen=True)
class OtherTrait:
    """Another trait's vector files.

    Attributes:
        paths: span -> file, for the spans that are there; response_avg always is.
        checked: whether its sidecar says that it was made from the same model; None where there is no sidecar.
    """

    trait: str
    paths: dict[str, Path]
    checked: bool | None


def orthogonal_path(folder: str | Path, trait: str, span: str) -> Path:
    """`<folder>/<trait>_<span>_diff_orthogonal.pt`, beside the plain `<trait>_<span>_diff.pt`."""
    plain = vector_path(folder, trait, span)
    return plain.with_name(f"{plain.stem}_orthogonal{plain.suffix}")


def other_traits(paths: Sequence[str], trait: str, model: str) -> list[OtherTrait]:
    """The traits that `paths` name, each file read and checked against the model's config; no weights are read.

    Args:
        paths: files named `<other>_<span>_diff.pt`, or `<other>_{span}_diff.pt`; one for each other trait.

    Raises:
        ValueError: none given, another file name, no such file, the trait itself, one trait twice, or vectors of
            another model.
    """
    if not paths:
        raise ValueError("--orthogonalize names no file; give the response_avg file of at least one other trait")
    found = [_other(path, trait, model) for path in paths]
    twice = [name for name, count in Counter(other.trait for other in found).items() if count > 1]
    if twice:
        raise ValueError(f"--orthogonalize has the trait {twice[0]} twice; give one file of each other trait")
    return found


def _other(path: str, trait: str, model: str) -> OtherTrait:
    given = Path(path.replace("{span}", "response_avg"))
    named = _NAME.fullmatch(given.name)
    if named is None:
        raise ValueError(
            f"--orthogonalize takes other traits' plain vector files, named <trait>_response_avg_diff.pt; got {path}"
        )
    files = {span: vector_path(given.parent, named["trait"], span) for span in SPANS}
    there = {span: file for span, file in files.items() if file.is_file()}
    for file in dict.fromkeys([given, files["response_avg"], *there.values()]):
        load_vectors(file)  # says what is wrong with it
    told = read_sidecar(files["response_avg"])
    if trait in (named["trait"], told.get("trait")):
        raise ValueError(f"--orthogonalize has {path}, of {trait} itself; give the vectors of other traits only")
    return OtherTrait(named["trait"], there, _check_model(there, model))


def _check_model(paths: dict[str, Path], model: str) -> bool | None:
    """Whether a sidecar says so; a ValueError where it says otherwise or the shape is another."""
    config, label = load_config(model), resolve_model(model).label
    wanted = (config.num_hidden_layers + 1, config.hidden_size)
    vouched = True
    for path in paths.values():
        shape = tuple(load_vectors(path).shape)
        if shape != wanted:
            raise ValueError(f"{path} has vectors of shape {shape}; {label} needs {wanted}: use vectors of this model")
        told = read_sidecar(path).get("model")
        made_from = told if isinstance(told, dict) else {}  # a converted file may name its model otherwise
        if made_from.get("fingerprint", fingerprint(model)) != fingerprint(model):
            raise ValueError(
                f"{path} was made from another model ({made_from.get('name')}) than {model}; make it again with "
                "python generate_vec.py"
            )
        vouched = vouched and "fingerprint" in made_from
    return True if vouched else None


def save_orthogonal(folder: str | Path, trait: str, others: Sequence[OtherTrait]) -> tuple[list[Path], list[str]]:
    """(files written, what to say): the trait's plain files without the others, for every span that all of them have.

    Raises:
        ValueError: a span of which too little is left at some layer; no orthogonal file is written then.
    """
    made: dict[str, tuple[Tensor, list[float | None]]] = {}
    said = []
    for span in SPANS:
        missing = [other.trait for other in others if span not in other.paths]
        if missing:
            said.append(f"no orthogonal {span}: {', '.join(missing)} has no such file")
            continue
        check_output_path(orthogonal_path(folder, trait, span))
        plain = load_vectors(vector_path(folder, trait, span))
        try:
            rest = orthogonalize(plain, [load_vectors(other.paths[span]) for other in others])
        except ValueError as error:
            raise ValueError(f"{trait} {span}: {error}; the plain vectors are saved, no orthogonal ones") from None
        made[span] = rest, shares(plain, rest)
    paths = [_write(folder, trait, span, *own, others) for span, own in made.items()]
    return paths, [*said, *(_line(trait, span, share, others) for span, (_, share) in made.items())]


def shares(plain: Float[Tensor, "layers d_model"], rest: Float[Tensor, "layers d_model"]) -> list[float | None]:
    """|rest| / |plain| at each layer; None where plain is zero."""
    norms = plain.double().norm(dim=-1).tolist()
    return [
        left / norm if norm else None for left, norm in zip(rest.double().norm(dim=-1).tolist(), norms, strict=True)
    ]


def _write(
    folder: str | Path, trait: str, span: str, rest: Tensor, share: list[float | None], others: Sequence[OtherTrait]
) -> Path:
    plain = vector_path(folder, trait, span)
    told = read_sidecar(plain)
    without = [
        {"trait": o.trait, "path": str(o.paths[span]), "sha256": sha256_of_file(o.paths[span]), "same_model": o.checked}
        for o in others
    ]
    record: dict[str, Any] = {
        "kind": "persona vectors",
        **{name: told[name] for name in _COPIED if name in told},
        "sign": f"{told.get('sign', 'that of the plain vectors')}; without {_names(others)}",
        "orthogonalized": {
            "formula": "v - Q Q^T v, Q an orthonormal basis of the others' vectors at that layer",
            "plain": {"path": str(plain), "sha256": sha256_of_file(plain)},
            "without": without,
            "share_left": [None if own is None else round(own, 6) for own in share],
        },
    }
    return write_vectors(orthogonal_path(folder, trait, span), rest, record)


def _line(trait: str, span: str, share: list[float | None], others: Sequence[OtherTrait]) -> str:
    from persona_vectors.quality import few_layers

    shown = [(layer, share[layer]) for layer in few_layers(len(share) - 1)]
    left = ", ".join(f"layer {layer}: {'zero' if own is None else f'{own:.2f}'}" for layer, own in shown)
    return f"{trait} {span} without {_names(others)}: share of the norm left {left}"


def _names(others: Sequence[OtherTrait]) -> str:
    return ", ".join(other.trait for other in others)
