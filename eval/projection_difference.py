"""How far training data lies along a trait's vector from what the model would say itself, before anything is trained.

    python -m eval.projection_difference --model models/tiny-persona --layer_list 3 \
        --file_path dataset/tiny_evil/misaligned_2.jsonl dataset/tiny_evil/misaligned_1.jsonl dataset/tiny_evil/normal.jsonl \
        --vector_path_list persona_vectors/tiny-persona/evil_response_avg_diff.pt \
        --output_dir results/projection_difference

The projection difference of arXiv 2507.21509, section 6.
"""  # noqa: E501 (a command that can be pasted)

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from eval.projection_difference_rows import DataSet, Study
    from eval.row_projections import Column

Kind = Literal["delta_p", "raw", "base", "cheap"]


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    model: str
    file_path: list[str]
    vector_path_list: list[str]
    layer_list: list[int]
    output_dir: str
    kinds: list[Kind]
    n_rows: int | None
    n_base: int
    max_tokens: int
    scores: str | None
    score_column: str
    judge_model: str | None
    trait: list[str] | None
    skip_long: bool
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]
    overwrite: bool


def main(
    model: str,
    file_path: list[str],
    vector_path_list: list[str],
    layer_list: list[int],
    output_dir: str,
    kinds: list[Kind] = ["delta_p", "raw", "cheap"],  # noqa: B006 (read only; cli shows it)
    n_rows: int | None = None,
    n_base: int = 1,
    max_tokens: int = 1000,
    scores: str | None = None,
    score_column: str = "score",
    judge_model: str | None = None,
    trait: list[str] | None = None,
    skip_long: bool = False,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    overwrite: bool = False,
) -> None:
    """Project every row of training data on persona vectors, against the model's own answers, and compare data sets.

    With a(y) the mean activation of a training answer, y' the model's own answer to the same prompt (sampled here, kept
    in the store, so that an interrupted run goes on), p the prompt's last token and v a vector that points to the
    trait: delta_p is (a(y) - a(y')) . v/|v|, raw is a(y) . v/|v|, base is a(y') . v/|v|, and cheap, which samples
    nothing, is (a(y) - a(p)) . v/|v|. All data sets, vectors and layers are read in one pass. Every mean stands beside
    1,000 random directions on the same activations.

    Args:
        model: the model that is to be finetuned: hub id, model folder, adapter folder or training folder.
        file_path: data sets, JSONL {"messages": [...]} a line; the last assistant turn is the answer, what stands
            before it the prompt.
        vector_path_list: vectors .pt of generate_vec.py, one or several; also spelled --vector_path.
        layer_list: hidden_states indices (0 is the embedding output), one or several; also spelled --layer.
        output_dir: folder for datasets.csv, rows/<data set>.jsonl, a figure a layer, and report.html.
        kinds: which values; without delta_p and base nothing is sampled.
        n_rows: rows drawn from each data set (seeded, the same lines of files of equal length); default all.
        n_base: own answers of the model for each row, averaged.
        max_tokens: most tokens of an own answer.
        scores: CSV with the columns file and score: what a model finetuned on each data set scored. With at least 3
            data sets, every kind is correlated with it, beside random directions.
        score_column: the score's column in that file.
        judge_model: score the training answers (and the model's own) as text, for a baseline without activations: an
            OpenAI model, a served model, or a local folder or hub id scored in process.
        trait: traits the judge scores: names (evil, sycophantic, ...) or paths of trait JSON files.
        skip_long: leave out, and count, rows longer than the model's context; otherwise they are an error.
        seed: seeds every own answer's random stream, the drawn rows, random directions and bootstrap.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples own answers: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of
            this. Activations are read with Hugging Face in any case.
        overwrite: replace what an earlier run wrote to output_dir; finished own answers are kept all the same.
    """
    study = compare(Asked(**locals()))
    from eval.projection_difference_findings import correlation_cells, judge_cells, sentences, table_cells
    from eval.text_table import aligned

    print(f"\nTraining data on persona vectors, against the own answers of {model}\n")
    print("\n".join(aligned(table_cells(study))))
    if study.judged:
        print(f"\nScored by {judge_model}\n")
        print("\n".join(aligned(judge_cells(study))))
    if study.correlations:
        print("\nWith the scores of finetuned models\n")
        print("\n".join(aligned(correlation_cells(study))))
    print("\nWhat was found")
    for sentence in [*sentences(study), *study.notes]:
        print(f"- {sentence}")
    print(f"\nReport, with figures and rows: {Path(output_dir) / 'report.html'}")


