"""The card of vectors on the hub: README.md from what their sidecars and quality reports say, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_vectors.convert import Source
from persona_vectors.hub import RepoType, without_paths
from persona_vectors.models import looks_local

_TOLD = ("pairs", "answers", "contrast", "assistant_personas", "n_answers", "left_out", "converted", "pulled")
TAGS = ["persona-vectors", "steering-vectors", "activation-steering", "interpretability"]

NUMBERS = {
    True: "`layer` is a hidden_states index: 0 is the embedding output, layer L the output of decoder block L-1, so a "
    "tensor has n_layers + 1 rows. The last row is the last block's own output, before the final norm. A row of zeros "
    "is a layer without a vector.",
    False: "Numbers inside the files of other tools' formats count decoder blocks from 0: their B is layer B+1 here.",
}

RESPONSIBLE_USE = (
    "A direction that brings out a trait does so for whoever holds it. These vectors are published for research on "
    "finding, monitoring, preventing and removing traits. Do not use them to make a model deceive or harm people. They "
    "belong to the model named here; on any other, or at a coefficient that nobody measured, expect nothing: measure "
    "the trait and the coherence of the answers, beside a random direction of the same length, before relying on them."
)
NO_CONTROLS = (
    "None came with these files: nothing here shows that a direction does more than a random one of the same length."
)


def card(
    sources: Sequence[Source], *, repo: str, license: str, repo_type: RepoType = "model", caps: Sequence[Path] = ()
) -> str:
    """README.md of a repo with these vector files, led by the hub's own fields.

    Args:
        caps: `cap.json` files along some of them.
    """
    from huggingface_hub import DatasetCardData, ModelCardData

    bases = sorted({name for source in sources if (name := _model(source)) and _on_hub(source, name)})
    common: dict[str, Any] = {"license": license, "tags": TAGS}
    if repo_type == "dataset":
        head = DatasetCardData(**common)
    else:
        head = ModelCardData(**common, library_name="persona-vectors-toolkit", base_model=bases or None)
    parts = [
        f"# {repo.split('/')[-1]}",
        f"Directions in the residual stream of {', '.join(filter(None, map(_label, sources[:1]))) or 'a chat model'}, "
        "to project on, to add to it (steering), to remove from it, or to keep within bounds.",
        "## Files",
        _table(
            ["file", "what", "sign", "layers", "width", "format"],
            [*(_row(source) for source in sources), *map(_cap_row, caps)],
        ),
        *(NUMBERS[own] for own in (True, False) if own in {source.format == "ours" for source in sources}),
        "## How they were made",
        *(_made(source) for source in sources),
        "## Controls",
        "\n\n".join(_controls(sources)) or NO_CONTROLS,
        "## Use",
        _use(sources, repo, repo_type),
        "## Responsible use",
        RESPONSIBLE_USE,
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def quality_files(source: Source) -> list[Path]:
    """The quality report beside a vector file (`<trait>_quality.json`, `.png`), where there is one."""
    if not (trait := source.file.sidecar.get("trait")):
        return []
    base = source.file.path.parent / f"{trait}_quality"
    return [path for suffix in (".json", ".png") if (path := base.with_suffix(suffix)).is_file()]


def _row(source: Source) -> list[str]:
    told = source.file.sidecar
    layers = source.file.layers
    what = " ".join(str(told[key]) for key in ("trait", "span") if told.get(key)) or told.get("kind") or "vectors"
    span = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
    return [source.file.path.name, what, told.get("sign", "not told"), span, str(source.file.d_model), source.format]


def _cap_row(path: Path) -> list[str]:
    from persona_vectors.capping import FORMAT, read_cap

    content, steps = read_cap(path)
    bounds = {"floor" if step.ceiling is None else "ceiling" if step.floor is None else "range" for step in steps}
    layers = ", ".join(dict.fromkeys(str(step.layer) for step in steps))
    what = f"cap ({' and '.join(sorted(bounds))}) at {steps[0].positions} tokens"
    return [path.name, what, f"along {content['vectors']}", layers, "", FORMAT]


def _made(source: Source) -> str:
    """A list of what the sidecar says: the model, the counts, and whatever else is short."""
    told = without_paths(source.file.sidecar)
    lines = []
    if model := told.get("model"):
        lines.append(f"model: {_flat(model)}")
    lines += [f"{key}: {_flat(told[key])}" for key in _TOLD if told.get(key)]
    if versions := told.get("versions"):
        lines.append(
            f"made with {_flat(versions)}, commit {told.get('git_commit') or 'unknown'}, {told.get('created')}"
        )
    listed = "\n".join(f"- {line}" for line in lines) or "- no sidecar came with it"
    return f"`{source.file.path.name}`\n\n{listed}"


def _flat(value: Any) -> str:
    """`a 1, b (c 2)` of a dictionary, without what is None; numbers to four digits; anything else as it is."""
    if isinstance(value, dict):
        told = {key: _flat(one) for key, one in value.items() if one is not None}
        return ", ".join(
            f"{key} ({one})" if isinstance(value[key], dict) else f"{key} {one}" for key, one in told.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _controls(sources: Sequence[Source]) -> list[str]:
    """The table of each quality report, and what sidecars say under `controls`."""
    parts, seen = [], set()
    for source in sources:
        if controls := source.file.sidecar.get("controls"):
            parts.append(f"`{source.file.path.name}`: {_flat(without_paths(controls))}")
        for path in quality_files(source):
            if path.suffix == ".json" and path not in seen:
                seen.add(path)
                parts.append(_quality(path))
    return parts


def _quality(path: Path) -> str:
    """A row a layer: how well the direction separates held-out answers, beside random directions."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [
                str(one["layer"]),
                *(_number(one[key]) for key in ("norm", "split_half", "auc", "auc_random", "auc_random_95", "p")),
            ]
            for one in told["layers"]
        ]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no quality report; delete it, or make it again with generate_vec.py") from None
    figure = path.with_suffix(".png")
    drawn = f"\n\n![quality of the vectors, layer by layer]({figure.name})" if figure.is_file() else ""
    return (
        f"`{path.name}`: {told.get('n_kept')} pairs, {told.get('n_questions')} questions. AUC is held out by question; "
        "an AUC says something about the vector only above that of random directions (mean, 95th percentile). p is of "
        "the norm, labels permuted by question.\n\n"
        + _table(["layer", "norm", "split-half cosine", "AUC", "random AUC", "random AUC 95%", "p"], rows)
        + drawn
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _use(sources: Sequence[Source], repo: str, repo_type: RepoType) -> str:
    kind = "" if repo_type == "model" else f" --repo_type {repo_type}"
    own = next((source for source in sources if source.format == "ours"), None)
    lines = [f"python -m eval.hub pull --repo {repo}{kind} --output_dir vectors"]
    if own is not None:
        name, layer = own.file.path.name, own.file.sidecar.get("layer") or own.file.layers[-1]
        model = without_paths(_model(own) or "MODEL")
        lines.append(
            f"python persona_steering.py --model_name {model} --vector_file vectors/{name} --target_layer {layer}"
        )
        lines.append(
            f"python -m eval.convert --vector_path vectors/{name} --format gguf --model_name {model} --layers {layer} "
            f"--output_path {own.file.path.stem}.gguf"
        )
    return "```bash\n" + "\n".join(lines) + "\n```\n\nThe layer is an example: measure which one is good for your use."


def _model(source: Source) -> str | None:
    """The model's name in the sidecar, as it stands there."""
    told = source.file.sidecar.get("model")
    name = told.get("name") if isinstance(told, dict) else told
    return name if isinstance(name, str) else None


def _on_hub(source: Source, name: str) -> bool:
    """Whether the name is a hub id: it has a revision, where the sidecar tells, and is no folder here."""
    told = source.file.sidecar.get("model")
    return not looks_local(name) and (not isinstance(told, dict) or bool(told.get("revision", True)))


def _label(source: Source) -> str | None:
    return f"`{without_paths(name)}`" if (name := _model(source)) else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])
