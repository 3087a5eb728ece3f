"""`eval_persona --capture` up to vLLM's door; behind it stands the model of this process (tests/vllm: the real one)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import generate_vec
from eval import eval_persona, finished_answers, vllm_answers
from eval.model_utils import Steering
from eval.vllm_answers import VllmSampler
from persona_vectors import cli, models, vllm_available
from persona_vectors.activations import mean_activations
from persona_vectors.captured_means import CapturedMeans, means_folder, reader_of
from persona_vectors.models import load_model, load_tokenizer
from persona_vectors.tokens import TokenizedSample, tokenize_sample
from persona_vectors.vllm_steering import Answer

N_ROWS = 12  # 3 questions, 2 instructions, 2 samples
SHAPE = (5, 256)


class StandIn:
    """Answers as SteeredLLM does, with numbers of the prompt and the seed, and captures with a forward pass."""

    stop_after = N_ROWS

    def __init__(self, model: str, *, capture: bool, **_: Any):
        self.capture, self.asked = capture, []
        self.model, self.tokenizer = load_model(model)
        self.llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32)))

    def register(self, vector: torch.Tensor) -> str:
        return f"v-{len(vector)}"

    def stream(self, requests, **_: Any):
        assert self.capture
        self.asked += requests
        order = sorted(range(len(requests)), key=lambda row: requests[row].seed)  # not that in which they came
        for row in order[: self.stop_after]:
            request = requests[row]
            ids = self.tokenizer(
                f"Ha ha, {sum(request.ids) % 97} and {request.seed % 97}!", add_special_tokens=False
            ).input_ids
            sample = TokenizedSample((*request.ids, *ids), len(request.ids))
            means = {span: values[0] for span, values in mean_activations(self.model, [sample]).items()}
            chosen = means if request.capture_prompt else {"response_avg": means["response_avg"]}
            yield row, Answer(tuple(ids), str(self.tokenizer.decode(ids)), **chosen)
        if self.stop_after < len(requests):
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(vllm_answers, "SteeredLLM", StandIn)
    monkeypatch.setattr(vllm_available, "why_not_vllm", lambda: None)


@pytest.fixture
def sample(stand_in, tiny_persona, tmp_path):  # noqa: ARG001 (there while it runs)
    """Runs the command on a small copy of the embedded model's own trait."""
    trait = json.loads((Path(tiny_persona) / "traits/extract/humorous.json").read_text())
    trait |= {"questions": trait["questions"][:3], "instruction": trait["instruction"][:2]}
    (tmp_path / "humorous.json").write_text(json.dumps(trait))

    def run(pole: str, **options: Any) -> Path:
        path = tmp_path / f"{pole}.csv"
        settings = {"model": tiny_persona, "judge_model": tiny_persona, "n_per_question": 2, "engine": "auto"}
        settings |= {"trait": str(tmp_path / "humorous.json"), "persona_instruction_type": pole, "capture": True}
        eval_persona.main(output_path=str(path), **(settings | options))
        return path

    return run


def found(table: Path, model: str) -> int:
    """How many rows of a table have means, by what the table says."""
    rows, tokenizer = pd.read_csv(table), load_tokenizer(model)
    samples = [tokenize_sample(tokenizer, *pair) for pair in zip(rows["prompt"], rows["answer"], strict=True)]
    captured = CapturedMeans([table], reader_of(model, "auto"), SHAPE)
    assert not captured.damaged
    return len(captured.find(samples))


