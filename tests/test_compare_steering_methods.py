"""Two ways of steering side by side: exact on small models, and the command on tiny-persona with a random direction."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import compare_steering_methods
from eval import compare_latency
from eval.capability_probe import probe_accuracy
from eval.compare_behavior import Behavior, Run, _run
from eval.compare_capability import capability_at, capability_lines
from eval.compare_files import LATENCY, earlier_table, remove_stale
from eval.compare_frontier import agreement, clearest, find_frontier, next_sample
from eval.compare_latency import VARIANTS, latency_table, measure_latency
from eval.compare_settings import ACTIVATION, WEIGHTS, Asked, check
from eval.compare_spaces import analyze_space_relationship, random_cosine, space_lines
from eval.compare_steps import Comparison, control_lines, latency_lines, unfinished
from eval.eval_persona import eval_batched
from eval.finished_answers import Engine
from eval.model_utils import Steering, WeightSteering
from eval.questions import load_persona_questions
from eval.sweep import Setting
from eval.sweep_answers import Answered
from lora_utils import LoRAMerger
from persona_vectors import cli, models
from persona_vectors.files import read_sidecar
from persona_vectors.sampling import sample_answers
from persona_vectors.statistics import random_directions
from persona_vectors.store import Store
from persona_vectors.tokens import TokenizedSample
from persona_vectors.vectors import write_vectors
from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_files import save_adapter
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

WIDTH, INNER, LAYERS = 256, 512, 4  # of tiny-persona
PROMPTS = ["<|im_start|>user\nwhat do you think about the moon<|im_end|>\n<|im_start|>assistant\n", "hello"]


def random_direction(d_in: int, d_out: int, layers: int, scale: float, module: str = "mlp.down_proj"):
    generator = torch.Generator().manual_seed(3)
    return WeightDirection(
        {
            f"model.layers.{i}.{module}": LowRank(
                scale * torch.randn(2, d_in, generator=generator), torch.randn(d_out, 2, generator=generator)
            )
            for i in range(layers)
        },
        base="models/tiny-persona",
    )


SMALL = random_direction(48, D_MODEL, N_LAYERS, 0.3)
TINY = random_direction(INNER, WIDTH, LAYERS, 0.01)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a vector file and an adapter of tiny-persona, both random."""
    folder = tmp_path_factory.mktemp("files")
    write_vectors(folder / "v.pt", random_directions(LAYERS + 1, WIDTH, 150.0, 1), {})
    save_adapter(TINY, folder / "diff")
    return folder


def given_for(files: Path, tiny_persona: str) -> dict[str, Any]:
    return {
        **{"model": tiny_persona, "judge_model": tiny_persona, "trait": "humorous"},
        **{"activation_vector_path": files / "v.pt", "lora_diff_path": files / "diff", "layer": 3},
        **{"coefficients": [0, 1], "n_per_question": 1, "n_random": 1, "max_tokens": 12, "output_dir": files / "out"},
    }


