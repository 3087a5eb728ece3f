"""What finetuning or steering costs: how much of its capability a model retains, beside a reference.

    python -m eval.capability --model models/tiny-persona --output_path results/capability.csv \
        --vector_path persona_vectors/tiny-persona/humorous_response_avg_diff.pt --layer 3 --coef 0 1 2 --control random

    python -m eval.capability --model Qwen/Qwen2.5-7B-Instruct runs/evil_adapter --tasks mmlu gsm8k --batch_size 32 \
        --output_path results/evil_capability.csv
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from eval.capability_identity import Leaves
    from eval.capability_table import Measure
    from eval.sweep import Grid, Setting
    from persona_vectors.store import Store


def main(
    model: str | list[str],
    output_path: str,
    tasks: str | list[str] = "probe",
    coef: float | list[float] = 0.0,
    vector_path: str | list[str] | None = None,
    layer: int | list[int] | None = None,
    steering_type: Literal["prompt", "response", "all"] = "all",
    control: list[Literal["random"]] | None = None,
    n_random: int = 2,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 16,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Measure capability of models, steered or not, and write one row a model x setting x task.

    The reference is the first model, unsteered: every other row has its difference to it, paired item by item, with a
    95% interval. What steering adds is measured first (a steering receipt), and a steering that does not do what it
    says is not run. Everything is computed with Hugging Face: tasks read log-likelihoods under hooks, and the probe's
    few short answers take less time than vLLM takes to start.

    The table is written anew after each task, and what is measured is kept in the store, each part of a group such as
    mmlu by itself: the same command again goes on where it was interrupted.

    Args:
        model: hub ids, model folders, adapter folders or training folders; the first is the reference.
        output_path: CSV to write: model, coef, layer, vector, control, task, part, metric, value, n, low, high,
            difference, difference_low, difference_high, n_worse, n_better; a sidecar .json beside it, with receipts,
            and <stem>_items.csv, with the value of every item.
        tasks: probe, the closed-form facts of models/tiny-persona (136 items, greedy answers, word for word; sums and
            other facts apart), or names of lm-evaluation-harness (mmlu, gsm8k, ...; extra lm-eval).
        coef: steering coefficients, for all models; coef * vector is added to the hidden states. 0 does not steer. The
            reference is run in any case.
        vector_path: vectors .pt of generate_vec.py, needed where a coef is not 0.
        layer: hidden_states indices to steer, 1 to the number of layers.
        steering_type: which tokens are steered: all, the prompt's, or the response's (from the last prompt token on).
            In log-likelihood tasks the prompt is the context, the response the continuation.
        control: random runs random directions of each vector's norm at every coef.
        n_random: random directions for each vector and layer.
        include_path: folder of your own task YAML files for lm-evaluation-harness.
        limit: most items of each harness task (of each part of a group); the probe is always run whole.
        num_fewshot: examples in the prompt of a harness task; default the task's own.
        apply_chat_template: ask harness tasks in the model's chat format, examples as turns.
        batch_size: rows of a harness task in a forward pass.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        seed: seeds the random directions, and the choice of examples in harness tasks.
        overwrite: measure anew what is known, and replace a table of other settings.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.sweep import Grid, several

    grid = Grid(several(coef), several(layer), several(vector_path), steering_type, several(control), n_random, seed)
    output = _check(arguments, grid)
    settings = {name: _settings(grid, name, is_first=not number) for number, name in enumerate(several(model))}
    leaves = _harness_tasks(arguments)

    from eval.capability_table import table_lines
    from persona_vectors.store import Store

    with Store() as store:
        found = _measure(arguments, settings, leaves, output, store)
    print("\n".join(table_lines(found.rows)))
    _say_what_falls_short(found.reference.values())
    if n_earlier := sum(one["n_earlier"] for one in found.models):
        n = n_earlier + sum(one["n_now"] for one in found.models)
        print(f"{n_earlier} of {n} measurements are of an earlier run; --overwrite measures them anew")
    print(f"written to {output}")


@dataclass
class Found:
    """What is measured so far.

    Attributes:
        rows, items: of the two tables.
        reference: what the others are compared with.
        models: of each its name, fingerprint and receipts, and how much was measured now and earlier.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[tuple[str, str, str], Measure] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)


def _measure(
    arguments: Mapping[str, Any],
    settings: Mapping[str, Sequence[Setting]],
    leaves: Mapping[str, Leaves],
    output: Path,
    store: Store,
) -> Found:
    """Every model under each of its settings, the files written after each task."""
    from eval.capability_measure import Measured, ProbeReceipts
    from eval.capability_table import done_line, item_rows, task_rows
    from eval.finished_answers import Engine
    from eval.sweep import several

    found = Found()
    for name, own in settings.items():
        engine = Engine(name, arguments["dtype"], arguments["device_map"])
        receipts = ProbeReceipts(engine, store, own)
        how = _options(arguments), arguments["batch_size"], arguments["overwrite"]
        measured = Measured(engine, store, *how, before=receipts.take)
        is_first = not found.models
        found.models.append({})
        for setting in own:
            for task in several(arguments["tasks"]):
                measures = measured.task(setting.steering, task, leaves.get(task, {}))
                is_reference = is_first and setting.is_baseline
                if is_reference:
                    found.reference |= {measure.key: measure for measure in measures}
                new = task_rows(name, setting, measures, None if is_reference else found.reference)
                found.rows += new
                found.items += item_rows(name, setting, measures)
                counted = {"n_earlier": measured.n_earlier, "n_now": measured.n_now}
                about = {"name": name, "fingerprint": engine.key()["model"], "receipts": receipts.known()}
                found.models[-1] = about | counted
                print(done_line(new), flush=True)
                _write(output, found, arguments, leaves, is_whole=False)
    _write(output, found, arguments, leaves, is_whole=True)
    return found


