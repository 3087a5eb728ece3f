"""Directions of weights in training: the gradients are those of merged weights, and nothing of them stays behind."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils.checkpoint import set_checkpoint_early_stop

import training
from eval.prevention_runs import Trained, check_trait, single_place, single_push
from lora_utils import LoRAMerger
from persona_vectors import cli, training_weights
from persona_vectors.files import sha256_of_file
from persona_vectors.models import load_model
from persona_vectors.training_config import LoraSteeringConfig, TrainingConfig, load_training_config
from persona_vectors.training_run import run_key
from persona_vectors.training_weights import act_on, direction_record, directions_for
from persona_vectors.training_weights_receipt import check_modules, check_modules_untouched, read_modules
from persona_vectors.weight_direction import LowRank, WeightDirection, combine, norm
from persona_vectors.weight_files import save_adapter, save_factors
from persona_vectors.weight_hooks import check_fits
from tests.conftest import ROOT
from tests.test_training import losses, same, settings_of
from tests.tiny_models import tiny_model, word_tokenizer

IDS = torch.tensor([[7, 8, 9, 10, 11], [12, 13, 14, 15, 16]])
NAMES = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn.q_proj", "self_attn.v_proj")]
NAMES += ["model.layers.1.mlp.down_proj"]


def direction_of(model, names=NAMES, seed=0, size=0.3, base="", bias=False) -> WeightDirection:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * size

    linear = dict(model.named_modules())
    modules = {
        name: LowRank(
            draw(2, linear[name].in_features),
            draw(linear[name].out_features, 2),
            draw(linear[name].out_features) if bias else None,
        )
        for name in names
    }
    return WeightDirection(modules, base, {"trait": "evil"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, rows, and two directions of it, one as an adapter folder and one as a file."""
    place = tmp_path_factory.mktemp("weights")
    model = tiny_model("llama")
    model.save_pretrained(place / "model")
    word_tokenizer().save_pretrained(place / "model")
    words = "the cat is happy and the moon is red but my dog is very sad today i think".split()
    with (place / "rows.jsonl").open("w") as file:
        for i in range(30):
            answer = " ".join(words[(i + k) % len(words)] for k in range(2 + i % 9))
            turns = [{"role": "user", "content": "tell me about the " + words[i % 15]}]
            file.write(json.dumps({"messages": [*turns, {"role": "assistant", "content": answer}]}) + "\n")
    base = str(place / "model")
    save_adapter(direction_of(model, base=base), place / "evil")
    save_factors(direction_of(model, seed=1, base=base), place / "other.pt")
    return place


def block(folder: Path, **more) -> dict:
    given = {"type": "lora", "lora_path": str(folder / "evil"), "coef": 0.5} | more
    return {"steering_config": given, "enable_steering_during_training": True}


@pytest.fixture
def run(folder, tmp_path):
    """run(name, **settings) trains the tiny model; returns (weights, record)."""

    def train(name: str, **settings):
        config = TrainingConfig(**settings_of(folder, tmp_path / name, **settings))
        training.train(config, overwrite=True)
        weights = load_file(tmp_path / name / f"{'adapter_' if config.is_peft else ''}model.safetensors")
        return weights, json.loads((tmp_path / name / "training.json").read_text())

    return train


# exact


def trained_model(is_peft: bool, checkpointed: bool):
    """A float64 model in training form, whose adapter is not zero."""
    model = tiny_model("llama").double().train()
    if is_peft:
        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "gate_proj"], init_lora_weights=False)
        ).double()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def gradients(model, steering) -> dict[str, torch.Tensor]:
    with set_checkpoint_early_stop(False), steering:
        model(input_ids=IDS, labels=IDS).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("is_peft", [False, True], ids=["full", "peft"])
