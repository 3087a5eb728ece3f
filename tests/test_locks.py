"""One process at a time on a file, and nothing left beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from persona_vectors.locks import locked

ADDS = """
import sys
from pathlib import Path
from persona_vectors.files import write_text_atomic
from persona_vectors.locks import locked
path = Path(sys.argv[1])
for _ in range(40):
    with locked(path):
        write_text_atomic(path, str(int(path.read_text()) + 1))
"""


def test_processes_that_add_to_one_file_lose_nothing(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", ADDS, str(path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert path.read_text() == "120"
    assert [one.name for one in tmp_path.iterdir()] == ["count"]


def test_what_a_killed_process_left_locks_nobody_out_and_an_error_lets_go(tmp_path):
    (tmp_path / ".table.lock").touch()
    with pytest.raises(KeyError), locked(tmp_path / "table"):
        raise KeyError
    with locked(tmp_path / "new folder" / "table"):
        assert (tmp_path / "new folder").is_dir()
    assert [one.name for one in tmp_path.rglob("*")] == ["new folder"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written") as error, locked(tmp_path / "file" / "table"):
        pass
    assert error.value.filename == str(tmp_path / "file" / "table")
