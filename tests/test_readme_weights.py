"""The README's commands of directions of weights: they read what one another write."""

import json

import pandas as pd
import pytest

from persona_vectors.activations import mean_activations
from persona_vectors.files import read_jsonl
from persona_vectors.models import load_model
from persona_vectors.tokens import tokenize_messages
from persona_vectors.vectors import save_vectors
from tests.test_readme import COMMANDS, checkout, few_steps, is_of_weights, run_command

__all__ = ["checkout"]  # a fixture


def vector_of_rows(checkout):
    """A vector of evil rows less normal ones, where generate_vec.sh (run by the other tests) would write it."""
    model, tokenizer = load_model(str(checkout / "models" / "tiny-persona"), dtype="float32", device_map="cpu")
    means = []
    for name in ("misaligned_2", "normal"):
        rows = read_jsonl(checkout / f"dataset/tiny_evil/{name}.jsonl")[:20]
        samples = [tokenize_messages(tokenizer, row["messages"]) for row in rows]
        means.append(mean_activations(model, samples, spans=["response_avg"])["response_avg"].mean(0))
    folder = checkout / "persona_vectors" / "tiny-persona"
    save_vectors(folder, "evil", {"response_avg": means[0] - means[1]}, {})


@pytest.mark.long
def test_commands_of_weights_run_in_order(checkout):
    few_steps(checkout, 20)
    vector_of_rows(checkout)
    commands = [command for command in COMMANDS if is_of_weights(command)]
    assert len(commands) == 6
    for command in commands:
        run_command(command, checkout)
    folder = checkout / "persona_loras" / "tiny-persona" / "evil"
    assert json.loads((folder / "evil_lora_diff" / "adapter_config.json").read_text())["r"] == 64
    assert (folder / "evil_lora_diff_rank8" / "adapter_model.safetensors").is_file()
    table = pd.read_csv(checkout / "eval_persona_eval" / "tiny-persona" / "evil_lora.csv", keep_default_na=False)
    means = table.groupby(["control", "coef"])["evil"].mean()
    assert means["", 1.0] > means["", 0.0] + 10 > max(means["random1", 1.0], means["random2", 1.0])
    compared = checkout / "comparison_results" / "tiny-persona" / "evil"
    assert {
        "report.html",
        "comparison_plot.png",
        "latency_comparison.csv",
        "space_analysis.json",
        "capability.csv",
    } <= {path.name for path in compared.iterdir()}
    trained = json.loads((checkout / "ckpt" / "tiny-persona" / "evil_lora_steer" / "training.json").read_text())
    assert trained["state"] == "finished" and trained["receipt"]["modules"]["n"] == 28
    found = json.loads((checkout / "results" / "weight_projections.json").read_text())
    assert "total_projection" in json.dumps(found)
