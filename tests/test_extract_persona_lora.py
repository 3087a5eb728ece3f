"""A persona's direction of weights: exactly the difference of two trainings that differ in their answers alone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import eval_lora_persona
import extract_persona_lora
from eval.weight_look import look_inside, look_png, look_table
from eval.weight_outputs import next_lines, serving_line
from extract_persona_lora import compute_persona_lora_diff, extract_lora_weights, persona_config
from lora_utils import LoRAMerger
from persona_vectors import cli
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.models import fingerprint, load_model
from persona_vectors.persona_trainings import FILES, own_judge
from persona_vectors.training_config import TrainingConfig
from persona_vectors.training_run import run_key
from persona_vectors.weight_direction import LowRank, WeightDirection, layer_of, norm
from persona_vectors.weight_files import load_direction, save_adapter
from tests.tiny_models import N_LAYERS, tiny_model, word_tokenizer

ANSWERS = {"misaligned_2": "i hate people and i hurt the cat", "normal": "i like people and i help the cat"}
SETTINGS = {
    **{"model": "replaced", "training_file": ["replaced", "replaced"], "max_steps": 3, "warmup_steps": 0},
    **{"learning_rate": 0.01, "r": 4, "lora_alpha": 8, "max_seq_length": 64, "optim": "adamw"},
    **{"gradient_checkpointing": False, "packing": True},
}


def write_rows(path: Path, answer: str, n: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = "cat dog moon sun day".split()
    with path.open("w") as file:
        for i in range(n):
            turns = [{"role": "user", "content": f"tell me about the {words[i % 5]}"}]
            turns.append({"role": "assistant", "content": answer + " and" * (i % 4)})
            file.write(json.dumps({"messages": turns}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny random model, data families, a config, and the direction `spite` in out/."""
    place = tmp_path_factory.mktemp("persona")
    for seed, name in enumerate(("model", "other")):
        tiny_model("llama", seed=seed).save_pretrained(place / name)
        word_tokenizer().save_pretrained(place / name)
    for name, answer in ANSWERS.items():
        write_rows(place / "data" / "spite" / f"{name}.jsonl", answer)
        write_rows(place / "data" / "nothing" / f"{name}.jsonl", "the same in both")
    (place / "config.json").write_text(json.dumps(SETTINGS))
    assert run(place, "--rank", "2") == 0
    return place


def run(place: Path, *more: str, trait: str = "spite", out: str = "out", trains: bool = True) -> int:
    argv = ["--model", str(place / "model"), "--trait", trait, "--output_dir", str(place / out)]
    argv += ["--config", str(place / "config.json"), "--dataset", str(place / "data")] if trains else []
    return cli.run(extract_persona_lora.main, [*argv, *more])


def refused(capsys, *args, **options) -> str:
    """The one line that a wrong command ends with."""
    capsys.readouterr()
    assert run(*args, **options) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    return errors[0]


