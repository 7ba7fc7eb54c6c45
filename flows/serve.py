"""serve: the champion behind HTTP until it is asked to stop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from tasks.serving.app import Service

GRACE_SECONDS = 30
HOST_VARIABLE, PORT_VARIABLE = "WEATHERGLASS_HOST", "WEATHERGLASS_PORT"
ACCEPT_SECONDS = 0.2
SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; Python has no name for it


def run_serve(root: Path, host: str | None, port: int | None, alias: str, workers: int | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns 0.

    Order of precedence of address and port: argument, environment, params.yaml. Asked to stop, it says that it is not
    ready, answers what comes for ``serving.drain_seconds``, then what has been begun, and ends. ``workers`` goes before
    ``serving.workers``.
    """
    from flows.environment import opened

    root, params = opened(root)
    host = host or os.environ.get(HOST_VARIABLE) or params.serving.host
    port = _port(os.environ.get(PORT_VARIABLE), params.serving.port) if port is None else port
    if workers is not None:
        params = params.model_copy(update={"serving": params.serving.model_copy(update={"workers": workers})})
    listening = _listen(host, port)
    from tasks.serving.memory import one_heap
    from tasks.serving.processes import Nursery

    first = Nursery()  # which imports what it needs while this process does
    try:
        one_heap()
        import uvicorn

        from tasks.serving.app import Service
        from tasks.tracking_store import initialise

        initialise()
        service = Service(root, params, alias, host, _told, first)
        config: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "on"}
        server = uvicorn.Server(uvicorn.Config(service.front, timeout_graceful_shutdown=GRACE_SECONDS, **config))
        shown = f"[{host}]" if ":" in host else host
        _told(f"listening at http://{shown}:{listening.getsockname()[1]}; /docs tells what may be asked")
        asyncio.run(_serve(server, service, listening, params.serving.drain_seconds))
    finally:
        first.end()
    return 0


async def _serve(server: uvicorn.Server, service: Service, listening: socket.socket, seconds: float) -> None:
    """Serve, with a time of draining between the signal and its end; a second signal ends that at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if service.front.draining:
            server.should_exit = True
            return
        _told(f"asked to stop: listening for {seconds:g} s more, then answering what has been begun")
        service.drain()
        loop.call_later(seconds, refuse_new, listening)
        loop.call_later(seconds + ACCEPT_SECONDS, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server._serve(sockets=[listening])  # `serve` would put signal handlers of its own in place of these


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; UserError where the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(*found[:3])  # its protocol named, or asyncio leaves Nagle's algorithm on: 40 ms an answer
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen(1024)
    except OSError as error:
        raise UserError(
            f"{host} port {port} cannot be listened at ({error.strerror}); choose others by --host and --port."
        ) from None
    return listening


def refuse_new(listening: socket.socket) -> None:
    """Let no further connection reach a listening socket, whose queue can then be emptied before it is closed.

    Closing it at once would reset connections that clients have made and the service has not accepted yet. A filter that
    drops every packet for the listener (socket(7), SO_ATTACH_FILTER) leaves them in the queue; who comes later is refused
    when the socket is closed. Where the system has no such filter the queue is closed as it is.
    """
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K: keep no byte
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(drop)))
    except OSError:
        return


def _port(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdigit() or int(text) > 65535:
        raise UserError(f"{PORT_VARIABLE} is '{text}'; it must be a port from 0 to 65535.")
    return int(text)


def _told(sentence: str) -> None:
    print(f"weatherglass: {sentence}", file=sys.stderr, flush=True)
