"""A local judge through vLLM against the same judge through transformers: 2,000 answers that share a rubric.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.vllm_judge     # half an hour of two cores; needs vLLM
    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.vllm_judge --n_answers 200 --rounds 1

Three cases: tiny-persona, which has a token for each of 0..100, under a trait's rubric (about 400 tokens) and under the
coherence judge's; and a random model of its size that spreads its answers over all numbers, digit by digit, so that
every prompt has ten branches. Answers are of 40 words, to 20 questions. Both ways live at once and take turns on the
same prompts; vLLM's prefix cache is emptied before each of its turns, and then finds everything there in another.
Reported are medians of seconds and of processor seconds (of this process and of those it started; other work on the
machine moves these less), ratios of medians, the largest difference of a label's probability and of a score, and how
many answers it takes until vLLM's start is paid back.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_vectors import cli

ROOT = Path(__file__).parents[1]
N_WORDS = 40
EVAL_TYPE = "0_100"


@dataclass(frozen=True)
class Took:
    """Seconds of the clock and of processors, and what was computed."""

    wall: float
    cpu: float
    result: Any


def main(n_answers: int = 2_000, rounds: int = 3, eager: bool = True, output_path: str | None = None) -> None:
    """Time both ways in the three cases and print a table.

    Args:
        n_answers: different answers, to 20 questions.
        rounds: turns of each, after one on 32 answers that warms up.
        eager: as judges run; --noeager compiles.
        output_path: JSON of all figures.
    """
    from judge import COHERENCE_PROMPT
    from persona_vectors.vllm_available import vllm_version, why_not_vllm
    from tests.vllm.judges import TINY, digit_judge

    if (why := why_not_vllm()) is not None:
        raise ValueError(why)
    trait = json.loads((ROOT / "data_generation" / "trait_data_eval" / "evil.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        judges = {
            str(TINY): {"trait rubric": trait["eval_prompt"], "coherence rubric": COHERENCE_PROMPT},
            digit_judge(Path(folder)): {"trait rubric, digits": trait["eval_prompt"]},
        }
        print(vllm_version())
        found: dict[str, Any] = {}
        for judge, rubrics in judges.items():
            cases = {title: prompts(rubric, trait["questions"], n_answers) for title, rubric in rubrics.items()}
            found |= measured(judge, cases, rounds, eager)
    if output_path is not None:
        Path(output_path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(judge: str, cases: dict[str, dict[str, str]], rounds: int, eager: bool) -> dict[str, Any]:
    """The figures of one judge's cases, printed."""
    from persona_vectors.models import load_model
    from persona_vectors.vllm_odds import LabelEngine

    loaded = load_model(judge)
    with LabelEngine(judge, enforce_eager=eager, disable_log_stats=False) as engine:
        start = timed(lambda: engine.room)
        return {title: compare(engine, loaded, names, rounds, start, title) for title, names in cases.items()}


def prompts(rubric: str, questions: list[str], n_answers: int) -> dict[str, str]:
    """Judge prompts of answers of random words, each with a name."""
    from judge import fill_prompt

    draw = random.Random(0)
    words = sorted({word for question in questions for word in question.split()})
    answers = [" ".join(draw.choices(words, k=N_WORDS)) for _ in range(n_answers)]
    filled = [fill_prompt(rubric, questions[k % len(questions)], answer) for k, answer in enumerate(answers)]
    return {text: f"answer {k}" for k, text in enumerate(filled)}


