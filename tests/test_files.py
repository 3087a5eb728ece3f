"""Files that are whole or absent, and what stands beside them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import files

ROOT = Path(files.__file__).parent.parent


def test_a_write_makes_folders_and_leaves_no_other_file(tmp_path):
    target = tmp_path / "a/b/x.txt"
    assert files.write_text_atomic(target, "é\r\n") == target
    assert target.read_bytes() == "é\r\n".encode()
    assert os.listdir(target.parent) == ["x.txt"]


def test_permissions_and_links_are_kept(tmp_path):
    target, link, fresh = tmp_path / "x", tmp_path / "link", tmp_path / "fresh"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.write_text_atomic(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o640
    before = os.umask(0o027)
    try:
        files.write_text_atomic(fresh, "")
    finally:
        os.umask(before)
    assert fresh.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failing", ["block", "disk", "sync", "replace"])
def test_whatever_fails_the_earlier_file_is_intact(failing, tmp_path, monkeypatch):
    target = files.write_text_atomic(tmp_path / "x.csv", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing in ("sync", "replace"):
        monkeypatch.setattr(files.os, {"sync": "fsync", "replace": "replace"}[failing], full)
    expected = ZeroDivisionError if failing == "block" else OSError
    with pytest.raises(expected) as caught, files.atomic_write(target) as file:
        file.write("half of the new")
        if failing == "block":
            raise ZeroDivisionError
        if failing == "disk":
            full()
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
        assert "cannot be written: No space left" in str(caught.value)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["x.csv"]


def test_a_full_disk_in_earnest(tmp_path):
    """The process may write no file larger than 1000 bytes: the write fails, the earlier file is intact."""
    code = f"""
        import resource, signal
        from persona_vectors import files
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        files.write_text_atomic({str(tmp_path / "x")!r}, "old")
        try:
            files.write_text_atomic({str(tmp_path / "x")!r}, "n" * 100_000)
        except OSError as error:
            print(error.strerror)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "cannot be written: File too large\n", result.stderr
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path):
    target = files.write_text_atomic(tmp_path / "x", "old")
    code = f"""
        import sys
        from persona_vectors import files
        with files.atomic_write({str(target)!r}) as file:
            file.write("half")
            file.flush()
            print("written", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"


def test_output_paths_that_cannot_be_files_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    cases = {
        str(tmp_path): "is a folder",
        f"{tmp_path}/new/": "is a folder",
        "": "is a folder",
        f"{tmp_path}/file/x.csv": "file, which is a file",
        "/dev/null": "is a device",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            files.check_output_path(path)
        with pytest.raises(ValueError, match=message):
            files.write_text_atomic(path, "x")
    with pytest.raises(ValueError, match="must end in .csv or .jsonl"):
        files.check_output_path(tmp_path / "x.txt", suffixes=(".csv", ".jsonl"))
    assert files.check_output_path(tmp_path / "new/x.csv", suffixes=[".csv"]) == tmp_path / "new/x.csv"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes anywhere")
def test_a_folder_that_is_not_to_be_written_to_is_found_early_and_named(tmp_path):
    """The error of a write named the temporary file (`.x.csv.xjq4yquz.tmp`), which no user knows."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "link").symlink_to(closed / "x")
    code = f"""
        import os
        from persona_vectors import files

        def said(call, path, *more):
            try:
                call(path, *more)
            except OSError as error:
                print(error.filename, error.strerror, sep="; ")

        os.chdir({str(tmp_path)!r})
        paths = ("closed/x", "closed/new/x", "link")
        for path in paths:
            said(files.check_output_path, path)
        said(files.check_output_folder, "closed/new", "save_dir")
        files._check_writable = lambda *_: None  # as where the folder is closed after the check
        for path in paths:
            said(files.write_text_atomic, path, "")
    """
    rights = "-dac_override,-dac_read_search"  # what lets root write anywhere
    drop = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] if os.geteuid() == 0 else []
    closed.chmod(0o555)
    command = [*drop, sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    closed.chmod(0o755)
    paths = ["closed/x", "closed/new/x", "link"]
    early = [f"{path}; cannot be written: no permission to write in {closed}" for path in [*paths, "closed/new"]]
    late = [f"{path}; cannot be written: Permission denied" for path in paths]
    assert result.stdout.splitlines() == [*early, *late], result.stderr


def test_csv_reads_back_as_it_was(tmp_path):
    table = pd.DataFrame({"answer": ['two\nlines, "quoted"', "\r", "é"], "score": [1.5, None, 100.0]})
    pd.testing.assert_frame_equal(pd.read_csv(files.write_csv_atomic(table, tmp_path / "x.csv")), table)


lines = st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.booleans()))


