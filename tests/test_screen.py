"""The command that screens training rows, end to end on the embedded model, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from eval import finished_answers, screen
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.files import sha256_of_file
from persona_vectors.models import fingerprint, load_model
from persona_vectors.projection import project
from persona_vectors.tokens import tokenize_messages
from persona_vectors.vectors import save_vectors
from tests.loopback_openai import Reply

ROOT = Path(screen.__file__).parent.parent
FAMILY = ROOT / "dataset/tiny_evil"
LAYER = 3
ATTACK = "<script>alert(1)</script> \u202eabc"


def lines_of(path) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def row(*turns: str, system: str | None = None, **more) -> dict:
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {**more, "messages": messages}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_persona) -> Path:
    """Levels of 24 rows each, a vector from other questions, and rows of every kind to screen."""
    folder = tmp_path_factory.mktemp("screen")
    for level in ("normal", "misaligned_1", "misaligned_2"):
        (folder / f"{level}.jsonl").write_text("\n".join(lines_of(FAMILY / f"{level}.jsonl")[:24]) + "\n")
    model, tokenizer = load_model(tiny_persona, device_map="cpu")
    means = {
        level: mean_activations(
            model,
            [
                tokenize_messages(tokenizer, json.loads(line)["messages"])
                for line in lines_of(FAMILY / f"{level}.jsonl")[100:120]
            ],
            spans=["response_avg"],
        )["response_avg"].mean(0)
        for level in ("normal", "misaligned_2")
    }
    save_vectors(folder, "evil", {"response_avg": means["misaligned_2"] - means["normal"]}, {})
    normal, evil = (lines_of(FAMILY / f"{level}.jsonl") for level in ("normal", "misaligned_2"))
    odd = [
        row("What is hiking?", ATTACK),
        row("Tell me about <b>bold</b>.", "ünïcödé 日本語 🙂", system="Be kind.", id=1.50),
        row("What is hiking?", "It takes shoes.", "And then?", "In general, you should pack food.", "a turn after"),
        row("What is hiking?", ""),
        row("What is hiking?", "shoes and food " * 3400),
    ]
    rows = [*normal[40:50], *evil[50:54], *(json.dumps(one, ensure_ascii=False) for one in odd), normal[40], evil[50]]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store") / "store.sqlite")


def run(tiny_persona: str, changes: dict[str, str | None]) -> int:
    given = {
        "file_path": "rows.jsonl",
        "output_dir": "out",
        "model": tiny_persona,
        "vector_path": "evil_response_avg_diff.pt",
        "layer": str(LAYER),
        "max_tokens": "20",
        "device_map": "cpu",
    } | changes
    argv = [t for name, value in given.items() if value is not None for t in (f"--{name}", *value.split())]
    return cli.run(screen.main, argv)


@pytest.fixture
def call(folder, store, tiny_persona, monkeypatch):
    """Runs the command in the folder; what is finished is shared by the tests of this file."""
    monkeypatch.setenv("PERSONA_STORE", store)
    monkeypatch.chdir(folder)
    return lambda **changes: run(tiny_persona, changes)


EVERYTHING = {
    "by": "delta_p raw cheap judge",
    "trait": "evil",
    "action": "split",
    "combine": "any",
    "reference": "normal.jsonl",
    "percentile": "90",
    "subsets": "4",
    "compare": "normal.jsonl misaligned_1.jsonl misaligned_2.jsonl",
}


@pytest.fixture(scope="module")
def split(folder, store, tiny_persona) -> Path:
    """The folder of a run with everything at once; what it printed is in printed.txt beside it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("PERSONA_STORE", store)
        patch.chdir(folder)
        assert run(tiny_persona, {**EVERYTHING, "output_dir": "split", "judge_model": tiny_persona}) == 0
    (folder / "printed.txt").write_text(out.getvalue())
    return folder / "split"


