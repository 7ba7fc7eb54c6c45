"""What stands between the network and the routes: hosts, keys, sizes, counts, and the answers to what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.errors import UserError
from tasks.params_serving import Serving
from tasks.serving.bodies import Refusal
from tasks.serving.gauges import Gauges

KEYS_VARIABLE = "WEATHERGLASS_API_KEYS_FILE"
HOSTS_VARIABLE = "WEATHERGLASS_ALLOWED_HOSTS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Json(Response):
    """JSON; NaN becomes null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def refused(refusal: Refusal) -> Json:
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}.get(refusal.status)
    return Json(refusal.content(), refusal.status, headers)


class Front:
    """ASGI middleware around the whole service: allowed hosts, common headers, counts; no connection is kept in draining."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], gauges: Gauges) -> None:
        self.app, self.hosts, self.gauges = app, frozenset(hosts), gauges
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, code = perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | ({"connection": "close"} if self.draining else {}))
            await send(message)

        self.gauges.open.inc()
        try:
            host = _host_of(scope)
            if "*" in self.hosts or host in self.hosts:
                await self.app(scope, receive, sent)
            else:
                problem = f"host {host!r} is not one that this service answers for (serving.allowed_hosts)"
                await refused(Refusal(400, ("header", "host"), problem))(scope, receive, sent)
        finally:
            self.gauges.open.dec()
            route = getattr(scope.get("route"), "path", "other")
            self.gauges.requests.labels(route, str(code)).inc()
            self.gauges.seconds.labels(route).observe(perf_counter() - begun)


def _host_of(scope: Scope) -> str:
    """The name in the host header without its port."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def allowed_hosts(limits: Serving, host: str) -> set[str]:
    """Names by which the service may be called: of this machine, where it listens, and those that are allowed besides."""
    more = os.environ.get(HOSTS_VARIABLE, "")
    return {*LOOPBACK, host.lower(), *(name.lower() for name in limits.allowed_hosts), *filter(None, more.lower().split(","))}


class Keys:
    """API keys, of which only the digests are kept; without any, everybody is let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def load(cls, root: Path, named: str | None) -> Keys:
        """Read the file that the environment or ``serving.api_keys`` names; UserError where it cannot be read or is empty."""
        name = os.environ.get(KEYS_VARIABLE) or named
        if name is None:
            return cls(())
        try:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"the file of API keys {name} cannot be read: {reason} (serving.api_keys).") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise UserError(f"the file of API keys {name} holds none; write one a line (serving.api_keys).")
        return cls(keys)

    def check(self, request: Request) -> None:
        """Raise Refusal 401 where keys are asked for and the request brings none of them."""
        if not self._digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        if scheme.lower() != "bearer" or not any([hmac.compare_digest(given, digest) for digest in self._digests]):
            raise Refusal(401, ("header", "authorization"), "send a key of this service as `Authorization: Bearer KEY`")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def body_of(request: Request, limits: Serving) -> bytes:
    """The body; Refusal where it is not JSON by its type, is too large, or does not come in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, ("header", "content-type"), f"{kind or 'nothing'!r}; the body must be application/json")
    most = int(limits.body_megabytes * 1_000_000)
    too_large = Refusal(413, ("body",), f"more than {limits.body_megabytes:g} MB (serving.body_megabytes)")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, ("body",), f"the body took more than {limits.body_seconds:g} s (serving.body_seconds)") from None
    except ClientDisconnect:
        raise Refusal(400, ("body",), "the connection ended before the body did") from None
    return b"".join(parts)
