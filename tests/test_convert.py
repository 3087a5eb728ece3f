"""Other tools' files hold the same direction at the same place: read by their own readers, and steering alike."""

from __future__ import annotations

import pickle
import sys
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from activation_steer import ActivationSteerer
from eval.convert import main
from persona_vectors.blocks import block_index
from persona_vectors.convert import ModelShape, Source, choose_layers, read_source
from persona_vectors.convert_formats import FORMATS, Format
from persona_vectors.convert_torch import capping_content, lm_eval_content, read_capping
from persona_vectors.convert_write import block_list_name, check_target, write_target
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.interventions import cap
from persona_vectors.vector_files import VectorFile
from persona_vectors.vectors import load_vectors, write_vectors
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, saved_model, tiny_model

OTHERS: tuple[Format, ...] = ("assistant-axis", "gguf", "steering-vectors", "lm-eval")
SHAPE = ModelShape("tiny", N_LAYERS, D_MODEL, "llama")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return saved_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    rows = torch.randn(N_LAYERS + 1, D_MODEL, generator=torch.Generator().manual_seed(0))
    sidecar = {"trait": "evil", "sign": "points from neg to pos", "pairs": {"n_kept": 9}}
    return write_vectors(tmp_path / "evil.pt", rows, sidecar)


def suffix(format: str) -> str:
    return ".gguf" if format == "gguf" else ".pt"


def convert(
    source: Path, target: Path, format: Format, layers: list[int], model: str | None = None, **flags: Any
) -> Path:
    if format == "gguf":
        pytest.importorskip("gguf")
    main(str(source), str(target), format, layers=layers, model_name=model, **flags)
    return target


