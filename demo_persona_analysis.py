"""The analysis toolkit by a menu: one trait, many traits and models, what they say of one another, and a page of it.

python demo_persona_analysis.py
python demo_persona_analysis.py --option 2 --model_names models/tiny-persona --traits openness extraversion neuroticism
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from persona_vectors import cli

BIG_FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
MENU = """
1  one trait of one model
2  batch: every trait of every model, then the comparison and the page
3  comparison: a table of what is in the folder, and cosines of its vectors
4  report: the same as a page
q  leave"""


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`, without the option."""

    model_names: list[str]
    traits: list[str]
    layers: list[int] | None
    layer_range: list[int] | None
    n_samples: int
    save_dir: str
    judge_model: str | None
    max_tokens: int
    seed: int
    engine: Literal["auto", "vllm", "hf"]


def main(
    option: int | None = None,
    model_names: list[str] = ["models/tiny-persona"],  # noqa: B006 (read only; cli shows it)
    traits: list[str] = list(BIG_FIVE),  # noqa: B006
    layers: list[int] | None = None,
    layer_range: list[int] | None = None,
    n_samples: int = 5,
    save_dir: str = "persona_analysis",
    judge_model: str | None = None,
    max_tokens: int = 200,
    seed: int = 0,
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Show the menu, or with --option run one of its entries.

    Every extraction is one of quick_persona_extract.py, with its files in save_dir; the comparison adds comparison.csv
    there, and the report report.html. A trait or model that fails is named at the end, and the others go on.

    Args:
        option: 1 (the first trait of the first model), 2 (batch), 3 (comparison) or 4 (report); without it the menu
            asks, and asks again until q.
        model_names: hub ids, model folders, adapter folders or training folders.
        traits: names of traits, or paths of trait JSON files.
        layers: hidden_states indices, as in quick_persona_extract.py.
        layer_range: first and last layer; without both flags 10 to 20, or all layers of a smaller model.
        n_samples: questions under each pair of instructions, at least 2.
        save_dir: folder of all files.
        judge_model: keeps the pairs that show the trait; without one every answer counts.
        max_tokens: most tokens of an answer.
        seed: of answers, folds, random directions and resampling.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed.
    """
    arguments = dict(locals())
    del arguments["option"]
    asked = Asked(**arguments)
    if not asked.model_names or not asked.traits:
        raise ValueError("--model_names and --traits need at least one each")
    if option is not None:
        choose(str(option), asked)
        return
    while (answer := _ask()) is not None:
        try:
            choose(answer, asked)
        except (ValueError, OSError, cli.Unfinished) as error:  # one mistake does not end the menu
            print(f"error: {cli.one_line(error)}")


def _ask() -> str | None:
    """What was chosen; None to leave."""
    print(MENU)
    try:
        answer = input("> ").strip().lower()
    except EOFError:
        return None
    return None if answer in ("q", "quit", "exit") else answer


def choose(option: str, asked: Asked) -> None:
    """Runs one entry of the menu.

    Raises:
        ValueError: an entry that is not there.
        cli.Unfinished: extractions that failed, after the others were written.
    """
    if option not in ("1", "2", "3", "4"):
        raise ValueError(f"option {option or 'nothing'} is not in the menu; expected 1, 2, 3 or 4")
    failures = []
    if option == "1":
        failures = extract(asked, asked.model_names[:1], asked.traits[:1])
    elif option == "2":
        failures = extract(asked, asked.model_names, asked.traits)
    if option != "1":
        compare(asked, page=option != "3")
    if failures:
        raise cli.Unfinished(f"{len(failures)} extractions failed: {'; '.join(failures)}")


def extract(asked: Asked, models: Sequence[str], traits: Sequence[str]) -> list[str]:
    """Quick extractions of the traits, a model at a time; what failed and why. The others go on."""
    from eval import quick_extract, quick_run

    failures = []
    passed = ("layers", "layer_range", "n_samples", "save_dir", "judge_model", "max_tokens", "seed", "engine")
    how = {name: getattr(asked, name) for name in passed}
    for model in models:
        usable: list[str] = []
        refused: dict[str, list[str]] = {}  # why -> which traits: a model that is not there is one failure
        for trait in traits:
            try:
                quick_extract.plan(quick_extract.Asked(model_name=model, trait=trait, **how))
                usable.append(trait)
            except (ValueError, OSError) as error:
                refused.setdefault(cli.one_line(error), []).append(trait)
        failures += [f"{model}, {', '.join(names)}: {why}" for why, names in refused.items()]
        if usable:
            print(f"\n== {model}: {', '.join(usable)}", flush=True)
            try:
                quick_run.run(quick_extract.Asked(model_name=model, trait=usable, **how))
            except (ValueError, OSError, cli.Unfinished) as error:
                failures.append(f"{model}, {', '.join(usable)}: {cli.one_line(error)}")
    for failure in failures:
        print(f"failed: {failure}", flush=True)
    return failures


def compare(asked: Asked, *, page: bool) -> None:
    """Prints and writes what the extractions in the folder say of one another."""
    from eval.quick_compare import comparisons, read_folder
    from eval.quick_compare_report import lines, write_comparison, write_report

    found = read_folder(asked.save_dir)
    compared = comparisons(found)
    print("\n" + "\n".join(lines(found, compared)))
    written = [write_comparison(asked.save_dir, found)]
    if page:
        written.append(write_report(asked.save_dir, found, compared))
    print("\nsaved " + ", ".join(str(path) for path in written))


if __name__ == "__main__":
    cli.run(main)
