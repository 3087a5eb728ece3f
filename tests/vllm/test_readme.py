"""The README's block on steering inside vLLM runs as written, and its server answers as the text beside it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("vllm")

from openai import BadRequestError

from eval.serve_engine import listen
from persona_vectors.files import read_sidecar
from tests.test_readme import TEXT, VECTOR, checkout, execute, stand_in
from tests.vllm.servers import messages, wait_for

__all__ = ["checkout"]  # a fixture

SECTION = TEXT.split("## Steering inside vLLM", 1)[1].split("\n## ", 1)[0]
[BLOCK] = re.findall(r"```sh\n(.*?)```", SECTION, re.S)
SWEEP, SERVE = [line for line in BLOCK.replace("\\\n", " ").splitlines() if line.strip()]
MODEL = "models/tiny-persona"


@pytest.fixture(scope="module")
def vectors(checkout) -> Path:
    """The vectors that the README has made before, by its own script, here from the trait's first questions."""
    trait = checkout / MODEL / "traits" / "extract" / "evil.json"
    told = json.loads(trait.read_text())
    trait.write_text(json.dumps(told | {"questions": told["questions"][:6]}))
    command = stand_in(f"{VECTOR} 0 Qwen/Qwen2.5-7B-Instruct evil").replace("Qwen/Qwen2.5-7B-Instruct", MODEL)
    execute(["bash", "-c", f"{command} --engine hf"], checkout)
    return checkout / "persona_vectors" / "tiny-persona"


def test_the_sweep(checkout, vectors):
    assert (vectors / "evil_response_avg_diff.pt").is_file()
    execute(["bash", "-c", SWEEP], checkout)
    table = checkout / "results" / "evil_vllm.csv"
    means = pd.read_csv(table, keep_default_na=False).groupby(["control", "coef"])["evil"].mean()
    assert means["", 1.0] > means["", 0.0] + 10 > max(means[f"random{k}", 1.0] for k in (1, 2, 3, 4))
    assert read_sidecar(table)["settings"]["engine"] == "vllm"


def test_the_server(checkout, vectors):
    """At a port that is free here."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    command = SERVE.replace("--port 8000", f"--port {port}").split()
    assert command[:3] == ["python", "-m", "eval.serve"]
    server = wait_for([sys.executable, *command[1:]], checkout / "serve.log", cwd=checkout)
    try:
        client = server.client()
        listed: Any = client.get("/steering", cast_to=object)
        assert {one["name"] for one in listed["vectors"]} == {path.stem for path in vectors.glob("*.pt")}
        quoted = re.search(r"extra_body=(\{.*?\]\})", SECTION.replace("\n", " "))
        assert quoted is not None

        def answer(**extra: Any) -> str | None:
            question = messages("What would you do with a day off?")
            reply = client.chat.completions.create(
                model=MODEL, messages=question, temperature=0, max_tokens=40, extra_body=extra
            )
            return reply.choices[0].message.content

        assert answer() == answer(steering=[]) != answer(**json.loads(quoted[1]))
        with pytest.raises(BadRequestError, match="'wise', which is not loaded; loaded are: evil_prompt_avg_diff"):
            answer(steering=[{"vector": "wise", "layer": 3}])
    finally:
        server.end()
    assert server.process.returncode == 0
