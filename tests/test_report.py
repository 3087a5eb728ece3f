"""The report command: any results in, one page out; what is missing or broken is said and stops nothing."""

import json
import re
import shutil
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
    layers = [{"layer": i, "auc": 0.9, "auc_low": 0.8, "auc_high": 0.97, "auc_random": None} for i in range(4)]
    quality = {"layers": layers, "n_kept": 40}
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
    for words in (
        "2 random directions: mean",
        "system prompt instead of steering",
        "1 steering receipt",
        "evil_quality",
    ):
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


def test_text_of_a_model_is_escaped_and_made_visible(tmp_path, capsys):
    table = sweep(text=HOSTILE)
    table["question"] += HOSTILE
    table = table.rename(columns={"evil": "<b onclick=alert(3)>"}).assign(vector=VECTOR + "<svg onload=alert(4)>")
    table["m<i>_v_proj_layer3"] = 1.0
    put(tmp_path / "a.csv", table, {"receipts": [{HOSTILE: HOSTILE}]}, model=HOSTILE, trait=HOSTILE)
    (tmp_path / "<img src=y>.csv").write_text("a,b\n1,2\n")
    html = page_of(tmp_path, capsys)
    tags = {tag for tag, _ in Outline(html).elements}
    assert not tags & {"img", "b onclick", "i"} and "onload" not in {k for _, a in Outline(html).elements for k in a}
    assert not [a for _, a in Outline(html).elements if any(name.startswith("on") for name in a)]
    assert html.count("<script>") == 1 and html.count("</script>") == 1
    assert "\u202e" not in html and "\x07" not in html and "[U+202E]right to left[U+0007]" in html
    assert "alert(1)</script>" in text_of(html)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a[U+202E]b"),
        ("\x00\x1b[31m", "[U+0000][U+001B][31m"),
        ("\ud800", "[U+D800]"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("caf\u00e9 \u05d0 \U0001f469\u200d\U0001f52c", "caf\u00e9 \u05d0 \U0001f469\u200d\U0001f52c"),
    ],
)
def test_hidden_characters_are_written_out_and_scripts_stay(text, shown):
    assert visible(text) == shown


def test_the_page_needs_no_other_file(folder, capsys):
    html = page_of(folder, capsys)
    loading = [(tag, a) for tag, a in Outline(html).elements if a.get("src") or (tag == "link" and a.get("href"))]
    assert loading == [("link", {"rel": "icon", "href": "data:,"})]
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert len(html) < 400_000


def test_long_and_many_answers_are_capped_and_that_is_said(tmp_path, capsys):
    put(tmp_path / "a.csv", sweep(n_questions=60, n_samples=4, text="word " * 600))
    html = page_of(tmp_path, capsys)
    assert len(html) < 3_500_000 < (tmp_path / "a.csv").stat().st_size
    found = re.search(r"(\d+) of 60 questions, (\d) of 4 samples each", text_of(html))
    assert found and int(found[1]) >= 10
    assert "more characters are in the table" in html


def test_what_is_missing_is_said(tmp_path, capsys):
    table = sweep(n_random=0, prompt=False, base=False, layers=(3,), coefs=(1.0,), n_questions=1, n_samples=3)
    table.loc[0, "evil"] = np.nan
    put(tmp_path / "a.csv", table, {"n_failed": 1}, coef=1.0, layer=3, vector_path=VECTOR)
    text = text_of(page_of(tmp_path, capsys))
    for words in (
        "No control is here: an effect without one says little",
        "No unsteered run is here",
        "2 of 3 answers are scored for evil",
        "1 judge calls failed",
        "one question only, so there is no interval",
        "[no interval]",
        "not scored",
    ):
        assert words in text, words


def test_nothing_scored_at_all_still_makes_a_page(tmp_path, capsys):
    put(tmp_path / "a.csv", sweep().assign(evil=np.nan, coherence=np.nan))
    text = text_of(page_of(tmp_path, capsys))
    assert "No steered setting has a evil score" in text and "0 of 8 answers are scored" in text