def arguments(files: Path, tiny_persona: str, **changed: Any) -> list[str]:
    given = given_for(files, tiny_persona) | changed
    tokens: list[str] = []
    for name, value in given.items():
        tokens += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return tokens


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(files, tiny_persona, tmp_path_factory) -> Path:
    """The folder of a finished comparison with everything but the facts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_STORE", str(tmp_path_factory.mktemp("store") / "store.sqlite"))
        patch.setattr(compare_latency, "ROUNDS", 2)
        patch.setattr(compare_latency, "NEW_TOKENS", 3)
        given = arguments(files, tiny_persona, lora_coefficients=[0, 2], min_coherence=0)
        assert cli.run(compare_steering_methods.main, [*given, "--test_latency", "--analyze_spaces"]) == 0
    return files / "out"


def test_every_file_is_there_with_its_sidecar(done):
    names = {path.name for path in done.iterdir()}
    tables = {"activation_coef_0.csv", "activation_coef_1.csv", "lora_coef_0.csv", "lora_coef_2.csv"}
    written = tables | {"comparison_results.csv", "comparison_plot.png", "latency_comparison.csv", "report.html"}
    written |= {"space_analysis.json", "space_analysis.png"}
    assert names == written | {f"{name}.json" for name in written}
    for name in ("comparison_plot.png", "space_analysis.png"):
        with Image.open(done / name) as image:
            assert image.width > 800 and len(set(image.convert("L").resize((60, 20)).tobytes())) > 5


def test_the_table_is_the_response_tables_means_and_the_unsteered_one_is_both_methods(done):
    table: Any = pd.read_csv(done / "comparison_results.csv", keep_default_na=False)
    rows = [(row.method, row.control, row.coef) for row in table.itertuples()]
    assert rows == [
        *((ACTIVATION, "", 0), (ACTIVATION, "", 1), (ACTIVATION, "random1", 1)),
        *((WEIGHTS, "", 0), (WEIGHTS, "", 2), (WEIGHTS, "random1", 2)),
    ]
    assert (done / "activation_coef_0.csv").read_bytes() == (done / "lora_coef_0.csv").read_bytes()
    for row in table.itertuples():
        if not row.control:
            own = pd.read_csv(done / f"{row.method}_coef_{row.coef:g}.csv")
            assert list(own.columns) == ["question", "prompt", "answer", "question_id", "humorous", "coherence"]
            assert row.humorous_mean == pytest.approx(own["humorous"].mean())
            assert row.answer_words_mean == pytest.approx(own["answer"].str.split().str.len().mean())
            assert row.n_total == len(own) and row.n_scored == own["humorous"].notna().sum()
            assert row.humorous_low <= row.humorous_mean <= row.humorous_high
    found = read_sidecar(done / "comparison_results.csv")["frontier"]
    own = pd.read_csv(done / "lora_coef_2.csv")["humorous"] - pd.read_csv(done / "activation_coef_1.csv")["humorous"]
    assert found["difference"]["mean"] == pytest.approx(own.mean())


def test_answers_are_those_of_the_vector_alone_and_of_the_merged_weights(done, files, tiny_persona, tmp_path):
    questions = load_persona_questions("humorous", 0.0, judge_model=tiny_persona, version="eval", model=tiny_persona)
    vector = random_directions(LAYERS + 1, WIDTH, 150.0, 1)[3]
    engine = Engine(tiny_persona)
    with Store(tmp_path / "other.sqlite") as store:
        steering = Steering(vector, 3, 1.0)
        alone = eval_batched(
            questions, engine, store, n_per_question=1, max_tokens=12, steering=steering, progress=False
        )
    compared = pd.read_csv(done / "activation_coef_1.csv", keep_default_na=False)
    assert sum(alone["answer"] == compared["answer"]) >= 19, "but for the rounding of two tokens that are that close"
    steered = pd.read_csv(done / "lora_coef_2.csv", keep_default_na=False)
    with LoRAMerger(engine.model) as merger:
        merger.merge_lora_diff(files / "diff", 2.0)
        prompts = steered["prompt"].tolist()
        streams = [(0, row) for row in range(len(prompts))]
        merged = sample_answers(
            engine.model, engine.tokenizer, prompts, max_tokens=12, temperature=0.0, streams=streams
        )
    assert sum(a == b for a, b in zip(merged, steered["answer"], strict=True)) >= 19
    unsteered = pd.read_csv(done / "lora_coef_0.csv", keep_default_na=False)
    assert sum(unsteered["answer"] != steered["answer"]) >= 5, "the direction does something"


def test_the_page_holds_table_figures_and_answers(done):
    page = (done / "report.html").read_text()
    for text in ("lora random1", "<svg", "lora dynamic", "cosine with v", "lora, coef 2", "unsteered"):
        assert text in page
    assert "the random directions have D&#39;s norm in the weights; in the activations, at coef 2" in page
    assert "they move the responses&#39; mean activation by" in page and "of the same norm;" not in page
    for name in ("cosine with v", "projection on v/|v|", "norm of the change", "over hidden norm"):
        assert f">{name}</th>" in page and f">{name}, random directions</th>" in page
    last = json.loads((done / "space_analysis.json").read_text())["layers"][-1]
    assert f">{last['norm']:.3f}<" in page and f">{last['random_like'][0]['norm']:.3f}<" in page
    answers = pd.read_csv(done / "lora_coef_2.csv")["answer"]
    assert ">words an answer</th>" in page and f">{answers.str.split().str.len().mean():.0f}</td>" in page
    answer = pd.read_csv(done / "lora_coef_2.csv")["answer"].iloc[0]
    assert answer.split()[0] in page


def test_the_same_command_again_keeps_the_latency_that_was_measured(
    done, files, tiny_persona, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(compare_latency, "measure_latency", None)  # measuring again would fail
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in folder.glob("latency*")}
    given = arguments(files, tiny_persona, lora_coefficients=[0, 2], min_coherence=0, output_dir=folder)
    assert cli.run(compare_steering_methods.main, [*given, "--test_latency"]) == 0
    said = capsys.readouterr().out
    assert f"{folder / LATENCY} is of an earlier run with these settings; --overwrite measures anew" in said
    assert "time of a generated token over the unsteered model's" in said
    assert {path.name: path.read_bytes() for path in folder.glob("latency*")} == before

    record = read_sidecar(folder / LATENCY)["settings"]

    def earlier(overwrite: bool = False, **changed: Any) -> Any:
        own: Any = SimpleNamespace(record={"settings": record | changed})
        own.asked = SimpleNamespace(folder=folder, overwrite=overwrite)
        return earlier_table(LATENCY, own)

    assert earlier()["variant"].tolist() == list(VARIANTS)
    assert earlier(overwrite=True) is None and earlier(dtype="bfloat16") is None
    (folder / LATENCY).write_text((folder / LATENCY).read_text() + "\n")
    assert earlier() is None, "not as it was measured"


def test_other_settings_are_refused_beside_a_finished_comparison(done, files, tiny_persona, capsys):
    assert (
        cli.run(compare_steering_methods.main, arguments(files, tiny_persona, coefficients=[0, 1.5], output_dir=done))
        == 2
    )
    error = capsys.readouterr().err
    assert "coefficients" in error and "--overwrite" in error and error.count("\n") == 1
    assert "comparison with other coefficients, lora_coefficients; pass" in error, "not that the content differs too"


def test_the_same_arguments_with_other_files_behind_them_say_which(done, files, tiny_persona, tmp_path, capsys):
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    path = folder / "comparison_results.csv.json"
    record = json.loads(path.read_text())
    record["settings"]["content"] = "of other files"
    record["direction"]["direction"] = "another"
    record["questions"] = "others"
    path.write_text(json.dumps(record))
    given = arguments(files, tiny_persona, lora_coefficients=[0, 2], min_coherence=0, output_dir=folder)
    assert cli.run(compare_steering_methods.main, given) == 2
    assert "holds a comparison with other questions of the trait, direction files; pass" in capsys.readouterr().err


def test_other_settings_take_the_earlier_comparisons_files_away_and_no_one_elses(done, files, tiny_persona, tmp_path):
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    (folder / "lora_coef_9.csv").write_text("a table of mine")
    changed = folder / "lora_coef_2.csv"
    changed.write_text(changed.read_text() + "a row of mine\n")
    here = {path.name for path in folder.iterdir()}
    given = {"coefficients": [0, 1], "lora_coefficients": [0, 2], "min_coherence": 0, "output_dir": folder}

    def asked(**more: Any) -> Any:
        defaults = inspect.signature(compare_steering_methods.main).parameters.items()
        own = {name: one.default for name, one in defaults} | given_for(files, tiny_persona) | given | more
        return check(Asked(**{name: str(value) if isinstance(value, Path) else value for name, value in own.items()}))

    assert remove_stale(asked()) == [] and {path.name for path in folder.iterdir()} == here
    said = remove_stale(asked(coefficients=[0, 1.5], overwrite=True))
    gone = {"activation_coef_0.csv", "activation_coef_1.csv", "lora_coef_0.csv", "latency_comparison.csv"}
    gone |= {"space_analysis.json", "space_analysis.png"}
    assert here - {path.name for path in folder.iterdir()} == gone | {f"{name}.json" for name in gone}
    assert sorted(line.split(",")[0].removeprefix("removed ") for line in said if line.startswith("removed")) == sorted(
        str(folder / name) for name in gone
    )
    assert [line for line in said if line.startswith("note")] == [
        f"note: {changed} is of a comparison with other settings, and was changed since: it stays"
    ]


def test_a_second_comparison_leaves_its_own_tables_alone_in_the_folder(done, files, tiny_persona, tmp_path, capsys):
    """With --overwrite, sampled anew: the first one's coefficients and measurements are not taken for the second's."""
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    more = {"coefficients": [1], "lora_coefficients": [2], "min_coherence": 0, "max_tokens": 2, "output_dir": folder}
    assert cli.run(compare_steering_methods.main, [*arguments(files, tiny_persona, **more), "--overwrite"]) == 0
    tables = {path.name for path in folder.glob("*.csv")}
    assert tables == {"activation_coef_1.csv", "lora_coef_2.csv", "comparison_results.csv"}
    assert not list(folder.glob("space_analysis*"))
    said = capsys.readouterr().out
    assert f"removed {folder / 'activation_coef_0.csv'}, of an earlier" in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coefficients": ["nan"]}, "--coefficients"),
        ({"coefficients": [1, 1]}, "twice"),
        ({"lora_coefficients": [0]}, "--lora_coefficients has no coefficient other than 0"),
        ({"n_random": 0}, "--n_random must be at least 1"),
        ({"min_coherence": 120}, "between 0 and 100"),
        ({"n_per_question": 0}, "at least 1"),
        ({"layer": 9}, "layer"),
        ({"activation_vector_path": "nothing.pt"}, "nothing.pt"),
        ({"lora_diff_path": "nothing"}, "nothing does not exist"),
        ({"lora_diff_path": "zero"}, "zero everywhere"),
        ({"lora_diff_path": "narrow"}, "maps 512 to 256 features"),
        ({"lora_diff_path": "deep"}, "4 of 6 modules"),
        ({"trait": "nosuch"}, "nosuch"),
        ({"judge_model": "gpt-4.1-mini"}, "OPENAI_API_KEY"),
        ({"engine": "vllm"}, "--engine vllm: vLLM is not installed"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    changed, said, files, tiny_persona, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(models, "load_model", lambda *_args, **_options: pytest.fail("a model was loaded"))
    monkeypatch.setattr("eval.finished_answers.load_model", models.load_model)
    made = {"narrow": random_direction(100, WIDTH, LAYERS, 1.0), "deep": random_direction(INNER, WIDTH, 6, 1.0)}
    made["zero"] = WeightDirection({n: own.times(0.0) for n, own in TINY.modules.items()}, TINY.base)
    own = dict(changed)
    if own.get("lora_diff_path") in made:
        own["lora_diff_path"] = save_adapter(made[own["lora_diff_path"]], tmp_path / "adapter")
    given = arguments(files, tiny_persona, **{"output_dir": tmp_path / "out", **own})
    assert cli.run(compare_steering_methods.main, given) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_published_functions_are_found_by_name():
    assert compare_steering_methods.measure_latency is measure_latency
    assert compare_steering_methods.analyze_space_relationship is analyze_space_relationship
    with pytest.raises(AttributeError, match="nosuch"):
        compare_steering_methods.nosuch  # noqa: B018


def test_failed_judge_calls_are_to_be_run_again_and_a_silent_judge_is_an_error():
    def found(trait: float, failures: list[str]) -> Comparison:
        table = pd.DataFrame({"question": ["a", "b"], "evil": [trait, trait], "coherence": [90.0, 90.0]})
        base = _run(Answered(Setting(), table, failures), "", "evil")
        runs = [_run(base.answered, method, "evil") for method in (ACTIVATION, WEIGHTS)]
        checked: Any = SimpleNamespace(name="evil")
        return Comparison(checked, Behavior(base, runs, {}), find_frontier(runs, "evil", 75), [], [])

    assert unfinished(found(5.0, [])) == ""
    assert "1 of 4" in unfinished(found(5.0, ["timed out"])), "shared answers count once"
    with pytest.raises(ValueError, match="no evil score"):
        unfinished(found(np.nan, []))


# frontier and agreement ----------------------------------------------------------------------------------------------


def run(method: str, coef: float, trait: Any, coherence: float, control: str = "") -> Run:
    """A method's setting with these scores: two samples of each question."""
    questions = [f"q{row // 2}" for row in range(len(trait))]
    table = pd.DataFrame({"question": questions, "evil": trait, "coherence": [coherence] * len(trait)})
    return _run(Answered(Setting(coef, control=control), table, []), method, "evil")


