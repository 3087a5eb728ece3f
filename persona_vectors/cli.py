"""The front door of every command: arguments are checked against the function's signature before anything runs.

    if __name__ == "__main__":
        cli.run(main)  # aliases={"layer": "layer_list"} declares a second spelling

`main` is an annotated function whose docstring has an `Args:` section; `--help` prints it with types and defaults.
Heavy imports (torch, transformers) belong inside functions, so that a typo is reported in milliseconds.
Values are converted by annotation and never evaluated: a path named `123` or `None` stays a string (annotate it `str`).
"""

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from persona_vectors.arguments import convert, members, near, type_name
from persona_vectors.quick_imports import leave_out_sklearn

Aliases = Mapping[str, str]


class Unfinished(Exception):
    """Raised by a command that wrote what it could and must be run again for the rest: one line, exit code 1."""


def run(fn: Callable[..., Any], argv: Sequence[str] | None = None, aliases: Aliases | None = None) -> int:
    """Exit code of `fn` called with `argv`: 0, 2 for an error of the user's (one line on stderr), 1 where a command
    could not finish and is to be run again, 130 for Ctrl-C.

    Without `argv` the process's own arguments are used and the process ends with that code.
    `--help` prints the docstring instead of running; `--debug` adds an error's traceback.
    """
    if argv is None:
        leave_out_sklearn()
    code = _run(fn, list(sys.argv[1:] if argv is None else argv), aliases or {})
    return sys.exit(code) if argv is None else code


def _run(fn: Callable[..., Any], argv: list[str], aliases: Aliases) -> int:
    import fire

    if "--help" in argv or "-h" in argv:
        print(help_text(fn))
        return 0
    debug = "--debug" in argv and "debug" not in _annotations(fn)
    try:
        values = parse(fn, [token for token in argv if not (debug and token == "--debug")], aliases)
        command = [f"--{name}={value!r}" for name, value in values.items()]
        fire.Fire(fn, command=command, serialize=lambda _: None)
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Unfinished as error:
        print(f"unfinished: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n" * sys.stderr.isatty() + "interrupted", file=sys.stderr)  # a progress bar ends mid-line
        return 130
    return 0


def one_line(error: Exception) -> str:
    """The error's message on one line; for a file error, the path and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def parse(fn: Callable[..., Any], argv: Sequence[str], aliases: Aliases | None = None) -> dict[str, Any]:
    """Keyword arguments for `fn` from command-line tokens; a ValueError says what is unknown, missing or ill-typed.

    `--layers 15 16`, `--layers=[15,16]` and `--layers 15,16` are one list; `--flag`, `--noflag` and `--flag=False`
    set a boolean; `-1` is a value; dashes in names are underscores; values before the first flag are positional.
    """
    annotations, parameters = _annotations(fn), inspect.signature(fn).parameters
    grouped = _group(argv, annotations, aliases or {})
    values = {name: convert(f"--{name}", given, annotations[name]) for name, given in grouped.items()}
    required = [name for name in annotations if parameters[name].default is inspect.Parameter.empty]
    if missing := [f"--{name}" for name in required if name not in values]:
        raise ValueError(f"missing {', '.join(missing)}; --help lists every argument")
    return values


def help_text(fn: Callable[..., Any]) -> str:
    """The docstring, its Args section completed with flags, types and defaults."""
    parameters = inspect.signature(fn).parameters
    head, _, rest = (inspect.getdoc(fn) or "").partition("\nArgs:\n")
    for name, annotation in _annotations(fn).items():
        default = parameters[name].default
        state = "required" if default is inspect.Parameter.empty else f"default {default}"
        flag = f"  --{name} {type_name(annotation)} [{state}]"
        described = re.compile(rf"^ +{name}(?P<unit> \([^)]*\))?:", re.MULTILINE)
        rest, found = described.subn(lambda match, flag=flag: f"{flag}{match['unit'] or ''}:", rest)
        rest += "" if found else f"\n{flag}"
    rest = rest.strip("\n")
    return f"{head}\nArguments:\n{rest}\n  --help, --debug: print this; show an error's traceback"


def _annotations(fn: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> annotation (without one, its default's type), for those that can be given by name."""
    hints, by_name = get_type_hints(fn), {}
    for name, parameter in inspect.signature(fn).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            untyped = str if parameter.default in (None, parameter.empty) else type(parameter.default)
            by_name[name] = hints.get(name, untyped)
    return by_name


def _group(argv: Sequence[str], annotations: Mapping[str, Any], aliases: Aliases) -> dict[str, list[str]]:
    """Parameter -> the raw values given for it."""
    grouped: dict[str, list[str]] = {}
    positional, current = iter(annotations), None
    for token in argv:
        if token.startswith("-") and token != "-" and not re.match(r"-\.?\d", token):
            flag, equals, value = token.partition("=")
            current, implied = _resolve(flag, annotations, aliases)
            if current in grouped:
                raise ValueError(f"--{current} is given twice" + f" ({flag} sets it)" * (flag != f"--{current}"))
            grouped[current] = implied + [value] * bool(equals)
        elif current is not None:
            grouped[current].append(token)
        elif (name := next(positional, None)) is not None:
            grouped[name] = [token]
        else:
            raise ValueError(f"unexpected argument {token!r}; at most {len(annotations)} are taken, see --help")
    return grouped


def _resolve(flag: str, annotations: Mapping[str, Any], aliases: Aliases) -> tuple[str, list[str]]:
    """The parameter that a flag names, and the value that its spelling implies (`--noflag`)."""
    written = flag.lstrip("-").replace("-", "_")
    name = aliases.get(written, written)
    if flag.startswith("--") and name in annotations:
        return name, []
    negated = name.removeprefix("no").lstrip("_")
    if name.startswith("no") and bool in members(annotations.get(negated)):
        return negated, ["False"]
    raise ValueError(f"unknown argument {flag}{near(name, [*annotations, *aliases], '--') or '; see --help'}")
