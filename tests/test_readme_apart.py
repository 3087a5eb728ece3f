"""The README's commands that read nothing of the others: several processes, a new trait."""

import json

from persona_vectors.traits import load_trait
from tests.test_readme import APART, COMMANDS, PAPER, checkout, is_apart, run_command

__all__ = ["checkout"]  # a fixture


def test_commands_that_stand_alone(checkout):
    tiny = json.loads((checkout / "configs" / "train_tiny.json").read_text())
    two = tiny | {"output_dir": "ckpt/two", "max_steps": 2, "gradient_accumulation_steps": 4}
    (checkout / "configs" / "two_processes.json").write_text(json.dumps(two))
    commands = [command for command in COMMANDS if is_apart(command) and command != PAPER]
    assert len(commands) == len(APART)
    for command in commands:
        run_command(command, checkout)
    assert load_trait(str(checkout / "data_generation/trait_data_eval/cautious.json"), "eval").questions
    assert json.loads((checkout / "ckpt" / "two" / "training.json").read_text())["key"]["processes"] == 2
