"""The experiments, end to end on the embedded model and variants of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import model_variants
from eval.model_variants import load_by_question, make_variant, read_variant
from eval.variant_answers import answers_of, chosen_people
from persona_vectors import cli
from persona_vectors.axis import assistant_axis
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.files import is_as_recorded
from persona_vectors.persona_extraction import ActivationExtractor, extract_persona_vectors
from persona_vectors.persona_files import load_persona_vectors, load_responses, save_persona_vectors
from persona_vectors.personas import load_personas

ROOT = Path(__file__).resolve().parent.parent
PEOPLE = ["default", "default_llm", "analyst", "bard", "cynic", "ghost", "jester", "rebel"]
QUICK = ["--personas", *PEOPLE, "--n_questions", "3", "--max_tokens", "12", "--name", "quick"]


def experiment(number: str):
    (path,) = (ROOT / "experiments").glob(f"{number}_*.py")
    spec = importlib.util.spec_from_file_location(f"experiment_{number}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def finished(tiny_persona, tmp_path_factory):
    """A folder in which the experiment has run: base, a LoRA finetune, and the base steered while it reads."""
    folder = tmp_path_factory.mktemp("variants")
    vectors = folder / "added.pt"
    size = ActivationExtractor(PersonaVectorConfig(tiny_persona))
    noise = torch.randn(size.num_layers + 1, size.d_model, generator=torch.Generator().manual_seed(0))
    torch.save(noise, vectors)
    adapter = folder / "tuned"
    _adapter(tiny_persona, adapter)
    given = ["--models", f"base={tiny_persona}", f"tuned={adapter}", f"steered={tiny_persona}"]
    given += ["--responses_from", "base", *QUICK, "--steered", "steered", "--vector_path", str(vectors)]
    given += ["--steer_layer", "2", "--coef", "1.5", "--data_dir", str(folder / "data")]
    given += ["--images_dir", str(folder / "images")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(folder / "store.sqlite"))
        assert cli.run(experiment("001"), given) == 0
    return folder, given


def _adapter(base: str, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from persona_vectors.models import load_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(base)[0], config).save_pretrained(folder)  # pyright: ignore


def test_figures_of_each_of_each_pair_and_of_all(finished):
    images = finished[0] / "images" / "quick"
    kinds = {path.name for path in images.glob("*.html")}
    names = ("base", "tuned", "steered")
    expected = {f"{kind}_quick_{name}.html" for kind in ("cosine_sim", "pca", "pca_var") for name in names}
    pairs = ("base_vs_tuned", "base_vs_steered", "tuned_vs_steered")
    expected |= {f"{kind}_quick_{pair}.html" for kind in ("pca_comparison", "cross_similarity") for pair in pairs}
    assert kinds == expected | {"pca_nway_quick.html", "pca_nway_quick_own_mean.html"}
    page = (images / "pca_quick_base.html").read_text()
    assert "layer 3" in page and "8 personas" in page and "3 questions" in page


def test_numbers_stand_beside_their_controls(finished):
    results = json.loads((finished[0] / "images" / "quick" / "results.json").read_text())
    assert set(results["models"]) == {"base", "tuned", "steered"} and len(results["pairs"]) == 3
    for one in results["models"].values():
        assert {"cosine", "counted_alike", "as_one", "held_out", "end", "random"} <= set(one)
        assert 0 < one["cosine"]["p"] <= 1
    assert {"cosine", "nearest", "axis_cosine", "unmapped"} <= set(results["pairs"][0])


def test_the_base_is_what_the_library_reads(finished, tiny_persona):
    folder, _ = finished
    responses = load_responses(folder / "data" / "responses" / "quick_base.json")
    people = load_personas(tiny_persona)
    assert len(responses) == len(PEOPLE) * 3
    extractor = ActivationExtractor(PersonaVectorConfig(tiny_persona, prompt_format="raw"))
    personas = {name: people.personas[name] for name in PEOPLE}
    expected = extract_persona_vectors(extractor, personas, people.questions[:3], responses)
    found = load_persona_vectors(folder / "data" / "persona_vectors" / "quick_base_layer3.pt")
    for name in PEOPLE:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_variants_differ_and_steering_is_seen_after_its_layer(finished):
    folder, _ = finished
    base, tuned, steered = (
        load_persona_vectors(folder / "data" / "persona_vectors" / f"quick_{name}_layer3.pt")
        for name in ("base", "tuned", "steered")
    )
    added = 1.5 * torch.load(folder / "added.pt")[2]
    shift = torch.stack([steered[name] - base[name] for name in PEOPLE])
    assert float(torch.cosine_similarity(shift, added[None]).min()) > 0.5
    assert not torch.allclose(base["bard"], tuned["bard"], atol=1e-2)


def test_what_is_finished_is_not_read_again(finished, monkeypatch, capsys):
    folder, given = finished
    monkeypatch.setattr(model_variants, "_read", lambda *_: pytest.fail("a model was read again"))
    monkeypatch.setattr("eval.variant_answers.generate_responses", lambda *_, **__: pytest.fail("sampled again"))
    monkeypatch.setattr("eval.variant_figures.draw", lambda *_: [])
    vectors = folder / "data" / "persona_vectors" / "quick_base_layer3.pt"
    before = vectors.stat().st_mtime_ns
    assert cli.run(experiment("001"), given) == 0
    assert capsys.readouterr().out.count("was read before") == 3 and vectors.stat().st_mtime_ns == before


def test_another_coefficient_is_read_anew_and_only_there(finished, monkeypatch):
    folder, given = finished
    read = []

    def note(_, variant, *__):
        read.append(variant.name)
        raise ValueError("far enough")

    monkeypatch.setattr(model_variants, "_read", note)
    changed = ["2.5" if one == "1.5" else one for one in given]
    assert cli.run(experiment("001"), changed) == 2 and read == ["steered"]


def test_figures_are_drawn_again_from_saved_vectors(finished, tmp_path, capsys):
    folder, _ = finished
    where = ["--data_dir", str(folder / "data"), "--images_dir", str(tmp_path)]
    assert cli.run(experiment("002"), ["--name", "quick", *where]) == 0
    first = json.loads((folder / "images" / "quick" / "results.json").read_text())
    again = json.loads((tmp_path / "quick" / "results.json").read_text())
    assert again == first
    assert "17 figures" in capsys.readouterr().out
    one = folder / "data" / "persona_vectors" / "quick_base_layer3.pt"
    assert cli.run(experiment("002"), ["--name", "alone", "--vectors", f"only={one}", *where]) == 0
    assert len(list((tmp_path / "alone").glob("*.html"))) == 3


def test_the_list_of_files_has_a_name_of_its_own(finished):
    folder = finished[0] / "data" / "persona_vectors"
    assert set(json.loads((folder / "quick_files.json").read_text())) == {"base", "tuned", "steered"}
    assert is_as_recorded(folder / "quick_files.json") and not (folder / "quick.json").exists()


def test_the_vectors_give_an_axis(finished):
    vectors = load_persona_vectors(finished[0] / "data" / "persona_vectors" / "quick_base_layer3.pt")
    assert np.isfinite(float(assistant_axis(vectors, ["default", "default_llm"]).norm()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--models", "base"], "expected name=path"),
        (["--models", "base=x", "base=y"], "base twice"),
        (["--models", "base=./nowhere"], "nowhere does not exist"),
        (["--responses_from", "other"], "--responses_from other is none of the models base"),
        (["--steered", "base"], "give both or neither"),
        (["--models", "base=x", "RL-Zero=y", "rl_zero=z"], "RL-Zero and rl_zero are both rl_zero in file names"),
        (["--personas", "default", "nobody"], "--personas nobody"),
        (["--personas", "default", "default_llm", "ghost", "bard"], "2 personas besides the assistant's (ghost, bard)"),
        (["--personas", "rebel", "cynic", "ghost", "bard"], "no assistant persona among rebel, cynic"),
        (["--n_questions", "0"], "--n_questions 0"),
        (["--layer", "9"], "layer 9"),
    ],
)
def test_errors_are_one_line_and_come_first(changed, message, tiny_persona, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("eval.variant_answers.generate_responses", lambda *_, **__: pytest.fail("sampled"))
    given = {"--models": [f"base={tiny_persona}"], "--responses_from": ["base"], changed[0]: changed[1:]}
    tokens = [token for flag, values in given.items() for token in (flag, *values)]
    code = cli.run(experiment("001"), [*tokens, "--data_dir", str(tmp_path), "--images_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1


def test_an_interrupted_reading_is_never_mixed_with_another(tiny_persona, tmp_path, monkeypatch):
    people = chosen_people(tiny_persona, PEOPLE[:5], 2)
    variant = make_variant("base", PersonaVectorConfig(tiny_persona, prompt_format="raw"))
    first, second = (
        {(name, q): text for name in people.personas for q in people.questions} for text in ("Aye.", "No.")
    )
    path, _ = read_variant(variant, people, first, tmp_path, "x")

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_variants, "save_persona_vectors", killed)
        read_variant(variant, people, second, tmp_path, "x")
    with pytest.raises(ValueError, match="not of the reading that x_base_layer3.pt is of"):
        load_by_question(path)
    assert read_variant(variant, people, first, tmp_path, "x")[1], "read again"
    by_question, vectors = load_by_question(path), load_persona_vectors(path)
    assert by_question is not None and all(torch.allclose(by_question[n].mean(0), vectors[n]) for n in vectors)
    assert not read_variant(variant, people, first, tmp_path, "x")[1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("persona_vectors.persona_files.write_sidecar", killed)
        save_persona_vectors({name: -vector for name, vector in vectors.items()}, path)
    assert read_variant(variant, people, first, tmp_path, "x")[1]
    assert torch.equal(load_persona_vectors(path)["bard"], vectors["bard"])


def test_answers_that_were_changed_or_are_blank(tiny_persona, tmp_path, monkeypatch):
    people = chosen_people(tiny_persona, PEOPLE[:5], 2)
    asked, path = PersonaVectorConfig(tiny_persona, max_tokens=4), tmp_path / "x_base.json"
    places = [(name, question) for name in people.personas for question in people.questions]
    monkeypatch.setattr("eval.variant_answers.generate_responses", lambda *_, **__: dict.fromkeys(places, "Aye."))
    found = answers_of(asked, people, path)
    path.write_text(path.read_text().replace("Aye.", "No."))
    assert answers_of(asked, people, path) == found and is_as_recorded(path)
    said = {**dict.fromkeys(places, "Aye."), places[-1]: " "}
    monkeypatch.setattr("eval.variant_answers.generate_responses", lambda *_, **__: said)
    with pytest.raises(
        ValueError, match=r"said nothing to some of 2 questions \(cynic 1\); take a --seed other than 1"
    ):
        answers_of(asked, people, path, seed=1)


def test_figures_of_what_has_not_run(tmp_path, capsys):
    assert cli.run(experiment("002"), ["--name", "never", "--data_dir", str(tmp_path)]) == 2
    assert "run experiments/001_olmo3_variants.py --name never" in capsys.readouterr().err
