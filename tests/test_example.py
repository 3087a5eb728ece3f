"""`python example.py`: from answers to figures, again without a model, and never from files of other settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import example
from persona_vectors import ASSISTANT_PERSONAS, cli, load_persona_vectors, save_responses
from persona_vectors.files import read_sidecar
from persona_vectors.vectors import load_vectors
from tests.loopback_openai import Reply
from tests.role_judge import truthful

ROOT = Path(cli.__file__).parent.parent
LAYER = 3
VECTORS = Path("data/persona_vectors/tiny-persona.pt")
ROLES = ("analyst", "jester", "ghost", "bard", "trader")
SMALL = (*ASSISTANT_PERSONAS, *ROLES)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, axis_cast):
    """run(*arguments) is example.py with nine personas and three questions in an empty folder: (code, what it said)."""
    small = {"personas": {name: axis_cast.personas[name] for name in SMALL}, "questions": axis_cast.questions[:3]}
    small |= {"role_prompt": axis_cast.role_prompt, "roles": {name: axis_cast.roles[name] for name in ROLES}}
    (tmp_path / "small.json").write_text(json.dumps(small))
    monkeypatch.chdir(tmp_path)

    def start(*arguments: str, model: str = str(ROOT / "models/tiny-persona")) -> tuple[int, str]:
        code = cli.run(example.main, ["--model_name", model, "--personas_path", "small.json", *arguments])
        out, err = capsys.readouterr()
        return code, out if code == 0 else err.splitlines()[-1]

    return start


def test_from_answers_to_figures_and_again_without_a_model(run, request, tmp_path):
    code, said = run()
    assert code == 0 and "27 answers: data/responses/tiny-persona.json, made now" in said
    assert "tiny-persona, layer 3: the axis points from role-play to the assistant" in said
    names = [line.split()[0] for line in said.splitlines() if re.match(r"\w+( \*)? +[+-]\d", line)]
    assert set(names) == set(SMALL) and set(names[:4]) == set(ASSISTANT_PERSONAS)
    assert "chance: median" in said
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".json", ".pt")}
    images = {path.name for path in Path("images").glob("*.html")}
    assert images == {f"tiny-persona_{name}.html" for name in ("cosine", "pca", "variance")}
    axis = load_vectors("persona_vectors/tiny-persona/assistant_axis.pt")
    vectors = load_persona_vectors(VECTORS)
    own = torch.stack([vectors[name] for name in ASSISTANT_PERSONAS]).mean(0)
    others = torch.stack([v for name, v in vectors.items() if name not in ASSISTANT_PERSONAS]).mean(0)
    assert axis.shape == (5, 256) and torch.allclose(axis[LAYER], own - others, atol=1e-4)
    controls = read_sidecar("persona_vectors/tiny-persona/assistant_axis.pt")["controls"]
    assert controls["layer"] == LAYER and f"{controls['cosine']['value']:.2f} (chance: median" in said

    request.getfixturevalue("no_model")
    code, again = run()
    assert code == 0 and again.replace("made before", "made now") == said
    data = {path: content for path, content in written.items() if "data" in path.parts}
    assert data and all(path.read_bytes() == content for path, content in data.items())
    _refuses_other_settings(run)


def _refuses_other_settings(run):
    for arguments, said in (
        (["--seed", "1"], r"made with other settings \(seed 0 there, 1 here\); pass --overwrite"),
        (["--layer", "2"], r"tiny-persona.pt was made with other settings \(layer None there, 2 here, .*pass --reread"),
        (["--max_tokens", "9", "--temperature", "0"], "max_tokens 256 there, 9 here, temperature 0.7 there, 0.0"),
        (["--judge_model", str(ROOT / "models/tiny-persona")], "judge_model None there, [0-9a-f]{8}... here"),
    ):
        code, line = run(*arguments)
        assert code == 2 and re.search(said, line), line


def test_judged_answers_alone_count(run, serve):
    def judge(request):
        return (
            "somewhat" if "a jester" in (text := str(request["messages"])) and "guitar" in text else truthful(request)
        )

    server = serve(judge)
    code, said = run("--judge_model", "served", "--min_answers", "3", "--layer", "2")
    assert code == 0 and "fully/somewhat/none/unjudged" in said and "layer 2" in said
    assert "left out jester: 2 answers that count, of at least 3" in said and "(the control)" in said
    assert all("Does the answer play the role" in str(request["messages"]) for request in server.requests)
    record = read_sidecar(VECTORS)
    assert set(record["adherence"]) == set(ROLES)
    assert record["left_out"] == {"jester": 2} and "jester" not in load_persona_vectors(VECTORS)
    for name, n in record["adherence"].items():
        assert {**record["n_answers"], **record["left_out"]}[name] == n["fully"]
    assert all(record["n_answers"][name] == 3 for name in ASSISTANT_PERSONAS)
    small = json.loads(Path("small.json").read_text())
    Path("small.json").write_text(json.dumps({**small, "role_prompt": small["role_prompt"] + " Be strict."}))
    code, line = run("--judge_model", "served", "--min_answers", "3", "--layer", "2")
    assert code == 2 and re.search(r"made with other settings \(judging \w{8}... there", line), line


def test_another_layer_is_read_from_the_same_answers(run, monkeypatch):
    assert run()[0] == 0
    monkeypatch.setattr("eval.axis_run.generate_responses", lambda *_, **__: pytest.fail("asked again"))
    code, line = run("--layer", "2")
    assert code == 2 and "pass --reread to make it anew" in line
    code, said = run("--layer", "2", "--reread")
    assert code == 0 and "27 answers: data/responses/tiny-persona.json, made before" in said and "layer 2" in said
    torch.save({name: -vector for name, vector in load_persona_vectors(VECTORS).items()}, VECTORS)
    code, line = run("--layer", "2")
    assert code == 2 and "is not the file that its sidecar was written for (a run was killed" in line
    VECTORS.unlink()
    assert run("--layer", "2") == (0, said)


def test_blank_answers_are_counted_and_the_run_goes_on(run, monkeypatch):
    from persona_vectors import sampling

    sample = sampling.sample_answers

    def silent_at_times(*args, on_batch, **kwargs):
        def on(rows, texts):
            on_batch(rows, ["" if row == 26 else text for row, text in zip(rows, texts, strict=True)])

        return sample(*args, on_batch=on, **kwargs)

    monkeypatch.setattr(sampling, "sample_answers", silent_at_times)
    code, said = run("--min_answers", "2")
    assert code == 0 and f"1 answers of {SMALL[-1]} are blank and do not count" in said
    assert read_sidecar(VECTORS)["n_answers"][SMALL[-1]] == 2


@pytest.mark.usefixtures("no_model")
def test_too_few_roles_are_refused_before_anything_is_asked(run):
    small = json.loads(Path("small.json").read_text())
    few = {name: small["personas"][name] for name in (*ASSISTANT_PERSONAS, *ROLES[:2])}
    Path("small.json").write_text(json.dumps({"personas": few, "questions": small["questions"]}))
    code, line = run()
    assert code == 2 and "2 personas besides the assistant's (analyst, jester); controls need at least 3" in line
    assert not Path("data").exists()


def test_answers_of_another_model(run, axis_responses):
    some = {(name, question): text for (name, question), text in axis_responses.items() if name in SMALL}
    save_responses(some, "other.json")
    code, said = run("--responses_path", "other.json", "--prompt_format", "raw")
    assert code == 0 and "27 answers: other.json, as given" in said
    save_responses({("somebody", "else?"): "x"}, "wrong.json")
    code, line = run("--responses_path", "wrong.json", "--overwrite")
    assert code == 2 and "none of the 1 answers in wrong.json" in line


def test_calls_that_fail_leave_it_unfinished(run, serve, monkeypatch):
    broken = [True]
    server = serve(lambda r: Reply(status=400) if broken[0] and "jester" in str(r["messages"]) else "I do.")
    code, line = run("--openrouter_model", "served")
    assert code == 1 and "3 of 27 answers are missing (jester 3)" in line and not Path("data").exists()
    before, broken[0] = len(server.requests), False
    code, said = run("--openrouter_model", "served")
    assert code == 0 and len(server.requests) - before == 3, said
    broken[0] = True
    code, line = run("--openrouter_model", "served", "--overwrite")
    assert code == 1 and "run again without overwrite for the rest; delete data/responses/tiny-persona.json fi" in line
    Path("data/responses/tiny-persona.json").unlink()
    before, broken[0] = len(server.requests), False
    assert run("--openrouter_model", "served")[0] == 0 and len(server.requests) - before == 3
    assert server.requests and read_sidecar("data/responses/tiny-persona.json")["base_url"].startswith("http://127")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert run("--openrouter_model", "served")[0] == 0, "a second run needs no key"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "5"], "layer 5"),
        (["--layer_fraction", "2"], "layer_fraction must be between"),
        (["--prompt_format", "chatml"], "--prompt_format"),
        (["--min_answers", "0"], "--min_answers must be at least 1; got 0"),
        (["--personas", "small.json"], "did you mean --personas_path"),
        (["--judge_model", "./none"], "judge folder ./none does not exist"),
        (["--judge_model", "gpt-4.1-mini"], "needs OPENAI_API_KEY"),
        (["--openrouter_model", "some/model"], "need OPENROUTER_API_KEY"),
        (["--responses_path", "none.json"], "there is no file none.json"),
        (["--data_dir", "small.json"], "lies under"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_mistake_is_one_line_before_a_model_is_loaded(run, arguments, said):
    code, line = run(*arguments)
    assert code == 2 and line.startswith("error: ") and said in line, line
    assert not Path("data").exists() and not Path("images").exists()


def test_a_folder_that_is_not_there(run):
    assert "model folder ./none does not exist" in run(model="./none")[1]


@pytest.mark.usefixtures("no_model")
def test_the_tracked_answers_and_vectors_draw_without_a_model(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    folders = ["--images_dir", str(tmp_path), "--vectors_dir", str(tmp_path)]
    assert cli.run(example.main, folders) == 0
    assert "414 answers: data/responses/tiny-persona.json, made before" in capsys.readouterr().out
    stored = load_persona_vectors("data/persona_vectors/tiny-persona.pt")
    reference = load_persona_vectors(ROOT / "data/test_fixtures" / f"persona_vectors_layer{LAYER}.pt")
    assert min(cosine(stored[name], reference[name]) for name in reference) > 0.9, "answers of another seed"
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*tiny-persona*")) < 200_000
