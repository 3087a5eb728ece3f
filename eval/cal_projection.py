"""Project the responses in a CSV or JSONL file on persona vectors, as new columns of that file.

python -m eval.cal_projection --file_path results/impolite.csv --model_name models/tiny-persona \
    --vector_path persona_vectors/tiny-persona/impolite_response_avg_diff.pt --layer 3
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from eval.projected_files import Origin
    from persona_vectors.captured_means import CapturedMeans
    from persona_vectors.tokens import TokenizedSample

ProjectionType = Literal["proj", "prompt_last_proj", "cos_sim"]


@dataclass(frozen=True)
class Column:
    """One column to fill: `vectors[layer]` projected on, as `kind` says."""

    name: str
    kind: str
    vector_path: str
    vectors: Tensor  # (n_layers + 1, d_model)
    layer: int


def main(
    file_path: str,
    vector_path_list: list[str],
    layer_list: list[int],
    projection_type: list[ProjectionType] = ["proj"],  # noqa: B006 (read only; cli shows it)
    model_name: str = "Qwen/Qwen2.5-7B-Instruct",
    overwrite: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
) -> None:
    """Add columns `<model>_<vector>_<type>_layer<L>` to a file of responses, in place, for all vectors x layers.

    One pass of the model serves every column, and reads what `eval.eval_persona --capture` has not captured. A column
    that is there already is kept, unless --overwrite.

    Args:
        file_path: CSV with columns prompt and answer, or JSONL with `messages` (the last assistant turn is the
            response; turns after it are left out).
        vector_path_list: vector files of generate_vec.py, one or several; also spelled --vector_path.
        layer_list: hidden_states indices (0 is the embedding output), one or several; also spelled --layer.
        projection_type: proj (mean of the response on v/|v|), prompt_last_proj (last prompt token on v/|v|),
            cos_sim (cosine of the response's mean with v); one or several.
        model_name: hub id, model folder or adapter folder.
        overwrite: compute columns anew that are there already.
        dtype: precision of the model; auto is the checkpoint's own on CUDA, float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
    """
    from eval.projected_files import add_columns, read_rows
    from persona_vectors.captured_means import CapturedMeans, reader_of
    from persona_vectors.files import check_output_path
    from persona_vectors.models import load_config, load_model, load_tokenizer, resolve_model, unfinished_note

    label = resolve_model(model_name).label
    if note := unfinished_note(model_name):
        print(f"note: {note}", flush=True)
    rows = read_rows(file_path)
    check_output_path(file_path)
    columns = plan_columns(label, vector_path_list, layer_list, projection_type)
    config = load_config(model_name)
    reader = reader_of(model_name, dtype, device_map)
    origins = _origins(columns, model_name, dtype if reader is None else reader.dtype)
    if not overwrite:
        columns = _missing(file_path, rows, columns, origins)
    if not columns:
        return
    _check_fit(columns, label, config.num_hidden_layers, config.hidden_size)
    samples = tokenize_rows(load_tokenizer(model_name), rows, file_path)
    _check_lengths(samples, columns, config, label, file_path)

    captured = CapturedMeans([file_path], reader, (config.num_hidden_layers + 1, config.hidden_size))
    load = functools.cache(lambda: load_model(model_name, dtype=dtype, device_map=device_map)[0])
    values = project_samples(captured, load, samples, columns, [_place(file_path, row) for row in range(len(rows))])
    add_columns(file_path, rows, values, origins, overwrite=overwrite)
    _report(file_path, values, len(rows))


def _origins(columns: Sequence[Column], model_name: str, dtype: str) -> dict[str, Origin]:
    """What each column is to be made by."""
    from eval.projected_files import Origin
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint

    model = fingerprint(model_name)
    hashes = {path: sha256_of_file(path) for path in {column.vector_path for column in columns}}
    return {
        column.name: Origin(column.vector_path, hashes[column.vector_path], model_name, model, dtype)
        for column in columns
    }


def _missing(
    file_path: str, rows: Sequence[dict[str, Any]], columns: Sequence[Column], origins: Mapping[str, Origin]
) -> list[Column]:
    """The columns that the file lacks; says which are kept, and of which of them nothing is known."""
    from eval.projected_files import kept_columns

    kept = kept_columns(file_path, rows, origins)
    if kept:
        print(f"kept {len(kept)} columns that were there already (--overwrite computes them anew): {', '.join(kept)}")
    if unknown := [name for name, is_recorded in kept.items() if not is_recorded]:
        print(f"note: no record says which vector and model made {', '.join(unknown)}")
    return [column for column in columns if column.name not in kept]


def plan_columns(label: str, vector_paths: Sequence[str], layers: Sequence[int], kinds: Sequence[str]) -> list[Column]:
    """Every vector x layer x type, vectors loaded and checked.

    Raises:
        ValueError: a file that holds no vectors, a layer it does not have, a zero vector, or two files of one name.
    """
    from persona_vectors.vectors import load_vector, load_vectors

    columns: dict[str, Column] = {}
    origin: dict[str, Path] = {}
    for path in map(Path, dict.fromkeys(vector_paths)):
        vectors = load_vectors(path)
        if origin.setdefault(path.stem, path).resolve() != path.resolve():
            raise ValueError(f"{origin[path.stem]} and {path} would write the same columns; rename one of them")
        for layer in dict.fromkeys(layers):
            load_vector(path, layer)
            for kind in dict.fromkeys(kinds):
                name = f"{label}_{path.stem}_{kind}_layer{layer}"
                columns[name] = Column(name, kind, str(path), vectors, layer)
    return list(columns.values())


def _check_fit(columns: Sequence[Column], label: str, n_layers: int, d_model: int) -> None:
    from persona_vectors.blocks import check_layer

    for column in columns:
        check_layer(column.layer, n_layers, label, steering=False)
        got = tuple(column.vectors.shape)
        if got != (n_layers + 1, d_model):
            raise ValueError(
                f"the vectors for {column.name} have shape {got}; {label} needs {(n_layers + 1, d_model)}: "
                "use vectors made from this model"
            )


def tokenize_rows(tokenizer: Any, rows: Sequence[Mapping[str, Any]], file_path: str) -> list[TokenizedSample]:
    """Each row's prompt and response; a ValueError names the first row (counted from 1) that is malformed."""
    from persona_vectors.tokens import tokenize_messages, tokenize_sample

    is_jsonl = Path(file_path).suffix == ".jsonl"
    samples = []
    for number, row in enumerate(rows):
        try:
            if is_jsonl:
                sample = tokenize_messages(tokenizer, _messages(row))
            else:
                sample = tokenize_sample(tokenizer, row["prompt"], row["answer"])
            if sample.prompt_len == 0:
                raise ValueError("the prompt is empty")
        except ValueError as error:
            raise ValueError(f"{_place(file_path, number)}: {error}") from None
        samples.append(sample)
    return samples


def _place(file_path: str, row: int) -> str:
    """What errors call a row, counted from 1."""
    return f"{file_path}, row {row + 1}"


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"expected a list of messages under 'messages'; the row has {', '.join(row) or 'nothing'}")
    return messages


