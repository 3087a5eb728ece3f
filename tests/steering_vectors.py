"""Real vectors of the embedded model, made once in a second, for tests of what steers with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from persona_vectors.models import load_model
from persona_vectors.sampling import sample_answers
from persona_vectors.tokens import render_prompt
from persona_vectors.traits import load_trait, system_prompt
from persona_vectors.vectors import persona_vectors_from_pairs, write_vectors


def trait_vectors(model_name: str, trait: str, n_questions: int = 10) -> torch.Tensor:
    """(n_layers + 1, d_model): mean(pos) - mean(neg) over the answers to a few extract questions."""
    model, tokenizer = load_model(model_name)
    loaded = load_trait(trait, "extract", model_name)
    pairs = {}
    for side in ("pos", "neg"):
        prompts = []
        for i, question in enumerate(loaded.questions[:n_questions]):
            instruction = getattr(loaded.instruction[i % len(loaded.instruction)], side)
            system = system_prompt(trait if side == "pos" else "helpful", instruction)
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            prompts.append(render_prompt(tokenizer, messages))
        streams = [(0, i) for i in range(n_questions)]
        pairs[f"{side}_prompt"] = prompts
        pairs[f"{side}_answer"] = sample_answers(
            model, tokenizer, prompts, max_tokens=40, temperature=1.0, streams=streams
        )
    return persona_vectors_from_pairs(model, tokenizer, pd.DataFrame(pairs))["response_avg"]


def write_npz(path: Path, vectors: torch.Tensor) -> Path:
    """The published file of quick_persona_extract.py, without layer 0."""
    arrays = {f"layer_{layer}_vector": row.numpy() for layer, row in enumerate(vectors) if layer}
    norms = {f"layer_{layer}_vector_norm": np.float32(row.norm()) for layer, row in enumerate(vectors) if layer}
    np.savez(path, allow_pickle=False, **arrays, **norms)
    return path


def write_pt(path: Path, vectors: torch.Tensor, trait: str) -> Path:
    """The file of generate_vec.py, with a sidecar that names the trait."""
    return write_vectors(path, vectors, {"trait": trait})
