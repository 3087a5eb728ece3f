"""vLLM's own engine and API in this process, with steering: started, checked, served, and ended without leftovers."""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from eval.serve_requests import LISTING, SteeredRequests
from persona_vectors import cli
from persona_vectors.models import ModelSource
from persona_vectors.vllm_adapters import check_config, check_modules
from persona_vectors.vllm_catalog import Catalog
from persona_vectors.vllm_spec import Spec

_GRACE_S = 5  # for answers in flight when the server is told to end
_END_S = 30  # for the engine's processes to free what they share; they are killed after it


@dataclass(frozen=True)
class Service:
    """What is served and how.

    Attributes:
        name: what requests call the model.
        adapters: name -> PEFT folder, beside the model's own.
        options: arguments of vLLM's engine.
        default: resolved steps of requests that say nothing.
    """

    source: ModelSource
    name: str
    catalog: Catalog
    options: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)
    default: Spec = ()
    api_keys: tuple[str, ...] = ()

    @property
    def all_adapters(self) -> dict[str, str]:
        """`adapters`, and the one that the model is, under the model's name."""
        own = self.source.adapter
        return {**self.adapters, **({} if own is None else {self.name: str(own)})}


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that a taken port is known before a model is loaded; port 0 is any free one.

    Raises:
        ValueError: the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port expects 0 to 65535; got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen at {host} port {port}: {why}; give another --port or --host") from error
    return sock


def run(service: Service, sock: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ValueError: an adapter that vLLM cannot compute, or an engine that does not do what it should (`check`).
        cli.Unfinished: the engine ended by itself.
    """
    import uvloop

    with _interruptible():
        uvloop.run(_run(service, sock))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and Ctrl-C end a start at once, and the engine's process with it: exit code 130."""

    def interrupt(*_: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        os.write(2, b"interrupted\n")
        os._exit(130)  # an exception is lost in what waits for the engine, and there is nothing to save yet

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _run(service: Service, sock: socket.socket) -> None:
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    for folder in service.all_adapters.values():
        check_config(Path(folder))
    arguments = _arguments(service)
    async with build_async_engine_client(arguments) as engine:
        try:
            for folder in service.all_adapters.values():
                check_modules(folder, await engine.collective_rpc("steering_unserved", args=(folder,)))
            await register(engine, service.catalog)
            await check(engine, service)
            app = await _app(engine, service, arguments)
            ended_itself = await _serve(app, engine, sock)
        finally:
            engine.shutdown(timeout=_END_S)
            type(engine).__del__ = lambda _: None  # would end it again when Python has taken apart what that needs
    if ended_itself:
        raise cli.Unfinished("the engine ended by itself (its own messages are above); start the server again")


def _arguments(service: Service) -> Any:
    """The arguments of vLLM's server, as its command line would give them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    vars(arguments).update(service.options)
    arguments.model = service.source.base
    arguments.served_model_name = [service.name if service.source.adapter is None else service.source.base]
    adapters = service.all_adapters.items()
    arguments.lora_modules = [LoRAModulePath(name, folder) for name, folder in adapters] or None
    arguments.api_key = list(service.api_keys) or None
    return arguments


async def register(engine: Any, catalog: Catalog) -> None:
    """Gives the engine every vector of the catalog."""
    for name, vector in catalog.vectors.items():
        shape = tuple(vector.shape)
        await engine.collective_rpc("steering_register", args=(name, vector.contiguous().numpy().tobytes(), shape))


async def check(engine: Any, service: Service) -> None:
    """Prints what the vectors were seen to do in this engine, before anything is served.

    Raises:
        ValueError: it does not do what requests will ask for.
    """
    from persona_vectors.models import load_tokenizer
    from persona_vectors.vllm_receipt import check_engine

    async def compute(ids: Sequence[int], params: Any) -> None:
        async for _ in engine.generate({"prompt_token_ids": list(ids)}, params, "receipt"):
            pass

    async def ask(method: str) -> Any:
        return (await engine.collective_rpc(method))[0]

    ids = load_tokenizer(service.source.base)("What was seen before anything was served?")["input_ids"]
    found = await check_engine(compute, ask, service.catalog, ids, engine.model_config.dtype)
    layers = [measured for measurements in found.values() for measured in measurements]
    if layers:
        least = min(min(one.prefill, one.decode) / one.expected for one in layers)
        print(
            f"receipt: {len(found)} vectors at {len(layers)} layers; at least {least:.4f} of each was seen", flush=True
        )


async def _app(engine: Any, service: Service, arguments: Any) -> Any:
    """vLLM's app with `SteeredRequests` around its router: behind the check of the key, before every route."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    # not as a middleware: vLLM's app comes with its stack of them built
    routes = app.router.middleware_stack
    app.router.middleware_stack = SteeredRequests(routes, service.catalog, service.default, service.name)
    await init_app_state(engine, app.state, arguments, tasks)
    for serving in (app.state.openai_serving_chat, app.state.openai_serving_completion):
        serving._raise_if_error = _refuse_overflow
    return app


def _refuse_overflow(finish_reason: str | None, _request: str) -> None:
    """Takes the place of vLLM's own, which says "Internal server error" to a request that the scheduler ended."""
    from vllm.exceptions import GenerationError

    if finish_reason == "error":
        error = GenerationError("hidden states became NaN or infinite, so there is no answer; lower the coefficients")
        error.status_code = HTTPStatus.BAD_REQUEST
        raise error


async def _serve(app: Any, engine: Any, sock: socket.socket) -> bool:
    """Whether serving ended because the engine did; False where the server was told to end."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are ours: uvicorn raises them again when it is done, and the exit code would be theirs

    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S)
    app.state.server = server = Server(config)
    serving = loop.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    host, port = sock.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"steering at http://{address}/v1 ({LISTING} lists the vectors)", flush=True)
    while not told.is_set() and not serving.done() and not engine.errored:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), timeout=1)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # an answer that is cut off now is no error
    server.should_exit = True
    await serving
    return not told.is_set()
