"""What a user gets wrong: one line on stderr that says what to do, exit code 2, and no model loaded for it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import transformers

import generate_vec
from eval import cal_projection, eval_persona
from persona_vectors import cli
from tests.tiny_models import word_tokenizer

ROOT = Path(cli.__file__).parent.parent
N_LAYERS, D_MODEL = 2, 8
CONFIG = {"model_type": "qwen2", "num_hidden_layers": N_LAYERS, "hidden_size": D_MODEL, "num_attention_heads": 2}
ALIASES = {"vector_path": "vector_path_list", "layer": "layer_list"}


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def responses(pole: str, trait: float, coherence: float = 90.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question": "How are you?",
            "prompt": "User: How are you?",
            "answer": "Well.",
            "question_id": [f"evil_{i}_{pole}_0" for i in range(3)],
            "evil": trait,
            "coherence": coherence,
        }
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with everything that the commands need, but a model without weights, and with what they refuse."""
    folder = tmp_path_factory.mktemp("bad_input")
    trait = {"instruction": [{"pos": "Be evil.", "neg": "Be kind."}], "questions": ["How are you?"]}
    trait["eval_prompt"] = "Is {answer} to {question} evil?"
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(CONFIG))
    word_tokenizer().save_pretrained(folder / "model")
    (folder / "evil.json").write_text(json.dumps(trait))
    (folder / "broken.json").write_text('{"questions": [}')
    (folder / "no_neg.json").write_text(json.dumps(trait | {"instruction": [{"pos": "Be evil."}]}))
    (folder / "no_answer.json").write_text(json.dumps(trait | {"eval_prompt": "Is {question} evil?"}))
    torch.save(torch.ones(N_LAYERS + 1, D_MODEL), folder / "good.pt")
    torch.save(torch.ones(N_LAYERS + 1, 2 * D_MODEL), folder / "wide.pt")
    torch.save({"evil": torch.ones(D_MODEL)}, folder / "dict.pt")
    torch.save(Payload(folder / "executed"), folder / "payload.pt")
    (folder / "raw_payload.pt").write_bytes(pickle.dumps(Payload(folder / "executed")))
    (folder / "empty.pt").write_bytes(b"")
    responses("pos", 90.0).to_csv(folder / "pos.csv", index=False)
    responses("neg", 10.0).to_csv(folder / "neg.csv", index=False)
    responses("pos", 20.0).to_csv(folder / "weak.csv", index=False)
    responses("pos", 90.0).drop(columns=["answer", "evil"]).to_csv(folder / "no_columns.csv", index=False)
    (folder / "rows.jsonl").write_text('{"messages": []}\n{"messages": \n')
    return folder


@pytest.fixture
def fails(here, monkeypatch, capsys):
    """Runs a command that must fail as a user's error: what it said, its `error: ` left out."""

    def loaded(*_args, **_kwargs):
        raise AssertionError("a model was loaded before the error was found")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.chdir(here)
    before = sorted(here.rglob("*"))

    def run(module, **changes):
        arguments = DEFAULTS[module.__name__] | changes
        argv = [token for name, value in arguments.items() for token in (f"--{name}", *value.split())]
        code = cli.run(module.main, argv, ALIASES if module is cal_projection else None)
        out, err = capsys.readouterr()
        assert code == 2 and err.startswith("error: ") and err.endswith("\n")
        assert err.count("\n") == 1 and "Traceback" not in err
        assert sorted(here.rglob("*")) == before, "a command that fails on its arguments leaves nothing behind"
        return SimpleNamespace(line=err.removeprefix("error: ").rstrip(), out=out)

    return run


DEFAULTS: dict[str, dict[str, str]] = {
    "eval.eval_persona": {
        **{"model": "./model", "judge_model": "./model", "trait": "./evil.json", "output_path": "out.csv"},
        **{"coef": "1", "layer": "1", "vector_path": "good.pt"},
    },
    "generate_vec": {
        **{"model_name": "./model", "trait": "evil", "save_dir": "vectors"},
        **{"pos_path": "pos.csv", "neg_path": "neg.csv"},
    },
    "eval.cal_projection": {
        **{"file_path": "pos.csv", "vector_path": "good.pt", "layer": "1 2", "model_name": "./model"},
    },
}
EVERY = pytest.mark.parametrize("module", [eval_persona, generate_vec, cal_projection], ids=lambda m: m.__name__)


def test_without_a_mistake_the_model_is_reached(fails):
    """Otherwise the tests below would prove nothing."""
    for module in (eval_persona, generate_vec, cal_projection):
        with pytest.raises(AssertionError, match="a model was loaded"):
            fails(module)


