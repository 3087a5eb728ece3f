"""The model card of the embedded model: its words here, its numbers from measurements.json."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_generation.tiny_persona import protocol
from persona_vectors.files import write_text_atomic

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(path: Path, measured: str) -> None:
    """Puts what was measured between the card's markers; the words around it are kept."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} needs one line {BEGIN} and one line {END}; the measured tables go between them")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    write_text_atomic(path, f"{head}{BEGIN}\n{measured}\n{END}{tail}")


def tables(found: dict[str, Any]) -> str:
    choice = found["choice"]
    parts = [
        f"Chosen on the development questions: contrast {choice['contrast']}, layer {choice['layer']}; "
        f"{protocol.COEF_RULE}.",
        table_of_thresholds(found["summary"]),
        "### Steering, per trait\n\n" + _steering(found),
        "### Curves: oracle score [oracle coherence] by coefficient, test questions\n\n" + _curves(found),
        "### Controls\n\n" + _controls(found),
        "### Crosstalk: shift of the column's trait when the row's is steered\n\n" + _crosstalk(found),
        "### Obedience to instructions (oracle score)\n\n" + _obedience(found),
        "### Held-out AUC per layer (0 is the embedding: the words alone)\n\n" + _separation(found),
        "### Development: mean effect and coherence at each trait's coefficient\n\n" + _development(found),
        "### Other abilities\n\n" + _others(found),
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def table_of_thresholds(summary: dict[str, float]) -> str:
    """One line a threshold that the summary has a number for, met or not."""
    rows = []
    for threshold in protocol.THRESHOLDS:
        if threshold.name not in summary:
            continue
        value = summary[threshold.name]
        sign = ">=" if threshold.at_least else "<="
        met = "yes" if threshold.met(value) else "**no**"
        rows.append((threshold.text, f"{sign} {threshold.limit:g}", f"{value:.3g}", met))
    return table(("claim", "threshold", "measured", "met"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _chosen(found: dict[str, Any], trait: str) -> dict[str, float]:
    number = 1 + protocol.COEFS.index(found["choice"]["coefs"][trait])
    return found["traits"][trait]["steering"]["curve"][number]


def _steering(found: dict[str, Any]) -> str:
    rows = []
    for trait, row in found["traits"].items():
        base, at = row["steering"]["curve"][0], _chosen(found, trait)
        share = (at["oracle"] - base["oracle"]) / (100 - base["oracle"])
        rows.append(
            (
                trait,
                f"{at['coef']:g}",
                f"{base['oracle']:.1f}",
                f"{at['oracle']:.1f} [{at['low']:.1f}, {at['high']:.1f}]",
                " / ".join(f"{value:.1f}" for value in row["steering"]["by_seed"]),
                f"{share:.2f}",
                f"{base['judge']:.1f} -> {at['judge']:.1f}",
                f"{base['coherence']:.0f} -> {at['coherence']:.0f}",
                f"{base['judge_coherence']:.0f} -> {at['judge_coherence']:.0f}",
            )
        )
    n = next(iter(found["traits"].values()))["steering"]["n"]
    head = ("trait", "coef", "oracle at 0", f"oracle (n = {n}, 95%)", "by seed")
    return table((*head, "share", "judge", "coherence", "judged"), rows)


def _curves(found: dict[str, Any]) -> str:
    rows = []
    (other,) = {"pos-neg", "pos-neutral"} - {found["choice"]["contrast"]}
    for trait, row in found["traits"].items():
        curve = row["steering"]["curve"]
        rows.append((trait, found["choice"]["contrast"], *(_point(point) for point in curve)))
        rows.append((trait, other, _point(curve[0]), *(_point(point) for point in row["other_contrast"])))
    return table(("trait", "contrast", "0", *(f"{coef:g}" for coef in protocol.COEFS)), rows)


def _point(point: dict[str, float]) -> str:
    return f"{point['oracle']:.0f} [{point['coherence']:.0f}]"


def _controls(found: dict[str, Any]) -> str:
    rows = []
    for trait, row in found["traits"].items():
        shift = _chosen(found, trait)["oracle"] - row["steering"]["curve"][0]["oracle"]
        random, judged = row["random"], row["steering"]
        rows.append(
            (
                trait,
                f"{shift:.1f}",
                f"{random['mean_abs']:.1f}",
                f"{random['max_abs']:.1f}",
                f"{random['coherence_base']:.0f} -> {random['coherence']:.0f}",
                f"{row['clean']['r']:.3f} ({row['clean']['bias']:+.1f})",
                f"{judged['judge_r']:.3f} ({judged['judge_bias']:+.1f})",
                f"{row['coherence']['r']:.3f} ({row['coherence']['bias']:+.1f})",
            )
        )
    random = next(iter(found["traits"].values()))["random"]
    what = f"{protocol.RANDOM_DIRECTIONS} random, {random['n_questions']} questions each"
    head = ("trait", "v shifts", f"{what}: mean abs. shift", "largest", "coherence there")
    return table((*head, "judge r (bias), plain", "judge r (bias), steered", "coherence r (bias)"), rows)


def _crosstalk(found: dict[str, Any]) -> str:
    traits = list(found["traits"])
    rows = [
        (trait, *(f"{row['steering']['crosstalk'][t]:+.1f}" for t in traits)) for trait, row in found["traits"].items()
    ]
    return table(("", *traits), rows)


def _obedience(found: dict[str, Any]) -> str:
    kinds = (
        "none",
        "pos_seen",
        "pos_held_out",
        "pos_held_out_unnamed",
        "neg_seen",
        "neg_held_out",
        "suppress_held_out",
    )
    rows = [
        (trait, *(f"{row['obedience'][kind]:.0f}" for kind in kinds), f"{row['obedience']['coherence']:.0f}")
        for trait, row in found["traits"].items()
    ]
    return table(("trait", *(kind.replace("_", " ") for kind in kinds), "coherence"), rows)


def _separation(found: dict[str, Any]) -> str:
    rows = []
    for trait, row in found["traits"].items():
        auc = row["separation"]
        layers = zip(auc["pos-neutral"], auc["pos-neg"], auc["random_mean"], auc["random_95"], strict=True)
        cells = (f"{a:.2f} {b:.2f} ({c:.2f}, {d:.2f})" for a, b, c, d in layers)
        rows.append((trait, *cells, f"{auc['text'][0]:.2f}"))
    n_layers = len(next(iter(found["traits"].values()))["separation"]["pos-neutral"])
    note = "Each cell: pos-neutral, pos-neg, and of random directions (mean, 95th percentile); text: the oracle."
    return note + "\n\n" + table(("trait", *map(str, range(n_layers)), "text"), rows)


def _development(found: dict[str, Any]) -> str:
    from data_generation.tiny_persona.measure import effect_of

    rows = []
    for setting in next(iter(found["development"].values())):
        coefs, effect = effect_of(found["development"], setting)
        rows.append((setting, f"{effect:.2f}", ", ".join(f"{coef:g}" for coef in coefs.values())))
    return table(("contrast, layer", "mean share", "coefficients, in the traits' order"), rows)


def _others(found: dict[str, Any]) -> str:
    side = found["side_effects"]
    facts = ", ".join(f"{name} {value:.0%}" for name, value in side["capability"].items())
    answers = table(
        ("questionnaire: share of high answers", "told high", "untold", "told low", "answered by a letter"),
        [
            (trait, *(f"{row[k]:.2f}" for k in ("high", "none", "low")), f"{row['none_letters']:.0%}")
            for trait, row in side["questionnaire"].items()
        ],
    )
    personas = ", ".join(f"{name} {row['own']:.0f} ({row['other']:.0f})" for name, row in side["personas"].items())
    formats = ", ".join(
        f"{name} {row['score']:.0f} [{row['coherence']:.0f}] at {row['prompt_tokens']:.0f} prompt tokens"
        for name, row in side["formats"].items()
    )
    return (
        f"Facts answered right, unsteered and under each trait's push: {facts}.\n\n{answers}\n\n"
        f"Personas, own score (largest other): {personas}.\n\n"
        f"Humorous by instruction, score [coherence]: {formats}."
    )