def test_broken_and_unknown_files_are_named_with_the_reason(folder, capsys):
    (folder / "empty.csv").write_text("")
    (folder / "no_rows.csv").write_text("question,prompt,answer,question_id,evil,coherence\n")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "bytes.csv").write_bytes(b"question\xff\xfe,answer\n\x80,1\n")
    (folder / "broken.pt").write_bytes(b"no tensor")
    (folder / "x_quality.json").write_text("[1,")
    (folder / "y_quality.json").write_text("[1, 2]")
    (folder / "plain.jsonl").write_text('{"messages": []}\n')
    (folder / "gone.csv.json").write_text("{}")
    code, out, _ = run(capsys, folder)
    assert code == 0 and out.count("not shown:") == 9
    text = text_of((folder / "report.html").read_text())
    for name, why in (
        ("empty.csv", "not a CSV table"),
        ("no_rows.csv", "it has no rows"),
        ("other.csv", "no column question, answer, question_id, coherence"),
        ("bytes.csv", "not a CSV table"),
        ("broken.pt", "not a plain tensor file"),
        ("y_quality.json", "a quality report is a JSON object"),
        ("plain.jsonl", "no projection columns"),
        ("gone.csv.json", "a sidecar without its table"),
    ):
        assert re.search(rf"{re.escape(name)} [^|]*{re.escape(why)}", text), name


def test_a_table_without_a_sidecar_is_shown_with_a_note(tmp_path, capsys):
    put(tmp_path / "a.csv", answers(50), False)
    text = text_of(page_of(tmp_path, capsys))
    assert "a.csv: it has no sidecar (a.csv.json)" in text and "setting not known (a.csv)" in text
    put(tmp_path / "a.csv", answers(60))
    (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text() + "\n")
    assert "it was changed after its sidecar was written" in text_of(page_of(tmp_path, capsys))
    (tmp_path / "a.csv.json").write_text("{broken")
    assert "its sidecar cannot be read" in text_of(page_of(tmp_path, capsys))


@pytest.mark.parametrize(
    "sidecar",
    [
        {"settings": [1]},
        {"settings": {"coef": [[1]], "layer": {}, "vector_path": 3, "control": 4, "model": 5}, "receipts": [1, {}]},
        {
            "file": 1,
            "n_failed": "x",
            "receipts": {"a": [1]},
            "steerability": [{"slope": 1}, 2, {"slope": {"mean": "x"}}],
        },
    ],
)
def test_a_sidecar_of_another_shape_stops_nothing(sidecar, tmp_path, capsys):
    put(tmp_path / "a.csv", answers(50), False)
    (tmp_path / "a.csv.json").write_text(json.dumps(sidecar))
    assert "a.csv" in text_of(page_of(tmp_path, capsys))


def test_samples_that_move_the_wrong_way_are_counted(tmp_path, capsys):
    def slope(control, share):
        kind = {"vector": "" if control else VECTOR, "control": control, "layer": 3, "n_used": 8}
        return {**kind, "slope": {"mean": 12.3, "low": 1, "high": 20}, "wrong_way": {"mean": share}}

    put(tmp_path / "a.csv", sweep(), {"steerability": [slope("", 0.125), slope("random1", 0.4), slope("random2", 0.5)]})
    text = text_of(page_of(tmp_path, capsys))
    assert (
        "+12.3 points of evil a unit of coef; 12% of 8 samples move the wrong way; of random directions, 40% to 50%"
        in text
    )


def test_the_slope_says_which_coefficients_were_too_broken_for_it(tmp_path, capsys):
    kind = {"vector": VECTOR, "control": "", "layer": 3, "left_out": [4.0, 8.0], "min_coherence": 75.0}
    slopes = [{**kind, "n_used": 8, "slope": {"mean": 42.0}, "wrong_way": {"mean": 0.0}}]
    slopes.append({**kind, "layer": 2, "n_used": 0, "slope": {"mean": None}, "wrong_way": {"mean": None}})
    put(tmp_path / "a.csv", sweep(), {"steerability": slopes})
    text = text_of(page_of(tmp_path, capsys))
    assert "0% of 8 samples move the wrong way (without coef 4, 8: coherence below 75)." in text
    assert "layer 2: no slope, which needs two coherent coefficients (without coef 4, 8" in text


def test_published_tables_of_one_setting_make_a_curve(tmp_path):
    """One file a setting, as published: the sidecar says how each was steered."""
    put(tmp_path / "evil_coef0.csv", answers(10), coef=0.0, layer=3, vector_path=VECTOR)
    put(tmp_path / "evil_coef2.csv", answers(60), coef=2.0, layer=3, vector_path=VECTOR)
    put(tmp_path / "evil_r.csv", answers(12), coef=2.0, layer=3, vector_path=VECTOR, control="random1")
    (study,) = studies(read_inputs([str(tmp_path)]).tables)
    (curve,) = study.curves()
    assert [(p.coef, round(p.score.mean, -1)) for p in curve.points] == [(0, 10), (2, 60)]
    assert list(curve.randoms) == ["random1"] and curve.vector == VECTOR