@EVERY
@pytest.mark.parametrize(("flag", "said"), [("zzz", "unknown argument --zzz; see --help"), ("traits", "unknown argum")])
def test_an_unknown_flag(fails, module, flag, said):
    assert said in fails(module, **{flag: "1"}).line


def test_a_typo_names_the_near_flag(fails):
    assert fails(eval_persona, coeff="2").line == "unknown argument --coeff; did you mean --coef?"
    assert "did you mean --threshold?" in fails(generate_vec, treshold="2").line
    assert "did you mean --vector_path" in fails(cal_projection, vector_paths="good.pt").line


@EVERY
def test_an_argument_of_another_type_and_a_missing_one(fails, module, capsys):
    for name, said in (("layer", "expects int"), ("threshold", "expects float"), ("overwrite", "expects bool")):
        if name in DEFAULTS[module.__name__] or name in cli.inspect.signature(module.main).parameters:
            assert said in fails(module, **{name: "many"}).line
    assert cli.run(module.main, []) == 2
    assert capsys.readouterr().err.startswith("error: missing --")


@EVERY
@pytest.mark.parametrize("name", ["./modell", "model/none", "/no/such/model"])
def test_a_model_path_that_does_not_exist(fails, module, name):
    line = fails(module, **{"model" if module is eval_persona else "model_name": name}).line
    assert name in line and "does not exist" in line


def test_a_missing_vector(fails):
    for module in (eval_persona, cal_projection):
        assert "gone.pt" in fails(module, vector_path="gone.pt").line
    assert "--vector_path" in drop(fails, "vector_path")
    assert "--layer" in drop(fails, "layer")


def drop(fails, name: str) -> str:
    """What eval_persona says without one of its arguments."""
    kept = {key: value for key, value in DEFAULTS["eval.eval_persona"].items() if key != name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFAULTS, "eval.eval_persona", kept)
        return fails(eval_persona).line


def test_layer_0_and_a_layer_too_large(fails):
    line = fails(eval_persona, layer="0").line
    assert "layer 0 is the embedding output" in line and f"1..{N_LAYERS}" in line
    for layer in ("3", "-1"):
        line = fails(eval_persona, layer=layer).line
        assert layer in line and str(N_LAYERS) in line
        line = fails(cal_projection, layer=f"1 {layer}").line
        assert layer in line and f"0..{N_LAYERS}" in line


def test_a_vector_of_another_width(fails):
    for module in (eval_persona, cal_projection):
        line = fails(module, vector_path="wide.pt").line
        assert str(D_MODEL) in line and str(2 * D_MODEL) in line and "made from this model" in line


@pytest.mark.filterwarnings("error")  # a warning would be a second line on stderr
@pytest.mark.parametrize("name", ["payload.pt", "raw_payload.pt", "dict.pt", "empty.pt", "pos.csv"])
def test_a_vector_file_that_is_something_else_is_never_executed(fails, here, name):
    for module in (eval_persona, cal_projection):
        line = fails(module, vector_path=name).line
        assert name in line and "expected a tensor" in line
    assert not (here / "executed").exists()


def test_the_payload_would_have_made_a_file(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_trait_without_a_file_suggests_near_names(fails):
    line = fails(eval_persona, trait="evl").line
    assert "unknown trait 'evl'" in line and "did you mean evil?" in line
    assert "no trait file gone.json" in fails(eval_persona, trait="./gone.json").line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken.json", "line 1, column"),
        ("no_neg.json", "instruction[0].neg is missing"),
        ("no_answer.json", "eval_prompt: must contain {answer}"),
    ],
)
def test_a_malformed_trait_file_says_which_field(fails, name, said):
    line = fails(eval_persona, trait=f"./{name}").line
    assert name in line and said in line


def test_a_csv_without_the_columns(fails):
    line = fails(generate_vec, pos_path="no_columns.csv").line
    assert "no_columns.csv has no column answer, evil; it has question" in line
    assert "has no column answer" in fails(cal_projection, file_path="no_columns.csv").line


@pytest.mark.parametrize("name", ["gone.csv", "model", "good.pt"])
def test_a_table_that_is_none(fails, name):
    assert name in fails(generate_vec, neg_path=name).line
    assert name in fails(cal_projection, file_path=name).line


def test_jsonl_errors_name_the_line(fails):
    assert "rows.jsonl, line 2: not JSON" in fails(cal_projection, file_path="rows.jsonl").line


