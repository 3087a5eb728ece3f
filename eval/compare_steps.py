"""A comparison from its checked arguments to its files: what is run, in order, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.compare_behavior import Behavior, Run, compare_behavior_vs_coefficient
from eval.compare_frontier import Agreed, Frontier, agreement, clearest, find_frontier
from eval.compare_settings import ACTIVATION, METHODS, WEIGHTS, Checked, control_seed
from eval.text_table import aligned, between

if TYPE_CHECKING:
    import pandas as pd

    from eval.compare_spaces import Spaces
    from eval.finished_answers import Engine


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that was found; what was not asked for is None."""

    checked: Checked
    behavior: Behavior
    frontier: Frontier
    matched: list[Agreed]
    beside: list[Agreed]
    latency: pd.DataFrame | None = None
    spaces: Spaces | None = None
    capability: pd.DataFrame | None = None

    @property
    def unsteered(self) -> Run:
        return self.behavior.unsteered

    @property
    def runs(self) -> list[Run]:
        """Each method's own and its controls', lowest coefficient first."""
        return self.behavior.runs

    def sentences(self) -> list[str]:
        """What was found, in words."""
        found = frontier_lines(self.frontier, self.checked.name)
        best = self.frontier.best.get(WEIGHTS)
        if best is not None:
            found += control_lines(self.behavior.receipts.get("receipts", []), best.coef)
        found += agreement_lines(self)
        if self.latency is not None:
            found += latency_lines(self.latency)
        if self.spaces is not None:
            from eval.compare_spaces import space_lines

            found += space_lines(self.spaces)
        if self.capability is not None:
            from eval.compare_capability import capability_lines

            found += capability_lines(self.capability)
        return found

    def lines(self) -> list[str]:
        """What the command prints."""
        asked = self.checked.asked
        table = aligned([columns(self.checked.name), *cells(self.runs)])
        head = f"{self.checked.name} of {asked.model}, scored by {asked.judge_model}; 95% intervals by question"
        found = [f"- {sentence}" for sentence in self.sentences()]
        return ["", head, "", *table, "", *found, "", f"report: {asked.folder / 'report.html'}"]


def compare(checked: Checked) -> Comparison:
    """The comparison, after all its files are written."""
    from eval.compare_files import write_behavior
    from eval.compare_page import write_report
    from eval.finished_answers import Engine
    from persona_vectors.store import Store

    asked = checked.asked
    assert asked.engine != "auto", "`check` settles it"
    engine = Engine(asked.model, asked.dtype, asked.device_map, kind=asked.engine)
    with Store() as store:
        behavior = compare_behavior_vs_coefficient(engine, store, checked)
    frontier = find_frontier(behavior.runs, checked.name, asked.min_coherence)
    found = Comparison(checked, behavior, frontier, *agreement(behavior.runs, checked.name))
    write_behavior(found)
    found = _measured(found, engine)
    write_report(found)
    return found


def _measured(found: Comparison, engine: Engine) -> Comparison:
    """With what the flags ask for, each part written as it is done."""
    from dataclasses import replace

    from eval.compare_files import LATENCY, earlier_table, write_capability, write_latency, write_spaces

    asked = found.checked.asked
    if asked.test_latency:
        earlier = earlier_table(LATENCY, found.checked)
        found = replace(found, latency=_latency(found, engine) if earlier is None else earlier)
        if earlier is None:
            write_latency(found)
        else:
            print(f"{asked.folder / LATENCY} is of an earlier run with these settings; --overwrite measures anew")
    if asked.analyze_spaces:
        found = replace(found, spaces=_spaces(found, engine))
        write_spaces(found)
    if asked.capability:
        from eval.compare_capability import capability_at, with_controls

        chosen = with_controls(found.frontier.best, found.runs)
        found = replace(found, capability=capability_at(engine.model, engine.tokenizer, chosen, progress=True))
        write_capability(found)
    return found


def _latency(found: Comparison, engine: Engine) -> pd.DataFrame:
    from eval.compare_latency import NEW_TOKENS, PROMPTS, ROUNDS, latency_table, measure_latency
    from eval.model_utils import Steering
    from persona_vectors.blocks import device_of

    checked = found.checked
    prompts = found.unsteered.table["prompt"].drop_duplicates().tolist()[:PROMPTS]
    steering = Steering(checked.vector, checked.asked.layer, 1.0)
    model = engine.model
    measured = measure_latency(
        model,
        engine.tokenizer,
        prompts,
        steering,
        checked.direction,
        new_tokens=NEW_TOKENS,
        rounds=ROUNDS,
        progress=True,
    )
    return latency_table(measured, len(prompts), NEW_TOKENS, str(device_of(model)))


def _spaces(found: Comparison, engine: Engine) -> Spaces:
    from eval.compare_spaces import analyze_space_relationship
    from persona_vectors.tokens import tokenize_sample

    checked, table = found.checked, found.unsteered.table
    tokens = [
        tokenize_sample(engine.tokenizer, prompt, answer)
        for prompt, answer in zip(table["prompt"], table["answer"], strict=True)
    ]
    kept = [row for row, one in enumerate(tokens) if one.response_len]
    return analyze_space_relationship(
        engine.model,
        [tokens[row] for row in kept],
        [table["question"].iloc[row] for row in kept],
        checked.direction,
        checked.vectors,
        n_random=checked.asked.n_random,
        seed=control_seed(checked.asked, checked.name),
        progress=True,
    )