def test_the_demos_table_of_random_directions_joins_its_study(tmp_path):
    put(tmp_path / "evil_coef1.csv", answers(60), coef=1.0, layer=3, vector_path=VECTOR)
    path = tmp_path / "evil_random.csv"
    write_csv_atomic(pd.concat([answers(12, seed=k).assign(coef=1.0, direction=k) for k in (1, 2)]), path)
    write_sidecar(path, {"random_directions": {"layer": 3}, "model": SETTINGS["model"], "trait": "evil"})
    (study,) = studies(read_inputs([str(tmp_path)]).tables)
    assert sorted(study.curves()[0].randoms) == ["random1", "random2"]


def test_copies_are_counted_once_and_other_runs_of_a_setting_are_pooled(tmp_path):
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        put(tmp_path / f"{name}.csv", answers(10, seed=seed), seed=seed)
    (study,) = studies(read_inputs([str(tmp_path)]).tables)
    (base,) = study.settings
    assert base.score.n == 16 and base.rows["sample"].max() == 3
    notes = " ".join(study.notes)
    assert "8 rows of copy.csv are also in a.csv" in notes
    assert "'unsteered' is in 2 tables" in notes and "The tables differ in seed: 0, 1" in notes


def test_tables_of_other_models_and_judges_are_not_mixed(tmp_path):
    put(tmp_path / "a.csv", answers(10))
    put(tmp_path / "b.csv", answers(20), model="models/other")
    put(tmp_path / "c.csv", answers(30), judge_model="models/other")
    found = studies(read_inputs([str(tmp_path)]).tables)
    assert sorted(round(study.settings[0].score.mean, -1) for study in found) == [10, 20, 30]


def test_each_random_direction_belongs_to_the_vector_whose_norm_it_has(tmp_path):
    other = VECTOR.replace("evil", "other")
    table = sweep(layers=(3,), coefs=(1.0,), n_random=4, prompt=False)
    second = table[(table["control"] == "") & (table["coef"] == 1)].assign(vector=other)
    put(tmp_path / "a.csv", pd.concat([table, second]), vector_path=[VECTOR, other], n_random=2, coef=[0, 1])
    (study,) = studies(read_inputs([str(tmp_path)]).tables)
    assert {curve.vector: sorted(curve.randoms) for curve in study.curves()} == {
        VECTOR: ["random1", "random2"],
        other: ["random3", "random4"],
    }


DIRECTION = "loras/evil_lora_diff"


def test_a_direction_of_weights_has_no_layer_and_is_no_vector(tmp_path, capsys):
    table = sweep(layers=(3,), coefs=(1.0, 2.0), prompt=False)
    table = table.assign(layer=None, vector=table["vector"].where(table["vector"] == "", DIRECTION))
    slope = {"vector": DIRECTION, "control": "", "layer": None, "n_used": 8, "slope": {"mean": 3.0}, "wrong_way": {}}
    asked = {"lora_diff_path": DIRECTION, "lora_coef": [0, 1, 2], "n_random": 2}
    put(tmp_path / "a.csv", table, {"steerability": [slope]}, **asked)
    text = text_of(page_of(tmp_path, capsys))
    assert "layer None" not in text and "the direction, 95% interval" in text
    assert "evil_lora_diff in the weights: +3.0 points of evil a unit of coef" in text
    assert "2 random directions in the weights, coef 1" in text and "evil_lora_diff in the weights, coef 2" in text


def test_a_table_of_one_setting_knows_what_was_in_the_weights(tmp_path):
    """eval_lora_persona of one coefficient, and the tables of compare_steering_methods, have no columns of it."""
    put(tmp_path / "one.csv", answers(50), lora_diff_path=[DIRECTION], lora_coef=1.5)
    put(tmp_path / "sum.csv", answers(60), lora_diff_path=["x/a", "x/b"], lora_coef=1.0, compose=True)
    compared = {"activation_vector_path": VECTOR, "layer": 3, "lora_diff_path": DIRECTION}
    put(tmp_path / "v.csv", answers(70), {"method": "activation", "coef": 2.0}, **compared)
    put(tmp_path / "w.csv", answers(80), {"method": "lora", "coef": 3.0}, **compared)
    (study,) = studies(read_inputs([str(tmp_path)]).tables)
    assert {one.name(): round(one.score.mean, -1) for one in study.settings} == {
        "evil_lora_diff in the weights, coef 1.5": 50,
        "a + b in the weights, coef 1": 60,
        "evil_response_avg_diff, layer 3, coef 2": 70,
        "evil_lora_diff in the weights, coef 3": 80,
    }


