"""The routes of our own: what no other dialect has."""

from __future__ import annotations

from server.api.lm import advise, care, daemon, default, found, login, metrics, openapi, pulls, search
from server.api.request import ModelBody
from server.routes.route import LINES, Route

ROUTES = [
    Route(
        "POST",
        "/lm/advise",
        "operator",
        advise.advise,
        "which level of a model this machine can hold, and why, from headers only; 507 with the table where none fits",
        changes=True,
        body=advise.AdviseBody,
    ),
    Route(
        "POST",
        "/lm/search",
        "operator",
        search.find,
        "models of the hub by words, with their sizes and what would fit here",
        changes=True,
        body=search.SearchBody,
    ),
    Route(
        "POST",
        "/lm/outdated",
        "operator",
        search.outdated,
        "for each model whether its source has a newer revision",
        changes=True,
        body=search.OutdatedBody,
    ),
    Route(
        "POST",
        "/lm/stop",
        "operator",
        pulls.stop,
        "pause pulls and unload models: of a name, at all levels, or of `all`",
        changes=True,
        body=pulls.StopBody,
    ),
    Route(
        "POST",
        "/lm/default",
        "operator",
        default.default,
        "which level a bare name means: pin one, or ask",
        changes=True,
        body=ModelBody,
    ),
    Route(
        "POST",
        "/lm/login",
        "admin",
        login.login,
        "keep a login at a registry, once it has taken it",
        changes=True,
        body=login.LoginBody,
    ),
    Route(
        "POST", "/lm/logout", "admin", login.logout, "forget a login at a registry", changes=True, body=login.LoginBody
    ),
    Route("GET", "/lm/found", "operator", found.found, "models of other programs on this machine"),
    Route("GET", "/lm/partials", "operator", pulls.partials, "pulls that are under way or paused"),
    Route(
        "POST",
        "/lm/verify",
        "operator",
        care.verify,
        "hash the blobs of a model, or of all, again; progress as NDJSON, at the end the models that are hurt",
        body=care.VerifyBody,
        media=LINES,
    ),
    Route("GET", "/lm/du", "operator", care.usage, "what the models take of the disk, alone and together"),
    Route(
        "POST",
        "/lm/prune",
        "operator",
        care.prune,
        "remove what nothing needs; with `dry_run` say what that is, with `paused` take paused pulls along",
        changes=True,
        body=care.PruneBody,
    ),
    Route("GET", "/health", "open", daemon.health, "status, versions, loaded models"),
    Route(
        "GET",
        "/metrics",
        "infer",
        metrics.metrics,
        "counters of each model for Prometheus: `lm_*`, and the same numbers as `vllm:*` and `llamacpp:*`",
        media=("text/plain", "application/openmetrics-text"),
    ),
    Route("GET", "/openapi.json", "infer", openapi.openapi, "this table with all bodies, as OpenAPI 3.1"),
    Route("GET", "/v1/health", "open", daemon.health, "as `/health`"),
    Route("POST", "/lm/shutdown", "admin", daemon.shutdown, "end the daemon, from this machine only", changes=True),
]