def _check_lengths(
    samples: Sequence[TokenizedSample], columns: Sequence[Column], config: Any, label: str, file_path: str
) -> None:
    """Refuses rows that are to be read and do not fit the model's context, before it is loaded."""
    from persona_vectors.activations import check_samples

    context = getattr(config, "max_position_embeddings", None)
    for wanted, rows in _jobs(samples, columns):
        names = [_place(file_path, row) for row in rows]
        check_samples([samples[row] for row in rows], wanted, context, label, names)


def project_samples(
    captured: CapturedMeans,
    load: Callable[[], Any],
    samples: Sequence[TokenizedSample],
    columns: Sequence[Column],
    names: Sequence[str],
) -> dict[str, list[float | None]]:
    """Column name -> one value a sample; None where a response has no tokens, or a cosine does not exist.

    What was captured is taken from there; if anything else is needed, the model is loaded, and reads the rest. Errors
    call the samples by `names`.
    """
    import math

    from persona_vectors.captured_means import captured_or_read
    from persona_vectors.projection import PROJECTION_TYPES

    values: dict[str, list[float | None]] = {column.name: [None] * len(samples) for column in columns}
    spans = {column.name: PROJECTION_TYPES[column.kind][0] for column in columns}
    layers = sorted({column.layer for column in columns})
    jobs = [(wanted, rows, [samples[row] for row in rows]) for wanted, rows in _jobs(samples, columns)]
    n_found = sum(len(captured.find(chosen, wanted)) for wanted, _rows, chosen in jobs)
    for line in captured.said(n_found, len(samples)):
        print(line)
    for wanted, rows, chosen in jobs:
        own = [names[row] for row in rows]
        batches = captured_or_read(captured, load, chosen, layers, wanted, progress=True, names=own)
        for positions, means in batches:
            for column in columns:
                if spans[column.name] not in wanted:
                    continue
                activations = means[spans[column.name]][:, layers.index(column.layer)]  # (batch, d_model)
                projected = PROJECTION_TYPES[column.kind][1](activations, column.vectors[column.layer])
                for position, value in zip(positions, projected.tolist(), strict=True):
                    values[column.name][rows[position]] = None if math.isnan(value) else value
    return values


def _jobs(samples: Sequence[TokenizedSample], columns: Sequence[Column]) -> list[tuple[list[str], list[int]]]:
    """(spans, rows) to read: all spans of the answered rows, and the prompt's of the rows with an empty answer."""
    from persona_vectors.projection import PROJECTION_TYPES

    spans = {PROJECTION_TYPES[column.kind][0] for column in columns}
    answered = [row for row, sample in enumerate(samples) if sample.response_len > 0]
    empty = [row for row, sample in enumerate(samples) if sample.response_len == 0]
    jobs = [(sorted(spans), answered), (sorted(spans - {"response_avg"}), empty)]
    if "response_avg" not in spans:
        jobs = [(sorted(spans), list(range(len(samples))))]
    return [(wanted, rows) for wanted, rows in jobs if wanted and rows]


def _report(file_path: str, values: Mapping[str, Sequence[float | None]], n: int) -> None:
    for name, column in values.items():
        found = [value for value in column if value is not None]
        mean = f"mean {sum(found) / len(found):.4g}" if found else "no value"
        print(f"{name}: {mean} over {len(found)} of {n} rows")
        left = [str(i) for i, value in enumerate(column, start=1) if value is None]
        if left:
            print(f"  left empty (empty answer, or an activation without direction): rows {', '.join(left[:10])}")
    print(f"written to {file_path}")


if __name__ == "__main__":
    cli.run(main, aliases={"vector_path": "vector_path_list", "layer": "layer_list"})
