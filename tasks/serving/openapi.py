"""The service described for machines (OpenAPI) and for people (a page that needs no network)."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from tasks.serving.bodies import ForecastRequest, Observations

PROBLEMS = {
    400: "The body is not JSON, or the host is not one that the service answers for.",
    401: "A key is missing or wrong.",
    404: "A series is not known.",
    405: "Another method is right.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "A field is not as it should be; `loc` says which.",
    500: "A defect of the service; its log says more.",
    503: "No champion is loaded yet, too many requests are waiting, or the service is stopping: ask again.",
}
WITH_BODY = (400, 401, 404, 408, 413, 415, 422, 500, 503)


class Problem(BaseModel):
    loc: list[str | int] = Field(description="Where in the request, from the outside in.")
    msg: str = Field(description="One sentence.")


class Problems(BaseModel):
    """Why a request is not answered."""

    detail: list[Problem]


class Version(BaseModel):
    """The registered version that answered."""

    name: str
    version: str


class Forecast(BaseModel):
    """A series' forecast; besides these columns there are `mean`, `median`, `lo-90`, `joint-hi-90` and so on."""

    model_config = ConfigDict(extra="allow")

    unique_id: str
    cutoff: str | int = Field(description="Time of the last value that was known.")
    ds: list[str | int] = Field(description="Times that are forecast.")
    is_ood: bool = Field(description="The history is unlike anything seen in training: the intervals promise nothing.")
    abstain: bool = Field(description="Better not to rely on this forecast.")


class Forecasts(BaseModel):
    """Forecasts in the order in which they were asked for."""

    model: Version
    forecasts: list[Forecast]


class Ready(BaseModel):
    """The version that answers."""

    status: str
    model: Version


class Alive(BaseModel):
    """Nothing more."""

    status: str


class About(BaseModel):
    """The champion: what it reads, and its guarantee card."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str
    version: str
    alias: str
    digest: str
    horizon: int
    frequency: str | int
    guarantee: dict[str, Any]


OPERATIONS: dict[str, dict[str, Any]] = {
    "forecast": {
        "summary": "Forecast series of the panel by their ids, or histories that the body brings.",
        "body": ForecastRequest, "answer": Forecasts, "problems": WITH_BODY,
    },
    "observations": {
        "summary": "Append new rows to a series whose history the service keeps, and forecast from all of them.",
        "body": Observations, "answer": Forecasts, "problems": WITH_BODY,
    },
    "model": {"summary": "The version that answers and its guarantee card.", "answer": About, "problems": (400, 401, 503)},
    "healthz": {"summary": "The process is alive.", "answer": Alive, "problems": (400,)},
    "readyz": {"summary": "A champion is loaded and requests are answered.", "answer": Ready, "problems": (400, 503)},
    "metrics": {"summary": "Counts for Prometheus.", "answer": None, "problems": (400,)},
}  # fmt: skip


def operation(name: str) -> dict[str, Any]:
    """Keyword arguments of a route."""
    told = OPERATIONS[name]
    answers: dict[int | str, dict[str, Any]] = {
        code: {"model": Problems, "description": PROBLEMS[code]} for code in told["problems"]
    }
    text = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    answer = told["answer"]
    answers[200] = {"model": answer, "description": f"{answer.__name__}: {answer.__doc__}"} if answer else text
    extra: dict[str, Any] = {}
    if "body" in told:
        reference = {"$ref": f"#/components/schemas/{told['body'].__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if 401 in told["problems"]:
        extra["security"] = [{}, {"key": []}]
    return {
        "summary": told["summary"], "operation_id": name, "responses": answers, "openapi_extra": extra,
        "response_model": None,
    }  # fmt: skip


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the bodies that the routes read by themselves."""
    if app.openapi_schema is None:
        tree = get_openapi(title=app.title, version=app.version, routes=app.routes, description=(__doc__ or "").strip())
        schemas = tree.setdefault("components", {}).setdefault("schemas", {})
        for told in OPERATIONS.values():
            if "body" in told:
                schema = told["body"].model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {}) | {told["body"].__name__: schema}
        tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = tree
    return app.openapi_schema


def page(tree: dict[str, Any]) -> str:
    """The description as a page without scripts."""
    parts = []
    for path, methods in tree["paths"].items():
        for method, told in methods.items():
            codes = "".join(
                f"<tr><td>{code}</td><td>{html.escape(answer.get('description', ''))}</td></tr>"
                for code, answer in sorted(told["responses"].items())
            )
            body = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(told['summary'])}</p>"
                + (f"<p>Body: {_link(body)}</p>" if body else "")
                + f"<table>{codes}</table>"
            )
    for name, schema in sorted(tree["components"]["schemas"].items()):
        parts.append(f"<h2 id='{name}'>{name}</h2><p>{html.escape(schema.get('description', ''))}</p>")
        rows = (
            f"<tr><td><code>{html.escape(field)}</code></td><td>{html.escape(_kind(about))}</td>"
            f"<td>{html.escape(about.get('description', ''))}</td></tr>"
            for field, about in schema.get("properties", {}).items()
        )
        parts.append(f"<table>{''.join(rows)}</table>")
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}"
        "td{border-top:1px solid #8884;padding:.25rem .75rem .25rem 0;vertical-align:top}"
        "h2{margin-top:2rem;font-size:1.15rem}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(tree['info']['title'])}</title><style>{style}</style><h1>{html.escape(tree['info']['title'])}</h1>"
        f"<p>For machines: <a href='openapi.json'>openapi.json</a></p>{''.join(parts)}"
    )


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return f"<a href='#{name}'>{name}</a>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"names to {_kind(schema['additionalProperties'])}"
    return str(schema.get("type", json.dumps(schema) if "enum" in schema else "anything"))
