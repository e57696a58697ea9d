"""The web application: the middlewares around the table of routes (`server/routes/`).

Outermost first: request id and log line, errors in the dialect of the path, access rules, the route. A handler is
cancelled when its client leaves (`handler_cancellation`), so that an abandoned answer costs nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial

from aiohttp import web

from runtime.defaults import MAX_BODY
from server.access.callers import CALLER
from server.access.gate import GATE, Gate
from server.access.peers import peer_of
from server.access.trail import ACTOR, RECORDER, TRAIL, Trail, actor_of, leave
from server.api.anthropic.models import VERSION_HEADER
from server.api.lm import daemon, openapi, watching
from server.api.openai.batches.store import BATCHES, BatchStore
from server.api.openai.files.store import FILES, FileStore
from server.api.openai.responses.store import RESPONSES, ResponseStore
from server.api.request import FAILED, LOG_NOTE, warning_of
from server.audit.recorder import Recorder
from server.errors import NotFound, WrongMethod
from server.http import wire
from server.http.problems import Dialect, Problem
from server.http.wire import STREAM
from server.keys.record import redacted
from server.routes.document import document
from server.routes.route import Handler, Route
from server.routes.table import ROUTES, check, dialect_of, find, plain_path, variables
from server.services import SERVICES, Services
from server.watching.activity import ACTIVITY, ASKED, Activity
from server.watching.examining import Examiner
from server.watching.sampling import Watcher

log = logging.getLogger("lm.requests")
# Status in the log for a client that left: its handler is cancelled, or a write fails, whichever comes first.
GONE = 499
# Routes that watchdogs poll and that `lm` asks before every command: not worth a line in the log.
_PROBES = frozenset({"/", "/health", "/api/version"})
# Routes of other servers that this one lacks: how their paths begin, their purpose, and a way around.
_ABSENT = (
    (("/api/me", "/api/signout", "/api/experimental"), "an account at ollama.com", "nothing here needs one"),
    (("/v1/messages/batches",), "a batch of messages", "send them one by one, several at once"),
    (("/v1/audio", "/v1/images", "/v1/videos"), "anything but text", "use `/v1/chat/completions`"),
    (("/v1/realtime",), "talking by voice", "stream `/v1/chat/completions`"),
    (("/v1/moderations",), "moderation", "ask a model that judges texts, by `/v1/chat/completions`"),
    (
        ("/v1/fine_tuning", "/v1/evals"),
        "training and judging models",
        "`lm pull` takes adapters that were trained elsewhere",
    ),
    (
        ("/v1/assistants", "/v1/threads", "/v1/conversations"),
        "a conversation kept here",
        "`/v1/responses` keeps it for an hour",
    ),
    (
        ("/v1/vector_stores", "/v1/containers", "/v1/skills"),
        "search in files and running code",
        "give the model a tool for it",
    ),
    (("/v1/uploads",), "an upload in parts", "`/v1/files` takes 200 MiB at once"),
    (("/v1/organization", "/v1/projects"), "an organization", "`lm key` makes keys with roles and limits"),
    (("/v1/responses/compact",), "compaction", "send `truncation: auto`"),
)
_ALLOWED_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"


def build(services: Services, gate: Gate, recorder: Recorder, stop: Callable[[], None]) -> web.Application:
    """The application; `stop` begins the daemon's end."""
    app = web.Application(middlewares=[record, explain, admit], client_max_size=MAX_BODY)
    app[SERVICES] = services
    app[GATE] = gate
    app[RECORDER] = recorder
    app[daemon.STOP] = stop
    app[openapi.DOCUMENT] = cache(partial(document, ROUTES))
    app[RESPONSES] = ResponseStore()
    app[FILES] = FileStore(services.config.home)
    app[BATCHES] = BatchStore(services.config.home)
    app[ACTIVITY] = Activity()
    app[watching.WATCHER] = Watcher(services.pool)
    app[watching.EXAMINER] = Examiner(services.config)
    app.on_shutdown.append(_stop_watching)
    app.on_cleanup.append(_forget_responses)
    app.on_response_prepare.append(_label)
    check(ROUTES)
    for route in ROUTES:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, partial(_enter, route), expect_handler=_expect)
    app.router.add_route("*", "/{path:.*}", _elsewhere, expect_handler=_expect)
    return app


