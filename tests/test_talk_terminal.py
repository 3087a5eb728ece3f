"""The interactive session as a person has it: the real command in a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator

import pexpect
import pytest

from tests.conftest import ROOT
from tests.steering_vectors import trait_vectors, write_npz

READY = "you> "


@pytest.fixture(scope="module")
def vector(tiny_persona, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vectors") / "tiny_extraversion_vectors.npz"
    return str(write_npz(path, trait_vectors(tiny_persona, "extraversion")))


@pytest.fixture
def child(vector, tmp_path) -> Iterator[pexpect.spawn]:
    command = [str(ROOT / "persona_steering.py"), "--model_name", str(ROOT / "models" / "tiny-persona")]
    command += ["--vector_file", vector, "--target_layer", "layer_3", "--interactive", "--max_tokens", "40"]
    spawned = pexpect.spawn(
        sys.executable,
        [*command, "--steering_strengths", "-1", "0", "2"],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
        encoding="utf-8",
        dimensions=(50, 120),
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a background shell
    )
    spawned.expect_exact(READY)
    yield spawned
    spawned.close(force=True)


def ask(child: pexpect.spawn, line: str) -> str:
    """What the session prints between a line and its next prompt, without the terminal's own codes."""
    child.sendline(line)
    child.expect_exact(READY)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before or "")
    return printed.replace("\r", "").removeprefix(line)


def test_a_session_in_a_terminal(child, tmp_path):
    """Columns that fill at once, a conversation that goes on, an answer stopped by Ctrl-C, and the end by Ctrl-D."""
    printed = ask(child, "Tell me about family dinners.")
    headers = [line for line in printed.split("\n") if "strength -1" in line]
    assert len(headers) >= 2, "the table is drawn while it is written, and in the end"
    assert re.search(r"strength -1 +strength 0 +strength 2 \(goes on\)", headers[-1])
    assert "steering receipt" in printed.split("strength -1")[0]
    assert "error: there is no command /laye; did you mean /layer?" in ask(child, "/laye 2")
    assert "error: layer 9 does not exist" in ask(child, "/layer 9")

    ask(child, "/strength 8")  # so strong that it never comes to an end
    ask(child, "/max_tokens 1500")
    child.sendline("Hello")
    child.expect(r"8> +\S+")
    child.sendintr()
    child.expect_exact(" (stopped)")
    child.expect_exact(READY)
    assert "2 turns so far" in ask(child, "/sta\t")  # Tab completes
    child.sendintr()
    child.expect_exact("(Ctrl-D or /quit ends the session)")
    child.expect_exact(READY)
    assert "saved talk.md" in ask(child, "/save talk.md")
    assert "Strength 8 (stopped)" in (tmp_path / "talk.md").read_text()
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (0, None)
