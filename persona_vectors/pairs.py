"""Which pairs of responses count: paired by id, kept where both sides show what they were asked for.

Source of the rule: arXiv 2507.21509.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

Contrast = Literal["pos_neg", "pos_neutral"]
"""What pos is held against: answers under instructions to the contrary, or answers without instructions."""

MIN_COHERENCE = 50.0

_ID = re.compile(r"(?P<trait>.+?)_(?P<question>\d+)(?:_(?P<pole>pos|neg)_(?P<instruction>\d+))?")
_KEYS = ["question_index", "instruction", "sample"]


@dataclass(frozen=True)
class PairCounts:
    """How many rows and pairs there were at each step.

    Attributes:
        n_pos, n_neg: rows of each table.
        n_pairs: pairs found by id and sample number.
        n_scored: pairs with all four scores (trait and coherence, both sides).
        n_pos_trait: pairs whose pos side has trait >= threshold.
        n_neg_trait: pairs whose neg side has trait < 100 - threshold.
        n_coherent: pairs with coherence >= 50 on both sides.
        n_empty: pairs with an empty answer on a side, which are never kept.
        n_kept: pairs that pass all of it.
        highest_pos, lowest_neg: the best trait score on each side, None without any score.
    """

    n_pos: int
    n_neg: int
    n_pairs: int
    n_scored: int
    n_pos_trait: int
    n_neg_trait: int
    n_coherent: int
    n_empty: int
    n_kept: int
    highest_pos: float | None
    lowest_neg: float | None


def effective_pairs(
    pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float = 50, contrast: Contrast | None = None
) -> pd.DataFrame:
    """The pairs of responses that show the trait on the pos side and not on the neg side, coherent on both.

    Kept: trait >= threshold (pos), trait < 100 - threshold (neg), coherence >= 50 and a non-empty answer (both). A
    missing score never passes.

    Rows are paired by their ids `<trait>_<i>_<pos|neg>_<k>` (question i, instruction k) and their sample number: the
    samples of one id share it, so they are numbered in order of appearance. Row position never counts. If a side was
    sampled without instructions (ids `<trait>_<i>`, the pos_neutral contrast), both sides are numbered within the
    question, in order of appearance. Where one side has more rows of a question, those of all its instructions in turn
    are paired, and the rest is left out: a shorter table without instructions is held against all instructions alike.

    Args:
        pos, neg: response tables with the columns question, prompt, answer, question_id, <trait>, coherence.
        threshold: 0..100.
        contrast: what the two tables were sampled for; a table whose ids say otherwise is refused. None takes the ids'
            word. Ids that name no instructions on either side (tables of one's own) go with both.

    Returns:
        One row a pair, by question: question_index, instruction (-1 without), sample, question, and for each side
        `<pos|neg>_prompt`, `_answer`, `_trait`, `_coherence`, and `_row`, its place in the table from 1.

    Raises:
        ValueError: a missing column, an id that does not parse or belongs to the other side, a pair that asks
            different questions, or no pair kept (with the counts and a hint).
    """
    pairs, counts = _judged_pairs(pos, neg, trait, threshold, contrast)
    if counts.n_kept == 0:
        raise ValueError(_nothing_kept(counts, trait, threshold))
    return pairs.loc[pairs.pop("kept")].reset_index(drop=True)


def all_pairs(pos: pd.DataFrame, neg: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Every pair of responses with an answer on both sides, whatever it shows: for tables that no judge has scored.

    Paired as in `effective_pairs`, with its columns; `_trait` and `_coherence` are NaN.

    Raises:
        ValueError: as there; no pair at all.
    """
    unscored = {trait: np.nan, "coherence": np.nan}
    pairs, counts = _judged_pairs(pos.assign(**unscored), neg.assign(**unscored), trait, 0, "pos_neg")
    there = np.asarray((pairs["pos_answer"] != "") & (pairs["neg_answer"] != ""))
    if not there.any():
        raise ValueError(f"none of {counts.n_pairs} pairs has an answer on both sides")
    return pairs.drop(columns="kept").loc[there].reset_index(drop=True)


def count_pairs(
    pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float = 50, contrast: Contrast | None = None
) -> PairCounts:
    """The counts behind `effective_pairs`; none kept is no error here."""
    return _judged_pairs(pos, neg, trait, threshold, contrast)[1]


def parse_question_id(question_id: str) -> tuple[int, str | None, int | None]:
    """(question index, "pos" | "neg" | None, instruction index | None) of `<trait>_<i>[_<pos|neg>_<k>]`."""
    match = _ID.fullmatch(str(question_id))
    if match is None:
        raise ValueError(f"question_id {question_id!r} is not <trait>_<i> or <trait>_<i>_<pos|neg>_<k>")
    instruction = match["instruction"]
    return int(match["question"]), match["pole"], None if instruction is None else int(instruction)


def _judged_pairs(
    pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float, contrast: Contrast | None
) -> tuple[pd.DataFrame, PairCounts]:
    if not 0 <= threshold <= 100:
        raise ValueError(f"threshold is {threshold}; expected 0..100, on the judge's scale")
    sides = {"pos": _side(pos, "pos", trait), "neg": _side(neg, "neg", trait)}
    if contrast is not None:
        _check_contrast(sides["pos"], sides["neg"], contrast)
    by_instruction = all((side["instruction"] >= 0).all() for side in sides.values())
    n_of = {name: Counter(side["question_index"]) for name, side in sides.items()}
    for name, side in sides.items():
        if not by_instruction:
            side = _without_instructions(side, n_of["neg" if name == "pos" else "pos"])
        side["sample"] = side.groupby(["question_index", "instruction"]).cumcount()
        sides[name] = side.rename(columns={c: f"{name}_{c}" for c in side.columns if c not in _KEYS})
    pairs = sides["pos"].merge(sides["neg"], on=_KEYS, validate="one_to_one").sort_values(_KEYS, ignore_index=True)
    differs = np.asarray(pairs["pos_question"] != pairs.pop("neg_question"))
    if differs.any():
        raise ValueError(
            f"pos and neg ask different questions at question {np.asarray(pairs['question_index'])[differs][0]}: "
            "they were sampled from different trait files or versions; sample both from the same one"
        )
    pairs = pairs.rename(columns={"pos_question": "question"})
    counts = _judge(pairs, len(pos), len(neg), threshold)
    return pairs, counts


def _without_instructions(side: pd.DataFrame, n_wanted: Counter[int]) -> pd.DataFrame:
    """The rows without their instruction, and first, in order of appearance, as many of each question as are wanted:
    question i's j-th in turn is one under instruction i + j, round all of them."""
    turn = side.groupby(["question_index", "instruction"]).cumcount()
    round_from = (side["instruction"] - side["question_index"]) % (side["instruction"].max() + 1 or 1)
    in_turn = side.assign(turn=turn, round_from=round_from).sort_values(["turn", "round_from"], kind="stable")
    place = in_turn.groupby("question_index").cumcount().reindex(side.index)
    spare = np.asarray(place >= np.array([n_wanted[question] for question in side["question_index"]]))
    return side.assign(instruction=-1).iloc[np.argsort(spare, kind="stable")]


def _check_contrast(pos: pd.DataFrame, neg: pd.DataFrame, contrast: Contrast) -> None:
    """Refuses a neg side whose ids contradict the contrast; a pos side without instructions cannot be checked."""
    if contrast not in get_args(Contrast):
        raise ValueError(f"contrast {contrast!r} is unknown; expected {' or '.join(get_args(Contrast))}")
    instructed = np.asarray(neg["instruction"]) >= 0
    if instructed.any() and not instructed.all():
        raise ValueError(
            f"the neg table mixes {int(instructed.sum())} rows under neg instructions with {int((~instructed).sum())} "
            "without instructions; give one kind"
        )
    if contrast == "pos_neutral" and instructed.any():
        raise ValueError(
            "--contrast pos_neutral, but the neg table was sampled under neg instructions; leave --contrast out, or "
            "sample without --persona_instruction_type"
        )
    if contrast == "pos_neg" and not instructed.any() and (np.asarray(pos["instruction"]) >= 0).any():
        raise ValueError(
            "the neg table was sampled without neg instructions (ids <trait>_<i>); pass --contrast pos_neutral, or "
            "sample it with --persona_instruction_type neg"
        )


def _side(table: pd.DataFrame, pole: str, trait: str) -> pd.DataFrame:
    """One side's rows with their ids parsed and their scores as numbers."""
    wanted = ("question", "prompt", "answer", "question_id", trait, "coherence")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(f"the {pole} table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    try:
        ids = [parse_question_id(question_id) for question_id in table["question_id"]]
    except ValueError as error:
        raise ValueError(f"the {pole} table: {error}") from None
    other = {"pos": "neg", "neg": "pos"}[pole]
    if any(found == other for _i, found, _k in ids):
        raise ValueError(f"the {pole} table holds rows sampled under {other} instructions; were the two files swapped?")
    return pd.DataFrame(
        {
            "question_index": [question for question, _pole, _k in ids],
            "instruction": [-1 if instruction is None else instruction for _i, _pole, instruction in ids],
            "question": table["question"].to_numpy(),
            "prompt": table["prompt"].to_numpy(),
            "answer": table["answer"].fillna("").astype(str).to_numpy(),
            "trait": _numbers(table[trait]),
            "coherence": _numbers(table["coherence"]),
            "row": range(1, len(ids) + 1),
        }
    )


def _numbers(column: Any) -> np.ndarray:
    """Scores as float64; what is no number is NaN."""
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)


def _judge(pairs: pd.DataFrame, n_pos: int, n_neg: int, threshold: float) -> PairCounts:
    """Adds the column `kept` to `pairs`, and counts. Comparisons with NaN are False."""
    pos, neg, pos_coherence, neg_coherence = (
        np.asarray(pairs[name], dtype=float) for name in ("pos_trait", "neg_trait", "pos_coherence", "neg_coherence")
    )
    showing, hiding = pos >= threshold, neg < 100 - threshold
    coherent = (pos_coherence >= MIN_COHERENCE) & (neg_coherence >= MIN_COHERENCE)
    empty = np.asarray(pairs["pos_answer"] == "") | np.asarray(pairs["neg_answer"] == "")
    kept = showing & hiding & coherent & ~empty
    pairs["kept"] = kept
    return PairCounts(
        n_pos=n_pos,
        n_neg=n_neg,
        n_pairs=len(pairs),
        n_scored=int(np.isfinite(pos + neg + pos_coherence + neg_coherence).sum()),
        n_pos_trait=int(showing.sum()),
        n_neg_trait=int(hiding.sum()),
        n_coherent=int(coherent.sum()),
        n_empty=int(empty.sum()),
        n_kept=int(kept.sum()),
        highest_pos=float(np.nanmax(pos)) if np.isfinite(pos).any() else None,
        lowest_neg=float(np.nanmin(neg)) if np.isfinite(neg).any() else None,
    )


def _nothing_kept(counts: PairCounts, trait: str, threshold: float) -> str:
    found = (
        f"0 of {counts.n_pairs} pairs kept ({counts.n_pos} pos and {counts.n_neg} neg rows; {counts.n_scored} pairs "
        f"scored, {counts.n_pos_trait} with pos {trait} >= {threshold:g}, {counts.n_neg_trait} with neg {trait} < "
        f"{100 - threshold:g}, {counts.n_coherent} coherent on both sides)"
    )
    if counts.n_pairs == 0:
        return f"{found}; no ids match: sample both sides from the same trait and version"
    if counts.n_scored == 0:
        return f"{found}; no pair has all its scores: score the responses again with a judge that answers"
    if counts.n_coherent == 0:
        return f"{found}; the answers are not coherent: look at them, and raise --max_tokens if they are cut short"
    if counts.n_pos_trait == 0:
        return f"{found}; the highest pos score is {counts.highest_pos:g}: lower --threshold or strengthen the prompts"
    if counts.n_neg_trait == 0:
        return f"{found}; the lowest neg score is {counts.lowest_neg:g}: lower --threshold or strengthen the prompts"
    return f"{found}; no pair passes all three at once: sample more per question or lower --threshold"