def unfinished(found: Comparison) -> str:
    """Why the command has to be run again: judge calls that failed; "" where none did.

    Raises:
        ValueError: the judge scored nothing at all.
    """
    from persona_vectors.judging import failure_line

    answered = list({id(run.answered): run.answered for run in (found.unsteered, *found.runs)}.values())
    failures = dict(enumerate(why for one in answered for why in one.failures))
    if failures:
        total = sum(2 * len(one.table) for one in answered)  # trait and coherence
        return f"{failure_line(failures, total)}: run the same command again; until then the tables have gaps"
    for name in (found.checked.name, "coherence"):
        if not any(one.table[name].notna().any() for one in answered):
            raise ValueError(
                f"the judge gave no {name} score for any answer; check that --judge_model answers the trait's "
                "eval_prompt with a number"
            )
    return ""


def columns(trait: str) -> list[str]:
    """Headings of `cells`."""
    return ["method", "coef", trait, "coherence", "words an answer", "scored"]


def cells(runs: Sequence[Run]) -> list[list[str]]:
    """A row of texts a run."""
    return [
        [
            f"{run.method} {run.control}".strip(),
            f"{run.coef:g}",
            run.trait.text(),
            run.coherence.text(),
            f"{run.words:.0f}",
            f"{run.trait.n}/{len(run.table)}",
        ]
        for run in runs
    ]


def frontier_lines(found: Frontier, trait: str) -> list[str]:
    """The best of each method and their difference, in words."""
    lines = []
    for method in METHODS:
        own, random = found.best.get(method), found.random.get(method)
        if own is None:
            lines.append(f"{method}: no setting has mean coherence >= {found.min_coherence:g}")
            continue
        beside = (
            "no random one is coherent" if random is None else f"the best random one reaches {random.trait.mean:.1f}"
        )
        lines.append(
            f"{method}: highest {trait} at mean coherence >= {found.min_coherence:g} is {own.trait.text()} at coef "
            f"{own.coef:g} (coherence {own.coherence.text()}); {beside}"
        )
    if found.difference is not None:
        lines.append(
            f"{WEIGHTS} - {ACTIVATION} at these two settings, paired by question and sample: "
            f"{found.difference.text(sign=True)} points of {trait} ({found.difference.n} pairs); the settings were "
            "chosen on the same answers, and the best of several flatters both methods"
        )
    return lines


WEAKER = 0.8
"""a random direction that changes less than this share of what D changes is no push of the same size"""


def control_lines(receipts: Sequence[Mapping[str, Any]], coef: float) -> list[str]:
    """How far the weights' direction and the random ones move the modules' outputs, which their norm does not say.

    Empty where no receipt says it, as with vLLM.
    """
    there = [one for one in receipts if one["coef"] == coef and "relative_change" in one]
    own = [one["relative_change"] for one in there if not one["control"]]
    random = [one["relative_change"] for one in there if one["control"]]
    if not own or not random:
        return []
    text = (
        f"the random directions have D's norm in the weights; in the activations, at coef {coef:g}, they change the "
        f"modules' outputs by {between(random)} of their size, and D by {own[0]:.3g}"
    )
    if max(random) < WEAKER * own[0]:
        text += ": they push less hard than D, so their score is no control of an equal push"
    return [text]


def agreement_lines(found: Comparison) -> list[str]:
    """Whether both methods move the same answers, in words."""
    one = clearest(found.matched)
    if one is None or one.correlation is None:
        return ["no two settings of the methods have a like mean trait and scores that vary: agreement is not known"]
    first, second = one.one, one.other
    text = (
        f"agreement at like mean {found.checked.name} ({first.name}: {first.trait.mean:.1f}; {second.name}: "
        f"{second.trait.mean:.1f}): r = {one.correlation.pearson.text()} over {one.correlation.n} answers to the same "
        "question with the same random numbers"
    )
    if one.shifted is not None:
        text += f"; r = {one.shifted.pearson.text()} with another answer to the same question"
    near = [
        (f"{pair.one.name} and {pair.other.coef:g}", pair.correlation.pearson)
        for pair in found.beside
        if {first, second} & {pair.one, pair.other} and pair.correlation is not None
    ]
    if not near:
        return [text]
    own = "; ".join(f"{name}: {r.text()}" for name, r in near)
    lines = [text, f"each method with itself at the next coefficient: {own}"]
    if not any(r.low is not None and r.low > 0 for _, r in near):
        lines.append(
            "no method is seen to agree with itself at the next coefficient, so that a low agreement of the two says "
            "nothing of them: a score is mostly the luck of its sample"
        )
    return lines


def latency_lines(table: pd.DataFrame) -> list[str]:
    """Each way beside the unsteered model, in words."""
    first = table.iloc[0]
    parts = [
        f"{row['variant']} {row['ratio_to_baseline']:.3f} "
        f"[{row['ratio_to_baseline_q25']:.3f}, {row['ratio_to_baseline_q75']:.3f}]"
        for row in table.to_dict("records")[1:]
    ]
    lines = [
        f"time of a generated token over the unsteered model's of the same round, median and quartiles of "
        f"{first['rounds']} rounds: {', '.join(parts)}; unsteered {first['seconds_per_token'] * 1e3:.3f} ms a token, "
        f"{first['n_prompts']} prompts at once on {first['device']}"
    ]
    if bool(table["peak_memory_mib"].notna().all()):
        peaks = ", ".join(f"{row['variant']} {row['peak_memory_mib']:.0f} MiB" for row in table.to_dict("records"))
        lines.append(f"peak CUDA memory: {peaks}")
    return lines
