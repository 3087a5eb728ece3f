"""The page of a steered conversation, served by Gradio and driven in a real headless browser.

Gradio is an extra: `pip install -c constraints.txt -e ".[test,ui]"`, and Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[ui]'")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

from eval.finished_answers import Engine
from eval.model_utils import Steering, steer_rows
from eval.talk import Session
from eval.talk_controls import Desk
from eval.talk_gradio import check_gradio
from eval.talk_page import build, open_page
from eval.talk_settings import Settings, shape_of
from persona_vectors.sampling import sample_answers
from persona_vectors.vector_files import read_vector_file
from tests.steering_vectors import trait_vectors, write_npz

CHROME = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOSTILE = "<img src=x onerror='document.title=1'> Hello."


@pytest.fixture(scope="module")
def desk(tiny_persona, tmp_path_factory) -> Desk:
    place = tmp_path_factory.mktemp("vectors")
    for trait in ("extraversion", "impolite"):
        write_npz(place / f"tiny_{trait}_vectors.npz", trait_vectors(tiny_persona, trait))
    file = read_vector_file(place / "tiny_extraversion_vectors.npz")
    begun = Settings(shape_of(tiny_persona), file, "extraversion", 3, 1.0, (-1.0, 0.0, 1.0, 2.0), max_tokens=30)
    return Desk(Session(Engine(tiny_persona), begun), tiny_persona, examples=["Hello"], examples_from="one")


@pytest.fixture(scope="module")
def address(desk, tmp_path_factory) -> Iterator[str]:
    _ = desk.session.engine.model
    page = build(desk, tmp_path_factory.mktemp("page"))
    yield open_page(page, 0)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    assert CHROME and DRIVER, "the page is tested in a browser: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1100")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person does with the page and sees on it."""

    def __init__(self, browser: webdriver.Chrome):
        self.browser = browser

    def field(self, name: str) -> Any:
        return self.browser.find_element("css selector", f"#{name} input, #{name} textarea")

    def value(self, name: str) -> str:
        return self.field(name).get_attribute("value")

    def put(self, name: str, text: str) -> None:
        self.field(name).send_keys(Keys.CONTROL, "a")
        self.field(name).send_keys(text)

    def say(self, text: str) -> None:
        self.put("text", text)
        self.field("text").send_keys(Keys.ENTER)

    def click(self, name: str) -> None:
        self.browser.find_element("id", name).click()

    def choose(self, name: str, text: str) -> None:
        """The first option of a dropdown that holds the text."""
        self.field(name).click()
        script = """const found = [...document.querySelectorAll(arguments[0])].find(
                        one => one.innerText.includes(arguments[1]));
                    found?.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}));
                    return Boolean(found)"""
        self.wait(lambda: self.browser.execute_script(script, f"#{name} [role=option]", text))

    def open_adding(self) -> None:
        """The section that adds vectors, which is folded at first."""
        self.browser.find_element("xpath", "//button[contains(., 'Add another vector')]").click()
        there = "#add_file input, #add_file textarea"  # drawn only once the section is open
        self.wait(lambda: any(one.is_displayed() for one in self.browser.find_elements("css selector", there)))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText)"
        return self.browser.execute_script(script, f"#conversation {selector}")

    @property
    def status(self) -> str:
        return self.browser.find_element("id", "status").text

    def wait(self, condition: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < give_up, (self.status, self.texts(".answer"))
            time.sleep(0.05)
        frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.browser.execute_async_script(frames)  # what else the same response changes is drawn then, too
        return found

    def answered(self, n_turns: int) -> list[str]:
        """Labels and texts of the last turn's answers, once that many turns are done."""
        self.wait(lambda: len(self.texts(".said")) == n_turns and not self.texts("[aria-busy]"))
        return self.texts(".answers:last-child .answer")


@pytest.fixture
def page(browser, address) -> Page:
    browser.get(address)
    opened = Page(browser)
    opened.wait(lambda: browser.find_elements("css selector", "#strengths textarea, #strengths input"))
    opened.wait(lambda: opened.value("strengths"))
    return opened


@pytest.mark.browser
def test_a_conversation_on_the_page(page, desk, browser, address, tmp_path):
    assert page.value("strengths") == "-1 0 1 2" and page.value("layer") == "3"
    page.say(HOSTILE)
    answers = page.answered(1)
    labels = [text.split("\n")[0].split(",")[0] for text in answers]
    assert labels == ["strength -1", "strength 0", "strength 1 (goes on)", "strength 2"]
    assert page.texts(".said") == [HOSTILE] and page.texts("img") == []
    assert "steering receipt" in page.status

    browser.find_element("css selector", "#keep input[value='2']").click()
    page.wait(lambda: page.texts(".answer.kept")[0].startswith("strength 2 (goes on)"))
    page.put("strengths", "2")
    page.put("system", "Be brief.")
    page.say("Tell me about family dinners.")
    (answer,) = page.answered(2)
    kept = answers[3].split("\n", 1)[1]
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n" + "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in [("user", HOSTILE), ("assistant", kept), ("user", "Tell me about family dinners.")]
    )
    model = desk.session.engine.model
    (expected,) = sample_answers(
        model,
        desk.session.engine.tokenizer,
        [prompt + "<|im_start|>assistant\n"],
        max_tokens=30,
        temperature=0.7,
        streams=[(0, 1)],
        steer=steer_rows(model, [Steering(desk.settings.file.vectors[3], 3, 2.0)]),
    )
    assert answer.split("\n", 1)[1] == expected.strip()

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("json", "markdown"):
        page.click(name)
    page.wait(lambda: len({file.suffix for file in tmp_path.iterdir()} & {".json", ".md"}) == 2)
    whole = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["kept"] for turn in whole["turns"]] == [2.0, 2.0]
    page.click("undo")
    page.wait(lambda: len(page.texts(".said")) == 1)
    page.click("reset")
    page.wait(lambda: page.texts(".said") == [])

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))} == set()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_the_fields_and_the_commands_are_the_same_settings(page, desk):
    page.put("strengths", "1 x")
    page.say("Hello")
    page.wait(lambda: "error: strengths expects numbers" in page.status)
    assert (page.value("text"), page.value("strengths")) == ("Hello", "1 x"), "what was written is not lost"
    page.put("strengths", "0 1")
    page.say("/seed 7")
    page.wait(lambda: page.value("seed") == "7")
    page.say("/trait impolite")
    page.wait(lambda: page.value("vector").endswith("tiny_impolite_vectors.npz"))
    page.say("/nonsense")
    page.wait(lambda: "there is no command /nonsense" in page.status)
    page.choose("vector", "extraversion")
    page.wait(lambda: "vector: tiny_extraversion_vectors.npz (extraversion)" in page.status)
    page.choose("layer", "1")

    page.open_adding()
    for name, text in (("add_file", "impolite"), ("add_layer", "2"), ("add_coef", "0.5")):
        page.put(name, text)
    page.click("add")
    page.wait(lambda: "added to every answer: 0.5 * tiny_impolite" in page.status)
    page.choose("example", "")
    page.wait(lambda: len(page.value("text")) > 10)
    page.click("send")
    assert len(page.answered(1)) == 2
    assert "at layer 1, coef 1: adds" in page.status and "at layer 2, coef 0.5: adds" in page.status
    page.choose("added", "1. 0.5")
    page.click("remove")
    page.wait(lambda: "no longer added" in page.status)
    assert desk.settings.seed == 0 and desk.session.turns == [], "every tab has a conversation of its own"


@pytest.mark.browser
def test_stop_ends_an_answer_and_the_page_goes_on(page):
    page.put("strengths", "8")
    page.put("strength", "8")
    page.put("max_tokens", "1500")
    page.say("Hello")
    page.wait(lambda: page.texts(".answer div") and len(page.texts(".answer div")[0]) > 20)
    page.click("stop")
    page.wait(lambda: any("stopped" in label for label in page.texts(".answer b")))
    page.put("strength", "0")
    page.put("strengths", "0")
    page.put("max_tokens", "5")
    page.say("Hello")
    assert page.answered(2)[0].startswith("strength 0, cut at the most tokens")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out(page, browser, width, tmp_path):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.say("x" * 300)
    page.answered(1)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert Path(tmp_path / "page.png").stat().st_size > 10_000


def test_the_browser_is_told_to_load_from_here_alone(address):
    policy = urlopen(address).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy


def test_a_taken_port_is_one_line_before_the_model_is_loaded(address):
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=f"port {port}.*give another --port"):
        check_gradio(port)