def test_what_belongs_to_a_checkpoint_is_passed_over(folder, capsys):
    for name, beside in (("pos_lora", "adapter_config.json"), ("ckpt/checkpoint-5", "trainer_state.json")):
        (folder / name).mkdir(parents=True)
        (folder / name / beside).write_text("{}")
        torch.save({"state": {}}, folder / name / "optimizer.pt")
        put(folder / name / "answers.csv", answers(30))
    code, out, _ = run(capsys, folder)
    assert code == 0 and "not shown" not in out and "5 tables, 1 vector files" in out
    torch.save({"modules": {}}, folder / "evil_lora_diff.pt")
    write_sidecar(folder / "evil_lora_diff.pt", {"kind": "weight direction"})
    assert "not shown: evil_lora_diff.pt: a direction of weights; eval_lora_persona.py" in run(capsys, folder)[1]


def test_a_file_of_projections_alone(tmp_path, capsys):
    rows = [{"messages": [], "chat_evil_proj_layer3": value} for value in (0.1, 0.2, None)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = text_of(page_of(tmp_path, capsys))
    assert "Projections of other files" in text and "1 rows have none" in text


def test_several_folders_and_files_before_the_first_flag(folder, tmp_path, capsys):
    target = tmp_path / "out" / "page.html"
    code, out, _ = run(capsys, folder / "evil.csv", folder / "vectors", "--output_path", target)
    assert code == 0 and out.startswith(str(target)) and "1 tables, 1 vector files, 1 quality reports" in out
    sidecar = json.loads((tmp_path / "out" / "page.html.json").read_text())
    assert sidecar["results"] == [str(folder / "evil.csv"), str(folder / "vectors")]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "missing --results"),
        (["--results"], "--results"),
        (["{folder}/none"], "does not exist"),
        (["{folder}/empty"], "nothing to show in"),
        (["{folder}", "--output_path", "{folder}/page.txt"], "must end in .html"),
        (["{folder}", "--output_path", "{folder}"], "is a folder"),
        (["{folder}", "--output", "x.html"], "--output_path"),
    ],
)
def test_bad_arguments_are_one_line(argv, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    code, _out, error = run(capsys, *(word.replace("{folder}", str(tmp_path)) for word in argv))
    assert code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


CHROME = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if not (CHROME and DRIVER):
        pytest.skip("no chromium and chromedriver here")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def emulate(browser, width=390, scheme="light", media=""):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def background(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.browser
def test_in_a_browser(folder, browser, capsys):
    """At a phone's width, with everything open: nothing sticks out, nothing is requested, nothing fails."""
    text = "A long answer. " * 20 + HOSTILE + "x" * 300
    put(folder / "evil.csv", sweep(text=text), {"receipts": [RECEIPT] * 3}, model="models/" + "long_name" * 12)
    page_of(folder, capsys)
    emulate(browser)
    browser.get((folder / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for width in (390, 1100):
        emulate(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert background(browser) == "rgb(255, 255, 255)"
    emulate(browser, scheme="dark")
    assert background(browser) == "rgb(20, 23, 28)"
    button = browser.find_element("id", "theme")
    assert button.text == "Light" and "light colours" in button.get_attribute("aria-label")
    button.send_keys("\n")  # by keyboard
    assert background(browser) == "rgb(255, 255, 255)" and button.text == "Dark"
    browser.execute_script("arguments[0].click()", button)
    emulate(browser, scheme="dark", media="print")
    assert background(browser) == "rgb(255, 255, 255)", "paper is white"
    assert not browser.find_element("id", "theme").is_displayed()
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {(folder / "report.html").as_uri()}


@pytest.mark.browser
def test_the_choosers_show_one_question_of_one_vector_and_layer(folder, browser, capsys):
    page_of(folder, capsys)
    emulate(browser, 1100)
    browser.get((folder / "report.html").as_uri())
    from selenium.webdriver.support.ui import Select

    box = browser.find_element("css selector", "[data-chooser]")
    group, question = (Select(one) for one in box.find_elements("tag name", "select"))

    def shown():
        (one,) = [item for item in box.find_elements("css selector", "[data-group]") if item.is_displayed()]
        return one.text

    assert shown().startswith("What about 0?") and "layer 2, sample 1" in shown()
    group.select_by_visible_text("evil_response_avg_diff, layer 3")
    question.select_by_visible_text("What about 2? (sample 2)")
    text = shown()
    assert text.startswith("What about 2?") and "layer 3, sample 2" in text
    assert [text.count(label) for label in ("unsteered", "coef 1 ", "coef 2 ", "system prompt")] == [1, 1, 2, 1]
