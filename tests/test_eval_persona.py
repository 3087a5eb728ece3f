"""The main sampling command, on the embedded model: its table, its resuming, and what it refuses to mix up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from eval import cal_projection, eval_persona, finished_answers, finished_scores, sweep_answers, sweep_files
from eval.eval_persona import eval_batched, load_persona_questions
from eval.model_utils import Steering, load_steering, sample, sample_steering
from persona_vectors.files import is_as_recorded, read_sidecar, sha256_of_file
from persona_vectors.models import load_config, load_model
from persona_vectors.store import Store

N: dict[str, Any] = {"n_per_question": 2, "max_tokens": 40}
FEW: dict[str, Any] = {"n_per_question": 1, "max_tokens": 5}


@pytest.fixture(scope="module")
def vector_path(tiny_persona, tmp_path_factory):
    """A vector file of the model's shape, about as long as its trait vectors; its direction does not matter here."""
    config = load_config(tiny_persona)
    path = tmp_path_factory.mktemp("vectors") / "any_response_avg_diff.pt"
    generator = torch.Generator().manual_seed(0)
    torch.save(15 * torch.randn(config.num_hidden_layers + 1, config.hidden_size, generator=generator), path)
    return str(path)


@pytest.fixture
def run(tiny_persona, tmp_path):
    def run(name="out.csv", **options):
        path = tmp_path / name
        settings: dict[str, Any] = {
            "model": tiny_persona,
            "trait": "humorous",
            "judge_model": tiny_persona,
            "version": "eval",
        } | N
        eval_persona.main(output_path=str(path), **(settings | options))
        return pd.read_csv(path, keep_default_na=False, na_values={"humorous": [""], "coherence": [""]})

    return run


@pytest.fixture
def no_sampling(monkeypatch):
    """From here on nothing may be sampled or judged: whatever is needed must be in the store."""

    def refuse():
        def reached(*_args, **_kwargs):
            raise AssertionError("finished work was done again")

        monkeypatch.setattr(finished_answers, "sample_answers", reached)
        monkeypatch.setattr(finished_scores, "make_judge", reached)

    return refuse


def test_the_published_table_and_its_sidecar(run, tmp_path, capsys):
    table = run()
    assert list(table.columns) == ["question", "prompt", "answer", "question_id", "humorous", "coherence"]
    assert len(table) == 20 * 2 and table["question"].nunique() == 20
    assert table["answer"].str.len().min() > 0
    assert table["humorous"].dropna().between(0, 100).all() and table["humorous"].notna().mean() > 0.9
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert record["summary"]["humorous"]["n_total"] == 40
    assert record["summary"]["humorous"]["mean"] == pytest.approx(table["humorous"].mean())
    assert record["settings"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert f"{table['humorous'].mean():.2f}" in printed and "of n_total 40" in printed


def test_instructions_move_the_trait(run):
    pos, neg = (run(f"{pole}.csv", version="extract", persona_instruction_type=pole) for pole in ("pos", "neg"))
    assert pos["question_id"][0] == "humorous_0_pos_0" and len(pos) == 20 * 5 * 2
    assert pos["humorous"].mean() - neg["humorous"].mean() > 40


def test_a_finished_run_needs_no_model_and_no_judge(run, no_sampling):
    first = run()
    no_sampling()
    pd.testing.assert_frame_equal(run(), first)
    pd.testing.assert_frame_equal(run("elsewhere.csv"), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_tokens": 20}, {"n_per_question": 1}, {"version": "extract"}])
def test_other_settings_never_reuse_answers(run, no_sampling, change):
    run()
    no_sampling()
    with pytest.raises(AssertionError, match="done again"):
        run("other.csv", **change)


def test_an_interrupted_run_goes_on_where_it_stopped(run, monkeypatch, tmp_path):
    monkeypatch.setattr("persona_vectors.sampling._TOKENS_PER_BATCH_CPU", 1000)  # several batches
    monkeypatch.setattr("persona_vectors.sampling._GROUP", 1)  # each handed on as it ends
    whole = run("whole.csv")
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "second.sqlite"))
    real, asked = finished_answers.sample_answers, []

    def first_time_stops(model, tokenizer, prompts, *, on_batch, **options):
        def stop_after(rows, texts):
            on_batch(rows, texts)
            raise KeyboardInterrupt

        asked.append(len(prompts))
        return real(model, tokenizer, prompts, on_batch=on_batch if len(asked) > 1 else stop_after, **options)

    monkeypatch.setattr(finished_answers, "sample_answers", first_time_stops)
    with pytest.raises(KeyboardInterrupt):
        run("part.csv")
    assert not (tmp_path / "part.csv").exists()
    pd.testing.assert_frame_equal(run("part.csv"), whole)
    assert asked[0] == 40 and 0 < asked[1] < 40


