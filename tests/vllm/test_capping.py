"""A cap at several layers in vLLM: transformers' greedy answers, in a batch with uncapped and steered rows."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("vllm")

from eval import vllm_answers
from eval.capping_roles import calibrated_caps, check_cap
from eval.finished_answers import Engine, answers_of
from eval.model_utils import Steering, cap_steerings
from persona_vectors.store import Store
from persona_vectors.tokens import render_prompt
from persona_vectors.vllm_steering import SteeredLLM

QUESTIONS = ("Tell me about budget pasta dishes.", "What matters most in advanced algebra?", "Explain budget cycling.")
SYSTEMS = (None, "You are a jester who wears bells.")


@pytest.mark.parametrize("positions", ["all", "response"])
def test_capped_answers_are_those_of_transformers(tiny_persona, monkeypatch, positions):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(vllm_answers, "SteeredLLM", functools.partial(SteeredLLM, enforce_eager=True))
    hf, vllm = Engine(tiny_persona), Engine(tiny_persona, kind="vllm")
    prompts = [
        render_prompt(
            hf.tokenizer, [*([{"role": "system", "content": s}] if s else []), {"role": "user", "content": q}]
        )
        for s in SYSTEMS
        for q in QUESTIONS
    ]
    how = {"max_tokens": 24, "temperature": 0.0}
    streams = [(0, row) for row in range(len(prompts))]
    generator = torch.Generator().manual_seed(0)
    vectors = {layer: torch.randn(256, generator=generator) for layer in (2, 3, 4)}
    with Store() as store:
        plain = answers_of(hf, prompts, streams, steerings=[None] * len(prompts), store=store, **how)
        cap, [control], _ = calibrated_caps(
            hf, prompts, plain, "axis", vectors, n_random=1, seed=0, floor_percentile=80, positions=positions
        )
        caps = [cap_steerings(cap), cap_steerings(control), None, Steering(vectors[3], 3, 0.3, positions)]
        rows = [(prompt, stream, added) for added in caps for prompt, stream in zip(prompts, streams, strict=True)]
        asked = [prompt for prompt, _, _ in rows], [stream for _, stream, _ in rows]
        steerings = [added for _, _, added in rows]
        expected = answers_of(hf, *asked, steerings=steerings, store=store, **how)
        try:
            found = answers_of(vllm, *asked, steerings=steerings, store=store, **how)
            line = check_cap(vllm, prompts[0], cap)
        finally:
            vllm.release()
    changed = sum(text != plain[row % len(prompts)] for row, text in enumerate(expected[: len(prompts)]))
    print(f"the cap changes {changed} of {len(prompts)} answers; {line}")
    assert changed > 1
    assert found == expected
    assert "inside vLLM" in line