LOW, MIDDLE = np.arange(20.0), 40.0 + np.arange(20.0)


def test_the_frontier_is_the_highest_coherent_trait_of_steered_settings_and_its_difference_is_paired():
    runs = [
        run(ACTIVATION, 0, MIDDLE + 40, 95),
        run(ACTIVATION, 1, MIDDLE, 80),
        run(ACTIVATION, 2, MIDDLE + 30, 70),
        run(ACTIVATION, 1, LOW, 80, "random1"),
        run(WEIGHTS, 1, MIDDLE + 5, 75),
        run(WEIGHTS, 2, MIDDLE + 9, 74.9),
    ]
    found = find_frontier(runs, "evil", 75)
    assert {method: own.coef for method, own in found.best.items()} == {ACTIVATION: 1, WEIGHTS: 1}
    assert found.random[ACTIVATION].trait.mean == LOW.mean() and WEIGHTS not in found.random
    assert found.difference is not None
    assert (found.difference.mean, found.difference.low, found.difference.high) == (5, 5, 5), "samples are paired"
    assert found.record()["lora_random"] is None
    alone = find_frontier(runs, "evil", 76)
    assert set(alone.best) == {ACTIVATION} and alone.difference is None


def test_how_hard_the_random_directions_push_is_said_in_the_activations():
    def receipt(control, change, coef=2.0):
        return {"control": control, "coef": coef, "relative_change": change}

    vector = {"control": "", "coef": 2.0, "expected": 9.0}
    own = [vector, receipt("", 0.9, coef=1.0), receipt("", 0.131)]
    weak = control_lines([*own, receipt("random1", 0.07), receipt("random2", 0.075)], 2.0)
    assert "at coef 2, they change the modules' outputs by 0.07 to 0.075 of their size, and D by 0.131" in weak[0]
    assert weak[0].endswith("their score is no control of an equal push")
    equal = control_lines([*own, receipt("random1", 0.13)], 2.0)
    assert "by 0.13 of" in equal[0] and "push less" not in equal[0]
    assert control_lines([vector], 2.0) == [] == control_lines(own, 2.0)


