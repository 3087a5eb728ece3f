"""How far a judge agrees with another judge, with the scores of a table, or with labelled answers.

    python -m eval.judge_report --file_path results/evil.csv --trait evil --judge_model gpt-4.1-mini-2025-04-14 \
        --other_judge models/tiny-persona --output_path results/judges.csv
    python -m eval.judge_report --labels labelled.csv --trait evil --judge_model models/tiny-judge \
        --output_path results/judge_labels.csv
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE
from persona_vectors import cli

if TYPE_CHECKING:
    from judge import JudgeOptions
    from persona_vectors.agreement import Agreement

_YES_NO = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}
_APART = 0.5  # points: less is rounding, not a disagreement
_SHOWN = 160  # characters of an answer in the printed list


@dataclass(frozen=True)
class Answers:
    """The answers to be scored, and what stands beside them already.

    Attributes:
        items: (question, answer).
        given: the table's own score or the label of each; None where it has none.
        binary: whether `given` is yes or no (1 or 0).
    """

    items: list[tuple[str, str]]
    given: list[float | None]
    binary: bool = False


def main(
    trait: str,
    output_path: str,
    judge_model: str = DEFAULT_JUDGE,
    file_path: list[str] | None = None,
    labels: str | None = None,
    other_judge: str | None = None,
    other_prompt: str | None = None,
    score: Literal["trait", "coherence"] = "trait",
    version: Literal["extract", "eval"] = "eval",
    threshold: float = 50.0,
    n_shown: int = 10,
    judge_mode: Literal["auto", "logprobs", "text"] = "auto",
    judge_samples: int = 1,
    max_concurrent_judges: int = 100,
    max_requests_per_minute: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Score the same answers twice, and report how far the two agree.

    The judge is compared with another judge, with the same judge under another prompt, with labels, or else with the
    scores that the response tables hold. Intervals are by question; a shuffled control stands beside the correlation.

    Args:
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON; its eval_prompt is the judge's.
        output_path: CSV to write, one row an answer; a sidecar .json with the figures and a .png beside it.
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder scored in process.
        file_path: response tables of eval_persona, one or several.
        labels: CSV or JSONL with question, answer and label (a number from 0 to 100, or yes and no) instead of tables.
        other_judge: a second judge, named as the first.
        other_prompt: text file with {question} and {answer}: a second prompt, for other_judge or for the same judge.
        score: what is scored: the trait or coherence.
        version: whose eval_prompt: the trait's extract or eval file.
        threshold: score from which an answer counts as yes, in kappa.
        n_shown: largest disagreements to print.
        judge_mode: how judges behind an API are asked: for log-probabilities, or for text where a server has none.
        judge_samples: replies averaged in text mode; 1 is asked for at temperature 0, several at 1.
        max_concurrent_judges: judge calls in flight at once.
        max_requests_per_minute: judge calls sent in a minute at most.
        overwrite: ask anew for scores that the store has, and replace an existing output.
        seed: of the resampling.
    """
    settings = dict(locals())
    from judge import JudgeOptions, check_judge, is_local_judge
    from persona_vectors.files import check_output_path

    out = check_output_path(output_path, [".csv"])
    options = JudgeOptions(judge_mode, judge_samples, max_concurrent_judges, max_requests_per_minute)
    if (file_path is None) == (labels is None):
        raise ValueError("give either --file_path (response tables) or --labels (a file with question, answer, label)")
    if labels is not None and (other_judge or other_prompt):
        raise ValueError("--labels compares one judge with the labels; leave out --other_judge and --other_prompt")
    if other_judge == judge_model and other_prompt is None:
        raise ValueError(f"--other_judge is {judge_model} too; name another, or give --other_prompt")
    if not 0 <= threshold <= 100 or n_shown < 0:
        raise ValueError(f"--threshold must lie between 0 and 100, --n_shown be at least 0; got {threshold}, {n_shown}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; pass --overwrite or another --output_path (stored scores are kept either way)")
    for name in filter(None, (judge_model, other_judge)):
        check_judge(name, None if is_local_judge(name) else options)
    prompts = _prompts(trait, version, score, judge_model, other_judge, other_prompt)
    answers = _labelled(Path(labels)) if labels else _tables(file_path or [], prompts.column)
    if prompts.second is None and _scored_by(file_path or [], judge_model):
        print(f"note: {judge_model} wrote these scores itself, so that they agree says nothing about it")
    scored = _score_twice(answers, prompts, options, overwrite=overwrite)
    _report(out, answers, scored, settings, prompts, n_shown=n_shown)


