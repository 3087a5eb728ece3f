"""Commands that other commands run: each is shown as the line that a user would type for it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from typing import Any


def run_command(command: str, main: Callable[..., None], **arguments: Any) -> str:
    """The line of `main` with these arguments (`command` is its beginning); printed, and then it is run."""
    line = announce(command, main, **arguments)
    main(**arguments)
    return line


def announce(command: str, main: Callable[..., None], **arguments: Any) -> str:
    """The line of `main` with these arguments, printed; what is at its default is left out."""
    words, parameters = command.split(), inspect.signature(main).parameters
    for name, value in arguments.items():
        if value != parameters[name].default:
            texts = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name}", *map(str, texts)]
    line = shlex.join(words)
    print(f"$ {line}", flush=True)
    return line
