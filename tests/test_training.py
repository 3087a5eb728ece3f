"""Training: what is exact is exact, steering acts in training alone, and a stopped run ends as if it had not been."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import training
from activation_steer import ActivationSteerer
from persona_vectors import cli
from persona_vectors.blocks import decoder_blocks, hidden_of, read_blocks, with_hidden
from persona_vectors.models import load_model
from persona_vectors.trainer import Progress, check_packing
from persona_vectors.training_batches import packed_batch, padded_batch, plan_run
from persona_vectors.training_config import TrainingConfig
from persona_vectors.training_model import load_for_training, row_limit
from persona_vectors.training_run import move_in
from persona_vectors.training_tokens import TrainingSample
from persona_vectors.training_vectors import vectors_for
from tests.conftest import ROOT
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, saved_model, tiny_model, word_tokenizer

WORDS = "the cat is happy and the moon is red but my dog is very sad today i think".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model, rows of unequal length, and a vector at every layer."""
    place = tmp_path_factory.mktemp("training")
    tiny_model("llama").save_pretrained(place / "model")
    word_tokenizer().save_pretrained(place / "model")
    with (place / "rows.jsonl").open("w") as file:
        for i in range(40):
            answer = " ".join(WORDS[(i + k) % len(WORDS)] for k in range(2 + i % 9))
            turns = [{"role": "user", "content": "tell me about the " + WORDS[i % 15]}]
            file.write(json.dumps({"messages": [*turns, {"role": "assistant", "content": answer}]}) + "\n")
    torch.manual_seed(0)
    torch.save(torch.randn(N_LAYERS + 1, D_MODEL), place / "v.pt")
    return place


@pytest.fixture
def run(folder, tmp_path):
    """run(name, **settings) trains the tiny model; returns (weights, record)."""

    def train(name: str, **settings):
        config = config_of(folder, tmp_path / name, **settings)
        training.train(config, overwrite=True)
        weights = load_file(tmp_path / name / f"{'adapter_' if config.is_peft else ''}model.safetensors")
        return weights, json.loads((tmp_path / name / "training.json").read_text())

    return train


def settings_of(folder: Path, output: Path, **more) -> dict:
    return {
        "model": str(folder / "model"),
        "training_file": str(folder / "rows.jsonl"),
        "output_dir": str(output),
        "max_steps": 3,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "r": 4,
        "max_seq_length": 64,
        "optim": "adamw",
        "gradient_checkpointing": False,
    } | more


def config_of(folder: Path, output: Path, **more) -> TrainingConfig:
    return TrainingConfig(**settings_of(folder, output, **more))


def steered(folder: Path, **block) -> dict:
    block = {"steering_vector_path": str(folder / "v.pt"), "layers": [2]} | block
    return {"steering_config": block, "enable_steering_during_training": True}


def losses(record) -> list[float]:
    return [entry["loss"] for entry in record["log"] if "loss" in entry]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stop(Exception):
    pass


def stop(*_args, **_kwargs):
    raise Stop


# exact


def test_coef_0_is_bit_identical_to_no_steering_and_the_same_seed_to_itself(run, folder):
    plain, record = run("plain")
    assert same(plain, run("again")[0])
    zero, zero_record = run("zero", **steered(folder, steering_coef=0))
    assert same(plain, zero) and losses(record) == losses(zero_record)
    assert zero_record["receipt"]["layers"]["layer 2"]["forward_error"] == 0
    assert not same(plain, run("seed", seed=1)[0])


def test_the_way_of_batching_changes_nothing_but_rounding(run):
    ways = {"in_order": {"group_by_length": False}, "by_length": {}, "packed": {"packing": True}}
    results = {name: run(name, **settings) for name, settings in ways.items()}
    ways["checkpointed"] = {}
    results["checkpointed"] = run("checkpointed", packing=True, gradient_checkpointing=True)
    weights, record = results["in_order"]
    assert results["packed"][1]["micro_batches"] < results["in_order"][1]["micro_batches"] == 8
    for name, (others, other) in results.items():
        assert losses(other) == pytest.approx(losses(record), rel=1e-5), name
        assert all(torch.allclose(others[key], weights[key], atol=2e-4) for key in weights), name


def by_hand(model, block_idx: int, push: torch.Tensor):
    """The model with the vector added by a block's own forward, no hooks."""
    block = decoder_blocks(model)[block_idx]
    forward = block.forward

    def pushed(*args, **kwargs):
        output = forward(*args, **kwargs)
        return with_hidden(output, hidden_of(output) + push)

    block.forward = pushed
    return model


