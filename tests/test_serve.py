"""What the steering server checks before vLLM is asked: its arguments, and each request's body. No vLLM needed."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
import torch

from eval.serve import add_files, main, read_default, vector_files
from eval.serve_engine import listen
from eval.serve_requests import SteeredRequests, listing, request_spec, steered_body
from persona_vectors import cli
from persona_vectors.vllm_catalog import Catalog
from persona_vectors.vllm_spec import KEY, Step, parse_spec

STEP = {"vector": "a", "layer": 2, "coef": 1.5}


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog("tiny", n_layers=4, d_model=8, layers=[1, 2, 3, 4], projections=1)
    catalog.add(torch.arange(40.0).reshape(5, 8), "a")
    return catalog


def test_steering_goes_where_the_engine_reads_it(catalog):
    body = steered_body({"model": "m", "steering": [STEP], "vllm_xargs": {"other": 1}}, catalog)
    spec = parse_spec(body["vllm_xargs"].pop(KEY))
    assert spec == (Step(catalog.names["a"], 2, 1.5),)
    assert body == {"model": "m", "vllm_xargs": {"other": 1}}


def test_both_spellings_are_one(catalog):
    own = steered_body({"steering": [STEP]}, catalog)
    assert own == steered_body({"vllm_xargs": {KEY: json.dumps([STEP])}}, catalog)
    assert own == steered_body({"vllm_xargs": {KEY: [STEP]}}, catalog)


def test_default_acts_unless_something_is_said(catalog):
    default = request_spec([STEP], catalog)
    asked = steered_body({"steering": [STEP]}, catalog)
    assert steered_body({}, catalog, default) == asked
    assert steered_body({"steering": None}, catalog, default) == asked
    assert steered_body({"steering": []}, catalog, default) == {}
    assert steered_body({"steering": [{**STEP, "coef": 0}]}, catalog, default) == {}
    assert steered_body({}, catalog) == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "JSON object"),
        ({"vllm_xargs": [1]}, "vllm_xargs must be"),
        ({"steering": [STEP], "vllm_xargs": {KEY: "[]"}}, "twice"),
        ({"steering": [STEP], "use_beam_search": True}, "beam search"),
        ({"steering": "evil"}, "not JSON"),
        ({"steering": 3}, "list of steps"),
        ({"steering": [{**STEP, "vector": "evil"}]}, "loaded are: a"),
        ({"steering": [{**STEP, "layer": 9}]}, "layers 1 to 4"),
        ({"steering": [{**STEP, "coef": float("nan")}]}, "nan"),
        ({"steering": [{**STEP, "coef": 10**400}]}, "finite number"),
        ({"steering": [{**STEP, "coef": 1e30}]}, "NaN"),
        ({"steering": [{**STEP, "kind": {"add": 1}}]}, "kind"),
        ({"steering": [{**STEP, "positions": ["all"]}]}, "positions"),
        ({"steering": [{**STEP, "layer": [[2]]}]}, "layer"),
    ],
)
def test_bad_bodies_are_one_line(catalog, body, said):
    with pytest.raises(ValueError, match=said) as refused:
        steered_body(body, catalog)
    assert "\n" not in str(refused.value)


def ask(app: SteeredRequests, path: str, parts: list[bytes], method: str = "POST") -> list[dict[str, Any]]:
    """What the app sends for a request whose body comes in parts."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    coming.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"Content-Length", b"1"), (b"x", b"y")]}
    asyncio.run(app(scope, receive, send))
    return sent


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what reached it, and what came after the body."""
    body, after = await receive(), await receive()
    await send({"scope": scope, "body": body.get("body"), "after": after["type"]})


def test_the_app_behind_reads_the_new_body_and_hears_of_a_client_that_goes(catalog):
    content = json.dumps({"steering": [STEP]}).encode()
    (seen,) = ask(SteeredRequests(echo, catalog, (), "tiny"), "/v1/completions", [content[:9], content[9:]])
    assert json.loads(seen["body"]) == {**steered_body({"steering": [STEP]}, catalog), "model": "tiny"}
    assert seen["scope"]["headers"] == [(b"x", b"y"), (b"content-length", str(len(seen["body"])).encode())]
    assert seen["after"] == "http.disconnect"


@pytest.mark.parametrize(
    ("path", "content", "status", "said"),
    [
        ("/v1/completions", b"{no", 400, "not JSON"),
        ("/v1/completions", b"\xff\xff", 400, "not JSON"),
        ("/v1/completions", b"[" * 100_000, 400, "not JSON"),
        ("/v1/completions", b'{"steering": 3}', 400, "list of steps"),
        ("/v1/responses", b"{}", 404, "/v1/responses is not served here"),
        ("/v1/completions/", b"{}", 404, "not served"),
        ("/inference/v1/generate", b"{}", 404, "not served"),
    ],
)
def test_refusals_reach_no_engine(catalog, path, content, status, said):
    head, body = ask(SteeredRequests(echo, catalog), path, [content])
    assert head["status"] == status
    error = json.loads(body["body"])["error"]
    assert said in error["message"]
    assert error["code"] == status
    assert error["param"] is None


def test_listing_says_what_can_be_asked(catalog):
    default = request_spec([STEP], catalog)
    _, body = ask(SteeredRequests(echo, catalog, default), "/v1/steering", [b""], "GET")
    told = json.loads(body["body"])
    assert told == listing(catalog, default)
    assert told["default_steering"] == [{**STEP, "positions": "response", "kind": "add"}]
    assert [vector["name"] for vector in told["vectors"]] == ["a"]
    assert request_spec(told["default_steering"], catalog) == default  # what is listed can be asked


@pytest.fixture
def good(tmp_path):
    """A folder with one vector file of tiny-persona's shape."""
    torch.save(torch.ones(5, 256), tmp_path / "evil.pt")
    return tmp_path


