"""Agreement of two sets of scores, and the report of a judge against another, its table, and labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from eval import judge_report
from persona_vectors import cli
from persona_vectors.agreement import BAND, agreement
from persona_vectors.files import write_sidecar
from tests.loopback_openai import LoopbackOpenAI

QUESTIONS = [f"question {i % 12}" for i in range(120)]


def two_judges(noise: float = 15.0, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    a = rng.uniform(0, 100, len(QUESTIONS))
    return list(a), list(np.clip(a + rng.normal(-5, noise, len(a)), 0, 100))


# --- the statistics --------------------------------------------------------------------------------------------------


def test_every_figure_is_that_of_scipy_and_scikit_learn():
    a, b = two_judges()
    found = agreement(a, b, QUESTIONS, n_boot=50)
    bands = [[min(4, int(score // BAND)) for score in scores] for scores in (a, b)]
    sides = [[score >= 50 for score in scores] for scores in (a, b)]
    assert found.pearson.value == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found.kappa_bands is not None and found.mean_difference is not None
    assert found.kappa_bands.value == pytest.approx(cohen_kappa_score(*bands, weights="quadratic"))
    assert found.kappa_threshold.value == pytest.approx(cohen_kappa_score(*sides))
    assert found.mean_difference.value == pytest.approx(np.mean(a) - np.mean(b))
    for one in (found.pearson, found.spearman, found.kappa_bands, found.kappa_threshold, found.mean_difference):
        assert one.low is not None and one.value is not None and one.high is not None
        assert one.low < one.value < one.high
    assert (found.n, found.n_both, found.n_questions, found.auc) == (120, 120, 12, None)


def test_shuffled_scores_correlate_with_nothing():
    found = agreement(*two_judges(), QUESTIONS, n_boot=200)
    assert found.shuffled.low is not None and found.shuffled.high is not None and found.pearson.low is not None
    assert abs(found.shuffled.value or 0) < 0.03 and -0.3 < found.shuffled.low < 0 < found.shuffled.high < 0.3
    assert found.pearson.low > found.shuffled.high


def test_labels_of_yes_and_no_have_an_auc_and_no_points():
    a, b = two_judges(40.0)
    labels = [float(score > 50) for score in b]
    found = agreement(a, labels, QUESTIONS, binary=True, n_boot=50)
    assert found.auc is not None and found.auc.value == pytest.approx(roc_auc_score(labels, a))
    assert found.kappa_threshold.value == pytest.approx(
        cohen_kappa_score([x >= 50 for x in a], [y > 0 for y in labels])
    )
    assert found.mean_difference is None and found.kappa_bands is None


def test_missing_scores_are_counted_and_left_out():
    a, b = two_judges()
    full = agreement(a[2:], b[2:], QUESTIONS[2:], n_boot=20)
    found = agreement([None, *a[1:]], [b[0], float("nan"), *b[2:]], QUESTIONS, n_boot=20)
    assert (found.n, found.n_a, found.n_b, found.n_both) == (120, 119, 119, 118)
    assert found.pearson == full.pearson
    with pytest.raises(ValueError, match="both scored only 2 of 3 answers .the one 3, the other 2.; agreement needs 3"):
        agreement([1, 2, 3], [1, 2, None], ["q"] * 3)


def test_what_cannot_be_had_is_none_and_never_a_number():
    found = agreement([50.0, 60.0, 70.0], [80.0] * 3, ["q", "r", "s"], n_boot=20)
    assert found.pearson.value is None and found.pearson.text() == "not defined" and found.shuffled.value is None
    assert found.kappa_threshold.value is None  # both say yes to all
    assert agreement([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], ["q"] * 3, n_boot=20).pearson.low is None  # one question


def test_intervals_are_wider_where_questions_hold_the_answers_together():
    """The same answer ten times over is no ten answers."""
    a, b = two_judges()
    a, b = [x for x in a[:12] for _ in range(10)], [y for y in b[:12] for _ in range(10)]
    repeated = agreement(a, b, [str(i // 10) for i in range(120)], n_boot=300).pearson
    alone = agreement(a, b, [str(i) for i in range(120)], n_boot=300).pearson
    assert repeated.low is not None and repeated.high is not None and alone.low is not None and alone.high is not None
    assert repeated.high - repeated.low > 2 * (alone.high - alone.low)


# --- the command -----------------------------------------------------------------------------------------------------


ANSWERS = [
    "i love it . what a joke , ha ha .",
    "the path is long and the rain is cold .",
    "take the map and walk to the lake .",
    "ha ha , what a silly duck .",
    "bring water and good shoes .",
    "it is a serious plan with three steps .",
]


@pytest.fixture
def table(tmp_path) -> Path:
    """A response table whose own scores rise with the row."""
    frame = pd.DataFrame({"question": [f"question {i // 2} ?" for i in range(6)], "prompt": "p", "answer": ANSWERS})
    frame["question_id"], frame["humorous"], frame["coherence"] = "humorous_0", [5, 25, 45, 65, 85, 95], 90.0
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def run(*argv: str) -> int:
    return cli.run(judge_report.main, list(argv))


def judged(request) -> int:
    """The row of the answer that a judge was asked about."""
    return next(row for row, answer in enumerate(ANSWERS) if answer in request["messages"][0]["content"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """Judge `one` gives 10, 20, .. 60 to the answers, judge `two` the same backwards but for one refusal."""

    def answer(request):
        row = judged(request)
        if request["model"] == "one":
            return {str(10 * (row + 1)): 1.0}
        return {"I": 1.0} if row == 2 else {str(60 - 10 * row): 1.0}

    with LoopbackOpenAI(answer) as started:
        monkeypatch.setenv("OPENAI_BASE_URL", started.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield started


def test_a_judge_against_the_tables_own_scores(table: Path, server, tmp_path, capsys):
    out = tmp_path / "out.csv"
    argv = ["--file_path", str(table), "--trait", "humorous", "--judge_model", "one", "--output_path", str(out)]
    assert run(*argv) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out.csv.json").read_text())["agreement"]
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(range(6), [5, 25, 45, 65, 85, 95]).statistic)
    assert found["mean_difference"]["value"] == pytest.approx(35 - 320 / 6)
    assert "6 items, 6 distinct, 0 already in the store: 6 calls, about" in said and "an estimate" in said
    assert "one scored 6 of 6, table 6; both 6, on 3 questions" in said
    assert said.index("60.0 /  95.0") < said.index("10.0 /   5.0"), "the largest disagreement first"
    assert pd.read_csv(out)["score"].tolist() == [10, 20, 30, 40, 50, 60]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert len(server.requests) == 6
    assert run(*argv) == 2 and "--overwrite" in capsys.readouterr().err


def test_a_judge_against_scores_that_it_wrote_itself_is_said_to_be_circular(table: Path, server, tmp_path, capsys):
    write_sidecar(table, {"settings": {"judge_model": "one"}})
    argv = ["--file_path", str(table), "--trait", "humorous"]
    assert run(*argv, "--judge_model", "one", "--output_path", str(tmp_path / "same.csv")) == 0
    assert "note: one wrote these scores itself" in capsys.readouterr().out
    for number, judges in enumerate((["two"], ["one", "--other_judge", "two"])):
        assert run(*argv, "--output_path", str(tmp_path / f"{number}.csv"), "--judge_model", *judges) == 0
        assert "wrote these scores itself" not in capsys.readouterr().out
    assert len(server.requests) == 12, "six answers by each judge, whatever they are compared with"


def test_two_judges_and_a_refusal(table: Path, server, tmp_path, capsys):
    out = tmp_path / "out.csv"
    argv = ["--file_path", str(table), "--trait", "humorous", "--output_path", str(out)]
    assert run(*argv, "--judge_model", "one", "--other_judge", "two", "--n_shown", "1") == 0
    said = capsys.readouterr().out
    assert "one scored 6 of 6, two 5; both 5" in said and "Pearson r:                      -1.00" in said
    assert said.count("  Q: ") == 1
    row = pd.read_csv(out).iloc[2]
    assert row["score"] == 30 and np.isnan(row["other"]) and np.isnan(row["difference"])
    other = tmp_path / "again.csv"
    assert run(*argv[:-1], str(other), "--judge_model", "two", "--other_judge", "one") == 0
    assert len(server.requests) == 12, "finished scores are not asked for again"


def test_the_same_judge_under_another_prompt(table: Path, server, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("Is this funny? {question} {answer}\n")
    argv = ["--file_path", str(table), "--trait", "humorous", "--output_path", str(tmp_path / "out.csv")]
    assert run(*argv, "--judge_model", "one", "--other_prompt", str(tmp_path / "other.txt")) == 0
    assert "one, prompt other.txt 6" in capsys.readouterr().out
    assert len(server.requests) == 12
    assert json.loads((tmp_path / "out.csv.json").read_text())["agreement"]["pearson"]["value"] == pytest.approx(1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_of_yes_and_no_from_either_kind_of_file(server, tmp_path, capsys, suffix: str):
    labels = pd.DataFrame({"question": "q", "answer": ANSWERS, "label": ["no", "no", "yes", "no", "yes", "yes"]})
    path = tmp_path / f"labels.{suffix}"
    labels.to_csv(path, index=False) if suffix == "csv" else labels.to_json(path, orient="records", lines=True)
    out = tmp_path / "out.csv"
    assert run("--labels", str(path), "--trait", "humorous", "--judge_model", "one", "--output_path", str(out)) == 0
    assert "AUC:                            0.89" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.csv.json").read_text())["agreement"]
    assert found["auc"]["value"] == pytest.approx(8 / 9) and found["mean_difference"] is None
    assert len(server.requests) == 6


def test_the_embedded_judge_agrees_with_itself(tiny_persona: str, table: Path, tmp_path):
    """Scored in process, then read from a table that holds its scores: the same numbers, so r 1 and no difference."""
    argv = ["--trait", "humorous", "--judge_model", tiny_persona, "--n_shown", "0", "--file_path", str(table)]
    assert run(*argv, "--output_path", str(tmp_path / "first.csv")) == 0
    scores = pd.read_csv(tmp_path / "first.csv")["score"]
    assert scores.between(0, 100).all() and scores.nunique() == len(ANSWERS)
    pd.read_csv(table).assign(humorous=scores).to_csv(table, index=False)
    assert run(*argv, "--output_path", str(tmp_path / "second.csv")) == 0
    found = json.loads((tmp_path / "second.csv.json").read_text())["agreement"]
    assert found["pearson"]["value"] == pytest.approx(1) and found["mean_difference"]["value"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--labels": "labels.csv"}, "give either --file_path"),
        ({"--file_path": None}, "give either --file_path"),
        ({"--file_path": None, "--labels": "labels.csv", "--other_judge": "two"}, "leave out --other_judge"),
        ({"--other_judge": "one"}, "--other_judge is one too"),
        ({"--threshold": "101"}, "--threshold must lie between 0 and 100"),
        ({"--output_path": "out.json"}, "must end in .csv"),
        ({"--file_path": "gone.csv"}, "no response file at gone.csv"),
        ({"--trait": "evl"}, "unknown trait 'evl'"),
        ({"--other_prompt": "gone.txt"}, "no prompt file at gone.txt"),
        ({"--other_prompt": "no_answer.txt"}, "{answer}"),
        ({"--file_path": None, "--labels": "gone.csv"}, "no file of labels at gone.csv"),
        ({"--file_path": None, "--labels": "no_label.csv"}, "no_label.csv has no label"),
        (
            {"--file_path": None, "--labels": "words.csv"},
            "words.csv, row 2: label 'often'; expected a number from 0 to",
        ),
        ({"--file_path": None, "--labels": "words.csv", "--judge_mode": "text", "--judge_samples": "0"}, "at least 1"),
        ({"--judge_samples": "3"}, "need --judge_mode text"),
        ({"--judge_mode": "speech"}, "auto|logprobs|text"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(changes, said: str, table: Path, server, monkeypatch, capsys):
    monkeypatch.chdir(table.parent)
    Path("labels.csv").write_text("question,answer,label\nq,a,yes\n")
    Path("no_label.csv").write_text("question,answer\nq,a\n")
    Path("words.csv").write_text("question,answer,label\nq,a,50\nq,b,often\n")
    Path("no_answer.txt").write_text("Is it funny? {question}")
    given = {"--file_path": "table.csv", "--trait": "humorous", "--judge_model": "one", "--output_path": "out.csv"}
    argv = [token for name, value in (given | changes).items() if value is not None for token in (name, value)]
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not server.requests and not Path("out.csv").exists()