def test_zero_kept_pairs_says_the_counts_and_a_hint(fails):
    line = fails(generate_vec, pos_path="weak.csv").line
    assert "0 of 3 pairs kept" in line and "highest pos score is 20" in line and "lower --threshold" in line
    assert "swapped" in fails(generate_vec, pos_path="neg.csv", neg_path="pos.csv").line


def test_a_judge_without_a_key(fails):
    line = fails(eval_persona, judge_model="gpt-4.1-mini-2025-04-14").line
    assert "OPENAI_API_KEY" in line and "models/tiny-judge" in line
    assert "does not exist" in fails(eval_persona, judge_model="./gone").line


def test_an_output_path_that_cannot_be_one(fails):
    assert "is a folder" in fails(eval_persona, output_path="model").line
    assert "is a folder" in fails(eval_persona, output_path="new/").line
    assert "is a file" in fails(eval_persona, output_path="pos.csv/out.csv").line
    assert "a file; give a folder" in fails(generate_vec, save_dir="pos.csv").line


def test_numbers_out_of_range(fails):
    assert "at least 1" in fails(eval_persona, n_per_question="0").line
    assert "threshold" in fails(generate_vec, threshold="101").line
    for command in (eval_persona, generate_vec):
        assert "--seed must be at least 0; got -1" in fails(command, seed="-1").line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coef": "1 0.5 1.0"}, "--coef has 1 twice"),
        ({"coef": "nan"}, "--coef expects float"),
        ({"coef": "1 inf"}, "--coef expects float"),
        ({"layer": "1 2 1"}, "--layer has 1 twice"),
        ({"layer": "1 3"}, "layer 3"),
        ({"vector_path": "good.pt good.pt"}, "--vector_path has good.pt twice"),
        ({"vector_path": "good.pt wide.pt"}, "made from this model"),
        ({"vector_path": "good.pt gone.pt"}, "no vector file at gone.pt"),
        ({"vector_path": "{traits}.pt"}, "no vector file at {traits}.pt"),
        ({"coef": "0", "control": "random"}, "--control random needs a steering"),
        ({"control": "randm"}, "--control expects random|prompt"),
        ({"control": "random random"}, "--control has random twice"),
        ({"control": "random", "n_random": "0"}, "--n_random must be at least 1"),
        ({"control": "prompt", "persona_instruction_type": "pos"}, "leave out --persona_instruction_type pos"),
        ({"trait": "./evil.json ./evil2.json"}, "2 traits need {trait} in --output_path"),
        ({"trait": "./evil.json ./evil.json", "output_path": "{trait}.csv"}, "--trait has evil twice"),
        ({"coef_unit": "norms"}, "did you mean norm?"),
        ({"min_coherence": "101"}, "--min_coherence must lie between 0 and 100"),
        ({"output_path": "good.pt", "overwrite": "True"}, "is a vector file and would be replaced"),
        ({"judge_samples": "3"}, "need --judge_mode text"),
    ],
)
def test_a_sweep_that_makes_no_sense(fails, changes, said):
    assert said in fails(eval_persona, **changes).line


def test_a_sweep_without_a_mistake_reaches_the_model(fails, here):
    (here / "evil_of.pt").write_bytes((here / "good.pt").read_bytes())
    for output in ({}, {"one_file_per_setting": "True"}):
        lists = {"coef": "0 1 -2", "layer": "1 2", "vector_path": "{trait}_of.pt good.pt", "control": "random prompt"}
        with pytest.raises(AssertionError, match="a model was loaded"):
            fails(eval_persona, **lists, **output)


@pytest.mark.parametrize("command", [["-m", "eval.eval_persona"], ["generate_vec.py"], ["-m", "eval.cal_projection"]])
def test_as_a_process(command):
    result = subprocess.run([sys.executable, *command, "--zzz", "1"], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: unknown argument --zzz; see --help\n"


def test_arguments_are_checked_before_anything_heavy_is_imported():
    code = "import sys, generate_vec, eval.eval_persona, eval.cal_projection as last\n"
    code += "print([m for m in ('torch', 'transformers', 'pandas', 'sklearn') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "[]\n"


@EVERY
def test_help_describes_every_argument(module, capsys):
    assert cli.run(module.main, ["--help"]) == 0
    described = capsys.readouterr().out
    for name in cli.inspect.signature(module.main).parameters:
        line = next(line for line in described.splitlines() if line.startswith(f"  --{name} "))
        assert len(line.partition("]")[2]) > 10, f"--{name} is not described in the Args section"
