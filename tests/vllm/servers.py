"""A steering server as a user starts it, what it is asked, and the same answers by Hugging Face's hooks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI

from activation_steer import ActivationSteererMultiple
from persona_vectors.models import load_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "models/tiny-persona"
SMALL = ("--enforce_eager", "--max_model_len", "512", "--max_num_seqs", "16", "--api_key", "secret")
QUESTIONS = ("Name a good book.", "Tell me about gardens.", "How should I spend my evening?")
STEPS = [
    [{"vector": "a", "layer": 2, "coef": 1.0, "positions": "all"}],
    [{"vector": "b", "layer": [2, 3], "coef": -1.0}],
    [{"vector": "a", "layer": 3, "coef": 1.0, "positions": "prompt"}],
    [{"vector": "a", "layer": 2, "kind": "ablate", "positions": "all"}, {"vector": "b", "layer": 3, "coef": 1.5}],
    [{"vector": "a", "layer": 3, "kind": "cap", "ceiling": -0.5}],
]


def vectors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(5, 256, generator=generator) * 60 / 16 for name in "ab"}


def save_vectors(folder: Path) -> Path:
    for name, vector in vectors().items():
        torch.save(vector, folder / f"{name}.pt")
    return folder


@dataclass(frozen=True)
class Server:
    """A running server: its process, where it listens, and all it has printed."""

    process: subprocess.Popen
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, api_key: str = "secret") -> OpenAI:
        return OpenAI(base_url=self.url + "/v1", api_key=api_key, max_retries=0)

    def family(self) -> set[int]:
        """Its process and all that came of it."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
        family = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def start(vectors_folder: Path, *more: str, model: str = MODEL, port: int = 0) -> Server:
    """The server, once it listens."""
    command = [sys.executable, "-m", "eval.serve", "--model", model, "--vectors", str(vectors_folder)]
    return wait_for([*command, "--port", str(port), *more], vectors_folder / "log.txt")


def wait_for(command: Sequence[str], log: Path, cwd: Path = ROOT) -> Server:
    """The server that a command starts, once it listens."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=out, env=environment)
    while not (found := re.search(r"steering at (http://\S+)/v1 ", text := log.read_text())):
        assert process.poll() is None, text
        time.sleep(0.2)
    return Server(process, found[1], log)


def wait_until_gone(pids: set[int], seconds: float = 60) -> None:
    """Returns when none of the processes is left; vLLM's see at their next look that who started them is gone."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def messages(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def ask(client: OpenAI, question: str, steering: Any = None, max_tokens: int = 16, **options: Any) -> str:
    extra = {} if steering is None else {"steering": steering}
    model = options.pop("model", MODEL)
    reply = client.chat.completions.create(
        model=model, messages=messages(question), temperature=0, max_tokens=max_tokens, extra_body=extra | options
    )
    return reply.choices[0].message.content or ""


def hooks_on(folder: str) -> Callable[..., str]:
    """(question, steps, max_tokens) -> the answer of Hugging Face's model and `ActivationSteererMultiple`."""
    loaded: Any = load_model(folder)
    model, tokenizer = loaded
    held = vectors()

    def answer(question: str, steps: list[dict[str, Any]], max_tokens: int = 16) -> str:
        inputs: Any = tokenizer.apply_chat_template(
            messages(question), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        instructions = [
            {
                "steering_vector": held[step["vector"]][layer],
                "coeff": step.get("coef", 1.0),
                "layer_idx": layer - 1,
                "positions": step.get("positions", "response"),
                "kind": step.get("kind", "add"),
                "ceiling": step.get("ceiling"),
            }
            for step in steps
            for layer in (step["layer"] if isinstance(step["layer"], list) else [step["layer"]])
        ]
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode(), ActivationSteererMultiple(model, instructions, prompt_lens=[length]):
            out: Any = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return str(tokenizer.decode(out[0, length:], skip_special_tokens=True))

    return answer
