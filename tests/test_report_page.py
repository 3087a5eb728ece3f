"""Findings follow from the numbers, and the page shows them, whole and escaped, without any file but itself."""

import functools
import re

import numpy as np
import pandas as pd
import pytest
import torch

from eval.findings import Findings, layer_auc, samples, sweep_point, table_rows
from eval.report_page import Report, norms_figure, render, trait_figures
from persona_vectors.quality import vector_quality
from persona_vectors.statistics import cluster_bootstrap_mean

COEFS = (0.0, 0.5, 1.0, 1.5, 2.0)
EVIL_TEXT = '<script>alert("x")</script> & <b>bold</b>'


def table(score, coherence, seed=0, text=EVIL_TEXT):
    """20 questions x 2 samples whose judge scores are `score` and `coherence` plus small noise."""
    noise = np.random.default_rng(seed).normal(size=(2, 40))
    return pd.DataFrame(
        {
            "question": np.repeat([f"What about {i}?" for i in range(20)], 2),
            "answer": [f"{text} {row}" for row in range(40)],
            "evil": score + noise[0],
            "coherence": coherence + noise[1],
            "p": score / 20 + noise[0] / 5,
        }
    )


@functools.cache
def auc_of_a_trait_that_layer_0_lacks():
    rng = torch.Generator().manual_seed(0)
    pos, neg = torch.randn(40, 5, 16, generator=rng), torch.randn(40, 5, 16, generator=rng)
    pos[:, 1:, 0] += 4
    direction = pos.mean(0) - neg.mean(0)
    questions = table(0, 0)["question"].tolist()
    quality = vector_quality({"response_avg": direction}, pos, neg, questions, pos.norm(dim=-1).mean(0))
    return layer_auc(quality.record())


def findings(scores=(10, 30, 50, 70, 90), coherences=(95, 94, 93, 90, 60), random=(11, 11, 11, 11, 11)):
    base = table(scores[0], coherences[0])
    points = [
        sweep_point(
            coef,
            base,
            table(scores[i], coherences[i], i),
            [table(random[i], 94, 50 + k) for k in range(4)],
            "evil",
            "p",
        )
        for i, coef in enumerate(COEFS)
    ]
    return Findings(
        trait="evil",
        layer=3,
        n_pairs=50,
        n_kept=40,
        pos=cluster_bootstrap_mean([90.0, 80.0], ["a", "b"]),
        neg=cluster_bootstrap_mean([5.0, 4.0], ["a", "b"]),
        norms=np.arange(5.0),
        auc=auc_of_a_trait_that_layer_0_lacks(),
        split_half=None,
        points=points,
    )


def page(item, **options):
    tables = {coef: table(10, 90) for coef in COEFS}
    report = Report(
        model="models/tiny-persona",
        judge="models/tiny-persona",
        findings=[item],
        samples={"evil": samples(tables, "evil")},
        projections={"evil": {f"coefficient {c:g}": tables[c]["p"].tolist() for c in (0.0, 1.0, 2.0)}},
        commands=["python -m eval.eval_persona --trait evil"],
        settings={"seed": 0, "model": options.get("model", "models/tiny-persona")},
        provenance={"versions": {"torch": "2"}},
        notes=["The judge is the model itself."],
    )
    return render(report, {"evil": trait_figures(item, report.projections["evil"])}, norms_figure([item]))


def without_plotly(html):
    return re.sub(r"<script>/\*\*.*?</script>", "", html, flags=re.DOTALL)


def test_the_reported_coefficient_is_the_largest_with_coherence():
    item = findings()
    assert item.verdict == "found" and item.reported.coef == 1.5
    sentence = item.sentence()
    assert "adding 1.5 x the vector at layer 3" in sentence
    assert "4 random directions" in sentence and "At 2 coherence is lost" in sentence
    assert item.reported.shift.mean == pytest.approx(60, abs=1)
    assert item.reported.shift.low < item.reported.shift.mean < item.reported.shift.high


