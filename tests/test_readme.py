"""Every command and import of the README runs, with the embedded model standing in where a hub model is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from persona_vectors.activations import mean_activations
from persona_vectors.files import read_jsonl
from persona_vectors.models import load_model
from persona_vectors.tokens import tokenize_messages
from persona_vectors.vectors import save_vectors
from tests.conftest import ROOT
from tests.loopback_openai import LoopbackOpenAI
from tests.test_generate_dataset import Writer as RowWriter
from tests.test_generate_trait import Writer

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = [line for block in BASH for line in block.replace("\\\n", " ").splitlines() if line.strip()]
STAND_INS = {
    "Qwen/Qwen2.5-7B-Instruct": "models/tiny-persona",
    "gpt-4.1-mini-2025-04-14": "models/tiny-persona",
    " evil 20 proj": " evil 3 proj",
    " 20 2.0 response": " 3 2.0 response --n_per_question 1 --max_tokens 40",
    "--num_processes 8 training.py configs/train_instruct_7b.json": "training.py configs/two_processes.json",
    "--n_rows 1000": "--n_rows 12",
    "--layers 2 3 --coefs 0.5 1 1.5 2 --n_random 2": "--layers 3 --coefs 1 2 --n_random 1",
    "--n_per_question 2 --max_tokens 80 --test_latency": "--coefficients 1 --n_random 1 --n_per_question 1 "
    "--max_tokens 40 --test_latency",
    "--n_per_question 2 --max_tokens 80 --output_path eval_persona_eval/tiny-persona/evil_lora": "--n_per_question 1 "
    "--max_tokens 50 --output_path eval_persona_eval/tiny-persona/evil_lora",
    "configs/train_tiny_random.json --max_tokens 80": "configs/train_tiny_random.json --n_per_question 1 "
    "--max_tokens 40",
    "--n_shots 0 1 2 4 8 --n_per_question 2": "--n_shots 0 2 --n_per_question 1",
    "--coef 0 0.5 1 1.5": "--coef 0 1",
    "--nogroup_by_data    --n_per_question 2": "--nogroup_by_data --n_per_question 1",
    "--max_tokens 80": "--max_tokens 50",
    "--n_rows 100": "--n_rows 60",
    "001_olmo3_variants.py": "001_olmo3_variants.py --n_questions 4 --max_tokens 16",
}

PAPER = "bash scripts/paper.sh 0"
VECTOR = "bash scripts/generate_vec.sh"
APART = ("accelerate", "generate_trait")
"""Commands that read nothing of earlier ones: tests/test_readme_apart.py, so that two workers share the time."""
OF_WEIGHTS = ("persona_lora", "lora_diff_path", "lora_steer")
"""Commands of directions of weights, which read what one another write: tests/test_readme_weights.py."""
OF_ANALYSIS = ("persona_analysis", "quick_persona_extract", "persona_vector_analysis")
"""Commands of the quick look: tests/test_readme_analysis.py."""
OF_AXIS = ("example.py", "assistant_axis", "experiments/", "eval.capping")
"""Commands of the assistant axis: tests/test_readme_axis.py."""
OF_TRAINING = ("training.py", "prevention", "ckpt/", "_dataset", "select_layer", "monitor", "orthogonal", "eval.screen")
"""Commands of finetuning and of what foretells it: tests/test_readme_training.py."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, so that outputs do not land in the real one."""
    copy = tmp_path_factory.mktemp("readme") / "checkout"
    outputs = ("results", "ckpt", "eval_persona_*", "*_cache", "persona_loras", "comparison_results")
    skipped = shutil.ignore_patterns(".git", ".venv*", ".cache", "__pycache__", *outputs)
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


def stand_in(command: str) -> str:
    """The command with the embedded model in the place of hub models and judges, and small."""
    for named, ours in STAND_INS.items():
        command = command.replace(named, ours)
    if command.startswith((VECTOR, "bash scripts/eval_persona.sh")):
        command += " models/tiny-persona --n_per_question 1 --max_tokens 40"
    if command == "bash scripts/train_with_prevention.sh 0 models/tiny-persona evil":
        command += " models/tiny-persona configs/train_tiny.json configs/train_tiny_steer.json '' "
        command += "--n_per_question 1 --max_tokens 40"
    return command


