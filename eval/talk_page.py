"""The steered conversation as a page in the browser, by Gradio: the controls of the terminal session as fields.

Every tab has a conversation of its own; they take turns with the model. The page is served to this machine only, and
asks for nothing outside of it: Gradio's analytics are off, and the browser is told to load from here alone.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import talk_page_html as html
from eval.talk import Session, Stopped, Writing
from eval.talk_commands import run_command
from eval.talk_controls import Desk
from eval.talk_gradio import HOST, free_port
from eval.talk_transcript import save
from persona_vectors.cli import one_line

_OWN_ONLY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_REDRAW_SECONDS = 0.1


def serve(desk: Desk, port: int, say: Callable[..., None]) -> None:
    """Serves the page until Ctrl-C. The model is loaded already."""
    with tempfile.TemporaryDirectory(prefix="talk_") as folder:
        page = build(desk, Path(folder))
        say(f"steering at {open_page(page, port)} (Ctrl-C ends it)")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            say("", "ended")
        finally:
            page.close(verbose=False)


def open_page(page: Any, port: int) -> str:
    """The address at which the page is served now, in threads of its own."""
    import gradio as gr
    from starlette.middleware import Middleware

    shows_windows = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY"))
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=free_port(port),
        share=False,
        inbrowser=shows_windows,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=html.CSS,
        app_kwargs={"middleware": [Middleware(OwnOnly)]},
    )
    return address


class OwnOnly:
    """ASGI middleware: responses tell the browser to load nothing from anywhere else."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _OWN_ONLY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


@dataclass(eq=False)
class Tab:
    """One browser tab's conversation.

    Attributes:
        folder: for the files that its download buttons hand out.
        latest: the answers while they are written; receipts: lines of the receipts taken for them.
    """

    desk: Desk
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    latest: Writing | None = None
    receipts: list[str] = field(default_factory=list)

    def ask(self, text: str) -> list[str]:
        """Lines that say what a turn of this text, or a command, brought; meanwhile it is in `latest`."""
        if text.startswith("/") and not text.startswith("//"):
            return command(self.desk, text)
        try:
            self.desk.session.ask(text.removeprefix("/"), self._watch, self.receipts.append)
        except Stopped:
            return ["stopped; nothing was said"]
        return self.receipts

    def begin(self) -> None:
        """Ready for the next turn."""
        self.stop.clear()
        self.latest, self.receipts = None, []

    def _watch(self, writing: Writing) -> None:
        if self.stop.is_set():
            raise Stopped
        self.latest = writing

    def transcript(self, suffix: str) -> str | None:
        """The file that a download button hands out; None while there is nothing to save."""
        if not self.desk.session.turns:
            return None
        return str(save(self.desk.session, self.folder / f"conversation{suffix}"))


def new_tab(first: Desk, folder: Path) -> Tab:
    """A conversation that begins with the settings of `first` and shares its model."""
    session = Session(first.session.engine, first.settings)
    desk = Desk(session, first.model_name, first.numbering, list(first.examples), first.examples_from)
    return Tab(desk, Path(tempfile.mkdtemp(dir=folder)))


def build(desk: Desk, folder: Path) -> Any:
    """The page, not yet served; files to download are made in the folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from eval.talk_page_fields import layout

    one_at_a_time = ThreadPoolExecutor(1)  # tabs share the model, and steering is hooks on it
    with gr.Blocks(title=f"Steering {desk.settings.shape.label}", analytics_enabled=False, fill_width=True) as page:
        fields = layout(desk)
        state = gr.State(None)
        everything = [state, *fields.shown, *fields.settings]

        def begin() -> list[Any]:
            return [new_tab(desk, folder), *fields.values(desk)]

        def ask(tab: Tab | None, text: str, *values: Any) -> Iterator[list[Any]]:
            if tab is None:  # a person was faster than the page
                return
            said, wrong = tried(lambda: fields.apply(tab.desk, values))
            if not wrong and text.strip():
                tab.begin()
                answer = one_at_a_time.submit(tab.ask, text.strip())
                try:
                    while not wait([answer], timeout=_REDRAW_SECONDS).done:
                        seen = [tab, *being_written(tab, text)]
                        yield seen + [gr.skip() for _ in everything[len(seen) :]]  # a person may be changing them
                finally:
                    tab.stop.set()  # where the tab was closed meanwhile
                said, wrong = tried(answer.result)
            yield [tab, *shown(tab, said, text if wrong else "", wrong=wrong), *held(tab, wrong)]

        def held(tab: Tab, wrong: bool) -> list[Any]:
            """The fields as the settings are; after an error as they stand, to be put right."""
            return [gr.skip() for _ in fields.settings] if wrong else fields.values(tab.desk)

        def control(does: Callable[..., list[str]], n_inputs: int) -> Callable[..., list[Any]]:
            def act(tab: Tab | None, *values: Any) -> list[Any]:
                if tab is None:
                    return [gr.skip() for _ in everything]
                given, settings = values[:n_inputs], values[n_inputs:]
                # what was entered elsewhere holds, too: every field is filled anew below
                said, wrong = tried(lambda: fields.apply(tab.desk, settings) + does(tab.desk, *given))
                return [tab, *shown(tab, said, wrong=wrong), *held(tab, wrong)]

            return act

        page.load(begin, None, [state, *fields.settings], show_progress="hidden")
        for event in (fields.text.submit, fields.send.click):
            event(ask, [state, fields.text, *fields.settings], everything, show_progress="hidden")
        fields.stop.click(lambda tab: tab and tab.stop.set(), [state], None, queue=False)
        fields.example.input(lambda text: text, [fields.example], [fields.text], show_progress="hidden")
        for event, does, inputs in fields.controls():
            event(control(does, len(inputs)), [state, *inputs, *fields.settings], everything, show_progress="hidden")
    return page


def command(desk: Desk, text: str) -> list[str]:
    """A line that begins with `/`, as at the terminal; what asks or ends is done on the page by its own fields."""
    reply = run_command(desk, text)
    if reply.ask is not None or reply.quits:
        raise ValueError(f"{text.split()[0]} is for the terminal; the page has a field for it, or is closed as any tab")
    return reply.lines


def tried(does: Callable[[], list[str]]) -> tuple[list[str], bool]:
    """(lines to show, whether they are an error)."""
    try:
        return does(), False
    except (ValueError, OSError) as error:
        return [f"error: {one_line(error)}"], True


def being_written(tab: Tab, text: str) -> list[str]:
    """The conversation and the status line while a text is answered."""
    return [html.conversation(tab.desk.session.turns, text, tab.latest), html.status(tab.receipts), ""]


def shown(tab: Tab, said: Sequence[str] = (), text: str = "", *, wrong: bool = False) -> list[Any]:
    """What `Fields.shown` shows: conversation, status, text, the answers to go on with, and the downloads."""
    import gradio as gr

    turns = tab.desk.session.turns
    strengths = [f"{one.strength:g}" for one in turns[-1].answers] if turns else []
    kept = f"{turns[-1].kept:g}" if turns else None
    return [
        html.conversation(turns),
        html.status(said or tab.desk.settings.lines(), wrong=wrong),
        text,
        gr.Radio(choices=strengths, value=kept, visible=len(strengths) > 1),
        *(gr.DownloadButton(value=tab.transcript(suffix), interactive=bool(turns)) for suffix in (".json", ".md")),
    ]