async def _forget_responses(app: web.Application) -> None:
    await app[RESPONSES].close()


async def _stop_watching(app: web.Application) -> None:
    """End the streams of events: nobody waits for the end of a daemon because a page is open."""
    await app[watching.WATCHER].stop()


async def _enter(route: Route, request: web.Request) -> web.StreamResponse:
    """Call the handler of a route for a caller who may use it; an act needs room for its entry in the audit log."""
    if route.act and request.get(CALLER) is not None:
        await request.app[RECORDER].require_room(route.act)
    return await request.app[GATE].enter(request, route.role, route.handler)


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    """A path that is no route as it stands: with slashes too many it may mean one."""
    path = plain_path(request.path)
    refusal: web.HTTPException = web.HTTPNotFound()
    route = None
    try:
        route = find(request.method, path)
    except web.HTTPMethodNotAllowed as error:
        refusal = error
    if route is None:
        return await request.app[GATE].enter(request, "infer", partial(_nowhere, refusal))
    request.match_info.update(variables(route, path) or {})
    return await _enter(route, request)


async def _nowhere(refusal: web.HTTPException, request: web.Request) -> web.StreamResponse:
    """Refuse a path that is none of ours: to those alone who may ask at all."""
    raise refusal


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Answer the header `Expect`: `100-continue` asks for the body, and nothing else is known (RFC 9110 §10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    problem = Problem("bad_body", "the header `Expect` asks for what no server here does", "leave it out")
    response = wire.reply(problem.body(dialect(request), request.get("id", "")), 417)
    response.force_close()
    return response


@web.middleware
async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id and the log a line."""
    header = request.headers.get("X-Request-Id", "")
    request_id = header if header.isalnum() and len(header) <= 64 else secrets.token_hex(6)
    request["id"] = request_id
    request[LOG_NOTE] = ""
    request[TRAIL] = Trail()
    start = time.perf_counter()
    status = "gone"
    try:
        response = await handler(request)
        status = "gone" if response.status == GONE else request.get(FAILED, str(response.status))
        return response
    finally:
        seconds = time.perf_counter() - start
        if asked := request.get(ASKED):
            asked.end(status)
        place, note = redacted(request.path)[:100], redacted(request[LOG_NOTE])[:200]
        line = f"{request.method} {place} {status} {seconds:.3f} s {note}".rstrip()
        # A name or path with a line break in it must not look like a line of its own.
        level = logging.DEBUG if request.path in _PROBES else logging.INFO
        log.log(level, "%s [%s]", line.encode("unicode_escape").decode(), request_id)
        await asyncio.shield(leave(request, status, request[LOG_NOTE]))


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into the dialect's error body."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refusal(request, _routing_problem(request, error))
    except ConnectionError:
        return web.Response(status=GONE)  # for the log: the client has left, and nobody reads this
    except Exception as error:
        problem = _for_caller(request, Problem.of(error))
        if asked := request.get(ASKED):
            asked.code = problem.code
        request[TRAIL].code = problem.code
        if problem.code == "internal":
            log.exception("request %s failed", request["id"])
        stream = request.get(STREAM)
        if stream is None or not stream.started:
            return _refusal(request, problem)
        form = dialect(request)
        request[FAILED] = str(problem.status(form))
        request[LOG_NOTE] += f" {problem.code}"
        try:
            response: web.StreamResponse = await stream.fail(problem.body(form, request["id"]))
        except ConnectionError:
            return web.Response(status=GONE)
        return response


def _for_caller(request: web.Request, problem: Problem) -> Problem:
    """The problem without the names of loaded models that do not exist for the caller's key."""
    caller = request.get(CALLER)
    if caller is None or not caller.limited:
        return problem
    message, hint = problem.message, problem.hint
    for model in request.app[SERVICES].pool.models():
        if not caller.sees(model):
            message, hint = (text.replace(f"`{model.name}`", "another model") for text in (message, hint))
    return replace(problem, message=message, hint=hint)


async def _label(request: web.Request, response: web.StreamResponse) -> None:
    """Add headers to every answer, streams included: the request's id, and that an allowed page may read it."""
    form = dialect(request)
    response.headers["X-Request-Id"] = request.get("id", "")
    if form == "anthropic":
        response.headers["request-id"] = request.get("id", "")
    if warning := warning_of(request):
        response.headers["X-LM-Warning"] = warning.encode("unicode_escape").decode()
    gate = request.app[GATE]
    response.headers.update(gate.headers(request, form))
    origin = request.headers.get("Origin")
    if origin is not None and gate.rules.allows_origin(origin):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that break the access rules, and answer the preflight requests of browsers."""
    route = _asked_for(request)
    if route is not None:
        request[TRAIL].act = route.act
    changes, tells_nothing = (route.changes, route.role == "open") if route is not None else (False, False)
    request.app[GATE].identify(request, changes=changes, tells_nothing=tells_nothing)
    ACTOR.set(actor_of(request.get(CALLER), peer_of(request).name))
    if request.method == "OPTIONS":
        allowed = {
            "Access-Control-Allow-Methods": _ALLOWED_METHODS,
            # Clients send headers of their own (OpenAI's `x-stainless-…`); the page itself was let in by its origin.
            "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "Content-Type"),
            "Access-Control-Max-Age": "600",
        }
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return web.Response(status=204, headers=allowed)
    return await handler(request)


def _asked_for(request: web.Request) -> Route | None:
    """The route of this request, or of the request that a preflight announces."""
    method = request.headers.get("Access-Control-Request-Method", "") if request.method == "OPTIONS" else request.method
    with suppress(web.HTTPMethodNotAllowed):
        return find(method, plain_path(request.path))
    return None


def dialect(request: web.Request) -> Dialect:
    """The dialect in which the errors of a request are written: Anthropic's clients tell themselves by a header."""
    form = dialect_of(request.path)
    return "anthropic" if form == "openai" and VERSION_HEADER in request.headers else form


def _refusal(request: web.Request, problem: Problem) -> web.StreamResponse:
    form = dialect(request)
    response = wire.reply(problem.body(form, request.get("id", "")), problem.status(form), problem.headers())
    if not request.content.is_eof():
        response.force_close()  # do not read the rest of a body that was refused
    return response


def _routing_problem(request: web.Request, error: web.HTTPException) -> Problem:
    path = redacted(plain_path(request.path))[:100]
    if isinstance(error, web.HTTPMethodNotAllowed):
        taken = " or ".join(sorted(error.allowed_methods - {"OPTIONS"}))
        return Problem.of(WrongMethod(f"`{path}` does not take {request.method[:20]}", f"send {taken}"))
    for beginnings, purpose, instead in _ABSENT if error.status == 404 else ():
        if any(path == each or path.startswith(f"{each}/") for each in beginnings):
            return Problem.of(NotFound(f"`{path}`: {purpose} is not in this version of lm", instead))
    if error.status == 404:
        routes = {route.path for route in ROUTES}
        close = get_close_matches(path, routes, 1, 0.75)
        others = "GET /openapi.json lists all routes"
        return Problem.of(NotFound(f"there is no `{path}`", f"did you mean `{close[0]}`?" if close else others))
    return Problem("bad_body" if error.status < 500 else "internal", error.reason.lower(), "correct the request")
