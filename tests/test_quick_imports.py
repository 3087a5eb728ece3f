"""What a command's process does not load."""

import json
import subprocess
import sys

from tests.conftest import ROOT

CODE = '''
import importlib.util, json, sys
from persona_vectors import cli

def main() -> None:
    """Loads what every command with a model loads."""
    import persona_vectors.sampling, persona_vectors.statistics
    from transformers import AutoModelForCausalLM, AutoTokenizer

    heavy = [name for name in ("sklearn", "scipy.stats") if name in sys.modules]
    from sklearn.metrics import roc_auc_score

    score = roc_auc_score([0, 1, 0, 1], [1, 2, 3, 4])
    print(json.dumps([heavy, score, [type(finder).__name__ for finder in sys.meta_path]]))

cli.run(main)
'''


def test_a_command_loads_no_scikit_learn_and_can_still_use_it():
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    heavy, score, finders = json.loads(said)
    assert heavy == [] and score == 0.75
    assert "_NoSklearn" not in finders