def test_agreement_is_of_settings_with_like_means_beside_another_sample_and_the_next_coefficient():
    noise = np.random.default_rng(0).permutation(20)
    runs = [
        *(run(ACTIVATION, 1, LOW, 90), run(ACTIVATION, 2, MIDDLE, 90)),
        *(run(WEIGHTS, 0.5, 2 * MIDDLE[noise] + 80, 90), run(WEIGHTS, 1, MIDDLE * 1.01, 90)),
    ]
    matched, beside = agreement(runs, "evil")
    assert [(one.one.coef, one.other.coef) for one in matched] == [(2, 1)], "160 points on average has no like"
    one = clearest(matched)
    assert one is not None and one.correlation is not None and one.shifted is not None
    assert one.correlation.pearson.value == pytest.approx(1.0)
    swapped = MIDDLE.reshape(-1, 2)[:, ::-1].ravel()
    assert one.shifted.pearson.value == pytest.approx(np.corrcoef(MIDDLE, swapped)[0, 1])
    assert [(pair.one.method, pair.one.coef, pair.other.coef) for pair in beside] == [
        (ACTIVATION, 1, 2),
        (WEIGHTS, 0.5, 1),
    ]
    assert clearest(agreement([run(ACTIVATION, 1, [5.0] * 6, 90), run(WEIGHTS, 1, [5.0] * 6, 90)], "evil")[0]) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_the_next_sample_is_another_row_of_the_same_question_each_once(questions):
    order = next_sample([str(one) for one in questions])
    assert sorted(order) == list(range(len(questions)))
    for row, other in enumerate(order):
        assert questions[row] == questions[other]
        assert (row == other) == (questions.count(questions[row]) == 1)


