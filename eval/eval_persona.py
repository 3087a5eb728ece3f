"""Sample a chat model on a trait's questions, steered or not, and score the answers with a judge.

    python -m eval.eval_persona --model models/tiny-persona --trait evil --output_path results/evil.csv \
        --judge_model models/tiny-persona --version eval
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE, Question, load_persona_questions
from persona_vectors import cli

if TYPE_CHECKING:
    import pandas as pd

    from eval.finished_answers import Engine
    from eval.model_utils import Steering
    from persona_vectors.statistics import Interval
    from persona_vectors.store import Store


def __getattr__(name: str) -> Any:
    """The published names `sample` and `sample_steering`, imported when asked for: they need torch, a typo does not."""
    if name in ("sample", "sample_steering"):
        from eval import model_utils

        return getattr(model_utils, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def eval_batched(
    questions: Sequence[Question],
    engine: Engine,
    store: Store,
    *,
    n_per_question: int = 100,
    max_tokens: int = 1000,
    max_concurrent_judges: int = 100,
    steering: Steering | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The response table of all questions: answers sampled together, then scored by every judge prompt."""
    from eval.finished_answers import answers_of
    from eval.finished_scores import scores_of
    from persona_vectors.responses import render_rows, response_table

    first = questions[0]
    rows = [row for question in questions for row in question.rows(n_per_question)]
    prompts = render_rows(engine.tokenizer, rows)
    answers = answers_of(
        engine,
        prompts,
        [(seed, *row.stream) for row in rows],
        max_tokens=max_tokens,
        temperature=first.temperature,
        steering=steering,
        store=store,
        overwrite=overwrite,
        progress=progress,
    )
    items = [(row.question, answer) for row, answer in zip(rows, answers, strict=True)]
    scores = {
        name: scores_of(
            first.judge,
            template,
            items,
            store=store,
            eval_type=first.judge_eval_type,
            max_concurrent=max_concurrent_judges,
            overwrite=overwrite,
            progress=f"judging {name}" if progress else None,
        )
        for name, template in first.judge_prompts.items()
    }
    return response_table(rows, prompts, answers, scores)


def summarise(table: pd.DataFrame, trait: str) -> dict[str, Interval]:
    """Mean and 95% interval of trait and coherence, from a bootstrap clustered by question."""
    from persona_vectors.statistics import cluster_bootstrap_mean

    clusters = table["question"].tolist()
    return {name: cluster_bootstrap_mean(table[name].tolist(), clusters) for name in (trait, "coherence")}


def main(
    model: str,
    trait: str,
    output_path: str,
    coef: float = 0.0,
    vector_path: str | None = None,
    layer: int | None = None,
    steering_type: Literal["prompt", "response", "all"] = "response",
    max_tokens: int = 1000,
    n_per_question: int = 10,
    batch_process: bool = True,
    max_concurrent_judges: int = 100,
    persona_instruction_type: Literal["pos", "neg"] | None = None,
    assistant_name: str | None = None,
    judge_model: str = DEFAULT_JUDGE,
    version: Literal["extract", "eval"] = "extract",
    overwrite: bool = False,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
) -> None:
    """Sample answers to a trait's questions, score them with a judge, and write the table.

    Finished answers and scores are kept in a store (PERSONA_STORE, default .cache/persona_store.sqlite) under a hash
    of everything that determines them: the same command again goes on where it was interrupted.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON.
        output_path: CSV to write: question, prompt, answer, question_id, <trait>, coherence; a sidecar .json beside it.
        coef: steering coefficient; coef * vector is added to the hidden states. 0 does not steer.
        vector_path: vectors .pt of generate_vec.py, needed where coef is not 0.
        layer: hidden_states index to steer, 1 to the number of layers.
        steering_type: which tokens are steered: the prompt's, the response's (from the last prompt token on), or all.
        max_tokens: most tokens of an answer.
        n_per_question: samples of each question and instruction; 1 samples at temperature 0, otherwise 1.
        batch_process: sample all questions together; with --nobatch_process one question after the other.
        max_concurrent_judges: judge calls in flight at once.
        persona_instruction_type: put the trait's pos or neg instructions into the system prompt; without it none.
        assistant_name: who the system prompt says the assistant is; default the trait for pos, helpful for neg.
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder scored in process.
        version: the trait's extract or eval questions.
        overwrite: start again: sample and judge anew, and replace the output.
        seed: seeds every row's own random stream.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
    """
    settings = dict(locals())  # exactly the arguments, before anything else has a name
    for name in ("output_path", "overwrite", "batch_process", "max_concurrent_judges"):  # change no answer and no score
        del settings[name]
    from eval.model_utils import load_steering
    from judge import check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model

    out = check_output_path(output_path)
    if n_per_question < 1 or max_tokens < 1 or max_concurrent_judges < 1:
        raise ValueError("--n_per_question, --max_tokens and --max_concurrent_judges must be at least 1")
    if assistant_name is not None and persona_instruction_type is None:
        raise ValueError("--assistant_name needs --persona_instruction_type: without one there is no system prompt")
    resolve_model(model)
    questions = load_persona_questions(
        trait,
        temperature=0.0 if n_per_question == 1 else 1.0,
        persona_instruction_type=persona_instruction_type,
        assistant_name=assistant_name,
        judge_model=judge_model,
        version=version,
        model=model,
    )
    check_judge(judge_model)
    steering = load_steering(model, vector_path, layer, coef, steering_type)
    record = _record(settings, questions, steering)
    _refuse_other_settings(out, record["settings"], overwrite)
    table = _evaluate(
        questions,
        record["settings"],
        steering=steering,
        batch_process=batch_process,
        max_concurrent_judges=max_concurrent_judges,
        overwrite=overwrite,
    )
    _write(out, table, record)


