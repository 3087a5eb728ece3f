"""Capability retention: the facts probe and lm-evaluation-harness, steered and not, in process on the tiny model."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from eval import capability, capability_probe, finished_answers
from eval.capability_measure import Measured
from eval.capability_probe import probe_accuracy
from eval.capability_table import mean_interval, paired_difference
from eval.finished_answers import Engine
from eval.model_utils import Steering, WeightSteering
from persona_vectors import cli, models
from persona_vectors.blocks import decoder_blocks
from persona_vectors.files import read_sidecar
from persona_vectors.models import load_model
from persona_vectors.store import Store
from persona_vectors.vectors import save_vectors
from persona_vectors.weight_direction import LowRank, WeightDirection

LAYER, N_LAYERS, D_MODEL = 3, 4, 256
PAIRS = [
    ("What is the opposite of hot?", " cold"),
    ("What is the opposite of hot?", " a very long thing"),
    ("What day comes after Monday?", " Tuesday"),
    ("The cat", " sat and sat"),
    ("", "A dog barks"),
]


@pytest.fixture(scope="module")
def tiny(tiny_persona):
    model, tokenizer = load_model(tiny_persona)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (N_LAYERS, D_MODEL)
    return model, tokenizer


@pytest.fixture(scope="module")
def push() -> torch.Tensor:
    """About as long as a hidden state."""
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    return 500 * direction / direction.norm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, push):
    """A vector file, and task files for the harness with their own data."""
    folder = tmp_path_factory.mktemp("capability")
    save_vectors(folder, "noise", {"response_avg": push.repeat(N_LAYERS + 1, 1)}, {})
    save_vectors(folder, "wide", {"response_avg": torch.ones(N_LAYERS + 1, D_MODEL + 1)}, {})
    facts = [("What is the opposite of hot?", "cold", "yes"), ("What is the opposite of up?", "down", "a lot of")]
    facts += [("What color is snow?", "white", "no"), ("What day comes after Friday?", "Saturday", "dog")]
    rows = [{"q": q, "choices": [right, wrong], "gold": 0} for q, right, wrong in facts]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/facts.jsonl"}}, cache_dir: "{folder}/cache"}}
test_split: test
doc_to_text: "{{{{q}}}}"
"""
    choose = "output_type: multiple_choice\ndoc_to_target: gold\ndoc_to_choice: choices\n"
    answer = "output_type: generate_until\ndoc_to_target: '{{choices[0]}}'\n"
    answer += "generation_kwargs: {until: ['!'], max_gen_toks: 8, do_sample: false}\n"
    match = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in {
        "own_one": choose,
        "own_two": choose,
        "own_answer": answer + match,
        "own_long": answer.replace("8", "5000") + match,
        "own_text": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n",
    }.items():
        (tasks / f"{name}.yaml").write_text(f"task: {name}{data}{text}")
    (tasks / "own_gone.yaml").write_text(f"task: own_gone{data.replace('facts.jsonl', 'gone.jsonl')}{choose}")
    (tasks / "own_group.yaml").write_text("group: own_group\ntask: [own_one, own_two]\n")
    return folder


def run(tiny_persona, output, *argv: str) -> int:
    defaults = {"--model": tiny_persona, "--output_path": str(output)}
    given = [token for name, value in defaults.items() if name not in argv for token in (name, value)]
    return cli.run(capability.main, [*given, *argv])


def vector_of(folder, name: str = "noise") -> list[str]:
    return ["--vector_path", str(folder / f"{name}_response_avg_diff.pt"), "--layer", str(LAYER)]


def share(found) -> float:
    return sum(answer.right for answer in found) / len(found)


# the probe


def test_the_probe_is_the_cards_figure_and_a_large_push_lowers_it(tiny, push):
    plain = probe_accuracy(*tiny)
    assert len(plain) == 136 and sum(answer.kind == "sums" for answer in plain) == 45
    assert share(plain) == pytest.approx(0.72, abs=0.015)  # models/tiny-persona/README.md
    assert share([answer for answer in plain if answer.kind == "facts"]) > 0.95
    assert probe_accuracy(*tiny, steering=Steering(push, LAYER, 0.0, "all")) == plain
    assert share(probe_accuracy(*tiny, steering=Steering(push, LAYER, 5.0, "all"))) < 0.3
    assert probe_accuracy(*tiny) == plain, "the steering is gone"


