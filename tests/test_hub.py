"""What is pushed to the hub, what its card says, and what comes back; the hub is a small one on this machine."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eval.hub import main
from persona_vectors import cli
from persona_vectors.capping import load_cap, make_cap, save_cap
from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.hub import check_repo, without_paths
from persona_vectors.vectors import load_vectors, write_vectors
from tests.conftest import ROOT
from tests.loopback_hub import LoopbackHub

MODEL = {"name": "org/chat-model", "revision": "abc", "dtype": "float32"}
SIGN = "mean(pos) - mean(neg): points from neg to pos"


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    record = {
        "kind": "persona vectors",
        "trait": "impolite",
        "span": "response_avg",
        "sign": SIGN,
        "pairs": {"n_pairs": 20, "n_scored": 19, "n_kept": 12},
        "model": MODEL,
        "inputs": {"pos": {"path": "/home/someone/runs/pos.csv", "sha256": "12"}},
    }
    return write_vectors(tmp_path / "home" / "impolite_response_avg_diff.pt", rows, record)


def quality(folder: Path) -> Path:
    keys = ("norm", "split_half", "auc", "auc_random", "auc_random_95", "p")
    layers = [{"layer": i, **dict.fromkeys(keys, 0.5 + i / 10)} for i in range(5)]
    layers[0]["auc"] = None
    path = folder / "impolite_quality.json"
    told = {"layers": layers, "n_kept": 12, "n_questions": 4, "arguments": {"save_dir": "/home/someone/out"}}
    path.write_text(json.dumps(told))
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path: Path):
    """A hub of our own, which the client is told of as HF_ENDPOINT would tell it."""
    from huggingface_hub import constants

    with LoopbackHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_a_dry_run_writes_the_folder_and_asks_nobody(vectors: Path, tmp_path: Path, capsys):
    quality(vectors.parent)
    main("push", "org/impolite", [str(vectors)], license="apache-2.0", dry_run=str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {vectors.name, "impolite_response_avg_diff.json", "impolite_quality.json", "README.md"}
    assert (tmp_path / "out" / vectors.name).read_bytes() == vectors.read_bytes()
    assert "nothing was pushed" in capsys.readouterr().out
    everything = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".pt")
    assert "/home" not in everything and str(tmp_path) not in everything and '"pos.csv"' in everything


def test_the_card_says_what_the_sidecar_says(vectors: Path, tmp_path: Path):
    quality(vectors.parent)
    main("push", "org/impolite", [str(vectors)], license="apache-2.0", dry_run=str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    head = front(card)
    assert head["license"] == "apache-2.0" and head["base_model"] == ["org/chat-model"]
    assert head["library_name"] == "persona-vectors-toolkit" and "steering-vectors" in head["tags"]
    for said in (
        f"| {vectors.name} | impolite response_avg | {SIGN} | 0 to 4 | 8 | ours |",
        "hidden_states index",
        "n_pairs 20, n_scored 19, n_kept 12",
        "name org/chat-model, revision abc",
        "| 0 | 0.5 | 0.5 | - | 0.5 | 0.5 | 0.5 |",
        "| 4 | 0.9 | 0.9 | 0.9 | 0.9 | 0.9 | 0.9 |",
        "## Responsible use",
        f"--vector_file vectors/{vectors.name}",
    ):
        assert said in card, said


def test_a_card_without_controls_says_so(vectors: Path, tmp_path: Path, capsys):
    main("push", "org/impolite", [str(vectors)], dry_run=str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "nothing here shows that a direction does more than a random one" in card and front(card)["license"] == "other"
    )
    said = capsys.readouterr().out
    assert "no licence was chosen" in said and "the card has no controls" in said


def test_a_model_of_this_machine_is_no_base_model(vectors: Path, tmp_path: Path, tiny_persona: str):
    rows = load_vectors(vectors)
    for name in (tiny_persona, "models/tiny-persona", "elsewhere/tiny-persona"):  # the last from another folder
        own = write_vectors(tmp_path / "own" / "x.pt", rows, {"model": {"name": name, "revision": None}})
        main("push", "org/x", [str(own)], dry_run=str(tmp_path / name.replace("/", "_")))
        card = (tmp_path / name.replace("/", "_") / "README.md").read_text()
        assert "base_model" not in front(card) and "tiny-persona" in card and str(ROOT) not in card


def test_pushed_and_pulled_is_the_same(hub: LoopbackHub, vectors: Path, tmp_path: Path, capsys):
    main("push", "org/impolite", [str(vectors)], license="mit", private=True)
    assert set(hub.repos["org/impolite"]) == {vectors.name, "impolite_response_avg_diff.json", "README.md"}
    assert hub.repos["org/impolite"][vectors.name] == vectors.read_bytes()
    assert (
        hub.private == {"org/impolite"} and hub.tokens["POST /api/models/org/impolite/commit/main"] == "Bearer hf_test"
    )
    assert f"pushed: {hub.url}/org/impolite/commit/" in capsys.readouterr().out
    main("pull", "org/impolite", output_dir=str(tmp_path / "here"))
    assert torch.equal(load_vectors(tmp_path / "here" / vectors.name), load_vectors(vectors))
    told = read_sidecar(tmp_path / "here" / vectors.name)
    assert told["trait"] == "impolite" and told["file"]["sha256"] == sha256_of_file(vectors)
    assert told["pulled"][0]["commit"] == hub.commit_of("org/impolite")
    assert "layers 0 to 4 of width 8" in capsys.readouterr().out
    main("push", "org/impolite", [str(vectors)], license="mit")  # a repo that is there is pushed to again


def test_a_dataset_repo_is_pulled_by_name(hub: LoopbackHub, tmp_path: Path, capsys):
    torch.save({"axis": torch.ones(3, 4)}, tmp_path / "axis.pt")
    axis = (tmp_path / "axis.pt").read_bytes()
    hub.repos["datasets/org/axes"] = {"a/axis.pt": axis, "b/axis.pt": axis, "notes.txt": b"x"}
    main("pull", "org/axes", output_dir=str(tmp_path / "here"), files=["a/*"], repo_type="dataset")
    pulled = sorted(path.name for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert pulled == ["axis.json", "axis.pt"] and (tmp_path / "here" / "a" / "axis.pt").read_bytes() == axis
    assert "layers 1 to 3 of width 4" in capsys.readouterr().out


def test_what_is_not_to_be_pulled(hub: LoopbackHub, vectors: Path, tmp_path: Path):
    main("push", "org/impolite", [str(vectors)])
    here = tmp_path / "here"
    main("pull", "org/impolite", output_dir=str(here))
    with pytest.raises(ValueError, match="is there already; give another folder, or --overwrite"):
        main("pull", "org/impolite", output_dir=str(here))
    main("pull", "org/impolite", output_dir=str(here), overwrite=True)
    with pytest.raises(ValueError, match="has no vector files"):
        main("pull", "org/impolite", output_dir=str(tmp_path / "x"), files=["*.bin"])
    hub.repos["org/impolite"][vectors.name] += b"!"
    with pytest.raises(ValueError, match="not the file that its sidecar describes"):
        main("pull", "org/impolite", output_dir=str(tmp_path / "changed"))
    hub.repos["org/evil"] = {"../x.pt": b""}
    with pytest.raises(ValueError, match="would lie outside"):
        main("pull", "org/evil", output_dir=str(tmp_path / "evil"))
    assert not (tmp_path / "evil").exists()


def test_a_repo_of_a_whole_model_is_not_pulled_by_accident(hub: LoopbackHub, tmp_path: Path, monkeypatch):
    from persona_vectors import hub as hub_module

    monkeypatch.setattr(hub_module, "MAX_BYTES", 3)
    hub.repos["org/model"] = {"model.safetensors": b"four"}
    with pytest.raises(ValueError, match="choose with --files"):
        main("pull", "org/model", output_dir=str(tmp_path / "x"))


def repo_files(hub: LoopbackHub, sidecar: str) -> bytes:
    content = io.BytesIO()
    torch.save(torch.ones(5, 4), content)
    hub.repos["org/x"] = {"v.pt": content.getvalue(), "v.json": sidecar.encode()}
    return content.getvalue()


@pytest.mark.parametrize(
    ("sidecar", "said"),
    [
        ('{"file": {"sha256": "0"}}', "v.pt of org/x is not the file that its sidecar describes"),
        ('{"file": "x"}', "v.json of org/x is no sidecar of v.pt; .*--files v.pt"),
        ('{"pulled": 3}', "v.json of org/x is no sidecar of v.pt"),
        ('{"pulled": "x"}', "v.json of org/x is no sidecar of v.pt"),
        ("[1]", "v.json of org/x is no sidecar of v.pt"),
        ("{", "v.json of org/x is no sidecar of v.pt"),
    ],
)
def test_what_is_refused_is_not_left_behind(hub: LoopbackHub, tmp_path: Path, sidecar: str, said: str):
    repo_files(hub, sidecar)
    with pytest.raises(ValueError, match=said):
        main("pull", "org/x", output_dir=str(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("sidecar", ["{}", '{"file": null}', '{"trait": "evil", "pulled": []}'])
def test_a_sidecar_that_says_little_is_pulled(hub: LoopbackHub, tmp_path: Path, sidecar: str):
    repo_files(hub, sidecar)
    main("pull", "org/x", output_dir=str(tmp_path / "here"))
    assert [one["repo"] for one in read_sidecar(tmp_path / "here" / "v.pt")["pulled"]] == ["org/x"]


def test_a_file_that_is_pulled_alone_does_not_inherit_an_older_ones_sidecar(hub: LoopbackHub, tmp_path: Path):
    content = repo_files(hub, '{"file": "x"}')
    write_vectors(tmp_path / "v.pt", torch.zeros(5, 4) + 2, {"trait": "another"})
    (tmp_path / "only" / "v.json").parent.mkdir()
    (tmp_path / "only" / "v.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="v.json is there already"):
        main("pull", "org/x", output_dir=str(tmp_path / "only"), files=["v.pt"])
    main("pull", "org/x", output_dir=str(tmp_path), files=["v.pt"], overwrite=True)
    told = read_sidecar(tmp_path / "v.pt")
    assert (tmp_path / "v.pt").read_bytes() == content and "trait" not in told and told["pulled"][0]["repo"] == "org/x"


@pytest.fixture
def capped(tmp_path: Path, tiny_persona: str) -> Path:
    """A folder with a cap, made from a model and vectors that stand elsewhere on this machine."""
    path = write_vectors(tmp_path / "given" / "axis.pt", torch.ones(5, 256), {"sign": SIGN})
    made = make_cap("axis", {3: torch.ones(256)}, {3: np.arange(9.0)}, floor_percentile=25)
    model = str(Path(tiny_persona).resolve())
    save_cap(made, tmp_path / "cap", vector_path=path, model_name=model, calibration={}, record={})
    return tmp_path / "cap"


def test_a_cap_is_pushed_with_its_vectors_and_works_when_pulled(hub: LoopbackHub, capped: Path, tmp_path: Path):
    main("push", "org/cap", [str(capped / "axis.pt"), str(capped / "cap.json")], license="mit")
    pushed = hub.repos["org/cap"]
    assert set(pushed) == {"axis.pt", "axis.json", "cap.json", "README.md"}
    assert str(ROOT).encode() not in b"".join(pushed.values())
    assert (
        "| cap.json | cap (floor) at all tokens | along axis.pt | 3 |  | persona-cap/1 |"
        in pushed["README.md"].decode()
    )
    main("pull", "org/cap", output_dir=str(tmp_path / "here"))
    assert load_cap(tmp_path / "here" / "cap.json", "models/tiny-persona").steps[0].floor == 2.0


def test_a_cap_without_its_vectors_is_not_pushed(capped: Path, vectors: Path, tmp_path: Path):
    for others in ([], [str(vectors)]):
        with pytest.raises(ValueError, match="cap.json caps along .*axis.pt, without which it is of no use"):
            main("push", "org/cap", [str(capped / "cap.json"), *others], dry_run=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="is no cap"):
        main("push", "org/cap", [str(capped / "axis.json")], dry_run=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_what_the_hub_refuses_is_one_line(hub: LoopbackHub, vectors: Path, tmp_path: Path, status: int):
    hub.refuse = status
    for call in (
        lambda: main("push", "org/impolite", [str(vectors)]),
        lambda: main("pull", "org/impolite", output_dir=str(tmp_path / "x")),
    ):
        with pytest.raises(OSError, match=r"cannot (push to|pull from) org/impolite") as caught:
            call()
        assert "\n" not in str(caught.value) and str(status) in str(caught.value)
    assert len(hub.requests) <= 3, "asked again and again"  # at 401 and 403 the client looks whether the repo is there


def test_offline_is_one_line_at_once(hub: LoopbackHub, vectors: Path, tmp_path: Path, monkeypatch, capsys):
    from huggingface_hub import constants

    push = ["push", "--repo", "org/impolite", "--vector_path", str(vectors)]
    pull = ["pull", "--repo", "org/impolite", "--output_dir", str(tmp_path / "x")]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    for words, what in ((push, "push to"), (pull, "pull from")):
        assert cli.run(main, words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: cannot {what} org/impolite: ") and said.count("\n") == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for words in (push, pull):
        assert cli.run(main, words) == 2
        assert capsys.readouterr().err.endswith("HF_HUB_OFFLINE is set\n")
    assert not hub.requests


def test_what_a_user_gets_wrong_is_said_first(vectors: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for call, said in (
        (lambda: main("push", "impolite", [str(vectors)]), "is not a name such as org/name"),
        (lambda: main("push", "org/x"), "push needs --vector_path"),
        (lambda: main("pull", "org/x"), "pull needs --output_dir"),
        (lambda: main("push", "org/x", [str(vectors)], dry_run=str(tmp_path / "full")), "is not an empty folder"),
        (lambda: main("push", "org/x", [str(vectors)] * 2, dry_run=str(tmp_path / "o")), "two files are named"),
        (lambda: main("push", "org/x", [str(tmp_path / "no.pt")], dry_run=str(tmp_path / "o")), "does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_pushing_needs_a_token(vectors: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("persona_vectors.config.load_credentials", dict)
    with pytest.raises(ValueError, match="pushing needs HF_TOKEN"):
        main("push", "org/x", [str(vectors)])


@pytest.mark.parametrize("repo", ["x", "a/b/c", "a b/c", "", "/x", "org/"])
def test_names_of_repos(repo: str):
    with pytest.raises(ValueError, match="is not a name such as org/name"):
        check_repo(repo)


FOLDER = st.text(st.characters(whitelist_categories=("Ll", "Nd")), min_size=1, max_size=6)


@given(
    folders=st.lists(FOLDER, min_size=1, max_size=4), name=FOLDER, before=st.sampled_from(["", "read ", "--file=", "'"])
)
def test_folders_of_this_machine_are_taken_out(folders: list[str], name: str, before: str):
    value = {
        "a": [f"{before}/{'/'.join(folders)}/{name}"],
        "command": f"python x.py --vector_path /{'/'.join(folders)}/{name}",
    }
    public = without_paths(value)
    assert public["a"] == [f"{before}{name}"] and public["command"] == f"python x.py --vector_path {shlex.quote(name)}"


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("https://arxiv.org/abs/2601.10387", "https://arxiv.org/abs/2601.10387"),
        ("org/name at commit", "org/name at commit"),
        ("eval_persona_extract/tiny/pos.csv", "eval_persona_extract/tiny/pos.csv"),
        ("mean(pos)/mean(neg)", "mean(pos)/mean(neg)"),
        ("~/runs/my file.pt", "my file.pt"),
        ("C:\\Users\\me\\v.pt", "v.pt"),
        ("\\\\server\\share\\v.pt", "v.pt"),
        ("see file:///home/me/v.pt", "see v.pt"),
        ("file://host/home/me/v.pt", "v.pt"),
        ("`/home/me/v.pt`", "`v.pt`"),
        ("<b>/home/me/v.pt</b>", "<b>v.pt</b>"),
        ({"/home/me/v.pt": 1, "/home/you/v.pt": 2}, {"v.pt": 1, "v.pt (2)": 2}),
        ({"command": "x 'not closed file:///home/me/v.pt"}, {"command": "x 'not closed v.pt"}),
        ({"a/b": {"~/v.pt": "~/w.pt"}}, {"a/b": {"v.pt": "w.pt"}}),
        (3.5, 3.5),
        (None, None),
    ],
)
def test_other_texts_stay(value, public):
    assert without_paths(value) == public


def test_a_command_with_spaces_in_a_path():
    told = {"command": "eval/convert.py --vector_path '/home/some one/v 1.pt' --layers 3"}
    assert without_paths(told)["command"] == "eval/convert.py --vector_path 'v 1.pt' --layers 3"