IDS = torch.tensor([[7, 8, 9, 10, 11, 12], [12, 13, 14, 15, 16, 17]])
VECTOR = torch.linspace(-1, 1, D_MODEL)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_steered_steps_gradients_are_those_of_the_vector_added_by_hand(architecture, checkpointing):
    def gradients(steer: bool):
        model = tiny_model(architecture).double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if steer:
            with ActivationSteerer(model, VECTOR, coeff=1.5, layer_idx=1):
                model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        else:
            # the steerer rounds coef·v in the hidden state's dtype; by hand it is exact from the start
            by_hand(model, 1, (1.5 * VECTOR.double()))(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    ours, theirs = gradients(True), gradients(False)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12), name


def test_ablation_leaves_nothing_along_the_vector():
    model = tiny_model("llama").double()
    vector = VECTOR.double()
    with ActivationSteerer(model, VECTOR, layer_idx=1, kind="ablate"), read_blocks(model) as hidden:
        model(input_ids=IDS)
        along = hidden[2] @ (vector / vector.norm())
    assert along.abs().max() < 1e-12 * hidden[2].norm()


def test_incremental_vectors_telescope(folder):
    """What is added up to layer L sums to v_L - v_0."""
    config = config_of(folder, folder, **steered(folder, layers="all", incremental=True))
    assert config.steering is not None
    increments = vectors_for(config.model, str(folder / "v.pt"), config.steering)
    vectors = torch.load(folder / "v.pt")
    total = torch.zeros(D_MODEL)
    for layer in range(1, N_LAYERS + 1):
        total = total + increments[layer]
        assert torch.allclose(total, vectors[layer] - vectors[0], atol=1e-6)


PACKS = [name for name in ARCHITECTURES if name not in ("gpt2", "qwen2_moe", "mixtral")]
SAMPLES = [TrainingSample(tuple(range(6, 6 + n)), (False, *(k % 3 != 0 for k in range(1, n)))) for n in (5, 11, 3, 8)]


def total_loss(model, batch):
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("architecture", PACKS)
def test_packed_and_unpacked_have_the_same_loss_and_gradients(architecture):
    def gradients(batches):
        model = tiny_model(architecture).double()
        loss = sum(total_loss(model, batch) for batch in batches)
        loss.backward()  # pyright: ignore
        return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    packed, packed_gradients = gradients([packed_batch(SAMPLES, 0)])
    alone, alone_gradients = gradients([padded_batch([sample], 0) for sample in SAMPLES])
    padded, padded_gradients = gradients([padded_batch(SAMPLES, 0)])
    assert packed == pytest.approx(alone, rel=1e-7) and padded == pytest.approx(alone, rel=1e-7)
    near = {"rtol": 1e-5, "atol": 1e-5} if "gemma" in architecture else {"rtol": 1e-9, "atol": 1e-10}  # float32 inside
    for name, gradient in alone_gradients.items():
        assert torch.allclose(packed_gradients[name], gradient, **near), name
        assert torch.allclose(padded_gradients[name], gradient, **near), name
    check_packing(tiny_model(architecture), SAMPLES, 0)


def test_a_model_that_does_not_keep_packed_samples_apart_is_refused(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kwargs: forward(**kwargs | {"position_ids": None}))
    with pytest.raises(ValueError, match="does not keep packed samples apart; set packing to false"):
        check_packing(model, SAMPLES, 0)


# steering and its alternatives