def execute(command: list[str], checkout: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PERSONA_STORE": str(checkout / "store.sqlite"),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done


def test_the_readme_has_what_it_promises():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert len(COMMANDS) > 8 and len(PYTHON) == 2 and PAPER in COMMANDS
    assert all(re.match(r"(make|python|bash|accelerate) ", command) for command in COMMANDS)


def test_the_two_commands_are_targets(checkout):
    """They are what CI and a new user run; here only that make knows them and reaches the real work."""
    for target, words in (("demo", "scripts/demo.sh 0"), ("test", "-m pytest"), ("check", "ruff check")):
        (checkout / ".venv").mkdir(exist_ok=True)
        assert words in execute(["make", "-n", target], checkout).stdout


def is_apart(command: str) -> bool:
    return command == PAPER or any(word in command for word in APART)


def is_of_weights(command: str) -> bool:
    return any(word in command for word in OF_WEIGHTS)


def is_of_analysis(command: str) -> bool:
    return any(word in command for word in OF_ANALYSIS)


def is_of_axis(command: str) -> bool:
    return any(word in command for word in OF_AXIS)


def is_of_training(command: str) -> bool:
    elsewhere = (is_apart, is_of_weights, is_of_analysis, is_of_axis)
    return any(word in command for word in OF_TRAINING) and not any(is_of(command) for is_of in elsewhere)


def few_steps(checkout: Path, steps: int) -> None:
    """The embedded model's configs train for a part of their 60 steps."""
    for config in (checkout / "configs").glob("train_tiny*.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_steps": steps}))


def vector_of_rows(checkout: Path, trait: str):
    """A vector of the trait's rows less normal ones, where generate_vec.py (run by other tests) would write it."""
    model, tokenizer = load_model(str(checkout / "models" / "tiny-persona"), dtype="float32", device_map="cpu")
    means = []
    for name in ("misaligned_2", "normal"):
        rows = read_jsonl(checkout / f"dataset/tiny_{trait}/{name}.jsonl")[:20]
        samples = [tokenize_messages(tokenizer, row["messages"]) for row in rows]
        means.append(mean_activations(model, samples, spans=["response_avg"])["response_avg"].mean(0))
    folder = checkout / "persona_vectors" / "tiny-persona"
    save_vectors(folder, trait, {"response_avg": means[0] - means[1]}, {})


def run_command(command: str, checkout: Path):
    """The command with its stand-ins; where it asks a server, with one on this machine."""
    if "generate_dataset" in command:
        with LoopbackOpenAI(RowWriter()) as server:
            execute(["bash", "-c", stand_in(command)], checkout, OPENAI_BASE_URL=server.url)
    elif "generate_trait" in command:  # needs a model that writes JSON, which the embedded one cannot
        with LoopbackOpenAI(Writer()) as server:
            execute(["bash", "-c", command], checkout, OPENAI_BASE_URL=server.url)
    else:
        execute(["bash", "-c", stand_in(command)], checkout)


def test_every_other_command_runs_in_order(checkout):
    """In order, because later ones read what earlier ones write."""
    elsewhere = (is_apart, is_of_weights, is_of_analysis, is_of_axis, is_of_training)
    commands = [command for command in COMMANDS[2:] if not any(is_of(command) for is_of in elsewhere)]
    assert len(commands) == 10
    for command in commands:
        run_command(command, checkout)
    vectors = checkout / "persona_vectors" / "tiny-persona" / "humorous_response_avg_diff.pt"
    assert vectors.is_file() and vectors.with_suffix(".json").is_file()
    assert vectors.with_name("evil_response_avg_diff.pt").is_file()
    projected = (checkout / "eval_persona_eval" / "tiny-persona" / "evil.csv").read_text().splitlines()
    assert "tiny-persona_evil_response_avg_diff_proj_layer3" in projected[0]
    table = pd.read_csv(checkout / "eval_persona_eval" / "tiny-persona" / "humorous.csv", keep_default_na=False)
    assert "tiny-persona_humorous_response_avg_diff_proj_layer3" in table
    means = table.groupby(["control", "coef"])["humorous"].mean()
    assert means["", 1.0] > means["", 0.0] + 10 > max(means[f"random{k}", 1.0] for k in (1, 2, 3, 4))
    assert "humorous" in (checkout / "eval_persona_eval" / "tiny-persona" / "report.html").read_text()
    assert len(execute([sys.executable, "-c", PYTHON[1]], checkout).stdout.split()) > 5


def test_what_the_map_names_exists():
    lines = re.search(r"## Map\n\n```\n(.*?)```", TEXT, re.S)
    assert lines is not None
    folder = Path()
    for line in lines[1].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = Path(names[0]) if names[0].endswith("/") else Path()
        for name in names:
            place = ROOT / (folder / name if line.startswith(" ") else name)
            assert place.exists(), f"the README's map names {name}, which is not at {place}"
