"""The report command: any results in, one page out; what is missing or broken is said and stops nothing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eval import report
from eval.page import visible
from eval.report_inputs import read_inputs
from eval.report_study import studies
from persona_vectors import cli
from persona_vectors.files import write_csv_atomic, write_sidecar
from persona_vectors.vectors import save_vectors

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "</script><script>alert(1)</script> \"quoted' <img src=x onerror=alert(2)> & \u202eright to left\u0007 end"
VECTOR = "vectors/evil_response_avg_diff.pt"
SETTINGS = {"model": "models/chat", "judge_model": "models/judge", "version": "eval", "trait": "evil", "seed": 0}
RECEIPT = {"vector": VECTOR, "control": "", "layer": 3, "coef": 1.0, "prefill": 2.5, "relative_error": 1e-7}


def answers(score, coherence=90.0, n_questions=4, n_samples=2, text="An answer.", trait="evil", pole="", seed=0):
    """A published table whose scores are `score` and `coherence` plus small noise."""
    noise = np.random.default_rng(seed).normal(size=(2, n_questions * n_samples))
    numbers = np.repeat(np.arange(n_questions), n_samples)
    return pd.DataFrame(
        {
            "question": [f"What about {i}?" for i in numbers],
            "prompt": "User: ...",
            "answer": [f"{text} {row}" for row in range(len(numbers))],
            "question_id": [f"{trait}_{i}" + (f"_{pole}_0" if pole else "") for i in numbers],
            trait: score + noise[0],
            "coherence": coherence + noise[1],
        }
    )


def sweep(*, layers=(2, 3), coefs=(1.0, 2.0), n_random=2, prompt=True, base=True, **options):
    """A sweep table: unsteered, a vector at each layer, random directions, the system prompt."""
    parts = [answers(10, **options).assign(coef=0.0, layer=None, vector="", control="")] if base else []
    for layer in layers:
        for coef in coefs:
            steered = answers(10 + 10 * coef * layer, 95 - 5 * coef, seed=layer, **options)
            parts.append(steered.assign(coef=coef, layer=layer, vector=VECTOR, control=""))
            for number in range(1, n_random + 1):
                random = answers(10 + number, 93, seed=number, **options)
                parts.append(random.assign(coef=coef, layer=layer, vector="", control=f"random{number}"))
    if prompt:
        parts.append(answers(70, pole="pos", **options).assign(coef=0.0, layer=None, vector="", control="prompt"))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(layer=table["layer"].astype("Int64"))


def put(path, table, sidecar=None, **settings):
    """The table at `path`, with a sidecar unless `sidecar` is False."""
    write_csv_atomic(table, path)
    if sidecar is not False:
        write_sidecar(path, {"settings": {**SETTINGS, **settings}, **(sidecar or {})})
    return path


@pytest.fixture
def folder(tmp_path):
    """A sweep with everything: controls, a receipt, projections, an extract pair, vectors and a quality report."""
    table = sweep()
    table["chat_evil_response_avg_diff_proj_layer3"] = np.linspace(-1, 1, len(table))
    put(tmp_path / "evil.csv", table, {"receipts": [RECEIPT]}, coef=[0, 1, 2], layer=[2, 3], vector_path=VECTOR)
    for pole, score in (("pos", 80), ("neg", 5)):
        side = answers(score, pole=pole)
        settings = {"version": "extract", "persona_instruction_type": pole, "coef": 0.0}
        put(tmp_path / "extract" / f"evil_{pole}_instruct.csv", side, **settings)
    save_vectors(tmp_path / "vectors", "evil", {"response_avg": torch.arange(1.0, 9.0).view(4, 2)}, {"model": "chat"})
    quality = {"layers": {"split_half": [0.1, 0.5, 0.9, 0.8], "auc": [0.5, 0.9, 0.95, 0.9]}, "n_kept": 40}
    (tmp_path / "vectors" / "evil_quality.json").write_text(json.dumps(quality))
    return tmp_path


def run(capsys, *argv):
    """(exit code, stdout, stderr) of the command."""
    code = cli.run(report.main, report.named([str(word) for word in argv]))
    return (code, *capsys.readouterr())


def page_of(folder, capsys):
    code, _out, error = run(capsys, folder)
    assert (code, error) == (0, "")
    return (folder / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Elements by tag with their attributes, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._hidden = [], [], 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data)


def text_of(html):
    return " ".join(" ".join(Outline(html).text).split())


def test_the_page_has_every_section(folder, capsys):
    html = page_of(folder, capsys)
    text = text_of(html)
    for words in ("Steering", "Trait and coherence", "Layers", "The numbers", "Projections", "Answers side by side"):
        assert f"<h3>{words}</h3>" in html
    for words in ("2 random directions: mean", "system prompt instead of steering", "1 steering receipt", "evil_quality"):
        assert words in text
    assert "with the trait's pos instructions" in text and "extract questions" in text
    assert 'href="#skipped"' not in html


def test_the_numbers_are_those_of_the_tables(folder, capsys):
    text = text_of(page_of(folder, capsys))
    table = pd.read_csv(folder / "evil.csv", keep_default_na=False)
    steered = table[(table["control"] == "") & (table["coef"] == 2) & (table["layer"] == "3")]["evil"].mean()
    assert f"evil_response_avg_diff, layer 3, coef 2 {steered:.1f} [" in text
    (study,) = [one for one in studies(read_inputs([str(folder)]).tables) if one.version == "eval"]
    curve = study.curves()[1]
    assert [point.coef for point in curve.points] == [0, 1, 2] and sorted(curve.randoms) == ["random1", "random2"]
    assert curve.points[2].score.mean == pytest.approx(steered)
    best = study.frontier()
    assert (best["steered"].layer, best["steered"].coef) == (3, 2.0) and best["random"].control == "random2"
