"""The commands of a terminal session: a line that begins with `/`, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval import talk_controls as controls
from eval.talk_controls import Desk
from eval.talk_settings import parse_layer
from eval.talk_transcript import save
from persona_vectors.arguments import near


@dataclass(frozen=True)
class Reply:
    """What a command answers: lines to print, a prompt to ask next, and whether the session ends."""

    lines: list[str] = field(default_factory=list)
    ask: str | None = None
    quits: bool = False


@dataclass(frozen=True)
class Command:
    """One command: what follows its name, what it does in a few words, and the function that does it."""

    takes: str
    does: str
    run: Callable[[Desk, str], Reply]


def run_command(desk: Desk, line: str) -> Reply:
    """What the line `/name arguments` does.

    Raises:
        ValueError, OSError: one line; everything is as it was.
    """
    name, _, rest = line.removeprefix("/").strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ValueError(f"there is no command /{name}{near(name, COMMANDS, '/') or '; /help lists them'}")
    return command.run(desk, rest.strip())


def _says(does: Callable[[Desk, str], list[str]]) -> Callable[[Desk, str], Reply]:
    return lambda desk, rest: Reply(does(desk, rest))


def _number(text: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{usage} expects a number; got {text!r}") from None


def _whole(text: str, usage: str) -> int:
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{usage} expects a whole number; got {text!r}")
    return int(text)


def _strengths(desk: Desk, rest: str) -> list[str]:
    return controls.compare(desk, [_number(one, "/strengths") for one in rest.replace(",", " ").split()])


def _trait(desk: Desk, rest: str) -> list[str]:
    path, layer = _path_and(rest, 1, "/trait FILE [LAYER]", optional=True)
    return controls.use_file(desk, path, parse_layer(layer[0]) if layer else None)


def _add(desk: Desk, rest: str) -> list[str]:
    path, (layer, coef) = _path_and(rest, 2, "/add FILE LAYER COEF")
    return controls.add(desk, path, parse_layer(layer), _number(coef, "/add FILE LAYER COEF"))


def _path_and(rest: str, n: int, usage: str, *, optional: bool = False) -> tuple[str, list[str]]:
    """(a path, which may hold spaces, and the `n` words after it)."""
    words = rest.split()
    if not words:
        raise ValueError(f"expected {usage}")
    if optional and (Path(rest).exists() or len(words) <= n):
        return rest, []
    if len(words) <= n:
        raise ValueError(f"expected {usage}; got {rest!r}")
    return " ".join(words[:-n]), words[-n:]


def _set(name: str, read: Callable[[str], object]) -> Callable[[Desk, str], list[str]]:
    """Sets one field of the settings, and says all of them that are not the vector's."""

    def change(desk: Desk, rest: str) -> list[str]:
        desk.session.change(**{name: read(rest)})
        return [line for line in desk.settings.lines() if not line.startswith(("strength", "added"))]

    return change


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"/control is on or off; got {text!r}")
    return text == "on"


def _status(desk: Desk, _rest: str) -> list[str]:
    n = len(desk.session.turns)
    return [f"model: {desk.model_name}", *desk.settings.lines(), f"{n} turn{'s' * (n != 1)} so far"]


def _history(desk: Desk, _rest: str) -> list[str]:
    if not desk.session.turns:
        return ["nothing has been said yet"]
    lines = []
    for number, turn in enumerate(desk.session.turns, start=1):
        others = [f"{one.strength:g}" for one in turn.answers if one.strength != turn.kept]
        beside = f" (beside it {', '.join(others)})" if others else ""
        lines += [f"{number}. you: {turn.user}", f"   at {turn.kept:g}{beside}: {turn.answer.text.strip()}"]
    return lines


def _save(desk: Desk, rest: str) -> list[str]:
    if not rest:
        raise ValueError("expected /save FILE, ending in .json or .md")
    path = Path(rest).expanduser()
    if path.exists() and path.resolve() not in desk.written:
        raise ValueError(f"{path} exists and is not of this session; give another name")
    made = [] if path.parent.exists() else [f"made folder {path.parent}"]
    save(desk.session, path)
    desk.written.add(path.resolve())
    return [*made, f"saved {path}"]


def _prompts(desk: Desk, rest: str) -> Reply:
    if not rest:
        numbered = [f"{number}. {text}" for number, text in enumerate(desk.examples, start=1)]
        return Reply([f"{desk.examples_from}; /prompts N asks one:", *numbered])
    number = _whole(rest, "/prompts N")
    if not 1 <= number <= len(desk.examples):
        raise ValueError(f"there is no prompt {number}; there are 1 to {len(desk.examples)}")
    return Reply(ask=desk.examples[number - 1])


def _help(_desk: Desk, _rest: str) -> list[str]:
    usages = {f"/{name} {command.takes}".strip(): command.does for name, command in COMMANDS.items()}
    width = max(map(len, usages))
    return [f"{usage:<{width}}  {does}" for usage, does in usages.items()]


COMMANDS: Mapping[str, Command] = {
    "strength": Command(
        "X",
        "one answer a turn, at strength X",
        _says(lambda desk, rest: controls.use_strength(desk, _number(rest, "/strength"))),
    ),
    "strengths": Command("-2 -1 0 1 2", "answers side by side at these strengths", _says(_strengths)),
    "keep": Command(
        "X",
        "the conversation goes on with the last turn's answer at strength X",
        _says(lambda desk, rest: controls.keep(desk, _number(rest, "/keep"))),
    ),
    "layer": Command(
        "N",
        "steer layer N (hidden_states index)",
        _says(lambda desk, rest: controls.use_layer(desk, parse_layer(rest))),
    ),
    "trait": Command(
        "FILE [LAYER]", "steer with another vector file, or that of another trait beside it", _says(_trait)
    ),
    "add": Command("FILE LAYER COEF", "add one more vector to every answer", _says(_add)),
    "remove": Command(
        "N",
        "take added vector N away",
        _says(lambda desk, rest: controls.remove(desk, _whole(rest, "/remove"))),
    ),
    "control": Command(
        "on|off", "a random direction of the same norm in the vector's place", _says(_set("control", _on_off))
    ),
    "positions": Command("P", "which tokens are steered: response, prompt or all", _says(_set("positions", str))),
    "system": Command("TEXT", "system prompt; nothing for none", _says(_set("system_prompt", str))),
    "seed": Command("N", "seed of the answers to come", _says(_set("seed", lambda text: _whole(text, "/seed")))),
    "temperature": Command(
        "T", "0 takes the likeliest token", _says(_set("temperature", lambda text: _number(text, "/temperature")))
    ),
    "max_tokens": Command(
        "N", "most tokens of an answer", _says(_set("max_tokens", lambda text: _whole(text, "/max_tokens")))
    ),
    "prompts": Command("[N]", "prompts to begin with; N asks one", _prompts),
    "status": Command("", "the settings", _says(_status)),
    "history": Command("", "the conversation", _says(_history)),
    "undo": Command("", "take the last turn back", _says(lambda desk, _rest: controls.undo(desk))),
    "reset": Command("", "begin a new conversation", _says(lambda desk, _rest: controls.reset(desk))),
    "save": Command("FILE", "write the conversation and all settings to a .json or .md file", _says(_save)),
    "help": Command("", "this list", _says(_help)),
    "quit": Command("", "end the session, like Ctrl-D", lambda _desk, _rest: Reply(quits=True)),
}