# spaces --------------------------------------------------------------------------------------------------------------


def token_samples(n: int) -> list[TokenizedSample]:
    ids = torch.randint(6, 60, (n, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return [TokenizedSample(tuple(one), 4) for one in ids]


def test_a_bias_at_the_last_block_moves_its_layer_by_exactly_itself_and_no_other():
    model = tiny_model("llama")
    bias = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2))
    nothing = LowRank(torch.zeros(0, 48), torch.zeros(D_MODEL, 0), bias)
    direction = WeightDirection({f"model.layers.{N_LAYERS - 1}.mlp.down_proj": nothing})
    vectors = torch.stack([bias] * N_LAYERS + [-2 * bias])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples = token_samples(6)
    found = analyze_space_relationship(model, samples, ["a", "b"] * 3, direction, vectors, 1.5, n_random=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [one.cosine for one in found.changes[:-1]] == [None] * N_LAYERS, "nothing below the block changes"
    last = found.changes[-1]
    assert last.cosine == pytest.approx(-1.0, abs=1e-5)
    assert last.projection.mean == pytest.approx(-1.5 * float(bias.norm()), rel=1e-4)
    assert last.norm == pytest.approx(1.5 * float(bias.norm()), rel=1e-4)
    other = found.random[0][-1]
    assert other.norm == pytest.approx(last.norm, rel=1e-4) and abs(other.cosine or 1) < 0.9
    assert json.loads(json.dumps(found.record()))["layers"][-1]["vector_norm"] == pytest.approx(2 * float(bias.norm()))
    assert f"-1.00 at layer {N_LAYERS}" in space_lines(found)[0]


def test_vectors_of_another_width_are_never_multiplied():
    with pytest.raises(ValueError, match=r"shape \(4, 7\)"):
        analyze_space_relationship(tiny_model("llama"), token_samples(3), list("abc"), SMALL, torch.ones(4, 7))


@pytest.mark.parametrize("d", [2, 32, 256])
def test_the_band_holds_95_of_100_random_vectors(d):
    cosines = random_directions(4000, d, 1.0, 0)[:, 0].abs()
    assert float((cosines <= random_cosine(d)).float().mean()) == pytest.approx(0.95, abs=0.012)


# latency and capability ----------------------------------------------------------------------------------------------


def test_latency_has_every_way_in_every_round_and_leaves_the_model_as_it_was():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steering = Steering(torch.ones(D_MODEL), 2, 1.0)
    found = measure_latency(model, tokenizer, PROMPTS, steering, SMALL, new_tokens=3, rounds=4)
    assert [one.variant for one in found] == list(VARIANTS)
    assert found[0].ratios == [1.0] * 4 and all(len(one.seconds) == 4 and min(one.seconds) > 0 for one in found)
    for one in found:
        assert one.ratios == [own / base for own, base in zip(one.seconds, found[0].seconds, strict=True)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert [one.peak_mib for one in found] == [None] * 4, "a process on a CPU keeps what it once had"
    table: Any = latency_table(found, 2, 3, "cpu")
    assert not any("memory" in line for line in latency_lines(table))
    assert "peak CUDA memory: baseline 5 MiB" in latency_lines(table.assign(peak_memory_mib=5.0))[-1]
    assert (table["seconds_per_token_q25"] <= table["seconds_per_token_q75"]).all()
    with pytest.raises(ValueError, match="do not fit"):
        measure_latency(model, tokenizer, PROMPTS, steering, SMALL, new_tokens=500, rounds=1)


def test_capability_is_the_probe_of_the_merged_model_and_its_difference_is_paired(tiny_persona):
    model, tokenizer = models.load_model(tiny_persona)
    steered = Setting(4.0, steering=WeightSteering(TINY, 4.0))
    table = pd.DataFrame({"question": ["a", "b"], "evil": [1.0, 2.0], "coherence": [90.0, 90.0]})
    found = capability_at(model, tokenizer, [_run(Answered(steered, table, []), WEIGHTS, "evil")])
    with LoRAMerger(model) as merger:
        merger.merge_lora_diff(TINY, 4.0)
        right = [one.right for one in probe_accuracy(model, tokenizer)]
    assert found["accuracy"].iloc[1] == pytest.approx(np.mean(right))
    assert found["difference"].iloc[1] == pytest.approx(found["accuracy"].iloc[1] - found["accuracy"].iloc[0])
    assert found["accuracy"].iloc[0] > 0.5 and found["n"].tolist() == [136, 136]
    assert found["method"].tolist() == ["unsteered", WEIGHTS] and found["trait"].iloc[1] == 1.5
    first, second, last = capability_lines(found)
    assert first.startswith("facts, unsteered: ") and second.startswith("facts, lora, coef 4 (trait 1.5): ")
    assert last.endswith("compare facts lost at equal trait")
