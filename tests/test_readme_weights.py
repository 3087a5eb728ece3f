"""The README's commands of directions of weights: they read what one another write."""

import json

import pandas as pd
import pytest

from tests.test_readme import COMMANDS, checkout, few_steps, is_of_weights, run_command, vector_of_rows

__all__ = ["checkout"]  # a fixture


@pytest.mark.long
def test_commands_of_weights_run_in_order(checkout):
    few_steps(checkout, 20)
    vector_of_rows(checkout, "evil")
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
