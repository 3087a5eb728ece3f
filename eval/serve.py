"""Serve a model whose requests say how they are steered, through an OpenAI-compatible API.

    python -m eval.serve --model Qwen/Qwen2.5-7B-Instruct --vectors vectors/qwen

    client.chat.completions.create(model=..., messages=..., extra_body={"steering": [
        {"vector": "evil_response_avg_diff", "layer": 20, "coef": 2.0, "positions": "response"}]})

Any OpenAI client works, streaming too; requests with different steering, and unsteered ones, share batches.
GET /v1/steering lists what can be asked for. Steering that cannot be carried out is answered with HTTP 400 and a line
that says why. Layers are hidden_states indices. SIGTERM or Ctrl-C ends the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.models import ModelSource
    from persona_vectors.vllm_catalog import Catalog


def main(
    model: str,
    vectors: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    default_steering: str | None = None,
    layers: list[int] | None = None,
    projections: int = 1,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int = 256,
    gpu_memory_utilization: float = 0.9,
    adapters: list[str] | None = None,
    served_model_name: str | None = None,
    api_key: list[str] | None = None,
    enforce_eager: bool = False,
) -> None:
    """Serve a model whose requests say how they are steered, through an OpenAI-compatible API.

    A request's `steering` is a list of steps: vector (a file's name without .pt), layer (one or several), coef (1),
    positions (response, prompt or all), kind (add, ablate or cap), floor and ceiling (of a cap).
    Answered are /v1/chat/completions, /v1/completions and, with the vectors, GET /v1/steering.

    Args:
        model: hub id, model folder, adapter folder or training folder.
        vectors: folder whose .pt files can be steered with; all must be of this model's shape.
        port: where to listen; 0 is any free port.
        host: address to listen at; 0.0.0.0 is every one of this machine.
        default_steering: steps for requests without `steering`, as JSON or a JSON file, such as a cap.json of
            eval.capping (with its folder as --vectors); a request's [] is unsteered.
        layers: layers that can be steered (hidden_states indices); all, unless given.
        projections: most ablations and caps at one layer of one request.
        dtype: auto is the checkpoint's own on CUDA, float32 on CPU.
        max_model_len: tokens of prompt and answer together; the model's own, unless given.
        max_num_seqs: most requests computed at once; the steering tables grow with it.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes.
        adapters: PEFT adapters that requests can name as their model, as NAME=FOLDER.
        served_model_name: what requests call the model; --model, unless given.
        api_key: keys of which a request must bring one.
        enforce_eager: start sooner and answer slower: nothing is compiled.
    """
    from persona_vectors.models import resolve_model
    from persona_vectors.vllm_available import why_not_vllm
    from persona_vectors.vllm_options import catalog_for, engine_options, whole_prompts

    _check_numbers(max_model_len, max_num_seqs, gpu_memory_utilization)
    files = vector_files(vectors)
    source, name = resolve_model(model), served_model_name or model
    folders = adapter_folders(adapters or [], source, (name, source.base))
    steps = read_default(default_steering)
    catalog = catalog_for(model, layers, projections)
    add_files(catalog, files)

    from eval.serve_engine import Service, listen, run
    from eval.serve_requests import request_spec

    default = request_spec(steps, catalog)
    if (why := why_not_vllm()) is not None:
        raise ValueError(why)
    if enforce_eager:  # vLLM's own helpers too: the first request for log-probabilities would wait for a compiler
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
    with listen(host, port) as sock:
        options = {
            **engine_options(catalog),
            **whole_prompts(model, max_model_len),
            **_lora_options([*folders.values(), *([source.adapter] if source.adapter else [])]),
            "dtype": _dtype(dtype),
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
        }
        paths = {adapter: str(folder) for adapter, folder in folders.items()}
        print(f"{len(catalog.names)} vectors for {name}: {', '.join(sorted(catalog.names))}; starting vLLM", flush=True)
        run(Service(source, name, catalog, options, paths, default, tuple(api_key or ())), sock)


def _check_numbers(max_model_len: int | None, max_num_seqs: int, share: float) -> None:
    for flag, value in (("max_model_len", max_model_len), ("max_num_seqs", max_num_seqs)):
        if value is not None and value < 1:
            raise ValueError(f"--{flag} expects a positive number; got {value}")
    if not 0 < share <= 1:
        raise ValueError(f"--gpu_memory_utilization expects a share of 1; got {share}")


def vector_files(folder: str) -> list[Path]:
    """The `.pt` files of a folder, by name.

    Raises:
        ValueError: no such folder, or none in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"--vectors {folder} {what}; give the folder of the .pt files that generate_vec.py wrote")
    files = sorted(path.glob("*.pt"))
    if not files:
        raise ValueError(f"--vectors {folder} has no .pt files; make vectors with python generate_vec.py")
    return files


def add_files(catalog: Catalog, files: Sequence[Path]) -> None:
    """Puts every file's vectors into the catalog, under the file's name without .pt.

    Raises:
        ValueError: a file that is no vector file, of another shape, or with NaN; the line names it.
    """
    from persona_vectors.vectors import load_vectors

    for file in files:
        vector = load_vectors(file)
        try:
            catalog.add(vector, file.stem)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def read_default(given: str | None) -> Any:
    """The steps of --default_steering, written there or in the file it names, itself or under "steering"; None without.

    Raises:
        ValueError: neither JSON nor a file of JSON.
    """
    if given is None:
        return None
    text, where = given.strip(), "--default_steering"
    if not text.startswith(("[", "{")):
        if not Path(text).is_file():
            raise ValueError(f"{where} {given!r} is neither a list of steps in JSON nor a file that holds one")
        text, where = Path(text).read_text(encoding="utf-8"), f"{where} {text}"
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    return found["steering"] if isinstance(found, Mapping) and "steering" in found else found


def adapter_folders(given: Sequence[str], source: ModelSource, taken: Sequence[str]) -> dict[str, Path]:
    """Name -> folder of NAME=FOLDER arguments, each an adapter of this model.

    Args:
        taken: names that models have already.

    Raises:
        ValueError: one of another form, a name given twice, or an adapter of another model.
    """
    from persona_vectors.models import resolve_model
    from persona_vectors.weight_adapters import same_model

    folders: dict[str, Path] = {}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--adapters expects NAME=FOLDER; got {entry!r}")
        if name in folders or name in taken:
            raise ValueError(f"--adapters gives the name {name} twice, or it is the model's; choose another")
        found = resolve_model(folder)
        if found.adapter is None:
            raise ValueError(f"--adapters {entry}: {folder} is a whole model; expected a PEFT adapter folder")
        if not same_model(found.base, source.base):
            raise ValueError(f"--adapters {entry}: it is an adapter of {found.base}; expected one of {source.base}")
        folders[name] = found.adapter
    return folders


def _lora_options(adapters: Sequence[Path]) -> Mapping[str, Any]:
    """What vLLM needs for the adapters; one place more than there are, as in `SteeredLLM`."""
    if not adapters:
        return {}
    from persona_vectors.vllm_options import adapter_rank, lora_rank

    rank = lora_rank(max(map(adapter_rank, adapters)))
    return {"enable_lora": True, "max_loras": len(adapters) + 1, "max_lora_rank": rank}


def _dtype(dtype: str) -> str:
    import torch

    return "float32" if dtype == "auto" and not torch.cuda.is_available() else dtype


if __name__ == "__main__":
    cli.run(main)