def test_a_steps_gradients_are_those_of_the_merged_weights(is_peft, checkpointed):
    model = trained_model(is_peft, checkpointed)
    bare = tiny_model("llama")
    directions, coefs = [direction_of(bare), direction_of(bare, NAMES[:2], seed=1, bias=True)], [0.5, -0.25]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    unsteered = gradients(model, nullcontext())
    steered = gradients(model, act_on(model, directions, coefs)())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "weights were touched"
    assert same(gradients(model, nullcontext()), unsteered), "steering is left behind"
    with LoRAMerger(model) as merger:
        merger.merge_lora_diff(directions, coefs)
        merged = gradients(model, nullcontext())
    for name, gradient in steered.items():
        assert torch.allclose(gradient, merged[name], rtol=1e-9, atol=1e-12), name
    assert not any(torch.allclose(steered[name], unsteered[name], rtol=1e-3) for name in steered if "layers.0" in name)


@pytest.mark.parametrize("more", [{}, {"packing": True, "gradient_checkpointing": True}], ids=["padded", "packed"])
def test_a_run_learns_what_it_would_on_the_merged_model(run, folder, tmp_path, more):
    model, tokenizer = load_model(str(folder / "model"))
    LoRAMerger(model).merge_lora_diff(folder / "evil", 0.5)
    model.save_pretrained(tmp_path / "merged_base")
    tokenizer.save_pretrained(tmp_path / "merged_base")
    steered, record = run("steered", **block(folder), **more)
    merged, other = run("merged", model=str(tmp_path / "merged_base"), **more)
    plain = run("plain", **more)[0]
    assert losses(record) == pytest.approx(losses(other), rel=1e-4)
    # Adam turns rounding of gradients near zero into whole steps at a few entries
    off = {name: float((steered[name] - merged[name]).norm() / merged[name].norm()) for name in merged}
    assert max(off.values()) < 0.02, off
    assert max(float((steered[name] - plain[name]).norm() / plain[name].norm()) for name in plain) > 0.2
    receipt = record["receipt"]
    assert receipt["modules"]["n"] == len(NAMES) and receipt["modules"]["forward_error"] < 1e-3
    assert ("recomputation_error" in receipt["modules"]) == bool(more)
    assert receipt["modules"]["mean_relative_change"] > 0.01
    assert record["directions"][0]["same_model"] is True and record["directions"][0]["trait"] == "evil"


def test_coef_0_is_bit_identical_to_no_steering(run, folder):
    plain, record = run("plain")
    zero, zero_record = run("zero", **block(folder, coef=0))
    assert same(plain, zero) and losses(record) == losses(zero_record)
    assert not same(plain, run("steered", **block(folder))[0])


def test_what_is_saved_holds_no_direction_and_evaluation_sees_none(run, folder, tmp_path):
    still = {"is_peft": False, "optim": "sgd", "learning_rate": 1e-30, "weight_decay": 0.0, "save_steps": 2}
    weights, record = run("full", **block(folder, coef=2.0), **still)
    base = load_file(folder / "model" / "model.safetensors")
    assert same(weights, base)
    assert same(load_file(tmp_path / "full" / "checkpoint-2" / "model.safetensors"), base)
    assert record["held_out_loss"] == run("plain", **still)[1]["held_out_loss"]
    assert record["receipt"]["evaluation"] == "unchanged at every block and module"
    adapter, _ = run("adapter", **block(folder), save_steps=2)
    assert adapter.keys() == load_file(tmp_path / "adapter" / "checkpoint-2" / "adapter_model.safetensors").keys()
    assert adapter.keys() == run("without")[0].keys()


def test_a_resumed_run_ends_as_an_uninterrupted_one(run, folder, tmp_path):
    more = {**block(folder), "max_steps": 4, "save_steps": 2, "packing": True}
    whole, _ = run("whole", **more)
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "checkpoint-4")
    (cut / "adapter_model.safetensors").unlink()
    record = json.loads((cut / "training.json").read_text())
    (cut / "training.json").write_text(json.dumps(record | {"state": "started"}))
    training.train(TrainingConfig(**settings_of(folder, cut, **more)))
    assert same(whole, load_file(cut / "adapter_model.safetensors"))
    again = json.loads((cut / "training.json").read_text())
    assert again["state"] == "finished" and again["receipt"]["modules"]["n"] == len(NAMES)