@dataclass(frozen=True)
class Prompts:
    """The table's column, (judge, template), the second such pair (None: what is given), and their names."""

    column: str
    first: tuple[str, str]
    second: tuple[str, str] | None
    names: tuple[str, str]


def _prompts(
    trait: str, version: str, score: str, judge_model: str, other_judge: str | None, other_prompt: str | None
) -> Prompts:
    from judge import COHERENCE_PROMPT
    from persona_vectors.traits import check_eval_prompt, load_coherence_prompt, load_trait

    def template(judge: str) -> str:
        if score == "coherence":
            return load_coherence_prompt(judge) or COHERENCE_PROMPT
        return load_trait(trait, version, model=judge, judge_model=judge).eval_prompt

    column = "coherence" if score == "coherence" else load_trait(trait, version, judge_model=judge_model).name
    first = (judge_model, template(judge_model))
    if other_judge is None and other_prompt is None:
        return Prompts(column, first, None, (judge_model, "given"))
    judge = other_judge or judge_model
    if other_prompt is None:
        return Prompts(column, first, (judge, template(judge)), (judge_model, judge))
    path = Path(other_prompt)
    if not path.is_file():
        raise ValueError(f"no prompt file at {path}; expected a text file with {{question}} and {{answer}}")
    text = check_eval_prompt(path.read_text(encoding="utf-8").strip())
    return Prompts(column, first, (judge, text), (judge_model, f"{judge}, prompt {path.name}"))


def _tables(paths: Sequence[str], column: str) -> Answers:
    """All rows of the response tables, with their own scores."""
    from persona_vectors.responses import read_responses

    items: list[tuple[str, str]] = []
    given: list[float | None] = []
    for path in paths:
        table = read_responses(path, column)
        items += zip(table["question"], table["answer"], strict=True)
        given += [None if math.isnan(value) else value for value in table[column]]
    return Answers(items, given)


def _scored_by(paths: Sequence[str], judge_model: str) -> list[str]:
    """The tables whose sidecar names this judge."""
    from persona_vectors.files import read_sidecar

    return [path for path in paths if read_sidecar(path).get("settings", {}).get("judge_model") == judge_model]


def _labelled(path: Path) -> Answers:
    """The rows of a CSV or JSONL with question, answer and label: all numbers from 0 to 100, or all yes or no.

    Labels that are 0 and 1 only count as no and yes.
    """
    import pandas as pd

    from persona_vectors.files import read_jsonl

    if not path.is_file():
        raise ValueError(f"no file of labels at {path}; expected a CSV or JSONL with question, answer, label")
    if path.suffix == ".jsonl":
        rows: list[dict[str, Any]] = read_jsonl(path)
    else:
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV table: {error}") from error
    missing = [name for name in ("question", "answer", "label") if any(name not in row for row in rows)]
    if missing or not rows:
        raise ValueError(
            f"{path} has no {', '.join(missing) or 'rows'}; expected question, answer and label in each row"
        )
    words = [str(row["label"]).strip().lower() for row in rows]
    said = {word for word in words if word}
    items = [(str(row["question"]), str(row["answer"])) for row in rows]
    if said <= _YES_NO.keys() | {"0", "1"}:
        return Answers(items, [{**_YES_NO, "0": 0.0, "1": 1.0}.get(word) for word in words], binary=True)
    return Answers(items, [_points(word, f"{path}, row {row}") for row, word in enumerate(words, start=1)])


def _points(word: str, where: str) -> float | None:
    """A label in points; None where it is empty."""
    try:
        points = float(word) if word else None
    except ValueError:
        points = math.nan
    if points is not None and not 0 <= points <= 100:
        raise ValueError(f"{where}: label {word!r}; expected a number from 0 to 100 in every row, or yes and no")
    return points