def bad(capsys, tiny_persona: str, folder: Any, *flags: str) -> str:
    """The line of a start that is refused."""
    code = cli.run(main, ["--model", tiny_persona, "--vectors", str(folder), *flags])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    return error


def test_vectors_that_cannot_be_used_stop_the_start(capsys, tiny_persona, good):
    torch.save(torch.ones(5, 255), good / "wide.pt")
    assert "wide.pt" in (said := bad(capsys, tiny_persona, good)) and "(5, 255)" in said and "(5, 256)" in said
    torch.save(torch.full((5, 256), float("nan")), good / "wide.pt")
    assert "wide.pt has NaN" in bad(capsys, tiny_persona, good)
    (good / "wide.pt").write_bytes(b"nothing")
    assert "not a plain tensor file" in bad(capsys, tiny_persona, good)


def test_bad_arguments_are_one_line(capsys, tiny_persona, good, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    assert "no .pt files" in bad(capsys, tiny_persona, empty)
    assert "does not exist" in bad(capsys, tiny_persona, good / "none")
    assert "is a file" in bad(capsys, tiny_persona, good / "evil.pt")
    assert "layers 1 to 4" in bad(capsys, tiny_persona, good, "--layers", "5")
    assert "cannot be negative" in bad(capsys, tiny_persona, good, "--projections", "-1")
    assert "is neither a list of steps" in bad(capsys, tiny_persona, good, "--default_steering", "evil")
    assert "not JSON" in bad(capsys, tiny_persona, good, "--default_steering", "[{]")
    assert "loaded are: evil" in bad(
        capsys, tiny_persona, good, "--default_steering", '[{"vector": "good", "layer": 2}]'
    )
    assert "NAME=FOLDER" in bad(capsys, tiny_persona, good, "--adapters", "x")
    assert "whole model" in bad(capsys, tiny_persona, good, "--adapters", f"x={tiny_persona}")
    assert "the model's" in bad(capsys, tiny_persona, good, "--adapters", f"{tiny_persona}={good}")
    assert "--max_model_len" in bad(capsys, tiny_persona, good, "--max_model_len", "0")
    assert "share of 1" in bad(capsys, tiny_persona, good, "--gpu_memory_utilization", "90")


def test_a_taken_port_is_known_at_once():
    with listen("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="65535"):
        listen("127.0.0.1", 70000)
    assert isinstance(sock, socket.socket)


def test_files_and_defaults_are_read(good, catalog):
    torch.save(torch.ones(5, 8), good / "evil.pt")
    add_files(catalog, vector_files(str(good)))
    assert set(catalog.names) == {"a", "evil"}
    (steps := good / "steps.json").write_text(json.dumps([STEP]))
    assert read_default(str(steps)) == read_default(json.dumps([STEP])) == [STEP]
    assert read_default(None) is None