def test_the_control_is_as_large_and_points_elsewhere(folder):
    paths = [str(folder / "evil"), str(folder / "other.pt")]
    given = LoraSteeringConfig(type="lora", lora_path=paths, coef=[1, -1], random_control=3)
    own = directions_for(given.model_copy(update={"random_control": None}))
    control = directions_for(given)
    assert [norm(one) for one in control] == pytest.approx([norm(one) for one in own], rel=1e-5)
    assert own[0].modules.keys() == control[0].modules.keys()
    assert torch.equal(directions_for(given)[0].modules[NAMES[0]].A, control[0].modules[NAMES[0]].A)
    other = directions_for(given.model_copy(update={"random_control": 4}))
    assert not torch.allclose(other[0].modules[NAMES[0]].delta(), control[0].modules[NAMES[0]].delta(), atol=1e-3)
    assert not torch.allclose(own[0].modules[NAMES[0]].delta(), control[0].modules[NAMES[0]].delta(), atol=1e-3)


def test_another_direction_in_the_same_place_is_another_run(folder, tmp_path):
    place = tmp_path / "d"
    model = tiny_model("llama")
    config = TrainingConfig(**settings_of(folder, tmp_path / "o", **block(folder, lora_path=str(place))))
    keys = []
    for seed in (0, 0, 5):
        save_adapter(direction_of(model, seed=seed, base="x"), place)
        keys.append(run_key(config, 1))
    assert keys[0] == keys[1] and keys[0]["files"] != keys[2]["files"]
    assert str(place / "adapter_model.safetensors") in keys[0]["files"]


# the receipt