def _check(arguments: Mapping[str, Any], grid: Grid) -> Path:
    """The output path; refuses what can be known to be wrong before anything is read."""
    from eval.sweep import check_grid, check_once, several
    from persona_vectors.files import check_output_path, has_settings
    from persona_vectors.models import load_config

    check_grid(grid)
    models, tasks = several(arguments["model"]), several(arguments["tasks"])
    for flag, values in (("model", models), ("tasks", tasks)):
        check_once(flag, values)
        if not values:
            raise ValueError(f"--{flag} names nothing; give at least one")
    for flag, least in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
        if arguments[flag] is not None and arguments[flag] < least:
            raise ValueError(f"--{flag} must be at least {least}; got {arguments[flag]}")
    output = check_output_path(arguments["output_path"], (".csv",))
    if output.exists() and not arguments["overwrite"] and not has_settings(output, arguments):
        raise ValueError(f"{output} exists, made with other settings; pass --overwrite or another --output_path")
    for name in models:
        load_config(name)
    return output


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How harness tasks are asked."""
    return {key: arguments[key] for key in ("limit", "num_fewshot", "apply_chat_template", "seed")}


def _settings(grid: Grid, model: str, *, is_first: bool) -> list[Setting]:
    """The settings of one model, its vectors read and checked; the first model's always begin with the unsteered."""
    from eval.sweep import Setting, expand

    found = expand(grid, model, "capability")
    return found if not is_first or found[0].is_baseline else [Setting(), *found]


def _harness_tasks(arguments: Mapping[str, Any]) -> dict[str, Leaves]:
    from eval.capability_table import PROBE
    from eval.sweep import several

    names = [name for name in several(arguments["tasks"]) if name != PROBE]
    if not names:
        given = [f"--{flag}" for flag in ("include_path", "limit", "num_fewshot") if arguments[flag] is not None]
        if given:
            raise ValueError(f"{', '.join(given)} is for tasks of lm-evaluation-harness; --tasks names none")
        return {}
    from eval.capability_identity import identified
    from eval.capability_tasks import load_tasks

    loaded = load_tasks(names, arguments["include_path"], arguments["steering_type"])
    return identified(loaded, _options(arguments))


def _write(
    output: Path, found: Found, arguments: Mapping[str, Any], leaves: Mapping[str, Leaves], is_whole: bool
) -> None:
    """The table, the items beside it, and the sidecar, of what is done so far."""
    import pandas as pd

    from persona_vectors.files import write_csv_atomic

    for path, table in ((output, pd.DataFrame(found.rows)), (_items_path(output), pd.DataFrame(found.items))):
        whole = [name for name in ("layer", "n_worse", "n_better") if name in table]
        write_csv_atomic(table.astype(dict.fromkeys(whole, "Int64")), path)
    _write_sidecar(output, found.models, arguments, leaves, "finished" if is_whole else "unfinished")


def _items_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}_items.csv")


def _write_sidecar(
    output: Path,
    models: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    leaves: Mapping[str, Leaves],
    state: Literal["unfinished", "finished"],
) -> None:
    import importlib.metadata

    from eval.sweep import several
    from persona_vectors.files import sha256_of_file, write_sidecar

    record = {
        "settings": dict(arguments),
        "state": state,
        "reference": {"model": models[0]["name"], "setting": "unsteered"},
        "models": {one["name"]: one["fingerprint"] for one in models},
        "vectors": {path: sha256_of_file(path) for path in several(arguments["vector_path"])},
        "receipts": [receipt for one in models for receipt in one["receipts"]],
        "harness": {name: {part: _version(leaf.task) for part, leaf in own.items()} for name, own in leaves.items()},
        "items": _items_path(output).name,
        **({"lm_eval": importlib.metadata.version("lm_eval")} if leaves else {}),
    }
    write_sidecar(output, record)


def _version(task: Any) -> dict[str, Any]:
    return {"version": str(getattr(task, "VERSION", None)), "num_fewshot": task.get_config("num_fewshot")}


def _say_what_falls_short(reference: Iterable[Measure]) -> None:
    """A reference near 0 can lose nothing: says so of the probe, whose answers are the embedded model's."""
    from eval.capability_table import PROBE

    for measure in reference:
        if measure.task == PROBE and not measure.part and measure.value < 0.1:
            print(
                f"note: the reference gets {measure.value:.1%} of the probe, which is written for the one-word answers "
                "of models/tiny-persona; read the items, and use --tasks mmlu or another harness task for this model"
            )


if __name__ == "__main__":
    cli.run(main)
