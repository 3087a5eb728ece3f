"""The front door: what is accepted, what is refused before anything runs, and how it is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import cli
from persona_vectors.arguments import convert


def command(
    model: str,
    trait: str = "evil",
    layers: list[int] | None = None,
    coef: float = 0,
    coefs: float | list[float] = 0.0,
    names: str | list[str] = "",
    kind: Literal["proj", "cos_sim"] = "proj",
    seed: int | None = None,
    overwrite: bool = False,
    batch_process: bool = True,
    untyped=10,
):
    """Score a model.

    Args:
        model: hub id or folder.
        coef (in norms): strength of the vector,
            which may be negative.
        kind: what is computed.
    """
    calls.append({name: value for name, value in locals().items() if value != DEFAULTS.get(name, ...)})
    return {"would be": "printed by fire"}


calls: list[dict] = []
DEFAULTS = {name: p.default for name, p in cli.inspect.signature(command).parameters.items()}
ALIASES = {"layer": "layers", "model_name": "model"}


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--model 123", {"model": "123"}),
        ("--model=True --trait none", {"model": "True", "trait": "none"}),
        ("--model None --trait (1)", {"model": "None", "trait": "(1)"}),
        ("m --layers 15 16 17", {"model": "m", "layers": [15, 16, 17]}),
        ("m --layers=[15,16,17]", {"model": "m", "layers": [15, 16, 17]}),
        ("m --layers [15, 16]", {"model": "m", "layers": [15, 16]}),
        ("m --layers 15,16", {"model": "m", "layers": [15, 16]}),
        ("m --layer 15", {"model": "m", "layers": [15]}),
        ("--model-name m --seed -1", {"model": "m", "seed": -1}),
        ("m --seed 3 --seed=None", "--seed is given twice"),
        ("m --seed=none --coef -.5", {"model": "m", "coef": -0.5}),
        ("m --coefs -2 -1 0 1 2", {"model": "m", "coefs": [-2.0, -1.0, 0.0, 1.0, 2.0]}),
        ("m --coefs -1e-3", {"model": "m", "coefs": -0.001}),
        ("m --names a,b", {"model": "m", "names": "a,b"}),
        ("m --names a b", {"model": "m", "names": ["a", "b"]}),
        ("m --names [a,'b']", {"model": "m", "names": ["a", "b"]}),
        ("m --overwrite --no-batch-process", {"model": "m", "overwrite": True, "batch_process": False}),
        ("m --nobatch_process", {"model": "m", "batch_process": False}),
        ("m --overwrite True --batch_process=false", {"model": "m", "overwrite": True, "batch_process": False}),
        ("m happy [7]", {"model": "m", "trait": "happy", "layers": [7]}),
        (
            "m --trait=--odd --kind cos_sim --untyped 3",
            {"model": "m", "trait": "--odd", "kind": "cos_sim", "untyped": 3},
        ),
        ("m --coeff 3", "unknown argument --coeff; did you mean --coef?"),
        ("m -coef 3", "unknown argument -coef; did you mean --coef?"),
        ("m --zzz", "unknown argument --zzz; see --help"),
        ("m --nomodel", "unknown argument --nomodel"),
        ("m -- x", "unknown argument --"),
        ("--trait evil", "missing --model; --help"),
        ("m --model x", "--model is given twice"),
        ("m --layer 3 --layers 4", "--layers is given twice"),
        ("m --coef strong", "--coef expects float; got 'strong'"),
        ("m --coef nan", "--coef expects float; got 'nan'"),
        ("m --coef 1 2", "--coef expects float; got '1 2'"),
        ("m --coef", "--coef expects float; got ''"),
        ("m --layers 1 x", "--layers expects int...; got '1 x'"),
        ("m --layers=", "--layers expects int..."),
        ("m --layers []", "--layers expects int..."),
        ("m --layers 1.5", "--layers expects int...; got '1.5'"),
        ("m --trait two words", "--trait expects str; got 'two words'"),
        ("m --kind cos", "--kind expects proj|cos_sim; got 'cos'"),
        ("m --kind cos_simm", "did you mean cos_sim?"),
        ("m --overwrite maybe", "--overwrite expects bool; got 'maybe'"),
        ("m --nooverwrite=True", "--overwrite expects bool"),
        ("m evil 1 0 0 n proj 0 true true 1 too_many", "unexpected argument 'too_many'"),
    ],
)
def test_arguments(line, expected, capsys):
    code = cli.run(command, line.split(), ALIASES)
    out, err = capsys.readouterr()
    if isinstance(expected, dict):
        assert (code, calls, out, err) == (0, [expected], "", "")
    else:
        assert (code, calls, out) == (2, [], "")
        assert err.startswith("error: ") and expected in err and err.count("\n") == 1


@settings(deadline=None, max_examples=50)
@given(st.text(), st.lists(st.text(min_size=1), min_size=2))
def test_text_arrives_as_it_was_written(text, texts):
    calls.clear()
    assert cli.run(command, [f"--model={text}", f"--trait={text}"]) == 0
    assert (calls[0]["model"], calls[0].get("trait", "evil")) == (text, text)
    joined = " ".join(texts)
    if not (joined.startswith("[") and joined.endswith("]")):
        assert convert("--names", texts, str | list[str]) == texts


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(), min_size=1), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_arrive_exactly(integers, number):
    calls.clear()
    assert cli.run(command, ["m", "--layers", *map(str, integers), f"--coef={number!r}"]) == 0
    assert calls[0]["layers"] == integers and calls[0].get("coef", 0) == number


def test_a_value_only_python_can_give_is_refused():
    def takes_object(engine: object | None = None, table: cli.inspect.Signature | None = None):
        """No arguments from a shell."""

    with pytest.raises(ValueError, match="--table expects Signature; got 'x'"):
        cli.parse(takes_object, ["--table", "x"])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_types_units_and_defaults_and_runs_nothing(flag, capsys):
    assert cli.run(command, ["--coeff", flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert calls == [] and lines[0] == "Score a model."
    assert "  --model str [required]: hub id or folder." in lines
    assert "  --coef float [default 0] (in norms): strength of the vector," in lines
    assert lines[lines.index("  --coef float [default 0] (in norms): strength of the vector,") + 1].endswith(
        "negative."
    )
    assert "  --kind proj|cos_sim [default proj]: what is computed." in lines
    assert "  --layers int... [default None]" in lines


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("layer 0 is\n  the embedding"), "error: layer 0 is the embedding\n"),
        (FileNotFoundError(2, "No such file or directory", "x.pt"), "error: x.pt: No such file or directory\n"),
        (OSError("the disk is full"), "error: the disk is full\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_a_users_error_is_one_line(error, line, capsys):
    def fails():
        raise error

    assert cli.run(fails, []) == 2
    assert capsys.readouterr().err == line
    assert cli.run(fails, ["--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith(line) and "in fails" in err


def test_a_bug_keeps_its_traceback_and_ctrl_c_is_one_line(capsys, monkeypatch):
    def buggy():
        raise KeyError("x")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyError):
        cli.run(buggy, [])
    assert cli.run(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.run(interrupted, []) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"  # not at the end of a progress bar


def test_debug_belongs_to_a_command_that_declares_it():
    def debugs(debug: bool = False):
        calls.append({"debug": debug})

    assert cli.run(debugs, ["--debug"]) == 0 and calls == [{"debug": True}]


def test_as_a_process_it_ends_with_the_code_and_imports_nothing_heavy(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(
        "import json, sys\nfrom persona_vectors import cli\n"
        "def main(layers: list[int]):\n    print(json.dumps([layers, [m for m in ('torch', 'transformers', 'pandas')"
        " if m in sys.modules]]))\n"
        "cli.run(main)\nprint('not reached')\n"
    )

    def run(*arguments):
        root = {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, env=os.environ | root
        )

    good = run("--layers", "1", "2")
    assert (good.returncode, json.loads(good.stdout), good.stderr) == (0, [[1, 2], []], "")
    bad = run("--layer", "1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: unknown argument --layer; did you mean --layers?\n"
