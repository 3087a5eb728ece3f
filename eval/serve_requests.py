"""What stands between a client and the server: each request's `steering`, checked and put where the engine reads it.

    {"model": ..., "messages": [...], "steering": [{"vector": "evil", "layer": 20, "coef": 2.0}]}

A request that the engine cannot carry out is answered here, with HTTP 400 and one line, before vLLM sees it.
vLLM is not imported here; `SteeredRequests` is plain ASGI.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from persona_vectors.cli import one_line
from persona_vectors.interventions import KINDS, POSITIONS
from persona_vectors.vllm_catalog import Catalog
from persona_vectors.vllm_spec import KEY, Spec, parse_spec, spec_text

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FIELD = "steering"
LISTING = "/v1/steering"
STEERED = ("/v1/chat/completions", "/v1/completions")
_PASSED = ("/tokenize", "/detokenize")  # they sample nothing
_LARGEST = 1e18  # its square, which every layer norm takes, is near the end of float32
_READING = ("GET", "HEAD", "OPTIONS")


def steered_body(body: Any, catalog: Catalog, default: Spec = ()) -> dict[str, Any]:
    """A request's JSON with its steering where the engine reads it, and no `steering` field.

    Without the field, or where it is null, the default acts; `[]` is unsteered.

    Args:
        default: resolved steps.

    Raises:
        ValueError: one line; steering that the engine cannot carry out, or that beam search would leave out.
    """
    if not isinstance(body, Mapping):
        raise ValueError(f"the body must be a JSON object; got {type(body).__name__}")
    given = body.get("vllm_xargs")
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"vllm_xargs must be a JSON object; got {type(given).__name__}")
    extra = dict(given or {})
    asked = [raw for raw in (body.get(FIELD), extra.pop(KEY, None)) if raw is not None]
    if len(asked) > 1:
        raise ValueError(f"steering is given twice, as {FIELD} and in vllm_xargs; give it once")
    spec = request_spec(asked[0], catalog) if asked else default
    if spec and body.get("use_beam_search"):
        raise ValueError(
            "beam search is not steered by vLLM; leave use_beam_search out, or ask for it with steering []"
        )
    if spec:
        extra[KEY] = spec_text(spec)
    left = {name: value for name, value in body.items() if name not in (FIELD, "vllm_xargs")}
    return {**left, "vllm_xargs": extra} if extra else left


def request_spec(raw: Any, catalog: Catalog) -> Spec:
    """The resolved steps of a request.

    Raises:
        ValueError: one line, whatever is wrong with it.
    """
    try:
        spec = catalog.resolve(parse_spec(raw))
    except (OverflowError, RecursionError, TypeError) as error:  # a whole number beyond float, a list for a name
        raise ValueError(f"steering cannot be read: {one_line(error)}") from error
    for step in spec:
        size = abs(step.coef) * float(catalog.at(step.vector, step.layer).abs().max())
        if size > _LARGEST:
            raise ValueError(f"steering with coef {step.coef} changes hidden states by {size:.1e}: every answer is NaN")
    return spec


def listing(catalog: Catalog, default: Spec = ()) -> dict[str, Any]:
    """What a client can ask of this server."""
    names = {own: name for name, own in catalog.names.items()}
    steps = [{**asdict(step), "vector": names.get(step.vector, step.vector)} for step in default]
    return {
        "object": "steering",
        "model": catalog.model,
        "n_layers": catalog.n_layers,
        "d_model": catalog.d_model,
        "layers": list(catalog.layers),
        "projections": catalog.projections,
        "positions": list(POSITIONS),
        "kinds": list(KINDS),
        "vectors": catalog.listing(),
        "default_steering": [{name: value for name, value in step.items() if value is not None} for step in steps],
    }


class SteeredRequests:
    """The app, asked only what it can answer as it was asked.

    Routes that would sample without steering are not served, so no answer is unsteered unnoticed.

    Args:
        app: vLLM's.
        default: resolved steps of requests that say nothing.
        default_model: the `model` of requests that name none.
    """

    def __init__(self, app: App, catalog: Catalog, default: Spec = (), default_model: str | None = None):
        self.app = app
        self.catalog = catalog
        self.default = default
        self.default_model = default_model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, method = scope["path"], scope["method"]
        if method in _READING and path == LISTING:
            return await _answer(send, 200, listing(self.catalog, self.default))
        if method in _READING or path in _PASSED:
            return await self.app(scope, receive, send)
        if path not in STEERED:
            return await _refuse(send, 404, f"{path} is not served here; steered are {' and '.join(STEERED)}")
        raw = await _body(receive)
        if raw is None:
            return None
        try:
            body = steered_body(json.loads(raw), self.catalog, self.default)
        except (ValueError, RecursionError) as error:
            return await _refuse(send, 400, _reason(error))
        if self.default_model is not None and body.get("model") is None:
            body["model"] = self.default_model
        content = json.dumps(body).encode()
        await self.app(_resized(scope, len(content)), _replay(content, receive), send)


def _reason(error: Exception) -> str:
    broken = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError)
    return f"the body is not JSON: {one_line(error)}" if broken else one_line(error)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client has gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(content: bytes, receive: Receive) -> Receive:
    """Gives the new body once; what follows, a client that goes among it, comes from the client."""
    told = False

    async def next_message() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return next_message


def _resized(scope: Scope, length: int) -> Scope:
    sized = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in sized]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


async def _refuse(send: Send, status: int, message: str) -> None:
    kind = "BadRequestError" if status == 400 else "NotFoundError"
    await _answer(send, status, {"error": {"message": message, "type": kind, "param": None, "code": status}})


async def _answer(send: Send, status: int, payload: Mapping[str, Any]) -> None:
    content = json.dumps(payload).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
