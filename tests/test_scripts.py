"""What every script of scripts/ says of its arguments before it begins anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name not in ("common.sh", "demo.sh"))
STUB = '#!/bin/sh\necho "python:$CUDA_VISIBLE_DEVICES" "$@"\n'


def call(script: str, folder: Path, *arguments: str, python: str = STUB) -> subprocess.CompletedProcess[str]:
    """Runs it with a python that only says how it was called."""
    (folder / "python").write_text(python)
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(params=SCRIPTS)
def script(request, tmp_path):
    return partial(call, request.param, tmp_path)


def is_refused(done: subprocess.CompletedProcess[str], message: str) -> bool:
    return done.returncode == 2 and not done.stdout and message in done.stderr and done.stderr.count("\n") == 1


def test_what_cannot_be_is_one_line_and_nothing_runs(script):
    assert is_refused(script("models/tiny-persona", "evil"), "GPU_ID is models/tiny-persona; expected a GPU's number")
    assert is_refused(script("--overwrite"), "GPU_ID is --overwrite")
    assert is_refused(script(), "no GPU_ID; ")
    without = f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n'  # as outside the environment: nothing is installed
    assert is_refused(script("0", python=without), "python has no torch and fire; activate the environment")


def test_help_is_its_own_usage(script):
    done = script("--help")
    first, *rest = done.stdout.splitlines()
    assert done.returncode == 0 and first.endswith(".") and any(line.startswith("bash scripts/") for line in rest)
    assert "python:" not in done.stdout and "#" not in done.stdout


@pytest.mark.parametrize("gpu", ["", "0", "0,1", "-1", "GPU-5a3c"])
def test_a_gpu_or_none_is_passed_on(script, gpu):
    lines = script(gpu).stdout.splitlines()
    assert lines and all(line.startswith(f"python:{gpu} ") for line in lines)


def test_further_arguments_may_follow_any(script):
    """compare_methods.sh 0 MODEL evil JUDGE --n_per_question 1 took --n_per_question as the layer."""
    whole, short = script("0").stdout, script("0", "--seed", "3").stdout
    assert short != whole and short.replace(" --seed 3", "") == whole
    named = script("0", "org/chat", "--seed", "3")
    assert named.returncode == 0 and re.search(r"--seed 3$", named.stdout, re.MULTILINE)


def test_the_demo_needs_no_gpu_and_refuses_what_is_none():
    def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "scripts" / "demo.sh"), *arguments]
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)

    assert is_refused(demo("models/tiny-persona"), "GPU_ID is models/tiny-persona; expected a GPU's number")
    assert demo("--help").stdout.startswith("The whole method with its controls")


@pytest.mark.parametrize(("given", "gpu"), [([], "0"), ([""], ""), (["1"], "1")])
def test_the_demo_takes_the_gpu_it_is_given_or_none(given, gpu, tmp_path):
    assert call("demo.sh", tmp_path, *given).stdout.startswith(f"python:{gpu} -m eval.demo")


@pytest.mark.parametrize(("given", "name"), [("Humor", "humorous"), ("./traits/joke.json", "joke")])
@pytest.mark.parametrize("command", ["generate_vec.sh", "eval_persona.sh", "eval_steering.sh", "cal_projection.sh"])
def test_files_have_the_name_that_the_trait_has_in_its_tables(command, given, name, tmp_path):
    """generate_vec.sh 0 MODEL humor sampled 200 answers, and found no column humor in what it had written."""
    stub = f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "$@"\n'
    said = call(command, tmp_path, "", "org/chat", given, python=stub).stdout
    paths = re.findall(r"(\S+)/chat/(\w+?)(?:_response|_pos|_neg|_steer|\.csv)", said)
    assert paths and {stem for _folder, stem in paths} == {name}
    assert said.count(f"--trait {given} ") == said.count("--trait ")
