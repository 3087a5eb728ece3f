"""A steered conversation at a terminal: lines in, answers streamed out.

A terminal that can draw gets the strengths as columns that fill at once. Anything else (a pipe, TERM=dumb, a narrow
window) gets them one after another, the first while it is written. Ctrl-C ends an answer and not the session.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import torch
from rich.console import Console
from rich.live import Live

from eval.talk import Answer, Stopped, Turn, Writing
from eval.talk_commands import COMMANDS, run_command
from eval.talk_controls import Desk
from eval.talk_table import fits, print_table, printable, say, table
from persona_vectors.cli import one_line

PROMPT = "you> "
_REDRAW_SECONDS = 0.1
_ENDED = {"end": "", "length": "", "stopped": " (stopped)"}


class Display(Protocol):
    """Shows answers while they are written, and the turn when it is done."""

    def write(self, writing: Writing) -> None: ...

    def finish(self, turn: Turn) -> None: ...


def converse(desk: Desk, console: Console) -> None:
    """Answers lines until Ctrl-D or /quit. Errors of a line are one line; the session goes on."""
    say(console, "say something, or /help; Ctrl-C stops an answer, Ctrl-D ends the session")
    for line in _lines(console):
        try:
            if line.startswith("/") and not line.startswith("//"):
                reply = run_command(desk, line)
                say(console, *reply.lines)
                if reply.quits:
                    break
                line = reply.ask
                if line is None:
                    continue
                say(console, f"{PROMPT}{line}")
            answer(desk, line.removeprefix("/") if line.startswith("//") else line, console)
        except (ValueError, OSError) as error:
            say(console, f"error: {one_line(error)}")
        except torch.OutOfMemoryError:
            say(console, "error: out of memory; /undo or /reset, fewer /strengths or /max_tokens")
    if desk.session.turns and not desk.written:
        say(console, "the conversation was not saved")


def answer(desk: Desk, text: str, console: Console) -> None:
    """Asks, and shows the answers as they are written."""
    with _stoppable() as asked_to_stop, _display(desk, console) as display:

        def watch(writing: Writing) -> None:
            if asked_to_stop.is_set():
                raise Stopped
            display.write(writing)

        try:
            turn = desk.session.ask(text, watch, lambda line: say(console, line))
        except Stopped:
            say(console, "stopped; nothing was said, and the conversation is as it was")
            return
        display.finish(turn)


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that an answer ends between two tokens; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def on_signal(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _display(desk: Desk, console: Console) -> Iterator[Display]:
    strengths = desk.settings.strengths
    if len(strengths) > 1 and console.is_terminal and not console.is_dumb_terminal and fits(console, len(strengths)):
        with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis") as live:
            yield SideBySide(console, live, desk.settings.strength)
    else:
        yield OneAfterAnother(console, desk.settings.strength)


class SideBySide:
    """Columns that fill at once; in the end the whole table, however tall."""

    def __init__(self, console: Console, live: Live, kept: float):
        self.console, self.live, self.kept = console, live, kept
        self.drawn = 0.0

    def write(self, writing: Writing) -> None:
        if time.monotonic() - self.drawn < _REDRAW_SECONDS:
            return
        rows = [[writing.text(row) for row in range(len(writing.strengths))]]
        headers = [header(strength, self.kept) for strength in writing.strengths]
        self.live.update(table(self.console, headers, rows), refresh=True)
        self.drawn = time.monotonic()

    def finish(self, turn: Turn) -> None:
        self.live.stop()
        headers = [header(one.strength, turn.kept, one) for one in turn.answers]
        print_table(self.console, headers, [[one.text for one in turn.answers]])


class OneAfterAnother:
    """The first answer as it is written, then what stands of the next."""

    def __init__(self, console: Console, kept: float):
        self.console, self.kept = console, kept
        self.row, self.shown = 0, ""
        self.begun = False

    def write(self, writing: Writing) -> None:
        while self.row < len(writing.strengths):
            self._begin(writing.strengths[self.row], len(writing.strengths))
            text = printable(writing.text(self.row)).lstrip()
            if text.startswith(self.shown):
                self._put(text[len(self.shown) :])
                self.shown = text
            if not writing.is_done(self.row):
                return
            self._end("")

    def finish(self, turn: Turn) -> None:
        for one in turn.answers[self.row :]:
            self._begin(one.strength, len(turn.answers))
            text = printable(one.text).lstrip()
            self._put(text[len(self.shown) :] if text.startswith(self.shown) else f"\n{text}")
            self._end(_ENDED[one.ended])

    def _begin(self, strength: float, n_answers: int) -> None:
        if not self.begun:
            self._put(f"{header(strength, self.kept)}> " if n_answers > 1 else f"{strength:g}> ")
            self.begun = True

    def _end(self, note: str) -> None:
        self._put(f"{note}\n")
        self.row, self.shown, self.begun = self.row + 1, "", False

    def _put(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


def header(strength: float, kept: float, answer: Answer | None = None) -> str:
    """`strength 1 (goes on)`."""
    goes_on = " (goes on)" if strength == kept else ""
    return f"strength {strength:g}{goes_on}{_ENDED[answer.ended] if answer else ''}"


def _lines(console: Console) -> Iterator[str]:
    """What a person enters, without empty lines, until Ctrl-D; Ctrl-C drops the line."""
    _edit_lines()
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            say(console, "")
            return
        except KeyboardInterrupt:
            say(console, "", "(Ctrl-D or /quit ends the session)")
            continue
        if line:
            yield line


def _edit_lines() -> None:
    """Arrow keys, earlier lines, and Tab for commands, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    names = [f"/{name}" for name in COMMANDS]

    def complete(text: str, state: int) -> str | None:
        found = [name for name in names if name.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