def test_a_coefficient_after_the_first_loss_does_not_count_even_if_coherence_returns():
    assert findings(coherences=(95, 94, 60, 95, 95)).reported.coef == 0.5


@pytest.mark.parametrize(
    ("options", "verdict", "words"),
    [
        ({"coherences": (95, 40, 40, 40, 40)}, "coherence lost", "no effect can be claimed"),
        ({"scores": (10, 10, 10, 10, 10)}, "no shift", "no effect is shown"),
        ({"scores": (50, 40, 30, 20, 10)}, "no shift", "no effect is shown"),
        ({"random": (11, 30, 50, 75, 90)}, "no better than random", "random directions do as well"),
        ({"scores": (50, 52, 54, 56, 58), "random": (50, 30, 30, 30, 30)}, "no better than random", "no evidence"),
    ],
)
def test_failure_is_said(options, verdict, words):
    item = findings(**options)
    assert item.verdict == verdict
    assert words in item.sentence()
    assert 'class="finding not"' in page(item)


def test_missing_coherence_is_not_taken_for_coherence():
    assert findings(coherences=(95, float("nan"), 90, 90, 90)).verdict == "coherence lost"


def test_shift_is_paired_by_row_and_unlike_tables_are_refused():
    base = table(10, 90)
    steered = base.assign(evil=base["evil"] + 7)
    assert sweep_point(1.0, base, steered, [steered], "evil", "p").shift.text() == "7.0 [7.0, 7.0]"
    with pytest.raises(ValueError, match="same order"):
        sweep_point(1.0, base, steered[::-1], [], "evil", "p")


def test_auc_sentence_names_its_control():
    item = findings()
    assert "above the 95th percentile of random" in item.auc_sentence()
    weak = Findings(**{**item.__dict__, "layer": 0})  # layer 0 is noise
    assert "no better than the 95th percentile" in weak.auc_sentence()
    assert "no AUC" in Findings(**{**item.__dict__, "auc": None}).auc_sentence()


def test_page_needs_no_other_file():
    html = page(findings())
    own = without_plotly(html)
    assert len(own) < len(html) / 2, "Plotly's script is not inlined"
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)", own)
    assert "@import" not in own and "http" not in re.sub(r"http://www\.w3\.org\S*", "", own)
    assert html.count("plotly-graph-div") >= 5
    assert own.count("data:image/png;base64,") == 4
    assert "prefers-color-scheme: dark" in own and 'name="viewport"' in own


def test_text_from_outside_is_escaped():
    html = page(findings(), model='"><img src=x onerror=alert(1)>')
    assert EVIL_TEXT not in html and "&lt;script&gt;alert" in html
    assert "<img src=x" not in html


def test_page_holds_numbers_answers_settings_and_commands():
    item = findings()
    html = page(item)
    for row in table_rows(item):
        assert row["score"] in html
    for words in (
        "Answers side by side",
        "eval.eval_persona --trait evil",
        "The judge is the model itself.",
        "versions",
    ):
        assert words in html
    assert html.count('class="answer"') == 3 * len(COEFS)


def test_samples_are_the_same_questions_at_every_coefficient():
    tables = {0.0: table(10, 90), 1.0: table(20, 90, text="steered")}
    chosen = samples(tables, "evil", n_questions=2)
    assert [item["question"] for item in chosen] == ["What about 0?", "What about 19?"]
    assert chosen[1]["answers"][1]["text"] == "steered 38"
    tables[0.0].loc[0, "evil"] = np.nan
    assert samples(tables, "evil")[0]["answers"][0]["score"] == "-"


def test_too_few_questions_have_no_auc():
    sides = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    quality = vector_quality({"response_avg": torch.ones(3, 4)}, *sides, ["q", "q"], torch.ones(3))
    assert layer_auc(quality.record()) is None