def test_vectors_need_no_model_after_a_run_that_captures(sample, tiny_persona, tmp_path, capsys, monkeypatch):
    pos, neg = sample("pos"), sample("neg")
    assert f"captured the means of {N_ROWS} answers in {tmp_path / 'neg_means'}\n" in capsys.readouterr().out
    assert found(pos, tiny_persona) == found(neg, tiny_persona) == N_ROWS
    for path in (pos, neg):
        assert "capture" not in json.loads((path.parent / f"{path.name}.json").read_text())["settings"]
    for path, score in ((pos, 90), (neg, 2)):  # whatever the judge thinks of these answers
        pd.read_csv(path).assign(humorous=score, coherence=90).to_csv(path, index=False)
    argv = ["--model_name", tiny_persona, "--trait", "humorous", "--pos_path", str(pos), "--neg_path", str(neg)]
    with monkeypatch.context() as patched:
        patched.setattr(models, "load_model", lambda *_a, **_k: pytest.fail("the model was loaded"))
        assert cli.run(generate_vec.main, [*argv, "--save_dir", str(tmp_path / "vectors")]) == 0
    assert f"{2 * N_ROWS} of {2 * N_ROWS} answers' means" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_and_every_answer_has_its_means(sample, tiny_persona, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("persona_vectors.sampling._GROUP", 2)
    monkeypatch.setattr(StandIn, "stop_after", 5)
    with pytest.raises(KeyboardInterrupt):
        sample("pos")
    assert len(list((tmp_path / "pos_means").iterdir())) == 3
    monkeypatch.setattr(StandIn, "stop_after", N_ROWS)
    table = sample("pos")
    assert f"captured the means of {N_ROWS - 5} answers" in capsys.readouterr().out
    assert found(table, tiny_persona) == N_ROWS
    sample("pos")
    assert f"what was captured before is in {tmp_path / 'pos_means'}\n" in capsys.readouterr().out
    before = set((tmp_path / "pos_means").iterdir())
    sample("pos", overwrite=True, seed=1)
    assert found(table, tiny_persona) == N_ROWS and not before & set((tmp_path / "pos_means").iterdir())


def test_means_that_cannot_be_written_are_an_error_before_the_answers_count(sample, tmp_path):
    (tmp_path / "pos_means").write_text("a file in the way")
    with pytest.raises((OSError, ValueError), match="pos_means"):
        sample("pos")
    (tmp_path / "pos_means").unlink()
    sample("pos")
    assert means_folder(tmp_path / "pos.csv").is_dir()


def test_a_run_without_capture_is_the_same_run(sample, monkeypatch, capsys):
    monkeypatch.setattr(StandIn, "stream", lambda *_a, **_k: pytest.fail("sampled again"))
    with monkeypatch.context() as patched:
        patched.setattr(vllm_answers, "SteeredLLM", PlainStandIn)
        table = sample("pos", capture=False)
    assert not means_folder(table).exists()
    sample("pos")
    assert "generate_vec.py reads these answers itself" in capsys.readouterr().out


class PlainStandIn(StandIn):
    def stream(self, requests, **_):
        assert not self.capture
        yield from ((row, Answer((), f"Ha ha {row}")) for row in range(len(requests)))


@pytest.mark.usefixtures("stand_in")
def test_steered_rows_are_not_captured_and_one_row_a_prompt_reads_it_whole(tiny_persona):
    sampler = VllmSampler(tiny_persona, load_tokenizer(tiny_persona), "auto", [], capture=True)
    steering = Steering(torch.ones(256), 2, 1.0)
    captured, handed = {}, []
    sampler.sample(
        ["one", "one", "one", "two"],
        [(row,) for row in range(4)],
        [steering, None, None, steering],
        max_tokens=5,
        temperature=1.0,
        on_batch=lambda rows, _texts: handed.extend(row for row in rows if row in captured),
        on_means=captured.update,
        progress=False,
    )
    assert sorted(captured) == [1, 2] == sorted(handed)  # and before their answers
    asked: Any = sampler.llm
    assert [request.capture_prompt for request in asked.asked] == [False, True, False, False]
    assert captured[1].prompt is not None and captured[2].prompt is None
    assert sampler.serves([], capture=True) and sampler.serves([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "hf"}, "--capture: only vLLM sums hidden states"),
        ({"coef": [0.0, 1.0], "layer": 2, "vector_path": "{vectors}"}, "--coef 1 steers it"),
    ],
)
def test_what_cannot_be_captured_is_refused_before_an_engine_starts(options, message, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(finished_answers, "Engine", lambda *_a, **_k: pytest.fail("an engine was made"))
    torch.save(torch.ones(SHAPE), tmp_path / "v.pt")
    given = {k: v.format(vectors=tmp_path / "v.pt") if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        sample("pos", **given)