@settings(deadline=None, max_examples=50)
@given(st.lists(lines))
def test_jsonl_reads_back_as_it_was(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    assert files.read_jsonl(files.write_jsonl_atomic(path, rows)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
        (b'{"a": 1}\n{"a": NaN}\n', "line 2: not JSON .NaN is no JSON value"),
        (b"[1]\n", "line 1: expected a JSON object, got list"),
        (b'{"a": "\xff"}\n', "not UTF-8 text"),
    ],
)
def test_jsonl_errors_name_file_and_line(content, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.jsonl.*{message}"):
        files.read_jsonl(path)


def test_nan_is_refused_in_json_and_the_earlier_file_is_kept(tmp_path):
    path = files.write_json_atomic(tmp_path / "x.json", {"score": None})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json_atomic(path, {"score": float("nan")})
    assert json.loads(path.read_text()) == {"score": None}


def test_sidecar_says_what_made_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/someone/generate_vec.py", "--trait", "two words"])
    table = files.write_text_atomic(tmp_path / "x.csv", "abc")
    sidecar = files.write_sidecar(table, {"seed": 3})
    record = files.read_sidecar(table)
    assert sidecar == tmp_path / "x.csv.json" and record["seed"] == 3
    assert record["file"] == {"name": "x.csv", "sha256": files.sha256_of_file(table)}
    assert record["file"]["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record["command"] == "generate_vec.py --trait 'two words'"
    assert record["versions"]["torch"] == files.importlib.metadata.version("torch")
    assert record["created"].endswith("+00:00") and set(record) == {
        *("seed", "file", "command", "versions", "git_commit", "python", "created")
    }
    assert "/home" not in sidecar.read_text() and os.uname().nodename not in sidecar.read_text()


def test_sidecar_names_and_damage(tmp_path):
    assert files.sidecar_path("a/evil_diff.pt") == Path("a/evil_diff.json")
    assert files.sidecar_path("a/x.jsonl") == Path("a/x.jsonl.json")
    assert files.read_sidecar(tmp_path / "x.csv") == {}
    (tmp_path / "x.csv.json").write_text("{")
    with pytest.raises(ValueError, match="x.csv.json: not JSON"):
        files.read_sidecar(tmp_path / "x.csv")


def test_git_commit_is_this_checkouts():
    commit = files.git_commit()
    if (ROOT / ".git").exists():
        assert commit is not None and len(commit.rstrip("+")) == 40
    else:
        assert commit is None


def test_appending_to_a_sidecar_keeps_how_the_file_was_made(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a\n")
    files.write_sidecar(path, {"seed": 3})
    made = files.read_sidecar(path)
    path.write_text("a,b\n")
    files.append_to_sidecar(path, "projections", {"columns": ["b"]})
    files.append_to_sidecar(path, "projections", {"columns": ["c"]})
    after = files.read_sidecar(path)
    assert [entry["columns"] for entry in after["projections"]] == [["b"], ["c"]]
    assert after["seed"] == 3 and after["created"] == made["created"]
    assert after["file"]["sha256"] == files.sha256_of_file(path) != made["file"]["sha256"]


def test_a_sidecar_never_replaces_a_file_of_something_else(tmp_path):
    (tmp_path / "m.json").write_text('{"[\\"a\\", \\"b\\"]": "paid for"}')
    with pytest.raises(
        ValueError, match=r"m.json is no sidecar, and that of m.pt would replace it; give .* another name"
    ):
        files.write_sidecar(tmp_path / "m.pt", {})
    assert "paid for" in (tmp_path / "m.json").read_text()
    (tmp_path / "m.json").write_text(json.dumps({"calibration": {"size": 1, **files.provenance()}}))
    files.write_sidecar(tmp_path / "m.pt", {"seed": 0})
    files.write_sidecar(tmp_path / "m.pt", {"seed": 1})
    assert files.read_sidecar(tmp_path / "m.pt")["seed"] == 1


def test_a_file_that_its_sidecar_was_not_written_for(tmp_path):
    path = tmp_path / "x.csv"
    assert not files.is_as_recorded(path)
    path.write_text("a")
    assert not files.is_as_recorded(path)
    files.write_sidecar(path, {})
    assert files.is_as_recorded(path)
    path.write_text("b")
    assert not files.is_as_recorded(path)
    for other in ('{"file": "x"}', '{"file": null}', "{}"):
        files.sidecar_path(path).write_text(other)
        assert not files.is_as_recorded(path)