# the way there and back


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_there_and_back_is_the_same_vectors_bit_for_bit(data, tmp_path_factory):
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("round")
    n_layers, width = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 9))
    format: Format = data.draw(st.sampled_from(["assistant-axis", "gguf", "steering-vectors"]))
    layers = data.draw(st.lists(st.integers(2, n_layers), min_size=1, unique=True))
    rows = torch.randn(n_layers + 1, width, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    rows = rows * 10.0 ** data.draw(st.integers(-15, 15))
    shape = ModelShape("m", n_layers, width, "llama")
    source = read_source(write_vectors(folder / "v.pt", rows, {}))
    chosen, _ = choose_layers(source, format, layers)
    there, _ = write_target(folder / f"x{suffix(format)}", format, source, chosen, shape=shape)
    back = read_source(there[0], shape=shape)
    assert back.format == format and back.file.layers == sorted(layers)
    home, _ = write_target(folder / "home.pt", "ours", back, back.file.layers, shape=shape)
    found = load_vectors(home[0])
    assert found.shape == rows.shape and all(torch.equal(found[layer], rows[layer]) for layer in layers)
    assert not found[[layer for layer in range(n_layers + 1) if layer not in layers]].any()


@pytest.mark.parametrize("format", OTHERS)
def test_the_command_goes_there_and_back(format: Format, ours: Path, llama: str, tmp_path: Path, capsys):
    there = convert(ours, tmp_path / f"there{suffix(format)}", format, [2, 3], llama)
    main(str(there), str(tmp_path / "home.pt"), "ours", model_name=llama)
    rows = load_vectors(tmp_path / "home.pt")
    assert torch.equal(rows[2:], load_vectors(ours)[2:]) and not rows[:2].any()
    told = read_sidecar(there)
    assert told["converted"]["sha256"] == sha256_of_file(ours) and told["converted"]["layers"] == [2, 3]
    assert told["trait"] == "evil" and told["pairs"] == {"n_kept": 9}
    assert "block B, counted from 0, is layer B+1" in told["converted"]["numbers"]["to"]
    home = read_sidecar(tmp_path / "home.pt")
    assert home["sign"] == "points from neg to pos" and home["converted"]["formats"] == {"from": format, "to": "ours"}
    zero = ", ".join(str(row) for row in range(len(rows)) if not rows[row].any())
    assert f"not in the file: {zero}" in capsys.readouterr().out


def test_what_stands_in_the_files_is_the_number_of_the_block(ours: Path, llama: str, tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    rows = load_vectors(ours)
    reader = gguf.GGUFReader(convert(ours, tmp_path / "x.gguf", "gguf", [2, 3], llama))
    assert [one.name for one in reader.tensors] == ["direction.1", "direction.2"]
    assert torch.equal(torch.from_numpy(reader.tensors[0].data.copy()), rows[2])
    fields = {name: reader.get_field(name).contents() for name in reader.fields}
    assert fields["general.architecture"] == "controlvector" and fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    axis = torch.load(convert(ours, tmp_path / "axis.pt", "assistant-axis", [1, 3], llama))["axis"]
    assert axis.shape == (N_LAYERS, D_MODEL) and torch.equal(axis[0], rows[1]) and not axis[1].any()
    fields = torch.load(convert(ours, tmp_path / "sv.pt", "steering-vectors", [1, 3], llama))
    assert list(fields["layer_activations"]) == [0, 2] and fields["layer_type"] == "decoder_block"
    steer = torch.load(convert(ours, tmp_path / "lm.pt", "lm-eval", [3], llama, coef=2.5))
    assert list(steer) == ["layers.2"] and steer["layers.2"]["steering_coefficient"] == 2.5
    assert torch.equal(steer["layers.2"]["steering_vector"], rows[3])


@pytest.mark.parametrize("format", ["assistant-axis", "gguf", "steering-vectors", "ours"])
def test_a_coefficient_is_multiplied_in_where_the_format_has_none(
    format: Format, ours: Path, llama: str, tmp_path: Path
):
    there = convert(ours, tmp_path / f"x{suffix(format)}", format, [2], llama, coef=-3.0)
    assert torch.equal(read_source(there).file.vectors[2], -3.0 * load_vectors(ours)[2])
    assert read_sidecar(there)["sign"] == "-3 times the vector that is points from neg to pos"


# steering alike


def ids(rows: int = 2) -> Tensor:
    return torch.randint(6, 60, (rows, 7), generator=torch.Generator().manual_seed(1))


def our_logits(model, vector: Tensor, layer: int, coef: float) -> Tensor:
    with torch.no_grad(), ActivationSteerer(model, vector, coeff=coef, layer_idx=block_index(layer), positions="all"):
        return model(ids()).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lm_evals_own_hooks_steer_as_ours_do(architecture: str, ours: Path, tmp_path: Path):
    hf_steered = pytest.importorskip("lm_eval.models.hf_steered")
    name = saved_model(architecture, tmp_path / architecture)
    told = torch.load(convert(ours, tmp_path / "lm.pt", "lm-eval", [2], name, coef=1.5))
    model = tiny_model(architecture)
    (hookpoint, one), *_ = told.items()
    move = partial(
        hf_steered.SteeredModel.add, vector=one["steering_vector"] * one["steering_coefficient"], head_index=None
    )
    with torch.no_grad(), hf_steered.steer(model, {hookpoint: move}):
        theirs = model(ids()).logits
    assert torch.equal(theirs, our_logits(model, load_vectors(ours)[2], 2, 1.5))
    assert not torch.allclose(theirs, our_logits(model, load_vectors(ours)[2], 1, 1.5), atol=1e-3)


def test_lm_eval_itself_loads_the_file_and_steers_as_ours_does(tiny_persona: str, tmp_path: Path):
    hf_steered = pytest.importorskip("lm_eval.models.hf_steered")
    rows = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    source = write_vectors(tmp_path / "v.pt", rows, {})
    path = convert(source, tmp_path / "lm.pt", "lm-eval", [3], tiny_persona, coef=0.5)
    lm = hf_steered.SteeredModel(tiny_persona, str(path), device="cpu", dtype="float32")
    tokens = lm.tokenizer("How are you today?", return_tensors="pt").input_ids
    theirs = lm._model_call(tokens)
    with torch.no_grad(), ActivationSteerer(lm.model, rows[3], coeff=0.5, layer_idx=2, positions="all"):
        assert torch.equal(theirs, lm.model(tokens).logits)
    with torch.no_grad():
        assert not torch.allclose(theirs, lm.model(tokens).logits, atol=1e-2)


def test_a_merged_model_is_needed_for_hookpoints(llama: str, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=1, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = llama
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter"):
        block_list_name(str(tmp_path / "adapter"))


# caps

BOUND = st.one_of(st.none(), st.floats(-3, 3, width=32))


def their_cap(hidden: Tensor, content: dict[str, Any]) -> Tensor:
    """Every intervention in turn, by their formula: h - max(h·v̂ - cap, 0)v̂."""
    for one in content["experiments"][0]["interventions"]:
        unit = content["vectors"][one["vector"]]["vector"]
        unit = unit / unit.norm()
        hidden = hidden - (hidden @ unit - one["cap"]).clamp(min=0.0)[..., None] * unit
    return hidden


@settings(max_examples=60, deadline=None)
@given(floor=BOUND, ceiling=BOUND, seed=st.integers(0, 99))
def test_their_ceilings_bound_as_our_floor_and_ceiling_do(floor, ceiling, seed):
    if floor is None and ceiling is None:
        return
    if floor is not None and ceiling is not None and floor > ceiling:
        floor, ceiling = ceiling, floor
    generator = torch.Generator().manual_seed(seed)
    hidden, vector = 3 * torch.randn(2, 5, 8, generator=generator), torch.randn(8, generator=generator)
    content = capping_content({4: vector}, {4: (floor, ceiling)}, "x")
    torch.testing.assert_close(their_cap(hidden, content), cap(hidden, vector, floor, ceiling), atol=1e-5, rtol=1e-5)
    back = read_capping(content)
    assert back.bounds == {4: (floor, ceiling)} and torch.equal(back.blocks[4], vector)


@given(value=st.floats(-3, 3, width=32), seed=st.integers(0, 99))
def test_a_clamp_of_lm_eval_is_a_floor_and_ceiling_of_one_value(value, seed):
    clamp = pytest.importorskip("lm_eval.models.hf_steered").SteeredModel.clamp
    generator = torch.Generator().manual_seed(seed)
    hidden, vector = torch.randn(2, 5, 8, generator=generator), torch.randn(8, generator=generator)
    told = lm_eval_content({1: vector}, 1.0, "layers", {1: (value, value)})["layers.1"]
    theirs = clamp(hidden, vector / vector.norm(), told["steering_coefficient"], None)
    torch.testing.assert_close(theirs, cap(hidden, vector, value, value), atol=1e-5, rtol=1e-5)


def published_capping(folder: Path) -> Path:
    vectors = {f"v{i}": {"layer": i, "vector": torch.eye(D_MODEL)[i] * (i + 2)} for i in (0, 1)}
    one = {"id": "layers_0:1-p0.25", "interventions": [{"vector": "v0", "cap": 0.5}, {"vector": "v1", "cap": -1.0}]}
    other = {"id": "one", "interventions": [{"vector": "v1", "cap": 2.0}, {"vector": "v0", "coefficient": 1.0}]}
    torch.save({"vectors": vectors, "experiments": [one, other]}, folder / "capping_config.pt")
    return folder / "capping_config.pt"


def test_a_capping_config_becomes_a_cap_of_ours_and_one_of_theirs_again(llama: str, tmp_path: Path):
    from persona_vectors.capping import load_cap

    config = published_capping(tmp_path)
    main(str(config), str(tmp_path / "cap" / "axis.pt"), "ours", model_name=llama, name="layers_0:1-p0.25")
    found = load_cap(tmp_path / "cap" / "cap.json", llama)
    assert [(step.layer, step.floor, step.ceiling) for step in found.steps] == [(1, None, 0.5), (2, None, -1.0)]
    assert torch.equal(found.steps[1].vector, torch.eye(D_MODEL)[1] * 3) and not found.note
    assert read_sidecar(tmp_path / "cap" / "axis.pt")["converted"]["bounds"] == {"1": [None, 0.5], "2": [None, -1.0]}
    with pytest.raises(ValueError, match="axis.pt would replace .*give another name"):  # the cap's own vectors
        main(str(tmp_path / "cap" / "cap.json"), str(tmp_path / "cap" / "axis.pt"), "capping")
    main(str(tmp_path / "cap" / "cap.json"), str(tmp_path / "again.pt"), "capping")
    again = torch.load(tmp_path / "again.pt")
    hidden = torch.randn(3, 4, D_MODEL)
    for block in (0, 1):
        parts = [
            part
            for part in again["experiments"][0]["interventions"]
            if again["vectors"][part["vector"]]["layer"] == block
        ]
        alone = {"vectors": again["vectors"], "experiments": [{"id": "x", "interventions": parts}]}
        step = found.steps[block]
        torch.testing.assert_close(their_cap(hidden, alone), cap(hidden, step.vector, step.floor, step.ceiling))
    with pytest.raises(ValueError, match="cap.json is there already"):
        main(str(config), str(tmp_path / "cap" / "other.pt"), "ours", model_name=llama, name="one")
    with pytest.raises(ValueError, match="have cap.json as their sidecar"):
        main(str(config), str(tmp_path / "new" / "cap.pt"), "ours", model_name=llama, name="layers_0:1-p0.25")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("names", [("a", "b"), ("a/floor", "b/floor"), ("a/floor", "b")])
def test_two_vectors_at_a_block_are_refused(names: tuple[str, str]):
    vectors = {name: {"layer": 3, "vector": torch.full((4,), 1.0 + i)} for i, name in enumerate(names)}
    content = {
        "vectors": vectors,
        "experiments": [{"id": "x", "interventions": [{"vector": n, "cap": 1} for n in names]}],
    }
    with pytest.raises(ValueError, match="caps two vectors at block 3"):
        read_capping(content)


def test_only_what_caps_is_taken_and_chosen(tmp_path: Path):
    config = published_capping(tmp_path)
    assert read_source(config, name="one").bounds == {2: (None, 2.0)}
    with pytest.raises(ValueError, match=r"choose an experiment with --name: it has layers_0:1-p0\.25, one"):
        read_source(config)
    with pytest.raises(ValueError, match="no experiment 'two'"):
        read_source(config, name="two")


# which format a file is


def assistant_axis_files(rows: Tensor) -> dict[str, Any]:
    return {
        "axis": {"axis": rows, "default_mean": rows + 1, "role_mean": rows - 1, "n_default": 4, "n_roles": 9},
        "role": {"vector": rows.bfloat16(), "type": "pos_3", "role": "bard"},
        "named": {"bard": rows, "jester": rows + 1},
    }


@pytest.mark.parametrize("kind", ["axis", "role", "named"])
def test_files_of_assistant_axis_are_known_by_their_keys(kind: str, tmp_path: Path):
    rows = torch.arange(12.0).reshape(3, 4) + 1
    torch.save(assistant_axis_files(rows)[kind], tmp_path / "x.pt")
    if kind == "named":
        with pytest.raises(ValueError, match="choose a vector with --name: the file has bard, jester"):
            read_source(tmp_path / "x.pt")
    found = read_source(tmp_path / "x.pt", name="bard" if kind == "named" else None)
    assert found.format == "assistant-axis" and found.file.layers == [1, 2, 3]
    assert torch.equal(found.file.vectors[1], rows[0]) and found.file.vectors[1].dtype == torch.float32
    assert kind != "role" or found.told["role"] == "bard"


def test_a_bare_tensor_needs_a_word_or_the_models_shape(tmp_path: Path):
    for n_rows in (N_LAYERS, N_LAYERS + 1):
        torch.save(torch.ones(n_rows, D_MODEL), tmp_path / f"{n_rows}.pt")
    with pytest.raises(ValueError, match="give --from_format, or --model_name"):
        read_source(tmp_path / "3.pt")
    torch.save(torch.ones(9, D_MODEL), tmp_path / "9.pt")
    with pytest.raises(ValueError, match=r"9 rows; .* has 3 blocks: expected 3 rows \(assistant-axis\) or 4 \(ours\)"):
        read_source(tmp_path / "9.pt", shape=SHAPE)
    assert read_source(tmp_path / "3.pt", shape=SHAPE).file.layers == [1, 2, 3]
    assert read_source(tmp_path / "4.pt", shape=SHAPE).file.layers == [0, 1, 2, 3]
    assert read_source(tmp_path / "3.pt", "ours").file.layers == [0, 1, 2]


@dataclass
class SteeringVector:
    """As steering-vectors 0.12.2 pickles it."""

    layer_activations: dict[int, Tensor]
    layer_type: str = "decoder_block"


SteeringVector.__module__ = "steering_vectors.steering_vector"


def pickled(path: Path, vector: Any, monkeypatch) -> Path:
    module: Any = types.ModuleType("steering_vectors.steering_vector")
    module.SteeringVector = SteeringVector
    with monkeypatch.context() as patched:  # there while it is written, gone when it is read
        patched.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
        patched.setitem(sys.modules, "steering_vectors.steering_vector", module)
        torch.save(vector, path)
    return path


def test_a_pickled_steering_vector_is_read_without_its_library(tmp_path: Path, monkeypatch):
    vector = SteeringVector({0: torch.ones(4), 5: torch.full((1, 1, 4), 2.0)})
    found = read_source(pickled(tmp_path / "x.pt", vector, monkeypatch))
    assert found.format == "steering-vectors" and found.file.layers == [1, 6]
    assert torch.equal(found.file.vectors[6], torch.full((4,), 2.0))
    other = pickled(tmp_path / "mlp.pt", SteeringVector({0: torch.ones(4)}, "mlp"), monkeypatch)
    with pytest.raises(ValueError, match="layer_type is 'mlp'"):
        read_source(other)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content", [Evil(), {"layer_activations": {0: Evil()}}, {"layers.1": {"steering_vector": Evil()}}]
)
def test_no_code_in_a_file_is_run(content: Any, tmp_path: Path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_source(tmp_path / "x.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_source(tmp_path / "plain.pt")


# what cannot be converted is said in one line

HOOK = {"action": "add", "steering_vector": torch.ones(4), "steering_coefficient": 1.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"layers.1.mlp": HOOK}, "'layers.1.mlp' is not the output of a decoder block"),
        ({"layers.1": HOOK | {"head_index": 0}}, "has a head_index"),
        ({"layers.1": HOOK | {"bias": torch.ones(4)}}, "has a bias"),
        ({"layers.1": HOOK | {"action": "push"}}, "action 'push'"),
        ({"layers.1": HOOK | {"steering_vector": torch.ones(2, 4)}}, r"expected a vector \(d_model,\)"),
        ({"layers.1": HOOK | {"steering_vector": torch.full((4,), torch.nan)}}, "NaN or infinite numbers at layer 1"),
        ({"layers.1": HOOK, "layers.2": HOOK | {"steering_vector": torch.ones(5)}}, "expected one width"),
        ({"layers.1": HOOK | {"steering_coefficient": "much"}}, "could not convert"),
        ({"axis": torch.zeros(3, 4)}, "every vector"),
        ({"axis": torch.ones(3, 4, dtype=torch.int64)}, "expected floats"),
        ({"words": "no vectors"}, "none of the known formats"),
        ({"bard": torch.ones(4)}, "none of the known formats"),
        ([torch.ones(4)], "none of the known formats"),
        (torch.ones(2, 3, 4), "none of the known formats"),
        ({"vectors": {}, "experiments": [{"id": "a"}]}, "is not a capping file: KeyError 'interventions'"),
        ({"vectors": {}, "experiments": [{"id": "a", "interventions": [{"vector": "x", "cap": 1}]}]}, "KeyError 'x'"),
        ({"vectors": {}, "experiments": [{"id": "a", "interventions": []}]}, "no intervention with a cap"),
        ({"vectors": {}, "experiments": 3}, "expected a capping config"),
        ({"layer_activations": [torch.ones(4)]}, "expected a SteeringVector"),
        ({"layer_activations": {}}, "every vector"),
    ],
)
def test_what_is_no_vector_of_ours_is_refused(content: Any, said: str, tmp_path: Path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=said) as caught:
        read_source(tmp_path / "x.pt")
    assert "\n" not in str(caught.value) and "x.pt" in str(caught.value)


@pytest.mark.parametrize(
    ("format", "flags", "said"),
    [
        ("gguf", {"layers": [1]}, "layer 1 cannot be written: gguf has no layer below 2"),
        ("assistant-axis", {"layers": [0]}, "layer 0 cannot be written"),
        ("lm-eval", {"layers": [9]}, "no vector at layer 9; it has 0, 1, 2, 3"),
        ("lm-eval", {}, "applies every layer of a file together; choose with --layers"),
        ("steering-vectors", {}, "applies every layer of a file together"),
        ("capping", {}, "has no thresholds"),
        ("gguf", {"layers": [2], "coef": 0.0}, "leaves no direction"),
        ("gguf", {"layers": [2], "model_name": "none"}, "needs --model_name"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    format: Format, flags: dict[str, Any], said: str, ours: Path, llama: str, tmp_path: Path
):
    name = None if flags.get("model_name") == "none" else llama
    with pytest.raises(ValueError, match=said):
        main(str(ours), str(tmp_path / f"x{suffix(format)}"), format, **(flags | {"model_name": name}))
    assert not (tmp_path / f"x{suffix(format)}").exists()


def test_vectors_that_do_not_fit_the_model_are_refused(llama: str, tmp_path: Path):
    torch.save(torch.ones(N_LAYERS + 1, 7), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=f"width 7; .*llama has {D_MODEL}"):
        main(str(tmp_path / "narrow.pt"), str(tmp_path / "x.pt"), "assistant-axis", model_name=llama)
    torch.save({"axis": torch.ones(N_LAYERS + 1, D_MODEL)}, tmp_path / "deep.pt")
    with pytest.raises(ValueError, match=f"has a vector at layer {N_LAYERS + 1}; .* has layers 0..{N_LAYERS}"):
        main(str(tmp_path / "deep.pt"), str(tmp_path / "x.pt"), "ours", model_name=llama)


@pytest.mark.parametrize("content", ["[1]", "{}", "not JSON", '{"format": "persona-cap/1"}'])
def test_a_json_file_that_is_no_cap_is_refused(content: str, tmp_path: Path):
    (tmp_path / "cap.json").write_text(content)
    with pytest.raises(ValueError, match=r"cap\.json"):
        read_source(tmp_path / "cap.json")


def test_nothing_is_written_over_the_source(ours: Path, tmp_path: Path, llama: str):
    with pytest.raises(ValueError, match="give another name"):
        main(str(ours), str(ours), "ours", model_name=llama)
    npz = tmp_path / "y.npz"
    npz.write_bytes(b"")
    file = VectorFile(npz, {1: torch.ones(2)}, "hidden_states", {})
    with pytest.raises(ValueError, match="or its sidecar"):  # y.pt and y.npz have one sidecar, y.json
        check_target(tmp_path / "y.pt", "ours", Source("ours", file))
    with pytest.raises(ValueError, match="must end in .gguf"):
        main(str(ours), str(tmp_path / "x.pt"), "gguf", model_name=llama)


@pytest.mark.parametrize("path", ["nothing.pt", "."])
def test_no_such_file(path: str, tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist|is a folder"):
        read_source(tmp_path / path)


def test_the_embedding_row_and_the_first_block_are_left_out_with_a_word(ours: Path, llama: str, tmp_path: Path, capsys):
    pytest.importorskip("gguf")
    main(str(ours), str(tmp_path / "x.gguf"), "gguf", model_name=llama)
    said = capsys.readouterr().out
    assert "left out layer 0: gguf has no layer below 2" in said and "left out layer 1" in said
    assert read_source(tmp_path / "x.gguf").file.layers == [2, 3]
    assert "--control-vector-layer-range 1 2" in said


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_gguf_file_is_refused_in_one_line(data, tmp_path_factory):
    from persona_vectors.convert_gguf import gguf_bytes

    pytest.importorskip("gguf")
    whole = gguf_bytes({1: torch.ones(8), 2: torch.arange(8.0)}, "llama")
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 40))])
    with pytest.raises(ValueError) as caught:
        read_source(path)
    assert "\n" not in str(caught.value)


