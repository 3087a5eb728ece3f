"""Vectors of other tools as ours, and ours for other tools.

python -m eval.convert --vector_path persona_vectors/tiny-persona/impolite_response_avg_diff.pt --format gguf \
    --output_path impolite.gguf --model_name models/tiny-persona --layers 3
python -m eval.convert --vector_path assistant_axis.pt --from_format assistant-axis --format ours \
    --output_path persona_vectors/Qwen3-32B/assistant_axis.pt --model_name Qwen/Qwen3-32B
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from persona_vectors import cli
from persona_vectors.convert_formats import OF_A_MODEL, Format

if TYPE_CHECKING:
    from persona_vectors.convert import ModelShape, Source


def main(
    vector_path: str,
    output_path: str,
    format: Format,  # noqa: A002 (the flag's name)
    from_format: Format | None = None,
    model_name: str | None = None,
    layers: list[int] | None = None,
    coef: float = 1.0,
    name: str | None = None,
) -> None:
    """Write the vectors of a file of one tool as another's, and print how the other tool is told to use them.

    Formats: ours (.pt); assistant-axis (.pt of an axis or a role's vector); capping (.pt, its capping config); gguf
    (control vector for llama.cpp and repeng; needs the extra gguf); steering-vectors (.pt); lm-eval (.pt for
    `--model steered`). Layers are numbered as everywhere here: layer L is the output of block L-1, which the others
    call B = L-1. They have no layer 0, which is left out, and gguf none for the first block (layer 1).

    A cap.json of eval.capping becomes a capping config, or lm-eval's clamp where floor and ceiling are one value; and
    these become a vectors file with a cap.json beside it. Nothing in a file is executed.

    Args:
        vector_path: file to read: .pt, .npz, .safetensors, .gguf, or a cap.json.
        output_path: file to write; beside it a .json says what was converted.
        format: of the file to write.
        from_format: of the file to read, where it can be of several.
        model_name: model that the vectors are for, hub id or folder (its config is read, not its weights): vectors that
            do not fit are refused. gguf and lm-eval need it: without it, the one named in the vectors' sidecar.
        layers: which layers to write; default all. steering-vectors and lm-eval apply all layers of a file together.
        coef: multiplied into the vectors; lm-eval keeps it beside them.
        name: which vector or experiment, where the file to read holds several.
    """
    from persona_vectors.convert import choose_layers, model_shape, read_source
    from persona_vectors.convert_write import check_target, write_target

    shape = model_shape(model_name) if model_name else None
    source = read_source(vector_path, from_format, name=name, shape=shape)
    target = check_target(output_path, format, source)
    if shape is None and format in OF_A_MODEL:
        shape = _told_shape(source)
    print(f"read {source.format}: {source.file.line}")
    chosen, left_out = choose_layers(source, format, layers)
    written, said = write_target(target, format, source, chosen, coef=coef, shape=shape)
    print(f"wrote {format}: {', '.join(map(str, written))}, layer{'s' * (len(chosen) > 1)} {_ranges(chosen)}")
    for line in [*left_out, *said]:
        print(f"note: {line}")
    for line in usage(format, written, chosen, shape):
        print(f"  {line}")


def usage(format: Format, written: list[Path], layers: list[int], shape: ModelShape | None) -> list[str]:
    """How the tool that reads the format is told to use the file."""
    from persona_vectors.blocks import block_index

    path, blocks = written[0], [block_index(layer) for layer in layers if layer]
    first, last = blocks[0], blocks[-1]
    pretrained = shape.name if shape else "MODEL"
    return {
        "ours": [f"use it with --vector_path {path} --layer {layers[-1]}"]
        + [f"steer with the cap: python -m eval.drift --cap {cap}" for cap in written[1:]],
        "assistant-axis": [
            f'axis = load_axis("{path}")',
            f"ActivationSteering(model, steering_vectors=[axis[{last}]], coefficients=[COEF], layer_indices=[{last}])",
        ],
        "capping": [f'build_capping_steerer(model, load_capping_config("{path}"), "{path.stem}")'],
        "gguf": [
            f"llama-cli -m MODEL.gguf --control-vector-scaled {path}:COEF --control-vector-layer-range {first} {last}",
            f'repeng: ControlModel(model, layer_ids={blocks}).set_control(ControlVector.import_gguf("{path}"), COEF)',
        ],
        "steering-vectors": [
            f'vector = SteeringVector(**torch.load("{path}", weights_only=True))',
            "with vector.apply(model, multiplier=COEF): ...",
        ],
        "lm-eval": [f"lm_eval --model steered --model_args pretrained={pretrained},steer_path={path} --tasks ..."],
    }[format]


def _told_shape(source: Source) -> ModelShape | None:
    """The shape of the model that the vectors' sidecar names, if it names one."""
    from persona_vectors.convert import check_fits, model_shape

    told = source.file.sidecar.get("model")
    name = told.get("name") if isinstance(told, dict) else told
    name = name or source.told.get("model")
    if not isinstance(name, str):
        return None
    shape = model_shape(name)
    check_fits(source.file, shape)
    return shape


def _ranges(layers: list[int]) -> str:
    """`3`, `1 to 4`, or `1, 3, 4`."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


if __name__ == "__main__":
    cli.run(main)
