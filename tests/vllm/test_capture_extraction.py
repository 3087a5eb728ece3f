"""Vectors of means that vLLM captured while it sampled are those of a forward pass over its answers; real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("vllm")

import generate_vec
from eval import eval_persona
from persona_vectors import cli, models
from persona_vectors.activations import SPANS
from persona_vectors.files import read_sidecar
from persona_vectors.tokens import tokenize_prompt
from persona_vectors.vectors import load_vectors
from persona_vectors.vllm_steering import Request, SteeredLLM

N_ROWS = 24  # 4 questions, 2 instructions, 3 samples
TINY = str(Path(__file__).parents[2] / "models" / "tiny-persona")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A folder with pos.csv and neg.csv, sampled with --capture on a small copy of the embedded model's own trait."""
    folder = tmp_path_factory.mktemp("tables")
    trait = json.loads((Path(TINY) / "traits/extract/humorous.json").read_text())
    trait |= {"questions": trait["questions"][:4], "instruction": trait["instruction"][:2]}
    (folder / "humorous.json").write_text(json.dumps(trait))
    options = {"engine": "auto", "capture": "true", "n_per_question": 3, "max_tokens": 40}
    options |= {"model": TINY, "judge_model": TINY, "trait": folder / "humorous.json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        for pole in ("pos", "neg"):
            own = options | {"persona_instruction_type": pole, "output_path": folder / f"{pole}.csv"}
            argv = [token for name, value in own.items() for token in (f"--{name}", str(value))]
            assert cli.run(eval_persona.main, argv) == 0
    return folder


def extract(tables: Path, *more: str) -> Path:
    """The folder of the vectors that the command makes of these tables."""
    paths = [f"--pos_path={tables}/pos.csv", f"--neg_path={tables}/neg.csv", f"--save_dir={tables}/vectors"]
    assert cli.run(generate_vec.main, [f"--model_name={TINY}", "--trait=humorous", *paths, *more]) == 0
    return tables / "vectors"


def copied(tables: Path, folder: Path, *means: str) -> Path:
    """The same tables elsewhere, with the means of these sides alone."""
    for pole in ("pos", "neg"):
        shutil.copy(tables / f"{pole}.csv", folder)
    for pole in means:
        shutil.copytree(tables / f"{pole}_means", folder / f"{pole}_means")
    return folder


def assert_same_vectors(one: Path, other: Path, tolerance: float) -> None:
    for span in SPANS:
        ours, theirs = (load_vectors(folder / f"humorous_{span}_diff.pt") for folder in (one, other))
        away = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-6)
        print(f"{span}: off by at most {float(away.max()):.1e}")
        assert float(away.max()) < tolerance


def test_vectors_and_report_are_those_of_a_forward_pass(tables, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        captured = extract(tables)
    printed = capsys.readouterr().out
    n = 2 * read_sidecar(captured / "humorous_response_avg_diff.pt")["pairs"]["n_kept"]
    assert n > 1.5 * N_ROWS and f"{n} of {n} answers' means were captured while sampling" in printed
    read = extract(copied(tables, tmp_path))
    assert "captured" not in capsys.readouterr().out
    assert_same_vectors(captured, read, 1e-4)
    reports = [json.loads((folder / "humorous_quality.json").read_text()) for folder in (captured, read)]
    old, new = (pd.DataFrame(report["layers"]).astype(float) for report in reports)
    pd.testing.assert_frame_equal(old, new, rtol=1e-3, atol=1e-3)


def test_a_side_without_means_is_read(tables, tmp_path, capsys):
    both = extract(copied(tables, tmp_path, "neg"))
    assert "; reading the rest" in capsys.readouterr().out
    told = read_sidecar(both / "humorous_response_avg_diff.pt")["answers"]
    assert told["captured"] == told["read"] > 0
    assert_same_vectors(both, extract(tables), 1e-4)


def test_another_number_type_is_not_taken(tables, tmp_path, capsys):
    extract(copied(tables, tmp_path, "pos", "neg"), "--dtype=bfloat16", "--noquality")
    printed = capsys.readouterr().out
    assert "0 of " in printed and "another number type (float32; here bfloat16)" in printed


def test_prompts_from_the_cache_and_aborted_requests(monkeypatch):
    """Answers after a cached prompt have the mean of one after a computed prompt; what is given up is forgotten."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with SteeredLLM(TINY, projections=0, capture=True, enforce_eager=True, max_model_len=256, max_num_seqs=8) as llm:
        ids = tokenize_prompt(llm.tokenizer, "How should I spend my evening, and with whom? " * 6)
        first, *rest = [Request(ids, capture_prompt=k == 0) for k in range(20)]
        whole = dict(llm.stream([first], max_tokens=12))[0]
        found = dict(llm.stream(rest, max_tokens=12))
        for answer in found.values():
            assert answer.ids == whole.ids and answer.prompt_avg is None
            torch.testing.assert_close(answer.response_avg, whole.response_avg, rtol=1e-4, atol=1e-4)
        room = 256 - len(ids)  # the last token of an answer that fills it is never computed
        for n_tokens, has_means in ((room - 1, True), (room, False)):
            [(_, long)] = llm.stream([first], max_tokens=n_tokens, min_tokens=n_tokens + 1)
            assert len(long.ids) == n_tokens and (long.response_avg is not None) == has_means
        stream = llm.stream([first, *rest], max_tokens=100, min_tokens=100)
        next(stream)
        stream.close()
        assert llm.rpc("steering_state")["captured"] == 0
        assert len(dict(llm.stream([first, *rest], max_tokens=5))) == 20
        assert llm.rpc("steering_state")["captured"] == 0