def _evaluate(
    questions: list[Question],
    settings: dict[str, Any],
    *,
    steering: Steering | None,
    batch_process: bool,
    max_concurrent_judges: int,
    overwrite: bool,
) -> pd.DataFrame:
    """The whole table, in one batch or question by question."""
    import pandas as pd

    from eval.finished_answers import Engine
    from persona_vectors.store import Store

    engine = Engine(settings["model"], settings["dtype"], settings["device_map"])
    groups = [questions] if batch_process else [[question] for question in questions]
    with Store() as store:
        tables = [
            eval_batched(
                group,
                engine,
                store,
                n_per_question=settings["n_per_question"],
                max_tokens=settings["max_tokens"],
                max_concurrent_judges=max_concurrent_judges,
                steering=steering,
                seed=settings["seed"],
                overwrite=overwrite,
                progress=batch_process,
            )
            for group in groups
        ]
    return pd.concat(tables, ignore_index=True)


def _record(settings: dict[str, Any], questions: list[Question], steering: Steering | None) -> dict[str, Any]:
    """What the sidecar says before the run: the settings, and by hash all that the files behind them hold."""
    from eval.finished_scores import judge_identity
    from persona_vectors.models import fingerprint
    from persona_vectors.store import content_key

    content = {
        "questions": content_key("questions", questions=[[q.id, *q.paraphrases, q.system] for q in questions]),
        "judge_prompts": questions[0].judge_prompts,
        "model_fingerprint": fingerprint(settings["model"]),
        "judge": judge_identity(settings["judge_model"]),
        "steering": steering.key() if steering is not None else None,
        "temperature": questions[0].temperature,
    }
    return {"settings": {**settings, "content": content_key("settings", **content)}, **content}


def _refuse_other_settings(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """An existing table is replaced only by a run of the same settings, or when asked to."""
    from persona_vectors.files import read_sidecar

    if overwrite or not out.exists():
        return
    before = read_sidecar(out).get("settings")
    if before is None:
        raise ValueError(f"{out} exists and has no sidecar that says how it was made; pass --overwrite or another path")
    changed = [name for name in settings if name != "content" and before.get(name) != settings[name]]
    if before != settings:
        what = f"with other {', '.join(changed)}" if changed else "from other trait, vector, model or judge files"
        raise ValueError(f"{out} holds a run {what}; pass --overwrite or another --output_path")


def _write(out: Path, table: pd.DataFrame, record: dict[str, Any]) -> None:
    """The table, its sidecar, and two lines that say what was found."""
    import pandas as pd

    from persona_vectors.files import read_sidecar, write_csv_atomic, write_sidecar

    trait = table.columns[-2]
    intervals = summarise(table, trait)
    summary = {name: _described(interval, len(table)) for name, interval in intervals.items()}
    added = _columns_added_since(out, table)
    write_csv_atomic(pd.concat([table, added], axis=1), out)
    kept = {key: value for key, value in read_sidecar(out).items() if key == "projections" and len(added.columns)}
    write_sidecar(out, {**record, "summary": summary, **kept})
    print(out)
    for name, interval in intervals.items():
        print(
            f"{name + ':':<16} {interval.mean:6.2f}  95% [{interval.low:.2f}, {interval.high:.2f}]"
            f"  n_scored {interval.n} of n_total {len(table)}, {interval.n_clusters} questions"
        )
    unscored = [name for name, interval in intervals.items() if interval.n == 0]
    if unscored:
        raise ValueError(
            f"the judge gave no {' and no '.join(unscored)} score for any of {len(table)} answers; read some in {out}, "
            "and check that --judge_model answers the trait's eval_prompt with a number"
        )


def _described(interval: Interval, n_total: int) -> dict[str, float | int | None]:
    """The interval for a sidecar; JSON has no NaN, so what could not be had is null."""
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    counts = {"n_scored": interval.n, "n_total": n_total, "n_questions": interval.n_clusters}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()} | counts


def _columns_added_since(out: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Columns that the file at `out` has beside the table's own (projections), if it holds the same answers."""
    import pandas as pd

    if out.exists():
        before = pd.read_csv(out, dtype=str, keep_default_na=False)
        if "answer" in before and before["answer"].tolist() == table["answer"].tolist():
            return before.drop(columns=[name for name in before.columns if name in table.columns])
    return pd.DataFrame(index=table.index)


if __name__ == "__main__":
    cli.run(main)