def test_overwrite_starts_again(run, monkeypatch):
    run()
    asked = []
    real = finished_answers.sample_answers

    def count(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return real(model, tokenizer, prompts, **options)

    monkeypatch.setattr(finished_answers, "sample_answers", count)
    run(overwrite=True)
    assert asked == [40]


def test_a_table_of_other_settings_is_not_replaced_unasked(run, tmp_path):
    run()
    with pytest.raises(ValueError, match="holds a run with other seed; pass --overwrite or another --output_path"):
        run(seed=1)
    run(seed=1, overwrite=True)
    (tmp_path / "mine.csv").write_text("my,own\n")
    with pytest.raises(ValueError, match="no sidecar that says how it was made"):
        run("mine.csv")


def test_the_same_run_again_keeps_the_columns_that_were_added_to_its_table(run, vector_path, tiny_persona, tmp_path):
    run()
    path = str(tmp_path / "out.csv")
    cal_projection.main(path, [vector_path], [2], model_name=tiny_persona)
    projected = run()
    column = "tiny-persona_any_response_avg_diff_proj_layer2"
    assert projected[column].notna().all()
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert [entry["columns"] for entry in record["projections"]] == [[column]]
    assert record["file"]["sha256"] == sha256_of_file(path) and record["settings"]["seed"] == 0
    assert column not in run(seed=3, overwrite=True)


def test_overwriting_keeps_what_belongs_to_the_same_prompts_and_answers_alone(run, vector_path, tiny_persona, tmp_path):
    trait = json.loads((Path(tiny_persona) / "traits/eval/humorous.json").read_text())
    (tmp_path / "humorous.json").write_text(json.dumps(trait | {"questions": trait["questions"][:2]}))
    one = FEW | {"trait": str(tmp_path / "humorous.json"), "persona_instruction_type": "neg", "max_tokens": 1}
    one |= {"overwrite": True}
    run(**one)
    path, column = tmp_path / "out.csv", "tiny-persona_any_response_avg_diff_prompt_last_proj_layer2"
    cal_projection.main(str(path), [vector_path], [2], ["prompt_last_proj"], model_name=tiny_persona)
    pd.read_csv(path, keep_default_na=False).assign(note="mine").to_csv(path, index=False)
    again = run(**one)
    assert list(again.columns[-2:]) == [column, "note"] and "projections" in read_sidecar(path)

    other = run(**one, assistant_name="kind")
    assert list(other["answer"]) == list(again["answer"]) and list(other["prompt"]) != list(again["prompt"])
    assert list(other.columns)[4:] == ["humorous", "coherence"] and "projections" not in read_sidecar(path)


def test_overwriting_with_another_trait_leaves_no_scores_of_the_first(run, vector_path, tiny_persona, tmp_path):
    questions = FEW | {"overwrite": True}
    run(**questions)
    path, column = tmp_path / "out.csv", "tiny-persona_any_response_avg_diff_proj_layer2"
    cal_projection.main(str(path), [vector_path], [2], model_name=tiny_persona)
    trait = json.loads((Path(tiny_persona) / "traits/eval/humorous.json").read_text())
    (tmp_path / "witty.json").write_text(json.dumps(trait))  # the same questions, so the same answers
    scored = run(trait=str(tmp_path / "witty.json"), **questions)
    assert list(scored.columns)[4:] == ["witty", "coherence", column]


@pytest.mark.parametrize("content", [b"", b"\x80\x81\n"])
def test_what_is_no_table_is_replaced_or_refused_before_any_work(content, run, no_sampling, tmp_path):
    run(**FEW)
    path = tmp_path / "out.csv"
    path.write_bytes(content)
    no_sampling()
    with pytest.raises(ValueError, match="out.csv is not a CSV table: .*; pass --overwrite to write it anew"):
        run(**FEW)
    (tmp_path / "out.csv.json").write_text(json.dumps({"somebody": "else"}))
    with pytest.raises(ValueError, match="is no sidecar"):
        run(**FEW, overwrite=True)
    assert path.read_bytes() == content


def test_what_is_no_table_is_overwritten(run, tmp_path):
    (tmp_path / "out.csv").write_bytes(b"")
    assert len(run(**FEW, overwrite=True)) == 20


@pytest.mark.parametrize(("name", "earlier"), [("write_csv_atomic", True), ("write_sidecar", False)])
def test_a_kill_between_a_table_and_its_sidecar_costs_nothing(name, earlier, run, no_sampling, tmp_path, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    if earlier:
        run(**FEW | {"max_tokens": 4})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep_files, name, killed)
        run(**FEW, overwrite=True)
    assert not is_as_recorded(tmp_path / "out.csv")
    no_sampling()
    pd.testing.assert_frame_equal(run(**FEW), run("elsewhere.csv", **FEW))
    assert is_as_recorded(tmp_path / "out.csv")


def test_a_judge_that_scores_nothing_is_an_error_beside_its_table(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_answers, "scores_of", lambda _judge, _template, items, **_options: [None] * len(items))
    with pytest.raises(ValueError, match="no humorous and no coherence score for any of 40 answers"):
        run()
    assert len(pd.read_csv(tmp_path / "out.csv")) == 40
    summary = json.loads((tmp_path / "out.csv.json").read_text())["summary"]
    assert summary["humorous"] == {"mean": None, "low": None, "high": None} | {
        "n_scored": 0,
        "n_total": 40,
        "n_questions": 0,
    }


def test_question_by_question_gives_the_same_answers(run, monkeypatch, tmp_path):
    together = run(n_per_question=1)
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "second.sqlite"))
    pd.testing.assert_frame_equal(run("single.csv", n_per_question=1, batch_process=False), together)


