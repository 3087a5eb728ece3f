"""Rank, filter or split training rows by how far each would push a model along a trait's vector.

    python -m eval.screen --file_path data.jsonl --model models/tiny-persona --layer 3 --by delta_p --action split \
        --vector_path persona_vectors/tiny-persona/evil_response_avg_diff.pt \
        --reference dataset/tiny_evil/normal.jsonl --percentile 95 --output_dir results/screen

Sample-level screening by the projection difference of arXiv 2507.21509.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from eval.data_rows import DataRow
    from eval.screen_auc import Separation
    from eval.screen_result import Screen
    from eval.screen_rows import Criterion, Judge, Measured
    from eval.screen_rule import Rule


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    file_path: str
    output_dir: str
    model: str | None
    vector_path: list[str] | None
    layer: list[int] | None
    by: list[Literal["delta_p", "raw", "cheap", "judge"]]
    action: Literal["rank", "filter", "split"]
    combine: Literal["any", "all", "mean_rank"]
    threshold: list[float] | None
    reference: str | None
    percentile: float | None
    fraction: float | None
    unscored: Literal["keep", "flag"]
    subsets: int | None
    compare: list[str] | None
    judge_model: str | None
    trait: str | None
    max_tokens: int
    n_base: int
    seed: int
    judge_mode: Literal["auto", "logprobs", "text"]
    judge_samples: int
    max_concurrent_judges: int
    max_requests_per_minute: int | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]
    overwrite: bool


def main(
    file_path: str,
    output_dir: str,
    model: str | None = None,
    vector_path: list[str] | None = None,
    layer: list[int] | None = None,
    by: list[Literal["delta_p", "raw", "cheap", "judge"]] = ["delta_p"],  # noqa: B006 (read only; cli shows it)
    action: Literal["rank", "filter", "split"] = "rank",
    combine: Literal["any", "all", "mean_rank"] = "any",
    threshold: list[float] | None = None,
    reference: str | None = None,
    percentile: float | None = None,
    fraction: float | None = None,
    unscored: Literal["keep", "flag"] = "keep",
    subsets: int | None = None,
    compare: list[str] | None = None,
    judge_model: str | None = None,
    trait: str | None = None,
    max_tokens: int = 1000,
    n_base: int = 1,
    seed: int = 0,
    judge_mode: Literal["auto", "logprobs", "text"] = "auto",
    judge_samples: int = 1,
    max_concurrent_judges: int = 100,
    max_requests_per_minute: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    overwrite: bool = False,
) -> None:
    """Rank, filter or split a JSONL of training rows by how far each lies along a trait's vector.

    Rows come out exactly as they were read, each once: kept.jsonl and flagged.jsonl together are the input. scores.csv
    has every row's values and what became of it; histograms and report.html show them beside the threshold. The model's
    own answers and the judge's scores come from the store: the same command again does nothing twice.

    Args:
        file_path: JSONL, {"messages": [...]} a line; the last assistant turn is the answer, what stands before it the
            prompt.
        output_dir: folder for ranked.jsonl (rank, highest first), kept.jsonl (filter), kept.jsonl and flagged.jsonl
            (split), scores.csv, histograms and report.html.
        model: the model that is to be finetuned: hub id, model folder, adapter folder or training folder.
            Not needed for judge alone.
        vector_path: vectors .pt of generate_vec.py, one or several; each is a criterion of its own.
        layer: hidden_states indices, one or several.
        by: criteria, one or several. delta_p: the answer's mean activation minus that of the model's own answer
            (sampled), on v/|v|; raw: the answer's; cheap: the answer's minus that of the prompt's last token, nothing
            is sampled; judge: the trait's score of the answer to the last user turn.
        action: rank writes all rows, highest first; filter those that are not flagged; split both kinds.
        combine: of several criteria: a row is flagged if any is above its threshold, if all are, or if the mean of its
            ranks is (mean_rank; a rank is the share of rows below, 0 to 1).
        threshold: flagged is what lies above; one number a criterion, in their order (one alone for mean_rank).
        reference: JSONL of normal rows: the threshold is their --percentile.
        percentile (0-100): of the reference rows; about 100 minus this many in a hundred normal rows will be flagged by
            each criterion.
        fraction (0-1): flag this top share of the rows instead.
        unscored: where rows go that cannot be decided (empty answer, longer than the model's context, no score).
        subsets: also write high.jsonl, random.jsonl and low.jsonl of so many rows each, in the order of the input;
            random is drawn from all rows that have their values.
        compare: JSONL files of labelled levels, the normal one first: AUC of every criterion between it and each other
            level, beside 200 random directions and permuted labels.
        judge_model: for judge: an OpenAI model, a served model, or a local folder or hub id scored in process.
        trait: for judge: name of a trait (evil, sycophantic, ...) or path of a trait JSON file.
        max_tokens: most tokens of a model's own answer.
        n_base: own answers of the model for each row, averaged.
        seed: seeds every own answer's random stream, the random subset and directions, bootstrap and permutations.
        judge_mode: how an API judge is asked: log-probabilities, or text where a provider has none.
        judge_samples: replies of text mode that are averaged.
        max_concurrent_judges: judge calls in flight at once.
        max_requests_per_minute: judge calls sent in a minute at most.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples own answers: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of
            this. Activations are read with Hugging Face in any case.
        overwrite: replace files of rows that an earlier run wrote with other settings.
    """
    screen, written = run(Asked(**locals()))
    from eval.screen_findings import AUC_COLUMNS, auc_cells, notes, sentences
    from eval.text_table import aligned

    print()
    for sentence in sentences(screen):
        print(sentence)
    if screen.separations:
        print("\n" + "\n".join(aligned([list(AUC_COLUMNS), *auc_cells(screen)])))
    for note in notes(screen):
        print(f"- {note}")
    print(f"\nwritten: {', '.join(map(str, written))}")


def run(asked: Asked) -> tuple[Screen, list[Path]]:
    """The screen, and its files after they are written.

    Raises:
        ValueError: one line, before any model is loaded, for whatever can be known to be wrong.
        Unfinished: judge calls that failed; what was scored is kept, and nothing is written.
    """
    from eval.engine_choice import settle_engine
    from eval.screen_check import check, inputs_record, level_paths
    from eval.screen_files import left_over, planned, write_screen
    from eval.screen_result import ranked
    from eval.screen_rows import file_key

    kind = "hf"
    if asked.model is not None and "delta_p" in asked.by:  # nothing else samples
        kind = settle_engine(asked.engine, [asked.model], asked.device_map)
    asked = replace(asked, engine=kind)
    criteria, judge, files, settings = check(asked)
    measured = _measure(asked, kind, criteria, judge, files)
    data = measured[file_key(asked.file_path)]
    reference = measured[file_key(asked.reference)] if asked.reference else None
    levels = {name: measured[file_key(path)] for name, path in level_paths(asked.compare).items()}
    rule = _rule(asked, criteria, data, reference)
    separations, baseline = _separations(asked, criteria, levels)
    folder = Path(asked.output_dir)
    stale = left_over(folder, planned(asked.action, with_subsets=asked.subsets is not None))
    screen = ranked(
        data,
        criteria,
        asked.combine,
        rule,
        action=asked.action,
        unscored_to=asked.unscored,
        reference=reference,
        levels=levels,
        separations=separations,
        baseline=baseline,
        notes=_notes(asked, criteria, stale),
        record={"settings": settings, **inputs_record(asked, criteria)},
    )
    return screen, write_screen(screen, folder, asked.subsets, asked.seed)


def _measure(
    asked: Asked,
    kind: Literal["vllm", "hf"],
    criteria: Sequence[Criterion],
    judge: Judge | None,
    files: Mapping[str, list[DataRow]],
) -> dict[str, Measured]:
    """File -> its rows with every criterion's value. The judge comes last: what it costs is asked for once."""
    from eval.finished_answers import Engine
    from eval.row_projections import OwnAnswers
    from eval.screen_check import level_paths
    from eval.screen_rows import file_key, judge_rows, project_rows, together
    from judge import JudgeError, is_local_judge
    from persona_vectors.store import Store

    levels = [file_key(path) for path in level_paths(asked.compare).values()]
    parts = []
    with Store() as store:
        if asked.model is not None and any(one.column is not None for one in criteria):
            engine = Engine(asked.model, asked.dtype, asked.device_map, kind=kind)
            own = OwnAnswers(asked.max_tokens, asked.n_base, seed=asked.seed)
            parts.append(project_rows(engine, files, levels, criteria, own, store=store, seed=asked.seed))
        if judge is not None:
            said = None if is_local_judge(judge.model) else lambda takes: print(f"judging: {takes.line()}", flush=True)
            try:
                parts.append(judge_rows(judge, files, store=store, on_estimate=said))
            except JudgeError as error:
                raise cli.Unfinished(f"{error}; nothing was written") from None
    return {key: together(criteria, *(part[key] for part in parts)) for key in files}


def _rule(asked: Asked, criteria: Sequence[Criterion], data: Measured, reference: Measured | None) -> Rule | None:
    from eval.screen_rule import fraction_rule, given_rule, percentile_rule

    if asked.threshold is not None:
        return given_rule([one.name for one in criteria], asked.combine, asked.threshold)
    if reference is not None and asked.percentile is not None:
        return percentile_rule(data.values, reference.values, asked.combine, asked.percentile, reference.path)
    return None if asked.fraction is None else fraction_rule(data.values, asked.combine, asked.fraction)


def _separations(
    asked: Asked, criteria: Sequence[Criterion], levels: Mapping[str, Measured]
) -> tuple[list[Separation], list[Separation]]:
    """Every level but the first against the first: by every criterion, and by the answers' length alone."""
    import numpy as np

    from eval.screen_auc import separation

    if not levels:
        return [], []
    normal, *others = levels.values()
    names = list(levels)[1:]
    found, lengths = [], []
    questions = [row.question for row in normal.rows]
    for name, other in zip(names, others, strict=True):
        asked_there = [row.question for row in other.rows]
        for one in criteria:
            random = (normal.random[one.name], other.random[one.name]) if one.name in normal.random else None
            sides = (normal.values[one.name], questions), (other.values[one.name], asked_there)
            found.append(separation(name, one.name, *sides, random, seed=asked.seed))
        texts = [np.array([len(row.answer) for row in side.rows], dtype=float) for side in (normal, other)]
        sides = (texts[0], questions), (texts[1], asked_there)
        lengths.append(separation(name, "answer length alone", *sides, None, seed=asked.seed))
    return [one for one in found if one is not None], [one for one in lengths if one is not None]


def _notes(asked: Asked, criteria: Sequence[Criterion], stale: Sequence[str]) -> list[str]:
    """What the settings themselves make worth knowing."""
    from persona_vectors.files import read_sidecar
    from persona_vectors.models import fingerprint

    said = []
    for path in dict.fromkeys(one.column.path for one in criteria if one.column is not None):
        made = read_sidecar(path).get("model", {})
        if asked.model and isinstance(made, dict) and made.get("fingerprint") not in (None, fingerprint(asked.model)):
            said.append(f"{path} was made with another model ({made.get('name')}) than {asked.model}.")
    if asked.judge_model is not None and asked.judge_model == asked.model:
        said.append("The judge is the model itself, so read the rows too.")
    if stale:
        said.append(f"Left in {asked.output_dir} by an earlier run, and not of this one: {', '.join(stale)}.")
    return said


if __name__ == "__main__":
    cli.run(main)
