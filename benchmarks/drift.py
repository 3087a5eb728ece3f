"""One transcript of 50 turns and 8,000 tokens: seconds and peak memory of a pass that projects it, by layers read.

    python benchmarks/drift.py

A random model of 8 blocks reads the transcript, each time in a process of its own: the forward pass alone, projections
at one layer and at all of them, and, for comparison, all hidden states kept as `output_hidden_states` does. What
projecting adds to the pass must not grow with the layers.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

from persona_vectors import cli

WAYS = ("forward pass alone", "one layer", "all layers", "all hidden states kept")
TURNS, WORDS = 50, 78
D_MODEL, N_LAYERS, N_VECTORS = 512, 8, 3


def main(repeats: int = 3, threads: int = 1, way: str | None = None) -> None:
    """Print a line a way of reading: median seconds, and the most memory that the pass added.

    Args:
        repeats: processes for each way.
        threads: of torch.
        way: what the inner process of one measurement does; leave it out.
    """
    if way is not None:
        seconds, added, tokens = _measure(way, threads)
        print(seconds, added, tokens)
        return
    print(f"{N_LAYERS} blocks of width {D_MODEL}, float32, {threads} thread(s), {platform.processor() or 'cpu'}")
    for one in WAYS:
        command = [sys.executable, str(Path(__file__)), "--way", one, "--threads", str(threads)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(repeats)]
        found = [[float(number) for number in run.split()] for run in runs]
        seconds, added = (sorted(own[place] for own in found)[repeats // 2] for place in (0, 1))
        print(f"{one:24s} {seconds:6.1f} s  {added:7.0f} MB added  ({found[0][2]:.0f} tokens)", flush=True)


def _measure(way: str, threads: int) -> tuple[float, float, int]:
    """(seconds, MB that the process held at most beyond what it held before the pass, tokens)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    from persona_vectors.drift import project_tokens
    from persona_vectors.tokens import tokenize_turns
    from tests.tiny_models import tiny_model, word_tokenizer

    torch.set_num_threads(threads)
    size = {"hidden_size": D_MODEL, "intermediate_size": 2 * D_MODEL, "num_hidden_layers": N_LAYERS}
    model = tiny_model("qwen2", num_attention_heads=8, max_position_embeddings=16384, **size)
    words = "you are a helpful kind happy sad like hate the cat dog moon sun".split()
    talk = [
        {"role": ("user", "assistant")[turn % 2], "content": " ".join(words[(7 * turn + k) % 14] for k in range(WORDS))}
        for turn in range(TURNS)
    ]
    ids, _turns = tokenize_turns(word_tokenizer(), talk)
    generator = torch.Generator().manual_seed(0)
    layers = {"one layer": [N_LAYERS], "all layers": range(N_LAYERS + 1)}.get(way, [])
    vectors = {layer: torch.randn(N_VECTORS, D_MODEL, generator=generator) for layer in layers}
    project_tokens(model, [ids[:64]], {1: torch.ones(1, D_MODEL)})  # what is allocated once
    before, start = _memory("VmRSS"), time.perf_counter()
    if vectors:
        project_tokens(model, [ids], vectors)
    else:
        with torch.inference_mode():
            kept = way == "all hidden states kept"
            model.get_decoder()(input_ids=torch.tensor([list(ids)]), use_cache=False, output_hidden_states=kept)
    return time.perf_counter() - start, _memory("VmHWM") - before, len(ids)


def _memory(of: str) -> float:
    """MB that this process holds (VmRSS) or has held at most (VmHWM); Linux says so."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(of)) / 2**10


if __name__ == "__main__":
    cli.run(main)