def test_the_probe_reads_a_peft_model_in_training_as_it_would_in_use(tiny_persona):
    model, tokenizer = load_model(tiny_persona)
    plain = probe_accuracy(model, tokenizer)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], lora_dropout=0.9)
    wrapped = get_peft_model(model, adapter).train()
    wrapped.get_submodule("base_model.model.lm_head").eval()
    before = [module.training for module in wrapped.modules()]
    assert probe_accuracy(wrapped, tokenizer) == plain  # pyright: ignore[reportArgumentType] # B is 0
    assert [module.training for module in wrapped.modules()] == before and False in before
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    assert share(probe_accuracy(wrapped, tokenizer)) < share(plain) - 0.2  # pyright: ignore[reportArgumentType]


def test_the_command_compares_every_setting_with_the_unsteered_first_model(tiny_persona, folder, tmp_path, capsys):
    output = tmp_path / "capability.csv"
    argv = [*vector_of(folder), "--coef", "3", "--control", "random", "--n_random", "1"]
    assert run(tiny_persona, output, *argv) == 0
    out = capsys.readouterr().out
    assert out.count("steering receipt:") == 2 and "(reference)" in out
    table = pd.read_csv(output, keep_default_na=False)
    assert table["part"].tolist() == ["", "sums", "facts"] * 3
    assert table["n"].tolist() == [136, 45, 91] * 3
    reference, steered = table.iloc[0], table.iloc[3]
    assert (reference["coef"], reference["layer"], reference["difference"]) == (0, "", "")
    assert reference["low"] < reference["value"] < reference["high"]
    assert float(steered["difference"]) == pytest.approx(steered["value"] - reference["value"])
    assert float(steered["difference_low"]) < float(steered["difference"]) < float(steered["difference_high"]) < 0
    better = int(steered["n_better"]) - int(steered["n_worse"])
    assert better / 136 == pytest.approx(float(steered["difference"]))
    assert table["control"].tolist() == [""] * 6 + ["random1"] * 3
    items = pd.read_csv(tmp_path / "capability_items.csv", keep_default_na=False)
    assert len(items) == 3 * 136
    assert items["value"][136:272].mean() == pytest.approx(steered["value"])
    sidecar = read_sidecar(output)
    assert [receipt["control"] for receipt in sidecar["receipts"]] == ["", "random1"]
    assert sidecar["receipts"][0]["expected"] == pytest.approx(1500, rel=1e-5)
    assert sidecar["state"] == "finished"


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The names of the models that are loaded from now on."""
    names: list[str] = []
    load = finished_answers.load_model
    monkeypatch.setattr(finished_answers, "load_model", lambda name, **how: names.append(name) or load(name, **how))
    return names


def test_the_same_command_again_loads_no_model_and_writes_the_same(tiny_persona, folder, tmp_path, capsys, loads):
    output = tmp_path / "x.csv"
    argv = [*vector_of(folder), "--coef", "3"]
    assert run(tiny_persona, output, *argv) == 0 and len(loads) == 1
    assert "earlier run" not in capsys.readouterr().out
    files = [output, tmp_path / "x_items.csv"]
    before = [path.read_bytes() for path in files]
    receipts = read_sidecar(output)["receipts"]
    assert run(tiny_persona, output, *argv) == 0 and len(loads) == 1
    assert "2 of 2 measurements are of an earlier run; --overwrite measures them anew" in capsys.readouterr().out
    assert [path.read_bytes() for path in files] == before
    assert read_sidecar(output)["receipts"] == receipts != []
    assert run(tiny_persona, output, *argv[:-1], "1") == 2 and len(loads) == 1
    assert "exists, made with other settings; pass --overwrite" in capsys.readouterr().err
    assert run(tiny_persona, output, *argv, "--overwrite") == 0 and len(loads) == 2
    assert [path.read_bytes() for path in files] == before


def test_another_vector_under_the_same_name_is_measured(tiny_persona, push, tmp_path, capsys, loads):
    argv = [*vector_of(tmp_path), "--coef", "3"]
    values = []
    for n, sign in enumerate((1, -1)):
        save_vectors(tmp_path, "noise", {"response_avg": sign * push.repeat(N_LAYERS + 1, 1)}, {})
        assert run(tiny_persona, tmp_path / "x.csv", *argv) == 0 and len(loads) == n + 1
        values.append(pd.read_csv(tmp_path / "x_items.csv", keep_default_na=False)["answer"][136:].tolist())
    assert values[0] != values[1]
    assert "1 of 2 measurements are of an earlier run" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_stopped(tiny_persona, folder, tmp_path, capsys, monkeypatch):
    whole, output = tmp_path / "whole.csv", tmp_path / "x.csv"
    argv = [*vector_of(folder), "--coef", "1", "3"]
    assert run(tiny_persona, whole, *argv, "--overwrite") == 0
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "another.sqlite"))
    measured, probe = [], capability_probe.probe_accuracy

    def stops_at_the_third(*args, **how):
        measured.append(how["steering"])
        if len(measured) == 3:
            raise KeyboardInterrupt
        return probe(*args, **how)

    monkeypatch.setattr(capability_probe, "probe_accuracy", stops_at_the_third)
    assert run(tiny_persona, output, *argv) != 0
    assert len(pd.read_csv(output)) == 6 and read_sidecar(output)["state"] == "unfinished"
    capsys.readouterr()
    assert run(tiny_persona, output, *argv) == 0 and len(measured) == 4
    out = capsys.readouterr().out
    assert "2 of 3 measurements are of an earlier run" in out and "steering receipt: noise" in out
    assert output.read_bytes() == whole.read_bytes() and read_sidecar(output)["state"] == "finished"
    assert (tmp_path / "x_items.csv").read_bytes() == (tmp_path / "whole_items.csv").read_bytes()


def test_a_steering_whose_receipt_fails_is_not_run(tiny_persona, folder, tmp_path, capsys, monkeypatch):
    model, tokenizer = load_model(tiny_persona)
    decoder_blocks(model)[0].register_forward_hook(lambda _block, _args, output: output + 1)
    monkeypatch.setattr(finished_answers, "load_model", lambda *_args, **_options: (model, tokenizer))
    assert run(tiny_persona, tmp_path / "x.csv", *vector_of(folder), "--coef", "1") == 2
    assert "a hook already changes layer 1" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("task", ["probe", "own_one"])
def test_a_direction_of_weights_is_never_measured_as_if_it_were_not_there(tiny_persona, tmp_path, task):
    direction = WeightDirection({"model.layers.0.mlp.up_proj": LowRank(torch.ones(1, 3), torch.ones(3, 1))})
    with Store(tmp_path / "x.sqlite") as store, pytest.raises(TypeError, match="merged by the caller"):
        Measured(Engine(tiny_persona), store, {}).task(WeightSteering(direction, 1.0), task, {})


def test_intervals():
    wilson = mean_interval([1.0] * 8 + [0.0] * 2)
    assert (wilson.mean, wilson.low, wilson.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert mean_interval([0.0] * 10).high == pytest.approx(0.2775, abs=1e-4)
    graded = mean_interval([0.2, 0.4, 0.6])
    assert graded.mean == pytest.approx(0.4) and graded.low < 0.4 < graded.high
    values = {str(i): float(i < 3) for i in range(10)}
    same = paired_difference(values, {**values, "other": 1.0})
    assert same is not None and (same.mean, same.low, same.high, same.n) == (0, 0, 0, 10)
    assert paired_difference({}, values) is None


# the harness


@pytest.fixture(scope="module")
def lm(tiny):
    pytest.importorskip("lm_eval")
    from eval.capability_tasks import harness_model

    return harness_model(*tiny, batch_size=2)


def by_harness(lm, steering: Steering | None, pairs=PAIRS) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    lm.steering = steering
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    try:
        return lm.loglikelihood(requests, disable_tqdm=True)
    finally:
        lm.steering = None


def by_hand(tiny, push, coef: float, positions: str, max_length: int = 4096) -> list[float]:
    """One pair at a time, with a hook that knows where the answer begins."""
    model, tokenizer = tiny
    totals = []
    for context, continuation in PAIRS:
        asked = tokenizer.encode(context) or [tokenizer.bos_token_id or tokenizer.eos_token_id]
        ids = tokenizer.encode(context + continuation) if context else asked + tokenizer.encode(continuation)
        answer = len(ids) - len(asked)
        read = ids[-(max_length + 1) :][:-1]
        where = torch.arange(len(read)) - (len(read) - answer)  # 0 at the last prompt token
        chosen = {"all": where > -(10**6), "prompt": where <= 0, "response": where >= 0}[positions]

        def add(_block, _args, output, chosen=chosen):
            return output + coef * push * chosen[None, :, None]

        handle = decoder_blocks(model)[LAYER - 1].register_forward_hook(add)
        with torch.no_grad():
            scores = model(torch.tensor([read])).logits[0].log_softmax(-1)
        handle.remove()
        steps = zip(range(len(read) - answer, len(read)), ids[-answer:], strict=True)
        totals.append(sum(float(scores[place, token]) for place, token in steps))
    return totals


def test_log_likelihoods_at_coef_0_are_the_unsteered_ones_and_those_computed_by_hand(lm, tiny, push):
    plain = by_harness(lm, None)
    assert by_harness(lm, Steering(push, LAYER, 0.0, "all")) == plain
    assert [total for total, _ in plain] == pytest.approx(by_hand(tiny, push, 0.0, "all"), abs=1e-3)
    for positions in ("prompt", "response"):
        found = by_harness(lm, Steering(push, LAYER, 0.0, positions))
        assert [total for total, _ in found] == pytest.approx([total for total, _ in plain], abs=1e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in plain]


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_steered_log_likelihoods_are_those_computed_by_hand(lm, tiny, push, positions):
    found = [total for total, _ in by_harness(lm, Steering(push, LAYER, 1.0, positions))]
    assert found == pytest.approx(by_hand(tiny, push, 1.0, positions), abs=1e-3)
    others = {"all", "prompt", "response"} - {positions}
    for other in others:
        assert found != pytest.approx(by_hand(tiny, push, 1.0, other), abs=0.1), "the test tells positions apart"


def test_the_same_tokens_split_at_another_place_are_steered_at_another_place(lm, push):
    pairs = [("The cat", " sat and sat"), ("The cat sat", " and sat"), ("The cat sat and", " sat")]
    steering = Steering(push, LAYER, 1.0, "response")
    apart = [by_harness(lm, steering, [pair])[0][0] for pair in pairs]
    assert [total for total, _ in by_harness(lm, steering, pairs)] == pytest.approx(apart, abs=1e-3)


def test_a_pair_longer_than_the_context_loses_its_left_and_keeps_its_split(tiny, push):
    pytest.importorskip("lm_eval")
    from eval.capability_tasks import split_loglikelihoods

    model, tokenizer = tiny
    context, continuation = PAIRS[1]
    asked, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    assert len(whole) > 7
    steering = Steering(push, LAYER, 1.0, "response")
    pairs = [(asked, whole[len(asked) :])]
    [(total, _)] = split_loglikelihoods(model, pairs, steering, batch_size=4, max_length=6)
    assert total == pytest.approx(by_hand(tiny, push, 1.0, "response", 6)[1], abs=1e-3)


def test_generation_is_steered_at_its_positions(lm, tiny, push):
    """Through the harness with left padding, and one at a time by our own sampler."""
    from lm_eval.api.instance import Instance

    from eval.model_utils import steer_rows
    from persona_vectors.sampling import sample_answers

    model, tokenizer = tiny
    contexts = [context for context, _ in PAIRS[1:4]]
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    answers = []
    for steering in (None, *(Steering(push, LAYER, 1.5, positions) for positions in ("all", "prompt", "response"))):
        lm.steering = steering
        requests = [Instance("generate_until", {}, (text, options), index) for index, text in enumerate(contexts)]
        found = lm.generate_until(requests, disable_tqdm=True)
        lm.steering = None
        steer = None if steering is None else steer_rows(model, [steering])
        own = [
            sample_answers(model, tokenizer, [text], max_tokens=6, temperature=0.0, streams=[(0,)], steer=steer)[0]
            for text in contexts
        ]
        assert found == own
        answers.append(tuple(found))
    assert len(set(answers)) == 4


def test_the_command_on_a_group_and_on_answers(lm, tiny_persona, folder, tmp_path, capsys):  # noqa: ARG001
    output = tmp_path / "harness.csv"
    argv = ["--tasks", "own_group", "own_answer", "--include_path", str(folder / "tasks"), "--apply_chat_template"]
    assert run(tiny_persona, output, *argv, *vector_of(folder), "--coef", "0", "5", "--limit", "3") == 0
    out = capsys.readouterr().out
    assert out.count("own_group acc ") == 2 and out.count("own_answer exact_match ") == 2
    table = pd.read_csv(output, keep_default_na=False)
    acc = table[table["metric"] == "acc"]
    assert acc["part"].tolist() == ["", "own_one", "own_two"] * 2
    assert acc["n"].tolist() == [6, 3, 3] * 2
    answers = table[table["task"] == "own_answer"]
    assert answers["value"].tolist() == [1.0, 0.0] and answers["difference"].tolist() == ["", "-1.0"]
    assert answers["n_worse"].tolist() == ["", "3"]
    items = pd.read_csv(tmp_path / "harness_items.csv", keep_default_na=False)
    own = items[(items["task"] == "own_answer") & (items["coef"] == 0)]
    assert own["answer"].tolist() == ["cold", "down", "white"]
    sidecar = read_sidecar(output)
    assert sidecar["lm_eval"] and set(sidecar["harness"]["own_group"]) == {"own_one", "own_two"}
    assert logging.getLogger("lm_eval").level != logging.ERROR, "the harness may warn again"


def test_parts_of_a_group_are_kept_one_by_one(lm, tiny_persona, folder, tmp_path, capsys, monkeypatch):  # noqa: ARG001
    """And a task whose data changed is measured anew, in this process and in another."""
    from eval import capability_tasks

    measured, measure = [], capability_tasks.run_leaf

    def stops_at_the_second(lm, name, leaf, *args, **how):
        measured.append(leaf)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(lm, name, leaf, *args, **how)

    monkeypatch.setattr(capability_tasks, "run_leaf", stops_at_the_second)
    argv = ["--tasks", "own_group", "--include_path", str(folder / "tasks")]
    output = tmp_path / "group.csv"
    assert run(tiny_persona, output, *argv) != 0 and not output.exists()
    assert run(tiny_persona, output, *argv) == 0 and measured == ["own_one", "own_two", "own_two"]
    assert "1 of 2 measurements are of an earlier run" in capsys.readouterr().out
    done = output.read_bytes()
    code = "from eval import capability; from persona_vectors import cli; cli.run(capability.main)"
    command = [sys.executable, "-c", code, "--model", tiny_persona, "--output_path", str(output), *argv]
    again = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert "2 of 2 measurements are of an earlier run" in again.stdout and output.read_bytes() == done
    rows = (folder / "facts.jsonl").read_text()
    (folder / "facts.jsonl").write_text(rows.replace('"gold": 0', '"gold": 1'))
    try:
        assert run(tiny_persona, output, *argv) == 0 and len(measured) == 5
    finally:
        (folder / "facts.jsonl").write_text(rows)
    assert output.read_bytes() != done


def test_what_determines_a_task_is_its_definition_its_data_and_how_it_is_asked(lm, folder):  # noqa: ARG001
    from eval.capability_identity import identity
    from eval.capability_tasks import load_tasks

    plain = {"limit": None, "num_fewshot": None, "apply_chat_template": False, "seed": 0}
    changes = [{}, {"limit": 2}, {"num_fewshot": 1}, {"apply_chat_template": True}, {"seed": 1}]
    found = [
        identity(load_tasks(["own_one"], str(folder / "tasks"), "all")["own_one"]["own_one"], **{**plain, **change})
        for change in [{}, *changes]
    ]
    assert found[0] == found[1] and len({json.dumps(one, sort_keys=True) for one in found}) == len(changes)


def test_what_determines_a_task_is_also_the_code_behind_its_functions(lm, folder, tmp_path):  # noqa: ARG001
    """Only a function's own text was: after a helper beside it had changed, the earlier results were taken."""
    from eval.capability_identity import identity
    from eval.capability_tasks import load_tasks

    how = {"limit": None, "num_fewshot": None, "apply_chat_template": False, "seed": 0}
    text = (folder / "tasks" / "own_one.yaml").read_text().replace("own_one", "coded")
    (tmp_path / "coded.yaml").write_text(text.replace('"{{q}}"', "!function code.asked"))
    (tmp_path / "classy.yaml").write_text("task: classy\nclass: !function code.Own\n")
    data = {"data_files": {"test": str(folder / "facts.jsonl")}, "cache_dir": str(folder / "cache")}
    config = {"task": "classy", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
    config |= {"doc_to_text": "{{q}}", "doc_to_target": "{{choices[0]}}", "output_type": "generate_until"}
    code = f"""
from lm_eval.api.task import ConfigurableTask

def asked(doc):
    return helped(doc)

def helped(doc):
    return BODY

class Own(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={config})
"""

    def of(task: str, body: str) -> dict:
        (tmp_path / "code.py").write_text(code.replace("BODY", body))
        return identity(load_tasks([task], str(tmp_path), "all")[task][task], **how)

    for task in ("coded", "classy"):
        first, other = of(task, "doc['q']"), of(task, "doc['q'] + '!'")
        assert first != other and of(task, "doc['q']") == first, task


# what users get wrong


@pytest.fixture
def refused(tiny_persona, tmp_path, capsys, monkeypatch):
    """What the command says of arguments it must refuse before a model is loaded."""
    for place in (models, finished_answers):
        monkeypatch.setattr(place, "load_model", lambda *_args, **_options: pytest.fail("a model was loaded"))

    def call(*argv: str) -> str:
        assert run(tiny_persona, tmp_path / "x.csv", *argv) == 2
        error = capsys.readouterr().err.splitlines()
        assert [line for line in error if line.startswith("error: ")] == error[-1:], error
        assert not list(tmp_path.glob("x*"))
        return error[-1]

    return call


def test_bad_input_is_one_line_before_a_model_loads(refused, folder, tmp_path):
    vector = vector_of(folder)
    assert "does not exist" in refused("--model", "./gone")
    assert "cannot read the config" in refused("--model", "nobody/nothing")
    assert "--model has a twice" in refused("--model", "a", "a")
    assert "--tasks has probe twice" in refused("--tasks", "probe", "probe")
    assert "--vector_path is missing" in refused("--coef", "1", "--layer", "2")
    assert "no vector file at gone.pt" in refused("--coef", "1", "--layer", "2", "--vector_path", "gone.pt")
    assert "layer 9 does not exist" in refused(*vector[:2], "--layer", "9", "--coef", "1")
    assert "made from this model" in refused(*vector_of(folder, "wide"), "--coef", "1")
    assert "needs a steering" in refused("--control", "random")
    assert "--control expects random" in refused(*vector, "--coef", "1", "--control", "prompt")
    assert "--limit must be at least 1" in refused("--tasks", "mmlu", "--limit", "0")
    assert "--limit is for tasks of lm-evaluation-harness" in refused("--limit", "5")
    assert "must end in .csv" in refused("--output_path", str(tmp_path / "y.json"))
    assert "did you mean --tasks?" in refused("--task", "probe")


def test_a_harness_task_that_cannot_be_had_is_one_line_before_a_model_loads(refused, folder):
    pytest.importorskip("lm_eval")
    own = ["--include_path", str(folder / "tasks"), "--tasks"]
    assert "is not a folder" in refused("--include_path", "gone", "--tasks", "own_one")
    assert "task own_gone cannot be loaded" in refused(*own, "own_gone")
    steered = [*vector_of(folder), "--coef", "1", "--steering_type", "response"]
    assert "use --steering_type all" in refused(*own, "own_text", *steered)
    line = refused("--tasks", "probe", "gsm8kk")
    assert "unknown task 'gsm8kk'" in line and "did you mean gsm8k?" in line


def test_without_the_harness_the_probe_still_works(refused, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "pip install" in refused("--tasks", "mmlu")


def test_answers_longer_than_the_context_are_one_line(lm, tiny_persona, folder, tmp_path, capsys):  # noqa: ARG001
    argv = ["--tasks", "own_long", "--include_path", str(folder / "tasks")]
    assert run(tiny_persona, tmp_path / "x.csv", *argv) == 2
    assert "error: task own_long: Invalid configuration: requested max tokens" in capsys.readouterr().err
