"""Whether the page of a steered conversation can be served: asked before anything heavy is imported."""

from __future__ import annotations

import socket
from importlib.util import find_spec

HOST = "127.0.0.1"


def check_gradio(port: int) -> None:
    """Refuses, with a ValueError, a page that cannot be served: no Gradio here, or a port that is taken."""
    if find_spec("gradio") is None:
        raise ValueError("--ui needs Gradio, which is not installed: pip install 'persona-vectors-toolkit[ui]'")
    free_port(port)


def free_port(port: int) -> int:
    """The port, or a free one for 0; a ValueError where it cannot be served at."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port expects 0 to 65535; got {port}")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"cannot serve the page at port {port}: {error.strerror}; give another --port") from None
        return sock.getsockname()[1]