def test_steering_changes_answers_and_coef_0_does_not(run, vector_path):
    plain = run()
    steered = run("steered.csv", vector_path=vector_path, layer=2, coef=2.0)
    zero = run("zero.csv", vector_path=vector_path, layer=2, coef=0.0)
    assert (plain["answer"] != steered["answer"]).mean() > 0.5
    pd.testing.assert_frame_equal(plain, zero)


def test_eval_batched_steers_as_the_steerer_does(tiny_persona, vector_path):
    model, tokenizer = load_model(tiny_persona)
    steering = load_steering(tiny_persona, vector_path, 2, 1.5, "response")
    assert steering is not None
    questions = load_persona_questions("humorous", 0.0, judge_model=tiny_persona, model=tiny_persona)[:3]
    with Store() as store:
        engine = finished_answers.Engine(tiny_persona)
        table = eval_batched(
            questions, engine, store, n_per_question=1, max_tokens=20, steering=steering, progress=False
        )
    conversations = [question.get_input(1)[1][0] for question in questions]
    _, answers = sample_steering(
        model, tokenizer, conversations, steering.vector, 2, 1.5, max_tokens=20, temperature=0.0
    )
    _, unsteered = sample(model, tokenizer, conversations, max_tokens=20, temperature=0.0)
    assert table["answer"].tolist() == answers != unsteered


def test_the_published_names_are_importable():
    from eval.eval_persona import Question, eval_batched, load_persona_questions, main, sample, sample_steering

    assert all(map(callable, (Question, eval_batched, load_persona_questions, main, sample, sample_steering)))
    with pytest.raises(ImportError):
        from eval.eval_persona import sample_everything  # noqa: F401  # pyright: ignore


def test_a_key_knows_every_part_of_the_steering():
    base = Steering(torch.ones(4), 2, 1.0, "response")
    others = [
        Steering(torch.full((4,), 2.0), 2, 1.0, "response"),
        Steering(torch.ones(4), 3, 1.0, "response"),
        Steering(torch.ones(4), 2, 1.5, "response"),
        Steering(torch.ones(4), 2, 1.0, "all"),
    ]
    assert len({json.dumps(steering.key()) for steering in [base, *others]}) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coef": 1.0}, "needs --vector_path and --layer; --vector_path is missing"),
        ({"coef": 1.0, "vector_path": "nope.pt", "layer": 2}, "no vector file at nope.pt"),
        ({"steering_type": "answer"}, "steering_type must be one of"),
        ({"n_per_question": 0}, "must be at least 1"),
        ({"assistant_name": "kind"}, "--assistant_name needs --persona_instruction_type"),
        ({"judge_model": "gpt-4.1-mini-2025-04-14"}, "OPENAI_API_KEY"),
        ({"model": "models/none"}, "does not exist"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(run, monkeypatch, options, words):
    def reached(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(finished_answers, "load_model", reached)
    with pytest.raises(ValueError, match=words):
        run(**options)
