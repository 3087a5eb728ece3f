"""The figures and the page of a screen: histograms with the threshold, AUC, and rows to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from eval.analysis_page import Page, Section, Shown
from eval.data_rows import DataRow
from eval.page import visible
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from eval.screen_findings import AUC_COLUMNS, WORDS, auc_cells, auc_words, notes, sentences
from eval.screen_result import Screen
from eval.screen_rule import in_order, rank_shares, ranks
from persona_vectors.page_plots import LOOKS, Series, chart
from persona_vectors.plots import INK, png_bytes, projections_png

N_SAMPLES = 6
"""Rows of each part of the sample browser."""
ROW_LOOKS = {"rows": LOOKS[0], "reference": "random"}
LEVEL_LOOKS = ("base", *LOOKS[1:])
"""More levels than these are in the PNG and the table alone."""
BINS = 28

Groups = dict[str, Float[np.ndarray, " n"]]


def figure_pngs(screen: Screen) -> dict[str, bytes]:
    """File name -> PNG: a histogram of each criterion's values, and of the levels'."""
    pngs = {}
    for name, xlabel, limit, panels in _histograms(screen):
        for title, groups in panels.items():
            figure = projections_png(groups, xlabel)
            if limit is not None:
                axis = figure.axes[0]
                axis.axvline(limit, color=INK, linewidth=1.2, linestyle=":")
                top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                axis.annotate("threshold", (limit, 1.0), (0, 2), ha="center", va="bottom", fontsize=8, color=INK, **top)
            pngs[f"{title}_{name}.png"] = png_bytes(figure)
    return pngs


def _histograms(screen: Screen) -> list[tuple[str, str, float | None, dict[str, Groups]]]:
    """(criterion, what its axis is called, its threshold, title -> groups); none without numbers."""
    limits = {} if screen.rule is None else screen.rule.thresholds
    found = []
    for one in screen.criteria:
        panels = {"rows": _rows_groups(screen, one.name)}
        panels["levels"] = {name: level.values[one.name] for name, level in screen.levels.items()}
        found.append((one.name, one.name, limits.get(one.name), panels))
    if screen.combine == "mean_rank" and len(screen.criteria) > 1:
        groups = {"rows": screen.rank}
        if screen.reference is not None:
            groups = {"reference": ranks(screen.reference.values, "mean_rank", screen.data.values)} | groups
        found.append(("mean_rank", "mean rank", limits.get("mean_rank"), {"rows": groups}))
    drawn = []
    for name, xlabel, limit, panels in found:
        known = {title: _with_numbers(groups) for title, groups in panels.items()}
        drawn.append((name, xlabel, limit, {title: groups for title, groups in known.items() if groups}))
    return drawn


def _rows_groups(screen: Screen, name: str) -> Groups:
    groups = {} if screen.reference is None else {"reference": screen.reference.values[name]}
    return groups | {"rows": screen.data.values[name]}


def _with_numbers(groups: Groups) -> Groups:
    known = {name: values[~np.isnan(values)] for name, values in groups.items()}
    return {name: values for name, values in known.items() if len(values)}


def page(screen: Screen) -> Page:
    """The page: what was found, histograms, AUC, and the rows themselves."""
    by = "; ".join(f"{one.name}: {WORDS[one.kind]}" for one in screen.criteria)
    vectors = dict.fromkeys(f"{c.column.path}, layer {c.column.layer}" for c in screen.criteria if c.column is not None)
    lead = f"Rows of {screen.data.path} by {by}."
    lead += f" v: {'; '.join(vectors)}." if vectors else ""
    lead += f" Model: {screen.record['settings']['model']}." if vectors else ""
    return Page(
        title="Training rows by how far they lie along a trait's vector" if vectors else "Training rows by a judge",
        lead=lead,
        sentences=sentences(screen),
        sections=[_distribution(screen), *_auc_section(screen), *_sample_sections(screen)],
        notes=notes(screen),
        settings=screen.record["settings"],
    )


def _distribution(screen: Screen) -> Section:
    figures = []
    for name, xlabel, limit, panels in _histograms(screen):
        marks = [] if limit is None else [(limit, "threshold")]
        svgs, legend = [], {}
        for title, groups in panels.items():
            looks = dict(zip(groups, LEVEL_LOOKS, strict=False)) if title == "levels" else ROW_LOOKS
            shown = {group: values for group, values in groups.items() if group in looks}
            label = visible(f"{title} by {name}: histogram")
            svgs.append((f"{title}: {xlabel}", _histogram(shown, looks, visible(xlabel), label, marks)))
            legend |= {(looks[group], f"{visible(group)} ({len(values)})"): None for group, values in shown.items()}
        caption = f"{name}: share of each group's rows, by value. Groups are drawn over common bins."
        figures += [Figure(caption, svgs, list(legend))] if svgs else []
    return Section("Where the rows lie", figures=figures)


def _histogram(
    groups: Groups, looks: Mapping[str, str], xlabel: str, label: str, marks: Sequence[tuple[float, str]]
) -> str:
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), BINS)
    series, top = [], 0.0
    for name, values in groups.items():
        shares = np.histogram(values, edges)[0] / len(values)
        top = max(top, float(shares.max()))
        ys = np.concatenate([[0], np.repeat(shares, 2), [0]])
        series.append(Series(visible(name), np.repeat(edges, 2), ys, look=looks[name], dots=False))
    return chart(series, xlabel, "share of rows", label, ylim=(0, 1.15 * top), marks=marks)


def _auc_section(screen: Screen) -> list[Section]:
    if not screen.separations:
        return []
    return [Section("Levels told apart", [auc_words(screen)], columns=AUC_COLUMNS, cells=auc_cells(screen))]


def _sample_sections(screen: Screen) -> list[Section]:
    """The highest and lowest rows, those on both sides of the threshold, and those that criteria place differently."""
    order = [row for row in in_order(screen.rank) if not np.isnan(screen.rank[row])]
    parts = {"The highest rows": order[:N_SAMPLES]}
    if screen.rule is not None:
        parts["Nearest the threshold, on both sides"] = _nearest(screen)
    parts["The lowest rows"] = order[::-1][: min(N_SAMPLES, len(order) - len(parts["The highest rows"]))]
    if len(screen.criteria) > 1:
        parts["Where the criteria disagree most"] = _disagreeing(screen)
    return [Section(title, samples=[_sample(screen, row) for row in rows]) for title, rows in parts.items() if rows]


def _nearest(screen: Screen) -> list[int]:
    """Half of the rows just above, half just below, in order; distance is counted in ranks."""
    assert screen.rule is not None
    limits = screen.rule.thresholds
    if screen.combine == "mean_rank":
        margin = screen.rank - limits["mean_rank"]
    else:
        shares = [
            rank_shares(own) - rank_shares(np.array([limits[name]]), own) for name, own in screen.data.values.items()
        ]
        margin = (np.max if screen.combine == "any" else np.min)(np.stack(shares), axis=0)
    flagged = np.array([yes is True for yes in screen.flagged])
    known = ~np.isnan(margin)
    above = sorted(np.flatnonzero(known & flagged), key=lambda row: margin[row])[: N_SAMPLES // 2]
    below = sorted(np.flatnonzero(known & ~flagged), key=lambda row: -margin[row])[: N_SAMPLES // 2]
    return [int(row) for row in [*above[::-1], *below]]


def _disagreeing(screen: Screen) -> list[int]:
    """The rows whose ranks by the criteria lie furthest apart."""
    shares = np.stack([rank_shares(own) for own in screen.data.values.values()])
    apart = shares.max(0) - shares.min(0)
    return [row for row in in_order(apart) if apart[row] > 0][:N_SAMPLES]


def _sample(screen: Screen, row: int) -> tuple[str, list[Shown]]:
    """A row's question, its answer with its values, and the model's own answer where there is one."""
    data = screen.data
    values = ", ".join(
        f"{name} {'none' if np.isnan(own[row]) else f'{own[row]:.4g}'}" for name, own in data.values.items()
    )
    flagged = "" if screen.rule is None else ", flagged" if screen.is_flagged(row) else ", kept"
    cards = [Shown(f"line {data.rows[row].line}", _cut(data.rows[row].answer), values + flagged, "steered")]
    cards += [Shown("the model's own answer", _cut(text), css="unsteered") for text in data.own[row][:1]]
    return _asked(data.rows[row]), cards


def _asked(row: DataRow) -> str:
    """The turns before the answer; a question alone without its role."""
    turns = row.messages[:-1]
    if len(turns) == 1 and turns[0]["role"] == "user":
        return _cut(turns[0]["content"])
    return _cut("\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))


def _cut(text: str) -> str:
    more = len(text) - MAX_ANSWER
    return f"{text[:MAX_ANSWER]} ... {more} more characters are in the file" if more > 0 else text