def test_a_gguf_model_is_no_control_vector(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    for arch, name, values in (
        ("llama", "a", [1.0]),
        ("controlvector", "blk.1", [1.0]),
        ("controlvector", "direction.1", [[1.0]]),
    ):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", arch)
        writer.add_tensor(name, torch.tensor(values).numpy())
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        with pytest.raises(ValueError, match="expected"):
            read_source(tmp_path / "x.gguf")


def test_the_coefficients_of_lm_eval_are_told(tmp_path: Path, llama: str, capsys):
    hooks = {
        f"model.layers.{i}": HOOK | {"steering_vector": torch.ones(D_MODEL), "steering_coefficient": 4.0}
        for i in (0, 2)
    }
    torch.save(hooks, tmp_path / "x.pt")
    found = read_source(tmp_path / "x.pt")
    assert found.coefs == {1: 4.0, 3: 4.0}
    main(str(tmp_path / "x.pt"), str(tmp_path / "home.pt"), "ours", model_name=llama)
    assert "steer with 4.0" in capsys.readouterr().out
    assert read_sidecar(tmp_path / "home.pt")["converted"]["coefs"] == {"1": 4.0, "3": 4.0}


def test_the_formats_are_told_apart(tmp_path: Path, ours: Path, llama: str):
    for format in FORMATS:
        if format in ("ours", "capping"):
            continue
        assert read_source(convert(ours, tmp_path / f"{format}{suffix(format)}", format, [2], llama)).format == format
    assert (
        read_source(ours).format == "ours" and read_source(published_capping(tmp_path), name="one").format == "capping"
    )


def test_adding_and_clamping_are_not_mixed(tmp_path: Path, llama: str):
    vector = torch.ones(D_MODEL)
    hooks = {
        "layers.0": HOOK | {"steering_vector": vector},
        "layers.1": HOOK | {"action": "clamp", "steering_vector": vector},
    }
    torch.save(hooks, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="caps some layers and adds at others"):
        main(str(tmp_path / "x.pt"), str(tmp_path / "home.pt"), "ours", model_name=llama)
    with pytest.raises(ValueError, match="is for vectors that are added"):
        main(str(tmp_path / "x.pt"), str(tmp_path / "home.pt"), "ours", model_name=llama, layers=[2], coef=2.0)