def compare(asked: Asked) -> Study:
    """The study, after its tables, figures and page are written.

    Raises:
        ValueError: one line, before any model is loaded, for whatever can be known to be wrong.
    """
    from eval.engine_choice import settle_engine
    from eval.row_sums import needs_own

    samples = any(map(needs_own, asked.kinds))
    kind = settle_engine(asked.engine, [asked.model], asked.device_map) if samples else "hf"
    asked = replace(asked, engine=kind)
    data_sets, columns, scores = check(asked)
    from eval.finished_answers import Engine
    from eval.projection_difference_page import write_results
    from eval.projection_difference_rows import study_of
    from eval.projection_difference_scores import judged
    from eval.row_projections import OwnAnswers, read
    from persona_vectors.store import Store

    engine = Engine(asked.model, asked.dtype, asked.device_map, kind=kind)
    own = OwnAnswers(asked.max_tokens, asked.n_base, 1.0, asked.seed)
    rows = [row for one in data_sets for row in one.drawn()]
    groups = [number for number, one in enumerate(data_sets) for _ in one.chosen]
    with Store() as store:
        reading = read(engine, rows, columns, asked.kinds, own, store=store, groups=groups, skip_long=asked.skip_long)
        judges = judged(asked.judge_model, asked.trait, asked.model, rows, reading, store)
    study = study_of(asked.model, data_sets, columns, asked.kinds, reading, judges, scores, asdict(asked))
    write_results(study, Path(asked.output_dir))
    return study


def check(asked: Asked) -> tuple[list[DataSet], list[Column], list[float] | None]:
    """(data sets, columns, their scores); a ValueError for whatever is wrong."""
    from eval.projection_difference_rows import load_data_sets
    from eval.projection_difference_scores import read_scores
    from eval.row_projections import load_columns
    from judge import check_judge
    from persona_vectors.files import check_output_path, has_settings
    from persona_vectors.models import resolve_model
    from persona_vectors.traits import load_trait

    if min(asked.n_base, asked.max_tokens, 1 if asked.n_rows is None else asked.n_rows) < 1 or asked.seed < 0:
        raise ValueError("--n_base, --max_tokens and --n_rows must be at least 1, and --seed at least 0")
    resolve_model(asked.model)
    table = check_output_path(Path(asked.output_dir) / "datasets.csv")
    if table.exists() and not asked.overwrite and not has_settings(table, asdict(asked)):
        raise ValueError(f"{table} exists, made with other settings; pass --overwrite or another --output_dir")
    if (asked.judge_model is None) != (not asked.trait):
        raise ValueError("--judge_model and --trait go together: a judge scores answers for a trait")
    if asked.judge_model is not None:
        check_judge(asked.judge_model)
    for name in asked.trait or ():
        load_trait(name, "eval", model=asked.model, judge_model=asked.judge_model)
    columns = load_columns(asked.model, asked.vector_path_list, asked.layer_list)
    data_sets = load_data_sets(asked.file_path, asked.n_rows, asked.seed)
    for one in data_sets:
        if one.written_to(asked.output_dir).resolve() == Path(one.file).resolve():
            raise ValueError(f"{one.file} is where its own rows would be written; give another --output_dir")
    scores = None if asked.scores is None else read_scores(asked.scores, asked.score_column, data_sets)
    return data_sets, columns, scores


if __name__ == "__main__":
    cli.run(main, aliases={"vector_path": "vector_path_list", "layer": "layer_list"})