def compare(engine: Any, loaded: Any, names: dict[str, str], rounds: int, start: Took, title: str) -> dict[str, Any]:
    """The figures of one rubric, printed."""
    from persona_vectors import label_odds, vllm_odds

    model, tokenizer = loaded
    hits = {"queries": 0, "hits": 0}

    def cold() -> dict[str, dict[str, float]]:
        engine.llm.reset_prefix_cache()
        before = counters(engine)
        odds = dict(vllm_odds.label_odds(engine, names, EVAL_TYPE))
        hits.update({name: count - before[name] for name, count in counters(engine).items()})
        return odds

    jobs: dict[str, Callable[[], dict[str, dict[str, float]]]] = {
        "transformers": lambda: dict(label_odds.label_odds(model, tokenizer, names, EVAL_TYPE)),
        "vLLM": cold,
        "vLLM, warm": lambda: dict(vllm_odds.label_odds(engine, names, EVAL_TYPE)),
    }
    few = dict(list(names.items())[:32])
    dict(label_odds.label_odds(model, tokenizer, few, EVAL_TYPE))
    dict(vllm_odds.label_odds(engine, few, EVAL_TYPE))
    turns = [{name: timed(job) for name, job in jobs.items()} for _ in range(rounds)]
    figures = {name: {kind: [getattr(turn[name], kind) for turn in turns] for kind in ("wall", "cpu")} for name in jobs}
    median = {name: {kind: statistics.median(own[kind]) for kind in own} for name, own in figures.items()}
    last = {name: took.result for name, took in turns[-1].items()}
    ratios = {
        kind: {name: median["transformers"][kind] / median[name][kind] for name in jobs if name != "transformers"}
        for kind in ("wall", "cpu")
    }
    saved = (median["transformers"]["wall"] - median["vLLM"]["wall"]) / len(names)
    result = {
        "start": {"wall": start.wall, "cpu": start.cpu},
        "seconds": figures,
        "ratios": ratios,
        "from_cache": hits["hits"] / hits["queries"],
        "differences": differences(last["transformers"], last["vLLM"]),
        "warm_differences": differences(last["vLLM"], last["vLLM, warm"]),
        "paid_back_after": start.wall / saved if saved > 0 else None,
    }
    report(title, len(names), median, result)
    return result


def counters(engine: Any) -> dict[str, int]:
    """vLLM's counts of prompt tokens that were looked for, and found, in the prefix cache."""
    values = {metric.name: int(metric.value) for metric in engine.llm.get_metrics() if hasattr(metric, "value")}
    return {name: values[f"vllm:prefix_cache_{name}"] for name in ("queries", "hits")}


def timed(job: Callable[[], Any]) -> Took:
    wall, cpu = time.perf_counter(), processor_seconds()
    result = job()
    return Took(time.perf_counter() - wall, processor_seconds() - cpu, result)


def processor_seconds() -> float:
    """Of this process and of all that descend from it and live."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in [own, *own.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def differences(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> dict[str, float]:
    """The largest difference of a probability and of a score, and how many have a score in one only."""
    from persona_vectors.scores import aggregate

    scores = [(aggregate(one[text], EVAL_TYPE), aggregate(other[text], EVAL_TYPE)) for text in one]
    both = [abs(a - b) for a, b in scores if a is not None and b is not None]
    return {
        "probability": max(abs(one[text][label] - other[text][label]) for text in one for label in one[text]),
        "score": max(both, default=0.0),
        "n_scored": len(both),
        "n_scored_in_one": sum((a is None) != (b is None) for a, b in scores),
    }


def report(title: str, n_answers: int, median: dict[str, dict[str, float]], result: dict[str, Any]) -> None:
    """Prints one rubric's table."""
    print(f"{title}, {n_answers} answers; {result['from_cache']:.0%} of vLLM's prompt tokens came from its cache")
    for name, own in median.items():
        ratio = "" if name == "transformers" else f"   {result['ratios']['wall'][name]:.2f}x"
        ratio += "" if name == "transformers" else f" ({result['ratios']['cpu'][name]:.2f}x by processor)"
        print(f"  {name:13} {own['wall']:7.2f} s, {own['cpu']:7.2f} processor s{ratio}")
    found, warm = result["differences"], result["warm_differences"]
    print(
        f"  largest difference: probability {found['probability']:.1e}, score {found['score']:.1e} of 100 "
        f"({found['n_scored']} scored, {found['n_scored_in_one']} in one only); warm {warm['probability']:.1e}"
    )
    paid = result["paid_back_after"]
    after = f"paid back after {paid:,.0f} answers" if paid else "never paid back"
    start = result["start"]
    print(f"  the start took {start['wall']:.1f} s ({start['cpu']:.1f} processor s), {after}", flush=True)


if __name__ == "__main__":
    cli.run(main)
