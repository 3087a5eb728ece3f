"""What capping did: shares of answers that play a role, drift, capability, each beside caps on random directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from eval.capping_roles import UNCAPPED, Tried, turn_question
from eval.transcripts import Transcript
from persona_vectors.capping import Calibration, Cap
from persona_vectors.drift import slopes
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

if TYPE_CHECKING:
    from persona_vectors.persona_files import Place
    from persona_vectors.role_adherence import Adherence

Label = "Adherence | None"
SHARES = {"fully": ("fully",), "at least somewhat": ("fully", "somewhat")}
"""What counts as playing a role, by name."""


@dataclass(frozen=True, eq=False)
class Roles:
    """Answers and labels of one setting.

    Attributes:
        answers, labels: under role prompts, by (persona, question).
        talks: the conversations, one a role; talk_labels: (conversations, turns).
        own_means: mean projection of each assistant turn as it was generated, under the setting's own cap; None where
            it cannot be read so (a cap that does not act at all tokens).
        word_means: of the same words, read uncapped and with the user's turns as plain questions: what the words alone
            say, whatever was asked for and whatever is clamped.
        coherence: of the answers under role prompts, 0 to 100.
        rule, talk_rule: how strongly each answer and turn plays its role by rule, 0 to 100; empty unless asked for.
    """

    answers: Mapping[Place, str]
    labels: Mapping[Place, Adherence | None]
    talks: Sequence[Transcript]
    talk_labels: Sequence[Sequence[Adherence | None]]
    own_means: Float[np.ndarray, "conversations turns"] | None
    word_means: Float[np.ndarray, "conversations turns"]
    coherence: Mapping[Place, float | None]
    rule: Sequence[float] = ()
    talk_rule: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """Everything a run measured.

    Attributes:
        judge_fit: whether it said `fully` more often of answers in their own role than in another's; if not, what it
            says of role-play means nothing. None where one role is played and nothing can be held against it.
        judge_line: the shares that says.
        layer: the highest capped one, at which turns are projected.
        calibration: layer -> projections of ordinary answers' tokens; the first column is the axis.
        role_tokens: layer -> projections of uncapped role answers' tokens on the axis.
        ordinary: setting -> the ordinary answers to the measured questions, by place.
        capability: setting -> task -> item -> value.
    """

    model: str
    judge: str
    judge_fit: bool | None
    judge_line: str
    cap: Cap
    settings: Sequence[Tried]
    layer: int
    calibration: Calibration
    role_tokens: Mapping[int, Float[np.ndarray, " tokens"]]
    roles: Mapping[str, Roles]
    ordinary: Mapping[str, Mapping[Place, str]]
    capability: Mapping[str, Mapping[str, Mapping[str, float]]]
    questions: Sequence[str]
    script: Sequence[str]

    @property
    def controls(self) -> list[Tried]:
        return [one for one in self.settings if one.is_random]


def share(labels: Mapping[Place, Adherence | None], of: str) -> Interval:
    """The share of judged answers that play their role, with a 95% interval by persona."""
    values = [None if label is None else float(label in SHARES[of]) for label in labels.values()]
    return cluster_bootstrap_mean(values, [persona for persona, _ in labels])


def share_difference(
    labels: Mapping[Place, Adherence | None], reference: Mapping[Place, Adherence | None], of: str
) -> Interval:
    """Share minus the reference's, answer by answer, with a 95% interval by persona."""
    values = []
    for place, label in labels.items():
        pair = label, reference[place]
        values.append(None if None in pair else float(label in SHARES[of]) - float(pair[1] in SHARES[of]))
    return cluster_bootstrap_mean(values, [persona for persona, _ in labels])


def talk_share(labels: Sequence[Sequence[Adherence | None]], turns: Sequence[int], of: str = "fully") -> Interval:
    """The share of those turns that play the role, with a 95% interval by conversation."""
    found = [(row, own[turn]) for row, own in enumerate(labels) for turn in turns]
    return cluster_bootstrap_mean(
        [None if label is None else float(label in SHARES[of]) for _, label in found], [row for row, _ in found]
    )


def talk_difference(
    labels: Sequence[Sequence[Adherence | None]],
    reference: Sequence[Sequence[Adherence | None]],
    turns: Sequence[int],
    of: str = "fully",
) -> Interval:
    """Share minus the reference's, turn by turn, with a 95% interval by conversation."""
    values, rows = [], []
    for row, (own, other) in enumerate(zip(labels, reference, strict=True)):
        for turn in turns:
            pair = own[turn], other[turn]
            values.append(None if None in pair else float(pair[0] in SHARES[of]) - float(pair[1] in SHARES[of]))
            rows.append(row)
    return cluster_bootstrap_mean(values, rows)


