"""What a request may hold, and what it is refused for: the place in the body, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.bundle import MINIMUM_HISTORY
from tasks.encoding import Encoding
from tasks.params_serving import Serving
from tasks.serving.contract import Contract

Place = tuple[str | int, ...]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]


class Body(BaseModel):
    """Frozen, without unknown fields, values of the very type, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Series(Body):
    """One series as columns of equal length; rows after the last target tell the known future."""

    unique_id: Name = Field(description="Name of the series; one seen in training is forecast as itself.")
    ds: list[str | int] = Field(min_length=1, description="Times, one a step and in order: dates, or whole numbers.")
    y: list[Number | None] = Field(min_length=1, description="The target; null in rows that only tell the known future.")
    covariates: dict[str, list[Number | None]] = Field({}, description="Known-future and past-only columns, by name.")
    static: dict[str, str | Number] = Field({}, description="Static columns, one value each, by name.")


class ForecastRequest(Body):
    """Series of the panel by their names, or histories: one of the two."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["ids"]}, {"required": ["series"]}]})

    ids: tuple[Name, ...] = Field((), min_length=1, strict=False, description="Series of the panel that the service has.")
    series: tuple[Series, ...] = Field((), min_length=1, strict=False, description="Histories to forecast from.")
    columns: list[str] | None = Field(None, min_length=1, description="Columns of the forecast to send; all by default.")


class Observations(Series):
    """New rows of a series whose history the service keeps, or the whole of a new one."""

    restart: bool = Field(False, description="Forget what is kept of the series and begin with these rows.")
    columns: list[str] | None = Field(None, min_length=1, description="Columns of the forecast to send; all by default.")


FORECAST: TypeAdapter[ForecastRequest] = TypeAdapter(ForecastRequest)
OBSERVATIONS: TypeAdapter[Observations] = TypeAdapter(Observations)


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not answered: status code, place in the request, sentence."""

    status: int
    place: Place
    sentence: str

    def content(self) -> dict[str, Any]:
        return {"detail": [{"loc": list(self.place), "msg": self.sentence}]}


def parsed(adapter: TypeAdapter[Any], body: bytes) -> Any:
    """The body as a request; Refusal 400 where it is not JSON, and 422 where a field is not as it should be."""
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise Refusal(400, ("body",), f"{first['msg']}; the body must be JSON in UTF-8") from None
        raise Refusal(422, ("body", *_place(first["loc"])), first["msg"]) from None


def _place(found: tuple[str | int, ...]) -> Place:
    """A place without pydantic's names of the branches of a union."""
    return tuple(part for part in found if part not in ("str", "int", "float") and not str(part).startswith("constrained-"))


def check_request(request: ForecastRequest, contract: Contract, limits: Serving) -> None:
    """Raise Refusal where a request asks for something that the champion does not have, or for too much."""
    if bool(request.ids) == bool(request.series):
        raise Refusal(422, ("body",), "give either ids, series of the panel, or series, histories")
    field, count = ("ids", len(request.ids)) if request.ids else ("series", len(request.series))
    if count > limits.series:
        raise Refusal(422, ("body", field), f"{count} series are asked for; the most is {limits.series} (serving.series)")
    seen: set[str] = set()
    for index, each in enumerate(request.ids or [series.unique_id for series in request.series]):
        if each in seen:
            place: Place = ("body", field, index) if field == "ids" else ("body", field, index, "unique_id")
            raise Refusal(422, place, f"{each!r} comes twice; name a series once")
        seen.add(each)
    for index, series in enumerate(request.series):
        check_series(series, ("body", "series", index), contract.encoding, limits)


def check_series(series: Series, place: Place, encoding: Encoding, limits: Serving, continued: bool = False) -> None:
    """Raise Refusal where a series' columns are not those of the bundle, or not of one length.

    Static columns may be left out of a series that is ``continued``.
    """
    steps = len(series.ds)
    if steps > limits.steps:
        raise Refusal(422, (*place, "ds"), f"{steps} steps; the most is {limits.steps} (serving.steps)")
    if len(series.y) != steps:
        raise Refusal(422, (*place, "y"), f"{len(series.y)} values for {steps} times in ds; they must be as many")
    known = sum(value is not None for value in series.y)
    if known < MINIMUM_HISTORY and not continued:
        sentence = f"{known} value{'' if known == 1 else 's'}; a forecast needs at least {MINIMUM_HISTORY}"
        raise Refusal(422, (*place, "y"), sentence)
    kind, right = (int, "whole numbers") if isinstance(encoding.frequency, int) else (str, "dates as text")
    for index, time in enumerate(series.ds):
        if not isinstance(time, kind):
            raise Refusal(422, (*place, "ds", index), f"{time!r}; this model's times are {right}")
    for field, given, needed in (
        ("covariates", series.covariates, (*encoding.known_future, *encoding.past_only)),
        ("static", series.static, tuple(static_columns(encoding))),
    ):
        for name in given:
            if name not in needed:
                has = f"it has {', '.join(needed)}" if needed else "it has none"
                raise Refusal(422, (*place, field, name), f"the model has no such column; {has}")
        for name in needed:
            if name not in given and not (continued and field == "static"):
                raise Refusal(422, (*place, field), f"the model's column {name!r} is missing")
    for name, values in series.covariates.items():
        if len(values) != steps:
            where = (*place, "covariates", name)
            raise Refusal(422, where, f"{len(values)} values for {steps} times in ds; they must be as many")


def static_columns(encoding: Encoding) -> Iterator[str]:
    """Names of the static columns of a bundle."""
    yield from encoding.static_reals
    yield from (name for name in encoding.vocabularies if name != "unique_id")