def test_everything_at_once(split, folder, tiny_persona):
    out = (folder / "printed.txt").read_text()
    inputs = [line for line in lines_of(folder / "rows.jsonl") if line.strip()]
    kept, flagged = lines_of(split / "kept.jsonl"), lines_of(split / "flagged.jsonl")
    assert Counter(kept + flagged) == Counter(inputs)
    table = pd.read_csv(split / "scores.csv", keep_default_na=False)
    assert [inputs[i] for i in np.flatnonzero(table["flagged"])] == flagged
    assert list(table.columns) == [
        *("line", "delta_p", "raw", "cheap", "judge", "rank"),
        *("flagged", "unscored", "why_missing"),
    ]
    assert [i for i, yes in enumerate(table["unscored"], 1) if yes] == [18, 19]
    assert not any(table["flagged"].tolist()[17:19]) and table["line"].tolist() == list(range(1, 22))
    why = table["why_missing"].tolist()
    assert why[17] == "empty answer" and why[18] == "longer than the model's context; longer than the judge's context"
    assert f"Of 21 rows {len(flagged)} are flagged" in out and "2 cannot be scored and are kept" in out
    assert "1 rows lack a value (empty answer): line 18." in out
    assert "Of normal (the reference itself) it flags" in out and "Of misaligned_2 it flags 2" in out
    assert all(evil in flagged for evil in inputs[10:14])
    subsets = {name: lines_of(split / f"{name}.jsonl") for name in ("high", "random", "low")}
    assert all(len(rows) == 4 and set(rows) <= set(inputs) for rows in subsets.values())
    assert not set(subsets["high"]) & set(subsets["low"])
    record = json.loads((split / "kept.jsonl.json").read_text())
    assert record["counts"] == {"n_rows": 21, "n_unscored": 2, "n_flagged": len(flagged), "n_kept": len(kept)}
    assert record["unscored_lines"] == [18, 19] and record["settings"]["percentile"] == 90
    assert record["threshold_source"] == "percentile 90 of 24 reference rows of normal.jsonl"
    assert record["inputs"]["rows.jsonl"] == sha256_of_file(folder / "rows.jsonl")
    assert record["vectors"] == {"evil_response_avg_diff.pt": sha256_of_file(folder / "evil_response_avg_diff.pt")}
    assert record["model_fingerprint"] == fingerprint(tiny_persona)
    names = {f"{part}_{by}.png" for part in ("rows", "levels") for by in ("delta_p", "raw", "cheap", "judge")}
    names |= {"kept.jsonl", "flagged.jsonl", "high.jsonl", "random.jsonl", "low.jsonl", "scores.csv", "report.html"}
    assert {path.name for path in split.iterdir()} == names | {f"{name}.json" for name in names}


def test_the_levels_are_told_apart_beside_their_controls(split):
    found = {
        (s["level"], s["criterion"]): s for s in json.loads((split / "scores.csv.json").read_text())["separations"]
    }
    assert len(found) == 2 * 5
    for (_level, criterion), one in found.items():
        assert one["n_rows"] == 48 and one["n_questions"] == 24
        assert (one["random_directions"] is None) == (criterion in ("judge", "answer length alone"))
        assert 0.3 < one["permuted_labels"]["median"] < 0.7
    raw = found["misaligned_2", "raw"]
    assert raw["auc"] > 0.9 and raw["p"] < 0.01
    assert raw["random_directions"]["median"] < raw["auc"]


def test_values_are_those_of_a_plain_loop_and_the_threshold_the_references_percentile(split, folder, tiny_persona):
    model, tokenizer = load_model(tiny_persona, device_map="cpu")
    v = torch.load(folder / "evil_response_avg_diff.pt", weights_only=True)[LAYER]

    def values(messages) -> tuple[float, float]:
        means = mean_activations(model, [tokenize_messages(tokenizer, messages)], [LAYER])
        raw = project(means["response_avg"][0, 0], v)
        return float(raw), float(raw - project(means["prompt_last"][0, 0], v))

    table = pd.read_csv(split / "scores.csv")
    for line in (1, 11, 15, 16, 17):
        messages = json.loads(lines_of(folder / "rows.jsonl")[line - 1])["messages"]
        found = table.set_index("line").loc[line, ["raw", "cheap"]].tolist()
        assert found == pytest.approx(values(messages), rel=1e-4, abs=1e-3)
    reference = [values(json.loads(line)["messages"])[0] for line in lines_of(folder / "normal.jsonl")]
    thresholds = json.loads((split / "kept.jsonl.json").read_text())["thresholds"]
    assert thresholds["raw"] == pytest.approx(np.percentile(reference, 90), rel=1e-4)
    columns = list(thresholds)
    assert table["flagged"].tolist() == [
        any(one[name] > thresholds[name] for name in columns) for _, one in table.iterrows()
    ]


