"""`/openapi.json`: the table of routes and the types of bodies and errors, as a document of OpenAPI 3.1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from server.config import VERSION
from server.http.problems import Dialect
from server.routes.route import Route
from server.routes.table import dialect_of

Json = dict[str, Any]
_VARIABLE = re.compile(r"\{(\w+):[^{}]*\}")
# The parameters in queries, by path.
_QUERIES = {path: ("model",) for path in ("/props", "/slots", "/lora-adapters")} | {
    "/lm/events": ("follow",),
    "/lm/doctor": ("anew",),
    "/lm/log": ("lines",),
}


class OllamaError(msgspec.Struct):
    """An error of Ollama's routes, and of our own."""

    error: str
    hint: str
    code: str


class OpenAIErrorDetail(msgspec.Struct):
    """The error of OpenAI's routes."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(msgspec.Struct):
    """An error of OpenAI's routes."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    """The error of Anthropic's routes."""

    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """An error of Anthropic's routes."""

    type: str
    error: AnthropicErrorDetail
    request_id: str | None


class LlamaErrorDetail(msgspec.Struct, omit_defaults=True):
    """The error of llama-server's routes; a prompt that is too long has both numbers."""

    code: int
    message: str
    type: str
    n_prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_ctx: int | msgspec.UnsetType = msgspec.UNSET


class LlamaError(msgspec.Struct):
    """An error of llama-server's routes."""

    error: LlamaErrorDetail


ERRORS: dict[Dialect, type[msgspec.Struct]] = {
    "ollama": OllamaError,
    "openai": OpenAIError,
    "anthropic": AnthropicError,
    "llama": LlamaError,
}


def document(routes: Sequence[Route]) -> Json:
    """The document. Roles stand in `x-lm-role`; answers are told by their media types, errors by their fields."""
    bodies = {route.body for route in routes if isinstance(route.body, type)}
    shapes = [*ERRORS.values(), *sorted(bodies, key=lambda shape: (shape.__module__, shape.__name__))]
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    references = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        path = _VARIABLE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, references)
    keys = {
        "key": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "lm", "version": VERSION, "description": "Local models in four dialects"},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": keys},
    }


def _operation(route: Route, path: str, references: dict[type[msgspec.Struct], Json]) -> Json:
    known = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _names(route.path)
    ]
    asked = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _QUERIES.get(path, ())]
    error = {"application/json": {"schema": references[ERRORS[dialect_of(path)]]}}
    found: Json = {
        "operationId": f"{route.method.lower()} {path}",
        "summary": route.doc,
        "x-lm-role": route.role,
        "responses": {
            "2XX": {"description": "The answer", "content": {media: {} for media in route.media}},
            "default": {"description": "An error", "content": error},
        },
    }
    if known or asked:
        found["parameters"] = [*known, *asked]
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": _content(route.body, references)}
    if route.role != "open":
        found["security"] = [{}, {"key": []}, {"header": []}]  # where no keys are set, none is needed
    return found


def _content(body: type[msgspec.Struct] | str, references: dict[type[msgspec.Struct], Json]) -> Json:
    if isinstance(body, str):
        return {body: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": references[body]}}


def _names(path: str) -> list[str]:
    return _VARIABLE.findall(path)