@pytest.mark.parametrize(
    "block",
    [
        {"steering_coef": 2},
        {"type": "ablate"},
        {"type": "cap", "ceiling": 0.0},
        {"layers": "all", "incremental": True},
        {"layers": [1, 3], "steering_coef": -1},
    ],
    ids=["steer", "ablate", "cap", "incremental", "two layers"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_steering_is_measured_in_both_passes_and_gone_in_evaluation(run, folder, block, checkpointing):
    plain = run("plain", gradient_checkpointing=checkpointing, max_steps=1)[1]
    weights, record = run("steered", **steered(folder, **block), gradient_checkpointing=checkpointing, max_steps=1)
    layers = record["receipt"]["layers"]
    wanted = block.get("layers", [2])
    assert list(layers) == [f"layer {layer}" for layer in (range(1, N_LAYERS + 1) if wanted == "all" else wanted)]
    for measured in layers.values():
        assert measured["calls"] == (2 if checkpointing else 1)
        assert measured["forward_error"] < 1e-4
        assert not checkpointing or measured["recomputation_error"] < 1e-4
    assert record["receipt"]["evaluation"] == "unchanged at every block"
    assert record["held_out_loss"]["first"] == plain["held_out_loss"]["first"]
    assert losses(record)[0] != losses(plain)[0]


def test_the_receipt_stops_a_run_that_is_steered_otherwise(folder, tmp_path, monkeypatch):
    """A hook that somebody left on the model doubles the vector: nothing is trained, nothing is saved."""
    load = training.intervene

    def twice(model, config):
        ActivationSteerer(model, torch.load(folder / "v.pt")[2], layer_idx=1).__enter__()
        return load(model, config)

    monkeypatch.setattr(training, "intervene", twice)
    with pytest.raises(ValueError, match="training receipt: block 1, forward: add is off by 1"):
        training.train(config_of(folder, tmp_path / "out", **steered(folder)))
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["state"] == "started"


def test_the_penalty_holds_the_projection_back_and_at_coefficient_0_changes_nothing(run, folder, tmp_path):
    more = {"max_steps": 10, "no_test_split": True}
    plain, record = run("plain", **more)
    none, none_record = run("none", **steered(folder, type="penalty", steering_coef=0), **more)
    assert losses(none_record) == pytest.approx(losses(record), rel=1e-6)
    assert all(torch.allclose(none[name], plain[name], atol=1e-5) for name in plain)
    held_record = run("held", **steered(folder, type="penalty", steering_coef=10), **more)[1]
    assert losses(held_record)[0] == pytest.approx(losses(record)[0], rel=1e-6)  # the adapter does nothing yet

    def change(name: str) -> float:
        model, _ = load_model(str(tmp_path / name))
        vector = torch.load(folder / "v.pt")[2]
        with torch.no_grad(), read_blocks(model, [2]) as hidden:
            model(input_ids=IDS)
            after = hidden[2] @ vector / vector.norm() ** 2
            with model.disable_adapter():
                model(input_ids=IDS)
            return float(((after - hidden[2] @ vector / vector.norm() ** 2) ** 2).mean())

    assert change("held") < 0.5 * change("plain")


def test_the_penalty_is_the_mean_squared_change_over_learned_tokens(folder, tmp_path):
    """By hand, on an adapter that already does something."""
    config = config_of(folder, tmp_path / "out", **steered(folder, type="penalty", steering_coef=3.0))
    model, tokenizer = load_for_training(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    plan = plan_run([len(s.ids) for s in SAMPLES], batch_size=4, accumulation=1, max_length=64, seed=0)
    trainer = training.make_trainer(config, model, tokenizer, SAMPLES, [], plan)
    model.train()
    batch = padded_batch(SAMPLES, 0)
    n_tokens = (batch["labels"] != -100).sum()
    ours = trainer.compute_loss(model, dict(batch), num_items_in_batch=n_tokens)
    vector = torch.load(folder / "v.pt")[2]
    with torch.no_grad(), read_blocks(model, [2]) as hidden:
        total = total_loss(model, dict(batch))
        after = hidden[2]
        with model.disable_adapter():
            model(**{name: value for name, value in batch.items() if name != "labels"})
        change = ((after - hidden[2]) @ vector / (vector @ vector))[batch["labels"] != -100]
    assert float(ours.detach()) == pytest.approx(float((total + 3.0 * (change**2).sum()) / n_tokens), rel=1e-5)


def test_inoculation_is_in_the_training_rows_alone(run):
    plain, told = run("plain")[1], run("told", inoculation_prompt="you are very bad")[1]
    assert told["held_out_loss"]["first"] == plain["held_out_loss"]["first"]
    assert told["data"]["n_tokens"] > plain["data"]["n_tokens"]
    assert told["data"]["n_trained_tokens"] == plain["data"]["n_trained_tokens"]


# other ways to train


def test_full_finetuning_saves_a_whole_model(run, tmp_path):
    weights, record = run("full", is_peft=False)
    assert record["held_out_loss"]["last"] < record["held_out_loss"]["first"]
    model, _ = load_model(str(tmp_path / "full"))
    assert torch.equal(model.state_dict()["model.norm.weight"], weights["model.norm.weight"])


def test_the_merged_model_answers_as_the_adapter_does(run, folder, tmp_path):
    run("merged", learning_rate=0.05)
    assert not (tmp_path / "merged" / "merged").exists()
    training.train(config_of(folder, tmp_path / "merged", learning_rate=0.05, save_merged=True))  # of a finished run
    adapter, _ = load_model(str(tmp_path / "merged"))
    merged, _ = load_model(str(tmp_path / "merged" / "merged"))
    base, _ = load_model(adapter.peft_config["default"].base_model_name_or_path)
    with torch.no_grad():
        logits = {name: m(input_ids=IDS).logits for name, m in (("a", adapter), ("m", merged), ("b", base))}
    assert torch.allclose(logits["a"], logits["m"], atol=1e-4)
    assert not torch.allclose(logits["a"], logits["b"], atol=1e-2)


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "as an earlier version left it"])
def test_a_merge_that_was_interrupted_is_made_again(earlier, run, folder, tmp_path, monkeypatch):
    run("out")
    config = config_of(folder, tmp_path / "out", save_merged=True)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("transformers.modeling_utils.safe_save_file", stop)  # config.json is there before
        training.train(config)
    assert not (tmp_path / "out" / "merged").exists()
    if earlier:
        (tmp_path / "out" / ".merged.half").rename(tmp_path / "out" / "merged")
        assert (tmp_path / "out" / "merged" / "config.json").exists()
    training.train(config)
    load_model(str(tmp_path / "out" / "merged"))
    assert not list((tmp_path / "out").glob(".*"))
    before = (tmp_path / "out" / "merged" / "model.safetensors.json").read_bytes()
    training.train(config)
    assert (tmp_path / "out" / "merged" / "model.safetensors.json").read_bytes() == before


def preferences(place: Path, loss: str) -> dict:
    """Settings of a run on preferences, whose rows are written to `place`."""
    rows = [{"prompt": f"tell me about the {w}", "chosen": "happy cat", "rejected": "sad dog"} for w in WORDS]
    (place / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"loss": loss, "training_file": str(place / "p.jsonl"), "learning_rate": 0.02}


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_preferences_are_learned(loss, folder, tmp_path):
    more = preferences(tmp_path, loss) | {"max_steps": 12}
    training.train(config_of(folder, tmp_path / loss, **more))
    record = json.loads((tmp_path / loss / "training.json").read_text())
    first, last = record["held_out_loss"]["first"], record["held_out_loss"]["last"]
    assert last < first - 0.1
    if loss == "dpo":
        assert first == pytest.approx(0.6931, abs=1e-3)  # the reference is the model itself: log 2
    model, tokenizer = load_model(str(tmp_path / loss))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "tell me about the cat"}], tokenize=False)
    prompt += "<|im_start|>assistant\n"

    def score(answer):
        ids = tokenizer(prompt + answer, return_tensors="pt", add_special_tokens=False).input_ids
        n = len(tokenizer(answer, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        return float(logp.gather(1, ids[0, 1:, None])[-n:].sum())

    with model.disable_adapter():
        before = score("happy cat") - score("sad dog")
    assert score("happy cat") - score("sad dog") > before + 1


def test_several_processes_have_the_losses_of_one(folder, tmp_path):
    """Two processes on the CPU (gloo), half the accumulation each: the same global batch, steered and checkpointed."""
    more = {**steered(folder, steering_coef=2), "gradient_checkpointing": True}
    training.train(config_of(folder, tmp_path / "one", **more))
    settings = settings_of(folder, tmp_path / "two", gradient_accumulation_steps=4, **more)
    (tmp_path / "two.json").write_text(json.dumps(settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate_ddp.yaml"]
    launch += ["--main_process_port", str(20_000 + os.getpid() % 20_000), "training.py", str(tmp_path / "two.json")]
    done = subprocess.run(
        launch, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved") == 1
    one, two = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    assert two["key"]["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert two["held_out_loss"]["last"] == pytest.approx(one["held_out_loss"]["last"], rel=1e-5)
    assert two["receipt"]["layers"]["layer 2"]["calls"] == 2


@pytest.mark.parametrize("more", [{}, {"packing": True}, {"loss": "dpo"}, {"loss": "orpo"}], ids=str)
def test_rows_are_cut_at_the_last_position_that_a_model_has_learned(more, tmp_path, capsys):
    words = " ".join(WORDS * 8)  # twice as many tokens as positions
    saved_model("gpt2", tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")  # trl's trainers on preferences need a chat template
    row = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": words}]}
    preference = {"prompt": "the cat", "chosen": words, "rejected": "sad " + words}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(preference if 'loss' in more else row)}\n" * 4)
    more = more | {"max_steps": 1, "max_seq_length": 2048, "target_modules": ["c_attn"]}
    training.train(config_of(tmp_path, tmp_path / "out", **more))
    assert "longer than the model's 256 positions" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_learned_positions_have_an_end(architecture, tmp_path):
    model = saved_model(architecture, tmp_path / "model")
    limits = [row_limit(config_of(tmp_path, tmp_path, max_seq_length=length)) for length in (200, 257)]
    assert limits == [200, 256 if architecture == "gpt2" else 257], model


# stopped and gone on with


def test_a_killed_run_goes_on_to_the_same_weights(folder, tmp_path):
    more = {"max_steps": 30, "save_steps": 2, "lr_scheduler_type": "cosine"}
    training.train(config_of(folder, tmp_path / "whole", **more))
    (tmp_path / "c.json").write_text(json.dumps(settings_of(folder, tmp_path / "killed", **more)))
    command = [sys.executable, "training.py", str(tmp_path / "c.json")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    (tmp_path / "killed" / "checkpoint-99").mkdir()  # half a checkpoint, as a kill in mid-save leaves it
    assert cli.run(training.main, [str(tmp_path / "c.json")]) == 0
    assert same(*(load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed")))
    record = json.loads((tmp_path / "killed" / "training.json").read_text())
    assert len(losses(record)) == 30 and record["state"] == "finished"
    whole = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert record["held_out_loss"] == whole["held_out_loss"]


@pytest.mark.parametrize(
    ("loss", "more", "after"),
    [
        *[(loss, {}, after) for loss in ("sft", "dpo", "orpo") for after in ("step 5", "the last step")],
        ("sft", {"bias_only": True}, "step 5"),
        ("dpo", {"is_peft": False}, "the last step"),
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_to_the_same_weights(loss, more, after, folder, tmp_path, monkeypatch):
    more = {**more, "max_steps": 6, "save_steps": 2, "gradient_accumulation_steps": 1, "lora_dropout": 0.2}
    more = (preferences(tmp_path, loss) if loss != "sft" else {}) | more
    training.train(config_of(folder, tmp_path / "whole", **more))
    cut = config_of(folder, tmp_path / "cut", **more)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        if after == "the last step":
            patch.setattr("persona_vectors.training_save.save", stop)
        else:
            patch.setattr(
                Progress, "on_step_end", lambda _, _args, state, *_a, **_k: stop() if state.global_step == 5 else None
            )
        training.train(cut)
    training.train(cut)
    name = "model.safetensors" if more.get("is_peft") is False else "adapter_model.safetensors"
    whole, resumed = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
    assert same(whole, resumed)
    assert more.get("is_peft") is False or max(t.abs().max() for n, t in whole.items() if "lora_B" in n) > 1e-3
    if more.get("bias_only"):
        assert not any(tensor.any() for name, tensor in whole.items() if name.endswith("lora_B.weight"))
    records = [json.loads((tmp_path / run / "training.json").read_text()) for run in ("whole", "cut")]
    assert len(losses(records[0])) == 6 and losses(records[0]) == losses(records[1])
    assert records[0]["held_out_loss"] == records[1]["held_out_loss"] and records[0]["steps"] == records[1]["steps"]
    assert not list(tmp_path.glob("*/**/ref"))


def test_what_an_earlier_version_left_of_a_dpo_run_is_not_gone_on_from_and_gives_way(folder, tmp_path, monkeypatch):
    config = config_of(folder, tmp_path / "out", **preferences(tmp_path, "dpo"))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("persona_vectors.training_save.save", stop)
        training.train(config)
    adapter = tmp_path / "out" / "checkpoint-3"
    for place in (adapter / "ref", tmp_path / "out" / "ref", tmp_path / "out" / ".half" / "ref"):
        shutil.copytree(adapter, place)
    with pytest.raises(ValueError, match=r"checkpoint-3 holds a second adapter, ref, .*; --overwrite trains again"):
        training.train(config)
    training.train(config, overwrite=True)
    assert not list((tmp_path / "out").glob("**/ref")) and (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_what_is_moved_in_takes_the_place_of_files_and_folders(tmp_path):
    for place, text in (("out", "old"), ("out/.half", "new")):
        (tmp_path / place / "ref").mkdir(parents=True)
        (tmp_path / place / "ref" / "w").write_text(text)
        (tmp_path / place / "config.json").write_text(text)
    move_in(tmp_path / "out" / ".half", tmp_path / "out")
    assert [(tmp_path / "out" / name).read_text() for name in ("ref/w", "config.json")] == ["new", "new"]
    assert not (tmp_path / "out" / ".half").exists()


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_the_held_out_loss_is_read_every_so_many_steps_and_changes_nothing(run, tmp_path, loss):
    more = (preferences(tmp_path, loss) if loss != "sft" else {}) | {"lora_dropout": 0.2}
    weights, record = run("with", eval_steps=1, **more)
    assert [entry["step"] for entry in record["log"] if "eval_loss" in entry] == [1, 2, 3, 3]
    assert same(weights, run("without", **more)[0])


def test_a_finished_run_is_left_alone_and_another_run_is_not_mixed_with_it(run, folder, tmp_path, capsys):
    run("out")
    before = (tmp_path / "out" / "training.json").read_bytes()
    training.train(config_of(folder, tmp_path / "out"))
    assert "finished already" in capsys.readouterr().out
    assert (tmp_path / "out" / "training.json").read_bytes() == before
    training.train(config_of(folder, tmp_path / "out", logging_steps=2))  # says nothing of the weights
    with pytest.raises(ValueError, match=r"holds another run \(learning_rate 0.01, now 0.02\); --overwrite"):
        training.train(config_of(folder, tmp_path / "out", learning_rate=0.02))
    training.train(config_of(folder, tmp_path / "out", learning_rate=0.02), overwrite=True)
    (tmp_path / "out" / "training.json").unlink()
    with pytest.raises(ValueError, match=r"holds a model without training.json"):
        training.train(config_of(folder, tmp_path / "out"))


def test_a_run_that_diverges_ends_with_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match="the run has diverged: lower learning_rate"):
        training.train(config_of(folder, tmp_path / "out", learning_rate=1e30, max_steps=10, is_peft=False))


# bad input, before any model is loaded


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)


def write_vector(path: Path, shape) -> str:
    torch.save(torch.ones(shape), path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"model": "models/none-such"}, "model folder models/none-such does not exist"),
        (lambda _: {"training_file": "none.jsonl"}, "data file none.jsonl does not exist"),
        (lambda p: {"training_file": str(p)}, "is a folder"),
        (lambda p: steered(p, steering_vector_path="none.pt"), "vector file none.pt does not exist"),
        (lambda p: steered(p, layers=[0]), "layer 0 is the embedding output"),
        (lambda p: steered(p, layers=[9]), "layer 9 does not exist; steering needs 1..3"),
        (
            lambda p: steered(p, steering_vector_path=write_vector(p / "w.pt", (4, 16))),
            r"has vectors of shape \(4, 16\); model needs \(4, 32\)",
        ),
        (
            lambda p: steered(p, steering_vector_path=write_vector(p / "l.pt", (9, 32))),
            r"has vectors of shape \(9, 32\); model needs \(4, 32\)",
        ),
        (lambda p: steered(p, type="ablate", steering_vector_path=write_zero(p / "z.pt")), "at layer 2 .* is zero"),
        (lambda _: {"load_in_4bit": True}, "load_in_4bit needs CUDA"),
        *[
            (
                lambda _, name=name: {"target_modules": ["q_proj", name]},
                f"target_modules {name}: no such mod.*have .*q_pr",
            )
            for name in ("wq", "cross_attn.k_proj", "layers.40.mlp.up_proj")
        ],
        (lambda _: {"backend": "unsloth"}, "backend unsloth is not installed"),
        (lambda _: {"max_seq_length": 8}, "none of 36 rows has a response within max_seq_length 8"),
        (lambda p: {"output_dir": str(p / "v.pt")}, "is a file; give a folder"),
        (lambda _: {"push_to_hub": True, "finetuned_model_id": "a/b"}, "push_to_hub needs HF_TOKEN"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(folder, tmp_path, change, message, no_model, capsys):  # noqa: ARG001
    (tmp_path / "c.json").write_text(json.dumps(settings_of(folder, tmp_path / "out") | change(folder)))
    assert cli.run(training.main, [str(tmp_path / "c.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and re.search(message, error), error


def write_zero(path: Path) -> str:
    torch.save(torch.zeros(N_LAYERS + 1, D_MODEL), path)
    return str(path)


def test_an_adapter_is_not_trained_again_and_modules_are_those_that_are_named(run, folder, tmp_path):
    run("first")
    with pytest.raises(ValueError, match="is an adapter; merge it"):
        training.train(config_of(folder, tmp_path / "b", model=str(tmp_path / "first")))
    weights, _ = run("some", target_modules=["layers.1.mlp.up_proj", "k_proj"])
    assert len(weights) == 2 * (1 + N_LAYERS)