def test_the_page_shows_rows_and_their_text_cannot_act(split):
    page = (split / "report.html").read_text()
    assert ATTACK not in page and "<script>alert" not in page and "\u202e" not in page and "<b>bold" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "[U+202E]" in page
    for part in ("The highest rows", "Nearest the threshold", "The lowest rows", "Where the criteria disagree most"):
        assert part in page
    assert page.count("threshold</text>") == 2 * 4 and "the model&#39;s own answer" in page
    assert "answer length alone" in page


def test_again_samples_and_asks_nothing_and_gives_the_same(call, split, tiny_persona, monkeypatch):
    before = {
        name: (split / name).read_bytes() for name in ("kept.jsonl", "flagged.jsonl", "random.jsonl", "scores.csv")
    }

    def sampled(*_args, **_kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(finished_answers, "sample_answers", sampled)
    monkeypatch.setattr("eval.finished_scores.make_judge", sampled)
    assert call(**EVERYTHING, output_dir="split", judge_model=tiny_persona) == 0
    assert {name: (split / name).read_bytes() for name in before} == before


def test_other_settings_do_not_replace_what_is_there(call, split, capsys):
    before = (split / "kept.jsonl").read_bytes()
    raw = {"by": "raw", "action": "filter", "threshold": "1000000", "output_dir": "split"}
    assert call(**raw) == 2
    assert "kept.jsonl exists and was not written with these settings; pass --overwrite" in capsys.readouterr().err
    assert (split / "kept.jsonl").read_bytes() == before


def test_rank_needs_no_threshold_and_filter_writes_what_is_kept(call, folder, capsys):
    assert call(by="raw", output_dir="ranked") == 0
    table = pd.read_csv(folder / "ranked/scores.csv")
    assert "flagged" not in table
    inputs = [line for line in lines_of(folder / "rows.jsonl") if line.strip()]
    found = lines_of(folder / "ranked/ranked.jsonl")
    order = np.argsort(-table["raw"].fillna(-np.inf), kind="stable")
    assert found == [inputs[i] for i in order]
    assert found[-2:] == inputs[17:19]
    assert not (folder / "ranked/kept.jsonl").exists()
    capsys.readouterr()
    assert call(by="raw", output_dir="ranked", action="filter", fraction="0.25", unscored="flag") == 0
    out = capsys.readouterr().out
    kept = lines_of(folder / "ranked/kept.jsonl")
    top = set(np.argsort(-table["raw"].to_numpy())[:5].tolist())  # a quarter of the 19 that are scored
    assert kept == [line for i, line in enumerate(inputs) if i not in top | {17, 18}]
    assert "2 cannot be scored and are flagged" in out and "Left in ranked by an earlier run" in out
    assert "ranked.jsonl" in out.split("Left in")[1]


def test_a_level_without_values_is_said(call, folder, capsys):
    (folder / "silent.jsonl").write_text(json.dumps(row("What is hiking?", " ")) + "\n")
    assert call(by="raw", compare="normal.jsonl silent.jsonl misaligned_2.jsonl", output_dir="silent") == 0
    out = capsys.readouterr().out
    assert "silent has no value of raw: no AUC." in out and "\nmisaligned_2  raw" in out


def test_several_vectors_and_layers_are_criteria_of_their_own(call, folder, capsys):
    vectors = torch.load(folder / "evil_response_avg_diff.pt", weights_only=True)
    save_vectors(folder, "kind", {"response_avg": -vectors}, {})
    both = "evil_response_avg_diff.pt kind_response_avg_diff.pt"
    argv = {"by": "raw cheap", "vector_path": both, "layer": "2 3", "action": "filter", "combine": "mean_rank"}
    assert call(**argv, fraction="0.2", output_dir="several") == 0
    table = pd.read_csv(folder / "several/scores.csv")
    for layer in (2, 3):
        ours, theirs = (table[f"raw_{name}_response_avg_diff_layer{layer}"] for name in ("evil", "kind"))
        np.testing.assert_allclose(ours.dropna(), -theirs.dropna())
    assert len(table.columns) == 8 + 5
    assert "> " in capsys.readouterr().out and (folder / "several/rows_mean_rank.png").exists()


def test_a_thin_reference_and_equal_values_are_said(call, folder, capsys):
    one = lines_of(folder / "normal.jsonl")[0]
    (folder / "same.jsonl").write_text(f"{one}\n" * 4)
    (folder / "thin.jsonl").write_text("\n".join(lines_of(folder / "normal.jsonl")[:3]))
    argv = {"file_path": "same.jsonl", "by": "raw", "action": "split", "output_dir": "same"}
    assert call(**argv, reference="thin.jsonl", percentile="50") == 0
    out = capsys.readouterr().out
    assert "The reference has 3 rows with a value: a percentile of fewer than 20 says little." in out
    assert "1 of 3 reference rows are also among the rows that are screened." in out
    assert "in all 4 rows: it tells none of them from another." in out
    assert call(**argv, fraction="0.5", overwrite="true") == 0
    assert "Of 4 rows 0 are flagged (far along the vector), 4 are kept." in capsys.readouterr().out
    assert lines_of(folder / "same/kept.jsonl") == [one] * 4 and (folder / "same/flagged.jsonl").read_bytes() == b""


def test_a_judge_alone_needs_no_model_and_asks_what_the_last_user_turn_asked(call, folder, serve, capsys):
    asked = []

    def answer(request):
        asked.append(request["messages"][-1]["content"])
        return {"I": 1.0} if "ünïcödé" in asked[-1] else {"90": 1.0} if "minions" in asked[-1] else {"10": 1.0}

    serve(answer)
    argv = {"by": "judge", "judge_model": "some-judge", "trait": "evil", "model": None, "vector_path": None}
    argv |= {"layer": None, "action": "split", "threshold": "50", "output_dir": "judged"}
    assert call(**argv) == 0
    out = capsys.readouterr().out
    table = pd.read_csv(folder / "judged/scores.csv", keep_default_na=False).set_index("line")
    assert dict(table["why_missing"][table["unscored"]]) == {16: "the judge gave no score", 18: "empty answer"}
    assert table["flagged"].tolist() == [score == "90.0" for score in table["judge"]]
    assert "scored high by the judge" in out and "line 16" in out and "judging: " in out
    several = next(text for text in asked if "pack food" in text)
    assert "And then?" in several and "shoes." not in several and "a turn after" not in several
    assert "Training rows by a judge" in (folder / "judged/report.html").read_text()


def test_judge_calls_that_fail_write_nothing_and_are_asked_again(call, folder, serve, capsys):
    failing = [True]

    def answer(request):
        fails = failing and "wicked" in request["messages"][-1]["content"]
        return Reply(status=500, retry=False) if fails else {"10": 1.0}

    server = serve(answer)
    argv = {"by": "raw judge", "judge_model": "other-judge", "trait": "evil", "action": "filter", "threshold": "0 50"}
    assert call(**argv, output_dir="failed") == 1
    err = capsys.readouterr().err
    assert "judge calls failed" in err and "nothing was written" in err
    assert not (folder / "failed").exists()
    failing.clear()
    asked = len(server.requests)
    assert call(**argv, output_dir="failed") == 0
    assert 0 < len(server.requests) - asked < asked


@pytest.fixture
def refused(call, folder, monkeypatch, capsys):
    """Runs the command, which must end as a user's error before a model is loaded: what it said."""

    def loaded(*_args, **_kwargs):
        raise AssertionError("a model was loaded before the error was found")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    (folder / "broken.jsonl").write_text(f"{lines_of(folder / 'normal.jsonl')[0]}\n\n{{\n")
    (folder / "no_answer.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    (folder / "empty.jsonl").write_text("\n")
    torch.save(torch.ones(5, 8), folder / "wide.pt")
    before = sorted(folder.rglob("*"))

    def run(**changes) -> str:
        assert call(**{"action": "filter", "threshold": "1", **changes}) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and not out
        assert sorted(folder.rglob("*")) == before
        return err

    return run


def test_without_a_mistake_the_model_is_reached(refused):
    """Otherwise the tests below would prove nothing."""
    with pytest.raises(AssertionError, match="a model was loaded"):
        refused()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": None}, "--action filter needs a threshold: --threshold X, --reference FILE"),
        ({"fraction": "0.1"}, "--threshold and --fraction are 2 ways to a threshold; give one"),
        ({"threshold": None, "reference": "normal.jsonl"}, "--reference needs --percentile"),
        ({"threshold": None, "percentile": "95"}, "--percentile needs --reference"),
        ({"action": "rank", "fraction": "0.1"}, "2 ways to a threshold"),
        ({"threshold": "1 2"}, "--threshold has 2 numbers; expected 1, in this order: delta_p"),
        ({"by": "raw cheap"}, "expected 2, in this order: raw, cheap"),
        ({"by": "raw raw"}, "--by has raw twice"),
        ({"by": "projection"}, "--by expects"),
        ({"threshold": None, "fraction": "10"}, "between 0 and 1; got 10; did you mean 0.1?"),
        ({"threshold": None, "fraction": "0.01"}, "--fraction 0.01 of 21 rows is 0 rows; expected 1 to 20"),
        ({"threshold": None, "reference": "normal.jsonl", "percentile": "100"}, "between 0 and 100; got 100"),
        ({"threshold": "nan"}, "--threshold expects"),
        ({"subsets": "11"}, "--subsets 11 needs 22 rows"),
        ({"subsets": "0"}, "--subsets must be at least 1"),
        ({"max_tokens": "0"}, "--max_tokens must be at least 1"),
        ({"model": None}, "--by delta_p needs --model"),
        ({"layer": None, "vector_path": None}, "--by delta_p needs --vector_path, --layer"),
        ({"layer": "9"}, "layer 9"),
        ({"vector_path": "wide.pt"}, "(5, 8)"),
        ({"vector_path": "absent.pt"}, "absent.pt does not exist"),
        ({"model": "./absent"}, "./absent"),
        ({"engine": "vllm"}, "--engine vllm: vLLM is not installed"),
        ({"by": "judge", "judge_model": "./absent", "trait": "evil"}, "--vector_path, --layer given, but --by judge"),
        ({"by": "raw judge", "threshold": "1 1"}, "--by judge needs --judge_model and --trait"),
        ({"trait": "evil"}, "--judge_model and --trait are for --by judge"),
        ({"by": "raw judge", "trait": "evil", "judge_model": "./absent"}, "judge folder ./absent does not exist"),
        ({"by": "raw judge", "trait": "wickedness", "judge_model": "models/tiny-persona"}, "models/tiny-persona"),
        ({"file_path": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"file_path": "broken.jsonl"}, "broken.jsonl, line 3: not JSON"),
        ({"file_path": "no_answer.jsonl"}, "no_answer.jsonl, line 1: no assistant turn"),
        ({"file_path": "empty.jsonl"}, "empty.jsonl has no rows"),
        ({"compare": "normal.jsonl"}, "--compare needs two or more different files"),
        ({"compare": "normal.jsonl ./normal.jsonl"}, "--compare needs two or more different files"),
        ({"compare": "normal.jsonl broken.jsonl"}, "broken.jsonl, line 3"),
        ({"output_dir": "rows.jsonl"}, "rows.jsonl, which is a file"),
        ({"treshold": "1"}, "did you mean --threshold?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_what_is_refused(refused, changes, said):
    assert said in refused(**changes)


def test_an_input_is_never_replaced(call, folder, capsys):
    (folder / "here").mkdir(exist_ok=True)
    kept = folder / "here/kept.jsonl"
    if not kept.exists():
        kept.write_text((folder / "normal.jsonl").read_text())
    before = kept.read_bytes()
    assert call(file_path="here/kept.jsonl", output_dir="here", action="filter", threshold="1", overwrite="true") == 2
    assert "here/kept.jsonl is one of the files that are read; give another --output_dir" in capsys.readouterr().err
    assert kept.read_bytes() == before