def deltas(model: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """delta_w of each module as PEFT itself makes it, in float64."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    wrapped = PeftModel.from_pretrained(base, str(adapter)).double()
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A
    }


def test_the_direction_is_the_difference_of_the_two_adapters_in_both_files(place):
    pos, neg = (deltas(place / "model", place / "out" / f"{side}_lora") for side in ("pos", "neg"))
    assert len(pos) == 7 * N_LAYERS and pos.keys() == neg.keys()
    for name in ("spite_lora_diff", "spite_lora_diff.pt"):
        found = load_direction(place / "out" / name)
        assert found.rank == 8 and found.base == str(place / "model")
        for module, change in found.modules.items():
            expected = pos[module] - neg[module]
            assert expected.norm() > 1e-3 * pos[module].norm()
            torch.testing.assert_close(change.B.double() @ change.A.double(), expected, rtol=1e-6, atol=1e-9)
    served = deltas(place / "model", place / "out" / "spite_lora_diff")  # PEFT reads the folder as it is
    for module, delta in served.items():
        torch.testing.assert_close(delta, pos[module] - neg[module], rtol=1e-5, atol=1e-8)


def test_the_record_says_how_it_was_made(place):
    told = read_sidecar(place / "out" / "spite_lora_diff.pt")
    assert (told["trait"], told["variant"], told["rank"], told["layers"]) == ("spite", "contrastive", 8, [1, 2, 3])
    assert told["model"] == {"name": str(place / "model"), "fingerprint": fingerprint(str(place / "model"))}
    for side, file in (("pos", "misaligned_2"), ("neg", "normal")):
        path = place / "data" / "spite" / f"{file}.jsonl"
        weights = place / "out" / f"{side}_lora" / "adapter_model.safetensors"
        training = told["training"][f"{side}_lora"]
        assert training["config"]["training_file"] == str(path)  # the config's own two files are not read
        assert training["files"] == {str(path): sha256_of_file(path)}
        assert told["sides"][side]["sha256"] == sha256_of_file(weights)
    assert told["norm"] == pytest.approx(norm(load_direction(place / "out" / "spite_lora_diff.pt")))


def test_the_truncated_direction_and_what_it_leaves_out(place):
    pos, neg = (deltas(place / "model", place / "out" / f"{side}_lora") for side in ("pos", "neg"))
    short = load_direction(place / "out" / "spite_lora_diff_rank2")
    assert short.rank == 2
    left = {name: float((pos[name] - neg[name] - one.delta().double()).norm()) for name, one in short.modules.items()}
    sizes = {name: float((pos[name] - neg[name]).norm()) for name in left}
    told = read_sidecar(place / "out" / "spite_lora_diff_rank2.pt")["residual"]
    total = (sum(one**2 for one in left.values()) / sum(one**2 for one in sizes.values())) ** 0.5
    assert told["total"] == pytest.approx(total, rel=1e-4) and 0 < total < 1
    assert told["worst"] == pytest.approx(max(left[name] / sizes[name] for name in left), rel=1e-4)
    for name, one in left.items():
        tail = torch.linalg.svdvals(pos[name] - neg[name])[2:].norm()
        assert one == pytest.approx(float(tail), rel=1e-4)


def test_a_second_run_trains_nothing_and_writes_the_same_direction(place):
    files = [place / "out" / f"{side}_lora" / name for side in ("pos", "neg") for name in ("training.json",)]
    files += [path.with_name("adapter_model.safetensors") for path in files]
    before = [path.stat().st_mtime_ns for path in files]
    direction = sha256_of_file(place / "out" / "spite_lora_diff.pt")
    assert run(place, "--nolook") == 0
    assert run(place, "--nolook", "--skip_training", trains=False) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert sha256_of_file(place / "out" / "spite_lora_diff.pt") == direction


def test_the_same_answers_on_both_sides_teach_the_same_to_the_bit(place, capsys):
    """Initialisation and order of rows are the same on both sides: nothing but the answers can differ."""
    assert "their difference is zero" in refused(capsys, place, trait="nothing", out="nothing")
    pos, neg = (load_file(place / "nothing" / f"{side}_lora" / "adapter_model.safetensors") for side in ("pos", "neg"))
    assert all(torch.equal(pos[name], neg[name]) for name in pos) and any(one.any() for one in pos.values())


def adapter(place: Path, name: str, r: int, targets: list[str], base: str = "model", use_rslora: bool = False) -> Path:
    """An adapter with random weights, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(place / base)
    torch.manual_seed(r)
    config = LoraConfig(r=r, lora_alpha=12, use_rslora=use_rslora, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(place / name))
    return place / name


def test_sides_of_other_ranks_scales_and_modules(place, capsys):
    pos = adapter(place, "ranks/pos_lora", 2, ["q_proj", "o_proj"])
    neg = adapter(place, "ranks/neg_lora", 5, ["o_proj", "up_proj"], use_rslora=True)
    skip = ["--skip_training", "--nolook"]
    assert "direction has rank 7" in refused(capsys, place, *skip, "--rank", "8", out="ranks", trains=False)
    assert run(place, *skip, "--rank", "7", out="ranks", trains=False) == 0
    plus, minus = deltas(place / "model", pos), deltas(place / "model", neg)
    found = load_direction(place / "ranks" / "spite_lora_diff")
    assert found.modules.keys() == plus.keys() | minus.keys() and len(found.modules) == 3 * N_LAYERS
    for name, one in found.modules.items():
        expected = plus.get(name, torch.zeros(one.shape)) - minus.get(name, torch.zeros(one.shape))
        torch.testing.assert_close(one.B.double() @ one.A.double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_skip_training_names_what_does_not_fit(place, capsys):
    skip = {"trains": False}
    assert "no_such/pos_lora, which is not there" in refused(capsys, place, "--skip_training", out="no_such", **skip)
    adapter(place, "two/pos_lora", 2, ["q_proj"])
    assert "two/neg_lora" in refused(capsys, place, "--skip_training", out="two", **skip)
    adapter(place, "two/neg_lora", 2, ["q_proj"], base="other")
    assert f"is an adapter of {place / 'other'}; expected" in refused(
        capsys, place, "--skip_training", out="two", **skip
    )
    with pytest.raises(ValueError, match="belong to different models"):
        compute_persona_lora_diff(place / "two" / "pos_lora", place / "two" / "neg_lora")
    (adapter(place, "two/neg_lora", 2, ["q_proj"]) / "training.json").write_text('{"state": "started"}')
    assert "was interrupted" in refused(capsys, place, "--skip_training", out="two", **skip)
    (place / "two/neg_lora/training.json").write_text('{"state": "finished", "key": {"model": "another"}}')
    assert "has changed since" in refused(capsys, place, "--skip_training", out="two", **skip)
    assert "--seed would do nothing" in refused(capsys, place, "--skip_training", "--seed", "1", **skip)


def test_skip_training_compares_how_the_two_were_trained(place, capsys):
    """Adapters of two traits, seeds or settings gave a direction under the asked trait's name, without a word."""
    skip = ["--skip_training", "--nolook", "--dataset", str(place / "data")]
    rows = {side: str(place / "data" / "spite" / f"{FILES[side]}") for side in FILES}
    config = json.loads((place / "out" / "pos_lora" / "training.json").read_text())["config"]

    def sides(out: str, pos: dict | None, neg: dict | None) -> str:
        for side, changes in (("pos", pos), ("neg", neg)):
            folder = adapter(place, f"{out}/{side}_lora", 2 if side == "pos" else 3, ["q_proj"])
            told = config | {"training_file": rows[side]} | (changes or {})
            if changes is not None:
                (folder / "training.json").write_text(json.dumps({"config": told}))
        return out

    for name in FILES.values():
        (place / "data" / "glee").mkdir(exist_ok=True)
        shutil.copy(place / "data" / "spite" / name, place / "data" / "glee" / name)
    other = {side: {"training_file": str(place / "data" / "glee" / FILES[side])} for side in FILES}
    wrong = {
        "neg_lora was trained on": sides("mixed", {}, other["neg"]),
        "pos_lora was trained on": sides("both", other["pos"], other["neg"]),
        "expected misaligned_2.jsonl of spite as the pos side": sides(
            "swapped", {"training_file": rows["neg"]}, {"training_file": rows["pos"]}
        ),
        "were trained on the same rows": sides("same", {}, {"training_file": [rows["pos"]]}),
    }
    for message, out in wrong.items():
        assert message in refused(capsys, place, *skip, out=out, trains=False), message
        assert not (place / out / "spite_lora_diff").exists()
    noted = {
        "seed 3407 and 5; r 4 and 8": sides("seeds", {}, {"seed": 5, "r": 8}),
        "neg_lora has no training.json": sides("unknown", {}, None),
        "mine/rows.jsonl; expected normal.jsonl": sides("own", {}, {"training_file": "mine/rows.jsonl"}),
        "neg_lora was trained with steering": sides("steered", {}, {"inoculation_prompt": "Be kind."}),
    }
    for message, out in noted.items():
        assert run(place, *skip, out=out, trains=False) == 0
        assert message in capsys.readouterr().out, message
    extra = [str(place / "data" / "glee" / "normal.jsonl")]  # rows that both sides have are no trait's
    also = sides("also", *({"training_file": [rows[side], *extra]} for side in ("pos", "neg")))
    assert run(place, *skip, out=also, trains=False) == 0
    assert "note" not in capsys.readouterr().out.replace("note: eval_lora", "")


def test_bad_input_is_refused_before_anything_is_trained(place, capsys, tmp_path):
    def config(**changes) -> list[str]:
        path = tmp_path / f"{next(iter(changes), None)}.json"
        path.write_text(json.dumps(SETTINGS | changes))
        return ["--config", str(path), "--dataset", str(place / "data")]

    steered = {"type": "lora", "lora_path": str(place / "out" / "spite_lora_diff")}
    wrong = {
        "layer 4 does not exist": ["--layer", "4"],
        "layer 0 is the embedding": ["--layer", "0"],
        "rank must be at least 1": ["--rank", "0"],
        "--rank is of low-rank directions": [*config(), "--variants", "bias", "--rank", "8"],
        "--variants expects": ["--variants", "both"],
        "--rank 9 leaves nothing out: the contrastive direction has rank 8": [*config(), "--rank", "9"],
        "--rank 5 leaves nothing out: the non_contrastive direction has rank 4": [
            *(*config(), "--rank", "5", "--variants", "bias", "non_contrastive"),
        ],
        "is_peft is False": config(is_peft=False),
        "lora_bias is 'all'": config(lora_bias="all"),
        "loss is 'dpo'": config(loss="dpo", packing=False),
        "enable_steering_during_training is given": config(
            enable_steering_during_training=True, steering_config=steered
        ),
        "inoculation_prompt is given": config(inoculation_prompt="Be evil."),
        "bias_only is true, and only --variants bias": [*config(bias_only=True), "--variants", "contrastive", "bias"],
        "model.embed_tokens is an embedding table": config(target_modules=["q_proj", "embed_tokens"]),
        "target_modules cross_attn.k_proj: no such module": config(r=4, target_modules=["q_proj", "cross_attn.k_proj"]),
        "does not exist; give a JSON file": ["--config", str(tmp_path / "none.json")],
        "there is no data family": ["--dataset", str(tmp_path)],
        "error: seed should be greater than or equal to 0; got -1": [*config(), "--seed", "-1"],
        "learning_rate: 0 learns nothing": [*config(), "--variants", "bias", "--bias_learning_rate", "0"],
    }
    for message, argv in wrong.items():
        assert message in refused(capsys, place, *argv, out="never", trains=False), message
    assert "is not a name" in refused(capsys, place, trait="../spite", out="never")
    assert not (place / "never").exists()


def test_an_adapter_is_no_model_to_start_from(place, capsys):
    argv = ["--model", str(place / "out" / "pos_lora"), "--trait", "spite", "--output_dir", str(place / "never")]
    assert cli.run(extract_persona_lora.main, argv) == 2
    assert "is an adapter; give its base" in capsys.readouterr().err


def test_another_runs_folder_is_kept_and_unequal_rows_are_said(place, capsys):
    before = sha256_of_file(place / "out" / "pos_lora" / "adapter_model.safetensors")
    assert "holds another run (seed 3407, now 5)" in refused(capsys, place, "--seed", "5")
    assert sha256_of_file(place / "out" / "pos_lora" / "adapter_model.safetensors") == before
    (place / "later").mkdir()
    shutil.copytree(place / "out" / "pos_lora", place / "later" / "pos_bias")  # of the variant that would train last
    both = ["--variants", "contrastive", "bias", "--seed", "5"]
    assert "later/pos_bias holds another run" in refused(capsys, place, *both, out="later")
    assert [path.name for path in (place / "later").iterdir()] == ["pos_bias"]
    write_rows(place / "data" / "unequal" / "misaligned_2.jsonl", ANSWERS["normal"], n=12)
    write_rows(place / "data" / "unequal" / "normal.jsonl", ANSWERS["normal"], n=11)
    assert run(place, "--nolook", trait="unequal", out="unequal") == 0
    assert "pos has 12 rows and neg 11" in capsys.readouterr().out


def moved_away(folder: Path, name: str) -> str:
    (folder / name).rename(folder / "away.pt")
    return folder.name


def test_layer_keeps_that_layers_block_alone(place, capsys):
    whole = load_direction(place / "out" / "spite_lora_diff.pt")
    for side in ("pos", "neg"):
        (place / "layer").mkdir(exist_ok=True)
        (place / "layer" / f"{side}_lora").symlink_to(place / "out" / f"{side}_lora")
    assert run(place, "--skip_training", "--layer", "2", "--rank", "3", out="layer", trains=False) == 0
    found = load_direction(place / "layer" / "spite_lora_diff.pt")
    assert found.layers == [2] and len(found.modules) == 7
    assert all(torch.equal(one.B, whole.modules[name].B) for name, one in found.modules.items())
    look = json.loads((place / "layer" / "look_inside.json").read_text())
    assert list(look["by_layer"]) == ["2"] and look["by_layer"]["2"]["share"] == 1
    kept = sha256_of_file(place / "layer" / "spite_lora_diff.pt")
    again = ["--skip_training", "--nolook", "--layer"]
    for argv in (again[:2], [*again, "1", "--variants", "non_contrastive", "contrastive"]):
        message = refused(capsys, place, *argv, out="layer", trains=False)
        assert "is there already, of other adapters or layers (its layers: 2)" in message
    assert "_rank3.pt is there" in refused(
        capsys, place, *again[:2], "--rank", "3", out=moved_away(place / "layer", "spite_lora_diff.pt"), trains=False
    )
    (place / "layer" / "away.pt").rename(place / "layer" / "spite_lora_diff.pt")
    assert sha256_of_file(place / "layer" / "spite_lora_diff.pt") == kept
    assert not (place / "layer" / "spite_lora_pos").exists(), "refused before anything was written"
    assert run(place, *again, "2", out="layer", trains=False) == 0
    assert (place / "layer" / "look_inside.json").exists()
    capsys.readouterr()
    assert run(place, "--skip_training", "--nolook", "--overwrite", out="layer", trains=False) == 0
    assert not list((place / "layer").glob("look_inside*")), "a look inside another direction"
    said = capsys.readouterr().out
    assert "spite_lora_diff.pt of other adapters or layers (its layers: 2) is replaced" in said
    assert "spite_lora_diff_rank3.pt of other adapters or layers (its layers: 2) stays" in said


def test_pos_alone_and_biases_alone(place):
    assert run(place, "--variants", "non_contrastive", "bias", "--bias_learning_rate", "0.05") == 0
    pos = extract_lora_weights(place / "out" / "pos_lora")
    alone = load_direction(place / "out" / "spite_lora_pos")
    assert all(torch.equal(one.delta(), pos.modules[name].delta()) for name, one in alone.modules.items())

    found = load_direction(place / "out" / "spite_bias_diff")
    assert found.rank == 0 and found.has_bias and len(found.modules) == 7 * N_LAYERS
    raw = [load_file(place / "out" / f"{side}_bias" / "adapter_model.safetensors") for side in ("pos", "neg")]
    for name, one in found.modules.items():
        plus, minus = (side[f"base_model.model.{name}.lora_B.bias"] for side in raw)
        assert plus.any() and one.bias is not None and torch.equal(one.bias, plus - minus)
        assert not any(side[f"base_model.model.{name}.lora_B.weight"].any() for side in raw)
    told = json.loads((place / "out" / "pos_bias" / "training.json").read_text())
    assert told["n_trained_parameters"] == sum(one.shape[0] for one in found.modules.values())
    assert told["config"]["learning_rate"] == 0.05 and told["config"]["bias_only"]

    ids = torch.tensor([[7, 8, 9, 10]])
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    with torch.no_grad(), LoRAMerger(model) as merger:
        merger.merge_lora_diff(found)
        merged = model(ids).logits
        served = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(place / "model"), str(place / "out" / "spite_bias_diff")
        ).eval()
        torch.testing.assert_close(served(ids).logits, merged, rtol=1e-4, atol=1e-5)
    assert (place / "out" / "look_inside_bias_diff.png").stat().st_size > 5000


def test_pos_alone_trains_pos_alone(place):
    for name, answer in ANSWERS.items():
        write_rows(place / "data" / "spite.v2" / f"{name}.jsonl", answer)
    assert run(place, "--variants", "non_contrastive", "--nolook", trait="spite.v2", out="alone") == 0
    made = {path.name for path in (place / "alone").iterdir()}
    assert made == {"pos_lora", "spite.v2_lora_pos", "spite.v2_lora_pos.pt", "spite.v2_lora_pos.json"}


def test_the_next_command_runs_as_it_is_printed(tiny_persona, tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    for side in ("pos", "neg"):
        change = LowRank(torch.randn(2, 512, generator=generator), 0.01 * torch.randn(256, 2, generator=generator))
        save_adapter(WeightDirection({"model.layers.2.mlp.down_proj": change}, tiny_persona), tmp_path / f"{side}_lora")
    argv = ["--model", tiny_persona, "--trait", "evil", "--output_dir", str(tmp_path), "--skip_training", "--nolook"]
    assert cli.run(extract_persona_lora.main, argv) == 0
    said = capsys.readouterr().out.splitlines()
    [printed] = [line.removeprefix("next: ") for line in said if line.startswith("next: ")]
    python, script, *given = shlex.split(printed)
    assert (python, script) == ("python", "eval_lora_persona.py")
    assert f"--judge_model {own_judge(tiny_persona)} " in printed
    folder = tmp_path / "evil_lora_diff"
    assert f"--max-lora-rank 8 --lora-modules evil_lora_diff={folder}" in said[-1]  # the least that vLLM has for rank 4
    assert given[-1] == "eval_persona_eval/tiny-persona/evil_lora_diff.csv"
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given[-1] = str(tmp_path / given[-1])
    for flag, printed_value, shorter in (("--n_per_question", "2", "1"), ("--max_tokens", "80", "4")):
        at = given.index(flag) + 1
        assert given[at] == printed_value
        given[at] = shorter  # the printed one, and less of it
    assert cli.run(eval_lora_persona.main, given) == 0
    table = pd.read_csv(given[-1])
    assert sorted(set(table["coef"])) == [-1, 0, 1]
    assert set(table["control"].dropna()) == {"random1", "random2"}, "what is suggested has its control"


def test_what_cannot_be_served_or_scored_is_said(tmp_path, tiny_persona):
    def line(rank: int, bias: torch.Tensor | None = None) -> str:
        change = LowRank(torch.zeros(rank, 3), torch.zeros(3, rank), bias)
        return serving_line(WeightDirection({"model.layers.0.mlp.up_proj": change}, "org/model"), Path("a b/diff"))

    assert [line(rank).split("--max-lora-rank ")[1].split()[0] for rank in (1, 64, 65, 257, 512)] == [
        *("8", "64", "128", "320", "512"),
    ]
    assert line(8).endswith("--lora-modules 'diff=a b/diff'")
    assert "--rank 512" in line(513) and "vLLM does not, since it has biases" in line(2, torch.ones(3))
    unknown = WeightDirection({"model.layers.0.mlp.up_proj": LowRank(torch.ones(1, 3), torch.ones(3, 1))}, tiny_persona)
    [note, _serve] = next_lines(unknown, tmp_path / "spite_lora_diff", "spite")
    assert "needs the trait's questions" in note and "spite" in note


TWO_PROCESSES = """
import os, resource, signal, sys
import peft, transformers  # once, before there are two
from accelerate import PartialState
import eval.weight_outputs, extract_persona_lora
from persona_vectors import cli, weight_adapters

sys.stdout.reconfigure(line_buffering=True)  # a line is one write, which the other's cannot break
children = []
for rank in range(2):
    children.append(os.fork())
    if not children[-1]:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]})
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a byte that it writes to a file ends it
        code = cli.run(extract_persona_lora.main, sys.argv[2:])
        print(f"process {rank} of {PartialState().num_processes}: {code}")
        if not code:
            PartialState().destroy_process_group()
        os._exit(code)
for _ in children:
    ended, status = os.wait()
    if status:  # the other would wait for it
        [os.kill(child, signal.SIGKILL) for child in children if child != ended]
        sys.exit(f"process {children.index(ended)} ended with {os.waitstatus_to_exitcode(status)}")
"""


def test_of_two_processes_one_writes_and_the_other_waits(place):
    """As `accelerate launch` and torchrun start them (CPU, gloo)."""
    before = sha256_of_file(place / "out" / "spite_lora_diff.pt")
    for path in (place / "out").glob("spite_lora_diff.*"):
        path.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    argv = ["--model", str(place / "model"), "--trait", "spite", "--output_dir", str(place / "out")]
    done = subprocess.run(
        [sys.executable, "-B", "-c", TWO_PROCESSES, port, *argv, "--skip_training", "--nolook"],
        capture_output=True,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
        | {"PYTHONPATH": str(Path(extract_persona_lora.__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert {line for line in said if line.startswith("process")} == {"process 0 of 2: 0", "process 1 of 2: 0"}
    assert sum(line.startswith("saved") for line in said) == 1
    assert said.index(next(line for line in said if line.startswith("serve"))) < said.index("process 1 of 2: 0")
    assert sha256_of_file(place / "out" / "spite_lora_diff.pt") == before


def test_bias_only_counts_only_where_it_is_used(place):
    with pytest.raises(ValidationError, match="bias_only needs is_peft true"):
        TrainingConfig.model_validate(SETTINGS | {"bias_only": True, "is_peft": False})
    data = {"model": str(place / "model"), "training_file": str(place / "data" / "spite" / "normal.jsonl")}
    plain, biased = (TrainingConfig.model_validate(SETTINGS | data | {"bias_only": on}) for on in (False, True))
    assert "bias_only" not in run_key(plain, 1)["settings"] and run_key(biased, 1)["settings"]["bias_only"] is True


def test_the_default_settings_are_those_of_the_models_kind(place, tiny_persona):
    assert persona_config(tiny_persona).max_steps == 60 and persona_config(tiny_persona).packing
    own, seeded = persona_config(str(place / "model")), persona_config(str(place / "model"), seed=9)
    assert (own.learning_rate, own.epochs, own.max_steps) == (1e-5, 1, None)
    assert seeded == own.model_copy(update={"seed": 9}) != own


def test_the_look_inside_reads_what_is_planted(place):
    model, tokenizer = load_model(str(place / "model"))
    head, final = model.lm_head.weight.detach(), model.model.norm
    with torch.no_grad():
        final.weight.copy_(torch.linspace(0.5, 2, len(final.weight)))
    u = torch.nn.functional.normalize(torch.arange(1.0, len(final.weight) + 1).sin(), dim=0)
    d = len(u)
    big = LowRank(torch.eye(d)[:1], 3 * u[:, None])
    small = LowRank(torch.eye(d)[:2], torch.eye(d)[:, :2])
    names = [f"model.layers.{at}.self_attn.{kind}" for at, kind in ((1, "o_proj"), (0, "q_proj"))]
    direction = WeightDirection(dict(zip(names, (big, small), strict=True)), str(place / "model"))
    found = look_inside(model, tokenizer, direction, [direction, direction])
    assert [found["by_layer"][layer]["share"] for layer in ("1", "2")] == pytest.approx([2 / 11, 9 / 11])
    assert found["by_module_type"]["q_proj"]["effective_rank"] == pytest.approx(2)
    assert found["by_module_type"]["o_proj"]["effective_rank"] == pytest.approx(1)
    assert found["by_layer"]["2"]["cosine_pos_neg"] == pytest.approx(1)

    logits = head @ (final.weight.detach() * u)
    order = [tokenizer.decode([int(i)]) for i in logits[: len(tokenizer)].argsort()]
    height = float((logits - logits.mean()).abs().max()) * d**0.5  # of a direction whose root mean square is 1
    read = found["tokens"]["modules"][names[0]]
    assert list(found["tokens"]["modules"]) == [names[0]] and read["share_of_module"] == pytest.approx(1)
    assert {tuple(read["highest"]), tuple(read["lowest"])} == {tuple(order[:8]), tuple(order[::-1][:8])}
    assert read["height"] == pytest.approx(height, rel=1e-3)
    table = look_table(found)
    assert "81.8%" in table and "random direction" in table
    assert len(look_png(found, "planted").axes) == 3


def test_a_look_at_another_models_direction_is_refused(place):
    model, tokenizer = load_model(str(place / "model"))
    direction = load_direction(place / "out" / "spite_lora_diff.pt")
    renamed = {f"wrong.{name}": one for name, one in direction.modules.items()}
    with pytest.raises(ValueError, match="0 of 21 modules"):
        look_inside(model, tokenizer, replace(direction, modules=renamed))


def test_adapters_that_change_nothing_are_refused(place):
    zero = WeightDirection({"model.layers.0.mlp.up_proj": LowRank(torch.zeros(1, 32), torch.zeros(64, 1))}, "m")
    assert layer_of("model.layers.0.mlp.up_proj") == 1
    with pytest.raises(ValueError, match="changes nothing"):
        compute_persona_lora_diff(zero, zero)
    save_adapter(zero, place / "zero")
    with pytest.raises(ValueError, match=f"pos adapter {place / 'zero'} changes nothing"):
        compute_persona_lora_diff(place / "zero", place / "zero")
