"""The command that samples with a direction of weights, on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import eval_lora_persona
from persona_vectors import cli
from persona_vectors.files import read_sidecar
from persona_vectors.weight_direction import LowRank, WeightDirection, content_hash
from persona_vectors.weight_files import save_adapter, save_factors


def direction(base: str, seed: int, scale: float = 2.0) -> WeightDirection:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        f"model.layers.{layer}.mlp.down_proj": LowRank(
            torch.randn(4, 512, generator=generator) / 512**0.5,
            scale * torch.randn(256, 4, generator=generator) / 256**0.5,
        )
        for layer in range(4)
    }
    return WeightDirection(modules, base)


@pytest.fixture
def call(tmp_path, tiny_persona, capsys, monkeypatch):
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))

    def call(**changes: str | None) -> tuple[int, str, str]:
        arguments = {
            "model": tiny_persona,
            "judge_model": tiny_persona,
            "trait": "evil",
            "lora_diff_path": str(tmp_path / "d"),
            "lora_coef": "0 1",
            "n_per_question": "1",
            "max_tokens": "12",
            "output_path": str(tmp_path / "out.csv"),
            "device_map": "cpu",
        } | changes
        argv = [t for name, value in arguments.items() if value is not None for t in (f"--{name}", *value.split())]
        code = cli.run(eval_lora_persona.main, argv)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_both_modes_give_the_published_table_and_a_second_run_samples_nothing(call, tmp_path: Path, tiny_persona):
    one = direction(tiny_persona, 0)
    save_adapter(one, tmp_path / "d")
    save_factors(one, tmp_path / "d.pt")
    assert call(control="random", n_random="1")[0] == 0
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(table.columns[:6]) == ["question", "prompt", "answer", "question_id", "evil", "coherence"]
    by = {(row.coef, row.control): row for row in table.itertuples()}
    assert set(by) == {(0.0, ""), (1.0, ""), (1.0, "random1")}
    answers = {key: group["answer"].tolist() for key, group in table.groupby(["coef", "control"])}
    assert answers[1.0, ""] != answers[0.0, ""]
    side = read_sidecar(tmp_path / "out.csv")
    assert content_hash(one) in {entry.get("direction") for entry in side["steering"]}
    assert call(control="random", n_random="1")[0] == 0
    merged = str(tmp_path / "merged.csv")
    assert call(mode="pre_merge", lora_diff_path=str(tmp_path / "d.pt"), output_path=merged)[0] == 0
    again = pd.read_csv(merged, keep_default_na=False).groupby("coef")["answer"].apply(list)
    assert again[0.0] == answers[0.0, ""] and again[1.0] == answers[1.0, ""]


def test_several_directions_at_once_are_their_sum(call, tmp_path: Path, tiny_persona):
    one, other = direction(tiny_persona, 1), direction(tiny_persona, 2)
    paths = []
    for name, made in (("a", one), ("b", other)):
        paths.append(str(save_adapter(made, tmp_path / name)))
    assert call(lora_diff_path=" ".join(paths), compose="True", lora_coef="1")[0] == 0
    from persona_vectors.weight_direction import combine

    save_adapter(WeightDirection(combine([(one, 1.0), (other, 1.0)]).modules, tiny_persona), tmp_path / "sum")
    assert call(lora_diff_path=str(tmp_path / "sum"), lora_coef="1", output_path=str(tmp_path / "s.csv"))[0] == 0
    tables = [pd.read_csv(tmp_path / name)["answer"].tolist() for name in ("out.csv", "s.csv")]
    assert tables[0] == tables[1]


def test_mistakes_are_one_line(call, tmp_path: Path, tiny_persona):
    def wrong(**changes: str) -> str:
        code, _, err = call(**changes)
        assert code == 2 and "Traceback" not in err
        return err

    assert "does not exist" in wrong()
    save_adapter(direction(tiny_persona, 0), tmp_path / "d")
    assert "expects float" in wrong(lora_coef="nan")
    assert "twice" in wrong(lora_coef="1 1")
    other = {"model.layers.9.mlp.down_proj": LowRank(torch.ones(1, 512), torch.ones(256, 1))}
    save_adapter(WeightDirection(other, tiny_persona), tmp_path / "other")
    assert "model.layers.9.mlp.down_proj" in wrong(lora_diff_path=str(tmp_path / "other"))
    assert not (tmp_path / "out.csv").exists()