def asked_turns(script: Sequence[str]) -> list[int]:
    """The turns that ask for the role."""
    return [turn for turn, text in enumerate(script) if "{role}" in text]


def mean_slope(means: Float[np.ndarray, "conversations turns"]) -> Interval:
    """The mean drift over conversations, with a 95% interval by conversation: change of the projection a turn.

    A conversation with an empty turn has no drift and is counted in `n_dropped`.
    """
    return cluster_bootstrap_mean(slopes(means.T), range(len(means)))


def slope_difference(own: np.ndarray, reference: np.ndarray) -> Interval:
    """Mean drift minus the reference's, conversation by conversation; dropped where either has an empty turn."""
    return cluster_bootstrap_mean(slopes(own.T) - slopes(reference.T), range(len(own)))


def unchanged(own: Mapping[Place, str], reference: Mapping[Place, str]) -> Interval:
    """The share of answers that are word for word the reference's, with a 95% interval by question."""
    return cluster_bootstrap_mean(
        [float(text == reference[place]) for place, text in own.items()], [question for _, question in own]
    )


def capability_difference(items: Mapping[str, float], reference: Mapping[str, float]) -> Interval:
    """Mean value minus the reference's, item by item."""
    return cluster_bootstrap_mean([value - reference[item] for item, value in items.items()], range(len(items)))


def result_rows(study: Study) -> Iterator[dict[str, Any]]:
    """One dict a setting and measure: its value with interval, and the difference from uncapped."""
    reference = study.roles[UNCAPPED]
    turns = asked_turns(study.script)
    for setting in study.settings:
        own, name = study.roles[setting.name], setting.name
        for of in SHARES:
            value = share(own.labels, of)
            yield _row(name, f"plays the role, {of}", value, share_difference(own.labels, reference.labels, of))
        change = talk_difference(own.talk_labels, reference.talk_labels, turns)
        yield _row(name, "plays the role in conversation, fully", talk_share(own.talk_labels, turns), change)
        for measure, means, plain in (
            ("drift a turn, as generated", own.own_means, reference.own_means),
            ("drift a turn, words alone", own.word_means, reference.word_means),
        ):
            if means is not None and plain is not None:
                yield _row(name, measure, mean_slope(means), slope_difference(means, plain))
        yield from _rule_rows(name, own, reference, turns)
        if own.coherence:
            pairs = [(own.coherence[place], reference.coherence[place]) for place in own.coherence]
            people = [persona for persona, _ in own.coherence]
            change = [None if None in pair else pair[0] - pair[1] for pair in pairs]  # pyright: ignore
            value = cluster_bootstrap_mean(list(own.coherence.values()), people)
            yield _row(name, "coherence of role answers", value, cluster_bootstrap_mean(change, people))
        same = unchanged(study.ordinary[name], study.ordinary[UNCAPPED])
        yield _row(name, "ordinary answers unchanged", same, None)
        for task, items in study.capability[name].items():
            value = cluster_bootstrap_mean(list(items.values()), range(len(items)))
            change = capability_difference(items, study.capability[UNCAPPED][task])
            yield _row(name, f"capability: {task}", value, change)