def _score_twice(
    answers: Answers, prompts: Prompts, options: JudgeOptions, *, overwrite: bool
) -> tuple[list[float | None], list[float | None]]:
    """The first judge's scores, and the second's or what is given; scores are kept in the store."""
    from eval.finished_scores import scores_of
    from judge import JudgeOptions, is_local_judge
    from persona_vectors.store import Store

    def ask(judge_model: str, template: str, name: str) -> list[float | None]:
        own = JudgeOptions() if is_local_judge(judge_model) else options
        return scores_of(
            judge_model,
            template,
            answers.items,
            store=store,
            options=own,
            overwrite=overwrite,
            progress=f"judging by {name}",
            on_estimate=lambda estimate: print(f"{name}: {estimate.line()}"),
        )

    with Store() as store:
        first = ask(*prompts.first, prompts.names[0])
        return first, answers.given if prompts.second is None else ask(*prompts.second, prompts.names[1])


def _report(
    out: Path,
    answers: Answers,
    scored: tuple[list[float | None], list[float | None]],
    settings: dict[str, Any],
    prompts: Prompts,
    *,
    n_shown: int,
) -> None:
    """Writes the table, its sidecar and the figure, and prints what was found."""
    import pandas as pd

    from persona_vectors.agreement import agreement, agreement_png
    from persona_vectors.files import write_bytes_atomic, write_csv_atomic, write_sidecar
    from persona_vectors.plots import png_bytes

    a, b = scored
    names = (
        prompts.names[0],
        "label" if settings["labels"] else "table" if prompts.second is None else prompts.names[1],
    )
    questions = [question for question, _ in answers.items]
    found = agreement(a, b, questions, binary=answers.binary, threshold=settings["threshold"], seed=settings["seed"])
    table = pd.DataFrame(answers.items, columns=pd.Index(["question", "answer"]))
    table["score"], table["other"] = pd.Series(a, dtype=float), pd.Series(b, dtype=float)
    table["difference"] = table["score"] - table["other"] * (100 if answers.binary else 1)
    write_csv_atomic(table, out)
    figure = agreement_png(a, b, names, threshold=settings["threshold"], binary=answers.binary)
    write_bytes_atomic(out.with_suffix(".png"), png_bytes(figure))
    judges = [{"judge": judge, "prompt": prompt} for judge, prompt in filter(None, (prompts.first, prompts.second))]
    write_sidecar(
        out, {"settings": settings, "score": names[0], "other": names[1], "judges": judges, "agreement": asdict(found)}
    )
    for line in lines(found, names):
        print(line)
    apart = {row: abs(value) for row, value in enumerate(table["difference"]) if abs(value) >= _APART}  # NaN is not
    order = sorted(apart, key=lambda row: -apart[row])[:n_shown]
    print(f"largest disagreements ({names[0]} / {names[1]}):{'' if order else ' none of half a point or more'}")
    for row in order:
        answer = " ".join(answers.items[row][1].split())
        shown = answer if len(answer) <= _SHOWN else answer[:_SHOWN] + "..."
        print(
            f"  {table['score'][row]:5.1f} / {table['other'][row]:5.1f}  Q: {answers.items[row][0]}\n{'':17}A: {shown}"
        )
    print(out)


def lines(found: Agreement, names: tuple[str, str]) -> list[str]:
    """The figures for a reader, one a line."""
    rows = [
        ("Pearson r", found.pearson.text()),
        ("  with shuffled scores", f"{found.shuffled.text()} (95% of shuffles)"),
        ("Spearman r", found.spearman.text()),
    ]
    if found.mean_difference is not None:
        rows.append(("mean difference, points", found.mean_difference.text(1)))
    if found.kappa_bands is not None:
        rows.append(("kappa, bands of 20, quadratic", found.kappa_bands.text()))
    rows.append((f"kappa at {found.threshold:g}", found.kappa_threshold.text()))
    if found.auc is not None:
        rows.append(("AUC", found.auc.text()))
    head = (
        f"{names[0]} scored {found.n_a} of {found.n}, {names[1]} {found.n_b}; both {found.n_both}, on "
        f"{found.n_questions} questions. 95% intervals by question."
    )
    return [head, *(f"{name + ':':<31} {value}" for name, value in rows)]


if __name__ == "__main__":
    cli.run(main)
