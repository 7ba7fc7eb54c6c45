"""The routes of the forecast service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tasks.params import Params
from tasks.serving import bodies
from tasks.serving.batcher import Batcher
from tasks.serving.bodies import ForecastRequest, Observations, Refusal, check_request, parsed
from tasks.serving.champion import Champion, ChampionWatch
from tasks.serving.frames import Answer, rows_of
from tasks.serving.frames import Request as Asked
from tasks.serving.gauges import Gauges
from tasks.serving.http import Front, Json, Keys, allowed_hosts, body_of, refused
from tasks.serving.openapi import described, operation, page
from tasks.serving.processes import Nursery, usable_cores
from tasks.serving.streams import Streams, rows_from


class Service:
    """Everything that the routes share; ``front`` is the ASGI application."""

    def __init__(
        self, root: Path, params: Params, alias: str, host: str, told: Callable[[str], None], first: Nursery | None = None
    ) -> None:
        self.limits = params.serving
        workers = self.limits.workers or min(MOST_BY_DEFAULT, usable_cores())
        self.keys = Keys.load(root, self.limits.api_keys)
        self.gauges = Gauges(told)
        adaptive, seconds = params.monitor.adaptive, self.limits.reload_seconds
        self.watch = ChampionWatch(root, params.registry.name, alias, adaptive, workers, seconds, told, first)
        self.batcher = Batcher(self.limits, self.gauges, self.watch.wake)
        self.streams = Streams(root, self.limits)
        self.front = Front(_routes(self), allowed_hosts(self.limits, host), self.gauges)

    def drain(self) -> None:
        """Answer what comes still, but say that this service is not ready and keep no connection."""
        self.front.draining = True

    def champion(self) -> Champion:
        """The champion that answers now; Refusal 503 where there is none yet."""
        with self.watch.held() as champion:
            return champion

    async def forecast(self, request: Request) -> Json:
        self.champion()
        body = await body_of(request, self.limits)
        with self.watch.held() as champion:
            asked, series = await run_in_threadpool(self._read, champion, body)
            answers = [_known(champion, index, name) for index, name in enumerate(asked.ids)]
            if series:
                answers = await self.batcher.forecast(champion, series)
            return self._answer(champion, answers, asked.columns)

    def _read(self, champion: Champion, body: bytes) -> tuple[ForecastRequest, Asked]:
        asked: ForecastRequest = parsed(bodies.FORECAST, body)
        check_request(asked, champion.contract, self.limits)
        places = [("body", "series", index) for index in range(len(asked.series))]
        pairs = zip(places, asked.series, strict=True)
        return asked, [(place, rows_of(series, place, champion.contract)) for place, series in pairs]

    async def observe(self, request: Request) -> Json:
        self.champion()
        body = await body_of(request, self.limits)
        new: Observations = await run_in_threadpool(parsed, bodies.OBSERVATIONS, body)
        async with self.streams.turn(new.unique_id):
            with self.watch.held() as champion:
                history = await run_in_threadpool(self.streams.extended, champion, new)
                rows = rows_from(history, champion.contract.encoding)
                try:
                    answers = await self.batcher.forecast(champion, [(("body",), rows)])
                except Refusal as refusal:  # a row of the history is no place in the body
                    raise Refusal(refusal.status, ("body",), refusal.sentence) from None
                self.streams.keep(new.unique_id, history)
                return self._answer(champion, answers, new.columns)

    def ready(self) -> Champion:
        """The champion that answers now, with workers that are there; Refusal 503 otherwise."""
        champion = self.champion()
        if self.front.draining:
            raise Refusal(503, (), "the service is stopping")
        if not champion.crew.workers:
            raise Refusal(503, (), "no process forecasts at the moment")
        return champion

    async def tend(self) -> None:
        """See every second that workers that have ended are replaced, also those that nobody asks."""
        while True:
            if self.watch.current is not None:
                await self.batcher.tend(self.watch.current.crew)
            await asyncio.sleep(TEND_SECONDS)

    def _answer(self, champion: Champion, answers: list[Answer], columns: list[str] | None) -> Json:
        if columns is not None:
            has = [name for name in answers[0] if name not in ALWAYS]
            for index, name in enumerate(columns):
                if name not in has:
                    raise Refusal(
                        422, ("body", "columns", index), f"the forecast has no column {name!r}; it has {', '.join(has)}"
                    )
            kept = (*ALWAYS, *columns)
            answers = [{name: answer[name] for name in kept} for answer in answers]
        self.gauges.answered(answers)
        return Json({"model": {"name": champion.name, "version": champion.version}, "forecasts": answers})


MOST_BY_DEFAULT = 2
TEND_SECONDS = 1.0
ALWAYS = ("unique_id", "cutoff", "ds", "is_ood", "abstain")
"""What every forecast tells, whichever columns are asked for."""


def _known(champion: Champion, index: int, name: str) -> Answer:
    """What the champion says of a series of the panel; Refusal 404 where it has no such series."""
    if name not in champion.panel:
        why = champion.panel_error or f"the panel has no such series among its {len(champion.panel)}"
        raise Refusal(404, ("body", "ids", index), f"{name!r} is not known: {why}")
    return champion.panel[name]


def _routes(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.watch.start()
        service.batcher.start()
        tending = asyncio.create_task(service.tend())
        yield
        tending.cancel()
        service.batcher.stop()
        await run_in_threadpool(service.watch.stop)
        service.batcher.join()

    app = FastAPI(title="Weatherglass", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(Refusal)
    async def on_refusal(_: Request, refusal: Refusal) -> Response:
        return refused(refusal)

    @app.exception_handler(HTTPException)
    async def on_error(_: Request, error: HTTPException) -> Response:
        return Json({"detail": [{"loc": [], "msg": str(error.detail)}]}, error.status_code, error.headers)

    @app.post("/v1/forecast", **operation("forecast"))
    async def forecast(request: Request) -> Response:
        service.keys.check(request)
        return await service.forecast(request)

    @app.post("/v1/observations", **operation("observations"))
    async def observations(request: Request) -> Response:
        service.keys.check(request)
        return await service.observe(request)

    @app.get("/v1/model", **operation("model"))
    async def model(request: Request) -> Response:
        service.keys.check(request)
        return Json(service.champion().about())

    @app.get("/healthz", **operation("healthz"))
    async def healthz() -> Response:
        return Json({"status": "alive"})

    @app.get("/readyz", **operation("readyz"))
    async def readyz() -> Response:
        champion = service.ready()
        return Json({"status": "ready", "model": {"name": champion.name, "version": champion.version}})

    @app.get("/metrics", **operation("metrics"))
    async def metrics() -> Response:
        return Response(service.gauges.text(service.watch), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(app.openapi()))

    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    return app