def _rule_rows(name: str, own: Roles, reference: Roles, turns: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Role-play by rule: of the answers to role prompts, and of the turns that are asked for a role."""
    if not own.rule:
        return
    people = [persona for persona, _ in own.answers]
    change = [value - other for value, other in zip(own.rule, reference.rule, strict=True)]
    value = cluster_bootstrap_mean(list(own.rule), people)
    yield _row(name, "role strength by rule", value, cluster_bootstrap_mean(change, people))
    said, other = (np.asarray(one.talk_rule)[:, turns] for one in (own, reference))  # (conversations, turns)
    talks = np.repeat(np.arange(len(said)), len(turns))
    value = cluster_bootstrap_mean(said.ravel(), talks)
    yield _row(
        name, "role strength by rule, in conversation", value, cluster_bootstrap_mean((said - other).ravel(), talks)
    )


def _row(setting: str, measure: str, value: Interval, change: Interval | None) -> dict[str, Any]:
    numbers = {"value": value.mean, "low": value.low, "high": value.high, "n": value.n, "n_missing": value.n_dropped}
    if change is not None and setting != UNCAPPED:
        numbers |= {"difference": change.mean, "difference_low": change.low, "difference_high": change.high}
        numbers["n_difference"] = change.n
    kept = {name: None if isinstance(one, float) and np.isnan(one) else one for name, one in numbers.items()}
    return {"setting": setting, "measure": measure, **kept}


def sentences(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was found, in words, for or against."""
    cap = study.cap.name
    at = {(row["setting"], row["measure"]): row for row in rows}
    found = []
    if study.judge_fit is False:
        found.append(f"The judge {study.judge} does not tell roles apart: {study.judge_line}. Its labels mean nothing.")
    for measure, words in (
        ("plays the role, fully", "Answers to role prompts that fully play the role"),
        ("plays the role in conversation, fully", "Turns that are asked to play a role and fully do"),
        ("role strength by rule", "Strength of the role in these answers by rule (0 to 100)"),
        ("role strength by rule, in conversation", "Strength of the role in these turns by rule (0 to 100)"),
        ("drift a turn, as generated", f"Drift of the scripted conversations at layer {study.layer}, as generated"),
        ("drift a turn, words alone", f"Drift of their words alone at layer {study.layer}"),
    ):
        if (cap, measure) not in at or (study.judge_fit is False and measure.startswith("plays")):
            continue
        before, after = at[UNCAPPED, measure], at[cap, measure]
        control = [at[one.name, measure]["value"] for one in study.controls]
        text = f"{words}: {_shown(measure, before)} uncapped, {_shown(measure, after)} under the cap"
        found.append(text + (f"; caps on random directions {_range(measure, control)}." if control else "."))
    for task in study.capability[UNCAPPED]:
        row = at[cap, f"capability: {task}"]
        low, high = row["difference_low"], row["difference_high"]
        says = "its interval includes no change" if low is None or low <= 0 <= high else "a change"
        change = f"{row['difference']:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
        before = at[UNCAPPED, f"capability: {task}"]["value"]
        found.append(f"Capability ({task}): {before:.3f} uncapped, {row['value']:.3f} under the cap, {change}: {says}.")
    same = at[cap, "ordinary answers unchanged"]
    found.append(f"{same['value']:.0%} of {same['n']} ordinary answers are word for word what they are uncapped.")
    return found


def _form(measure: str) -> str:
    return "{:+.2f}" if measure.startswith("drift") else "{:.1f}" if measure.startswith("role strength") else "{:.0%}"


def _shown(measure: str, row: Mapping[str, Any]) -> str:
    form = _form(measure)
    if row["value"] is None:
        return "none judged"
    if row["low"] is None:
        return form.format(row["value"])
    return f"{form.format(row['value'])} [{form.format(row['low'])}, {form.format(row['high'])}]"


def _range(measure: str, values: Sequence[float | None]) -> str:
    form = _form(measure)
    there = [value for value in values if value is not None]
    if not there:
        return "none judged"
    return f"{form.format(min(there))} to {form.format(max(there))}" if len(there) > 1 else form.format(there[0])


def ordinary_rows(study: Study) -> Iterator[dict[str, Any]]:
    """One dict a setting and ordinary answer: of the assistant's own personas to the measured questions."""
    for setting, answers in study.ordinary.items():
        for (persona, question), answer in answers.items():
            yield {"setting": setting, "persona": persona, "question": question, "answer": answer}


def answer_rows(study: Study) -> Iterator[dict[str, Any]]:
    """One dict a setting and answer to a role prompt."""
    for setting in study.settings:
        own = study.roles[setting.name]
        for row, ((persona, question), answer) in enumerate(own.answers.items()):
            label, coherence = own.labels.get((persona, question)), own.coherence.get((persona, question))
            asked = {"setting": setting.name, "persona": persona, "question": question, "answer": answer}
            yield {**asked, "label": label, "coherence": coherence, **({"rule": own.rule[row]} if own.rule else {})}


def turn_rows(study: Study, personas: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One dict a setting, conversation and assistant turn."""
    for setting in study.settings:
        own = study.roles[setting.name]
        for number, persona in enumerate(personas):
            said = [one["content"] for one in own.talks[number].messages if one["role"] == "assistant"]
            for turn, answer in enumerate(said):
                yield {
                    **{"setting": setting.name, "persona": persona, "turn": turn + 1},
                    **{"asked_for_role": "{role}" in study.script[turn]},
                    **{"question": turn_question(study.questions, number, turn), "answer": answer},
                    "label": own.talk_labels[number][turn],
                    **({"rule": own.talk_rule[number][turn]} if own.talk_rule else {}),
                    "projection": None if own.own_means is None else float(own.own_means[number, turn]),
                    "projection_of_words": float(own.word_means[number, turn]),
                }
