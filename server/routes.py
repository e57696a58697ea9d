"""The table of routes: for each one method, path, role and handler. Router, access, pages and tests read it alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from aiohttp import web

from server.access.roles import ACCESSES, Access
from server.api.lm import advise, daemon, default, found, infill, login, pulls, rerank
from server.api.ollama import answers as ollama
from server.api.ollama import embeddings as ollama_embeddings
from server.api.ollama import models
from server.api.openai import answers as openai
from server.api.openai import embeddings as openai_embeddings
from server.api.openai import models as openai_models
from server.errors import StartFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One route: the role that it takes, and the line about it in the table of routes (`docs/api.md`)."""

    method: str
    path: str
    role: Access
    handler: Handler
    doc: str
    changes: bool = False
    """Whether it changes what is here: pages of other origins may not call it."""


ROUTES = [
    Route("GET", "/", "open", models.alive, "`Ollama is running`: what many clients probe"),
    Route(
        "GET",
        "/api/version",
        "infer",
        models.version,
        "the version of Ollama's API that is spoken here, and our own in `lm`",
    ),
    Route("GET", "/api/tags", "infer", models.tags, "the models in the store"),
    Route("GET", "/api/ps", "infer", models.ps, "the loaded models: memory, context, when they expire"),
    Route("POST", "/api/show", "infer", models.show, "everything about one model, with the reason for its level"),
    Route(
        "POST",
        "/api/pull",
        "operator",
        models.pull,
        "bring a model in; progress as NDJSON; `detach`, `limit_rate` (bytes/s), `pre`, `accept_unknown_keys`, `base`, "
        "`hf_endpoint`, `hf_token`",
        changes=True,
    ),
    Route(
        "DELETE",
        "/api/delete",
        "operator",
        models.delete,
        "remove a model, and end its pull; a bare name with several levels needs `all`; `partial` leaves the model",
        changes=True,
    ),
    Route(
        "POST",
        "/api/generate",
        "infer",
        ollama.generate,
        "an answer to one prompt, as NDJSON or whole; without a prompt, load or unload",
    ),
    Route(
        "POST",
        "/api/chat",
        "infer",
        ollama.chat,
        "the next turn of a conversation, as NDJSON or whole; without messages, load or unload",
    ),
    Route("POST", "/api/embed", "infer", ollama_embeddings.embed, "vectors of texts, of length 1"),
    Route("POST", "/api/embeddings", "infer", ollama_embeddings.embed_one, "the vector of one text, for older clients"),
    Route(
        "POST",
        "/infill",
        "infer",
        infill.infill,
        "the text between two others, for llama-server's clients in editors",
    ),
    Route("GET", "/v1/models", "infer", openai_models.models, "the models in the store, for OpenAI's clients"),
    Route("GET", "/v1/models/{id:.+}", "infer", openai_models.model, "one of these models"),
    Route(
        "POST",
        "/v1/chat/completions",
        "infer",
        openai.chat_completions,
        "the next turn of a conversation, as server-sent events or whole",
    ),
    Route(
        "POST",
        "/v1/completions",
        "infer",
        openai.completions,
        "the continuation of raw prompts, as server-sent events or whole",
    ),
    Route("POST", "/v1/embeddings", "infer", openai_embeddings.embeddings, "vectors of texts, as numbers or base64"),
    Route(
        "POST",
        "/v1/rerank",
        "infer",
        rerank.rerank,
        "how well `documents` answer a `query`, best first (`top_n`), in Jina's and Cohere's form",
    ),
    Route("POST", "/v2/rerank", "infer", rerank.rerank, "as `/v1/rerank`"),
    Route(
        "POST",
        "/rerank",
        "infer",
        rerank.rerank,
        "as `/v1/rerank`, and with `texts` in the form of Text Embeddings Inference",
    ),
    Route(
        "POST",
        "/lm/advise",
        "operator",
        advise.advise,
        "which level of a model this machine can hold, and why, from headers only; 507 with the table where none fits",
        changes=True,
    ),
    Route(
        "POST",
        "/lm/stop",
        "operator",
        pulls.stop,
        "pause pulls and unload models: of a name, at all levels, or of `all`",
        changes=True,
    ),
    Route(
        "POST",
        "/lm/default",
        "operator",
        default.default,
        "which level a bare name means: pin one, or ask",
        changes=True,
    ),
    Route("POST", "/lm/login", "admin", login.login, "keep a login at a registry, once it has taken it", changes=True),
    Route("POST", "/lm/logout", "admin", login.logout, "forget a login at a registry", changes=True),
    Route("GET", "/lm/found", "operator", found.found, "models of other programs on this machine"),
    Route("GET", "/lm/partials", "operator", pulls.partials, "pulls that are under way or paused"),
    Route("GET", "/health", "open", daemon.health, "status, versions, loaded models"),
    Route("POST", "/lm/shutdown", "admin", daemon.shutdown, "end the daemon, from this machine only", changes=True),
]


def check(routes: Sequence[Route]) -> None:
    """Raise StartFailed for a route that has no role of the table of roles: nobody knows who may call it."""
    for route in routes:
        if route.role not in ACCESSES:
            raise StartFailed(f"the route `{route.method} {route.path}` has no role", "give it one in server/routes.py")


def plain_path(path: str) -> str:
    """The path with single slashes and none at its end: `//api/chat/` is what a base URL with a slash makes."""
    return "/" + "/".join(part for part in path.split("/") if part)


def find(method: str, path: str) -> Route | None:
    """The route for a method and a plain path. Raises HTTPMethodNotAllowed where only the method is wrong."""
    fitting = [route for route in ROUTES if _fits(route, path)]
    for route in fitting:
        if method == route.method or (method == "HEAD" and route.method == "GET"):
            return route
    if fitting:
        allowed = {route.method for route in fitting}
        raise web.HTTPMethodNotAllowed(method, allowed | ({"HEAD"} if "GET" in allowed else set()))
    return None


def _fits(route: Route, path: str) -> bool:
    beginning, _, variable = route.path.partition("{")
    return (path.startswith(beginning) and len(path) > len(beginning)) if variable else path == route.path