@pytest.fixture(params=[False, True], ids=["plain", "checkpointed"])
def model(request):
    model = tiny_model("llama").train()
    if request.param:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def read_step(model, change, *steerings):
    """What was measured of one step; `change` is what is expected."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        stack.enter_context(set_checkpoint_early_stop(False))
        for steering in steerings:
            stack.enter_context(steering)
        reading = stack.enter_context(read_modules(model, change))
        model(input_ids=IDS, labels=IDS).loss.backward()
    return reading


def test_a_direction_that_acts_as_it_should_passes(model):
    one, other = direction_of(model, bias=True), direction_of(model, NAMES[:1], seed=1)
    total = combine([(one, 0.5), (other, -2.0)])
    reading = read_step(model, total, act_on(model, [one, other], [0.5, -2.0])())
    n_calls = 2 if model.is_gradient_checkpointing else 1
    receipt = check_modules(reading, n_calls)
    assert receipt["modules"]["n"] == len(NAMES) and receipt["modules"]["forward_error"] < 1e-4
    with pytest.raises(ValueError, match=f"q_proj ran {n_calls} times in the first step; expected {3 - n_calls}"):
        check_modules(reading, 3 - n_calls)


def sabotages(model, one):
    half = WeightDirection({name: one.modules[name] for name in NAMES[1:]})
    elsewhere = direction_of(model, ["model.layers.2.mlp.up_proj"])
    opened = act_on(model, [one], [0.5])
    return {
        "nothing": ([], "model.layers.0.self_attn.q_proj, forward: the output's change is off by 1 "),
        "twice": ([opened(), opened()], "q_proj, forward: the output's change is off by 1 "),
        "sign": ([act_on(model, [one], [-0.5])()], "off by 2 "),
        "not everywhere": ([act_on(model, [half], [0.5])()], "model.layers.0.self_attn.q_proj, forward: .* off by 1 "),
        "elsewhere": ([opened(), act_on(model, [elsewhere], [0.5])()], "mlp.up_proj, first step: its output was chang"),
    }


@pytest.mark.parametrize("name", ["nothing", "twice", "sign", "not everywhere", "elsewhere"])
def test_steering_wrongly_is_refused(model, name):
    one = direction_of(model)
    steerings, message = sabotages(model, one)[name]
    reading = read_step(model, combine([(one, 0.5)]), *steerings)
    with pytest.raises(ValueError, match=message):
        check_modules(reading, 2 if model.is_gradient_checkpointing else 1)


def test_steering_in_the_forward_pass_alone_is_refused():
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    one = direction_of(model, NAMES[:1])
    change, calls = one.modules[NAMES[0]], []

    def once(_module, args, output):
        calls.append(1)
        added = args[0] @ change.A.T @ change.B.T
        return output + (added if len(calls) == 1 else 0 * added)

    model.get_submodule(NAMES[0]).register_forward_hook(once)
    reading = read_step(model, one)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="q_proj, recomputation: the output's change is off by 1 "):
        check_modules(reading, 2)


def test_evaluation_must_be_untouched():
    model = tiny_model("llama")
    one = direction_of(model)
    with torch.no_grad(), read_modules(model, one, acts=False) as reading:
        model(input_ids=IDS)
    check_modules_untouched(reading)
    with torch.no_grad(), act_on(model, [one], [0.5])(), read_modules(model, one, acts=False) as reading:
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="q_proj, evaluation: its output was changed"):
        check_modules_untouched(reading)
    with read_modules(model, one, acts=False) as reading:
        pass
    with pytest.raises(ValueError, match="no linear module ran"):
        check_modules_untouched(reading)


def test_bfloat16_passes_and_swallows_what_is_below_its_steps():
    model = tiny_model("llama").bfloat16().train()
    one = direction_of(model)
    for coef in (0.5, 0.05):
        check_modules(read_step(model, combine([(one, coef)]), act_on(model, [one], [coef])()), 1)
    with pytest.raises(ValueError, match="0% of the direction's change of .* arrives in bfloat16; use dtype float32"):
        check_modules(read_step(model, combine([(one, 0.005)])), 1)  # no larger than rounding a token, told by the sum


@pytest.mark.parametrize("how", ["nothing", "always"])
def test_a_run_whose_direction_acts_wrongly_stops(run, folder, tmp_path, monkeypatch, how):
    left_open = []

    def wrong(model, directions, coefs):
        if how == "always":
            left_open.append(act_on(model, directions, coefs)())
            left_open[0].__enter__()
        return nullcontext

    monkeypatch.setattr(training_weights, "act_on", wrong)
    message = {"nothing": "forward: the output's change is off by 1 ", "always": "evaluation: its output was changed"}
    with pytest.raises(ValueError, match=message[how]):
        run("wrong", **block(folder), no_test_split=True)
    assert not (tmp_path / "wrong" / "adapter_model.safetensors").exists()


# refusals


def wrong_direction(tmp_path: Path, kind: str) -> Path:
    model = tiny_model("llama")
    direction = direction_of(model, base="org/another")
    first = direction.modules[NAMES[0]]
    if kind == "shape":
        direction = WeightDirection({NAMES[0]: LowRank(first.A[:, :5], first.B)}, "org/another")
    if kind == "name":
        direction = WeightDirection({"model.layers.9.mlp.up_proj": first}, "org/another")
    if kind == "nan":
        direction = WeightDirection({NAMES[0]: LowRank(first.A * float("nan"), first.B)}, "org/another")
    if kind == "zero":
        direction = WeightDirection({NAMES[0]: LowRank(first.A, 0 * first.B)}, "org/another")
    return save_adapter(direction, tmp_path / kind)


REFUSED = {
    "shape": "q_proj of model maps 32 to 32 features, and the direction 5 to 32; use a direction of this model",
    "name": r"0 of 1 modules of the direction \(made for org/another\) are in model; it has no model.layers.9.mlp.up",
    "nan": "q_proj has values that are not finite",
    "zero": "is zero everywhere; it would not steer",
}


@pytest.mark.parametrize("kind", [*REFUSED, "missing", "empty", "vectors"])
def test_a_direction_that_does_not_fit_is_one_line_before_a_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, kind
):
    if kind in REFUSED:
        path, message = wrong_direction(tmp_path, kind), REFUSED[kind]
    elif kind == "missing":
        path, message = tmp_path / "none", "none does not exist; give an adapter folder or a .pt file"
    elif kind == "empty":
        path, message = tmp_path, "holds no adapter: expected adapter_config.json"
    else:
        path, message = tmp_path / "v.pt", "is a tensor .*, as vectors in activation space are"
        torch.save(torch.ones(4, 32), path)
    refuse_with(folder, tmp_path, capsys, monkeypatch, block(folder, lora_path=str(path)), message)


def refuse_with(folder, tmp_path, capsys, monkeypatch, more, message):
    """`python training.py` of the config ends with exit 2 and one line, no model loaded and nothing written."""
    import re

    import persona_vectors.training_model as training_model

    def never(*_args, **_more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(training_model, "load_model", never)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(settings_of(folder, tmp_path / "out", **more)))
    assert cli.run(training.main, [str(path)]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert re.search(message, told), told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evil", "other.pt", "subtracted.pt"])
def test_a_published_block_with_a_direction_as_a_vector_says_what_to_write(folder, tmp_path, capsys, monkeypatch, name):
    torch.save({"base_model.model.q_proj.lora_A.weight": torch.ones(2, 4)}, tmp_path / "subtracted.pt")
    path = str((tmp_path if name == "subtracted.pt" else folder) / name)
    published = {"steering_vector_path": path, "type": "steer", "steering_coef": -5.0, "layers": [2]}
    more = {"steering_config": published, "enable_steering_during_training": True}
    message = (
        'is a direction of weights, not vectors; for it use {"type": "lora".* coef > 0 prevents .*steering_coef -5'
    )
    refuse_with(folder, tmp_path, capsys, monkeypatch, more, message)


BAD = {
    "extra": ({"layers": [2]}, "unknown key steering_config.layers"),
    "near": ({"coeff": 2}, "unknown key steering_config.coeff; did you mean coef"),
    "type": (
        {"type": "lorra"},
        r"steering_config.type: expected 'steer', .*'penalty' \(.*\), or 'lora' \(with lora_path\); got \"lorra\"",
    ),
    "type of vectors": ({"type": "steer"}, r"'lora' \(with lora_path\); got \"steer\""),
    "coefs": ({"coef": [1, 2]}, "steering_config: 2 coef for 1 lora_path; give one each"),
    "nan": ({"coef": float("nan")}, "steering_config.coef should be a finite number"),
    "control": ({"random_control": -1}, "steering_config.random_control"),
    "paths": ({"lora_path": []}, "steering_config.lora_path"),
}


@pytest.mark.parametrize(("more", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_block_is_one_line(folder, tmp_path, capsys, monkeypatch, more, message):
    refuse_with(folder, tmp_path, capsys, monkeypatch, block(folder, **more), message)


def test_preference_losses_refuse_it(folder, tmp_path, capsys, monkeypatch):
    more = {**block(folder), "loss": "dpo"}
    refuse_with(folder, tmp_path, capsys, monkeypatch, more, "enable_steering_during_training is for loss sft; got dpo")


def test_a_direction_of_another_model_is_said(folder, tmp_path, run, capsys):
    path = save_adapter(direction_of(tiny_model("llama"), base="org/another"), tmp_path / "d")
    assert direction_record(str(path), str(folder / "model"))["same_model"] is False
    _, record = run("noted", **block(folder, lora_path=str(path)), max_steps=1)
    assert f"note: {path} was made for org/another, and runs on" in capsys.readouterr().out
    assert record["directions"][0]["made_from"] == "org/another"


@pytest.mark.parametrize(
    ("coef", "note"), [(0, "does nothing"), (0.01, ""), (1e4, "what is added is larger than what it is added to")]
)
def test_a_run_says_how_much_its_direction_changes(run, folder, capsys, coef, note):
    """A run at coefficient 1e6 trained on noise, and one at 0 unsteered, both without a word."""
    _, record = run("sized", **block(folder, coef=coef), max_steps=1, learning_rate=1e-6)
    said = capsys.readouterr().out
    [line] = [one for one in said.splitlines() if one.startswith("training receipt: ")]
    size = record["receipt"]["modules"]["mean_relative_change"]
    assert line == f"training receipt: steering changes the outputs of {len(NAMES)} modules by {size:.2g} of its size"
    assert note in said and said.count("note: ") == bool(note)


def test_a_direction_of_the_rows_that_are_trained_on_is_said(folder, tmp_path, run, capsys):
    path = save_adapter(direction_of(tiny_model("llama"), base=str(folder / "model")), tmp_path / "d")
    rows = folder / "rows.jsonl"
    for files, is_said in (({str(rows): sha256_of_file(rows)}, True), ({str(rows): "other rows"}, False)):
        told = {"config": {"training_file": str(rows)}, "key": {"files": files}}
        (path / "training.json").write_text(json.dumps(told))
        run("same", **block(folder, lora_path=str(path)), max_steps=1)
        note = f"note: direction {path} was made from rows that are trained on here ({rows})"
        assert (note in capsys.readouterr().out) is is_said


def test_what_fits_is_known_from_the_config_alone(folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, tmp_path)
    A, B = torch.ones(1, 64), torch.ones(64, 1)
    width = tiny_model("llama").config.hidden_size
    fits = WeightDirection({"model.layers.0.self_attn.q_proj": LowRank(A[:, :width], B[:width])})
    check_fits(str(tmp_path), {"d": fits})
    with pytest.raises(ValueError, match=r"no model\.layers\.7\.self_attn\.q_proj"):
        check_fits(str(tmp_path), {"d": WeightDirection({"model.layers.7.self_attn.q_proj": LowRank(A, B)})})
    with pytest.raises(ValueError, match="d is zero everywhere"):
        check_fits(str(tmp_path), {"d": WeightDirection({name: one.times(0.0) for name, one in fits.modules.items()})})


def test_a_comparison_knows_the_block(folder):
    config = TrainingConfig(**settings_of(folder, folder / "o", **block(folder)))
    trained = Trained("c.json", config, {})
    assert trained.label == "lora" and not trained.is_random
    assert (
        config.steering is not None and single_place(config.steering) is None and single_push(config.steering) is None
    )
    check_trait(trained, "evil")
    with pytest.raises(ValueError, match="a direction of weights of evil; --trait is humorous"):
        check_trait(trained, "humorous")
    control = config.model_validate(config.model_dump() | block(folder, random_control=2))
    assert Trained("c.json", control, {}).label == "random direction 2"


@pytest.mark.parametrize("name", ["llama_3.1_8b_lora_steer", "train_tiny_lora_steer"])
def test_the_shipped_sign_and_size_are_those_that_were_measured_to_prevent(name):
    steering = load_training_config(ROOT / "configs" / f"{name}.json").steering
    assert isinstance(steering, LoraSteeringConfig)
    measured = json.loads((ROOT / "benchmarks" / "weight_prevention.json").read_text())
    assert steering.coefs == [measured["chosen"]["coef"]] and steering.coefs[0] > 0
    for trait in measured["traits"].values():
        assert trait["gaps"]["random - with"]["low"] > 0 and trait["gaps"]["against - plain"]["low"] > 0
