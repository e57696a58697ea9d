"""`POST /infill`: the text between two others, as llama-server answers its clients in editors.

Without `model`, the one model that is loaded, or else installed, and can fill in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Delta, File, Finished, Infill, Started, Submit
from server.access.callers import caller_of
from server.api import options
from server.api.adapters import AdapterFields, resolve_adapted
from server.api.fields import GRAMMARS, KnownFields
from server.api.options import Whole, with_sampling
from server.api.request import InUse, read, require, warning_of
from server.api.respond import AnswerWriter, Generation, Json, Usage, respond
from server.http.problems import Dialect
from server.http.wire import EVENTS, StreamForm
from server.library import capabilities
from server.services import SERVICES

# Limits of time and an order of samplers, which editors send with every request: a slower answer is still one.
_IDLE = frozenset(
    {"cache_prompt", "id_slot", "t_max_prompt_ms", "t_max_predict_ms", "n_indent", "samplers", "n_cache_reuse"}
)
_KNOWN = KnownFields(
    binding={name: hint for name, hint in GRAMMARS.items() if name not in _IDLE} | {"max_tokens": "use `n_predict`"},
    noted=dict.fromkeys(("n_keep", "n_probs", "post_sampling_probs", "return_tokens", "timings_per_token")),
    idle=_IDLE,
)
_STOPS = {"length": "limit", "cancelled": "none"}


class ExtraFile(msgspec.Struct):
    """A file of `input_extra`."""

    text: str
    filename: str = "tmp"


class InfillFields(msgspec.Struct, kw_only=True):
    """The fields of `/infill`, without the sampling options."""

    model: str | None = None
    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = None
    prompt: str | None = None
    n_predict: Whole | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    response_fields: list[str] | None = None
    adapters: AdapterFields = None


BODY = with_sampling(InfillFields)


async def infill(request: web.Request) -> web.StreamResponse:
    """`POST /infill`."""
    body = await read(request, BODY, _KNOWN)
    model, adapters = await resolve_adapted(request, body.model or await _only_one(request), body.adapters)
    require(model, "insert")
    files = [File(each.filename, each.text) for each in body.input_extra or []]
    submit = Submit(
        id=0,
        prompt=body.input_prefix,
        infill=Infill(body.input_suffix, body.prompt or "", files),
        adapters=adapters,
        sampling=options.sampling(model.params, options.sampling_fields(body)),
        limits=options.limits(model.params, {"num_predict": body.n_predict, "stop": body.stop}),
    )
    return await respond(request, Generation(model, [submit], bool(body.stream)), InfillWriter(body, model, request))


async def _only_one(request: web.Request) -> str:
    """The name of the one model that is meant. Raises BadRequest where there are none or several."""
    services, sees = request.app[SERVICES], caller_of(request).sees
    loaded = {worker.model.digest for worker, _ in services.pool.loaded()}
    able = [each for each in await services.library.models() if "insert" in capabilities(each) and sees(each)]
    found = [model for model in able if model.digest in loaded] or able
    if len(found) != 1:
        count = "several models" if found else "no model"
        raise BadRequest(f"the body names no model, and {count} here can fill in", 'send `{"model": "NAME"}`', "model")
    return found[0].name


class InfillWriter(AnswerWriter):
    """llama-server's objects: pieces of `content`, and a last one with figures."""

    dialect: Dialect = "openai"
    form: StreamForm = StreamForm(EVENTS.media, EVENTS.encode)
    prompt_field = "input_prefix"

    def __init__(self, body: InfillFields, model: Model, request: web.Request) -> None:
        self._model = model.name
        self._fields = body.response_fields
        self._warning = {"warning": warning} if (warning := warning_of(request)) else {}
        self._truncated = False
        self._last: Json = {}

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """Nothing: the last object tells of the prompt."""
        self._truncated = frame.truncated > 0
        return []

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """A piece of the text."""
        return [{"index": index, "content": frame.text, "tokens": [], "stop": False}]

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """Nothing: the last object has the figures."""
        stopped = "word" if frame.stop else "eos"
        computed = frame.prompt_tokens - frame.cached
        self._last = {
            "tokens_predicted": frame.answer_tokens,
            "tokens_evaluated": frame.prompt_tokens,
            "tokens_cached": frame.cached,
            "truncated": self._truncated,
            "stop_type": _STOPS.get(frame.reason, stopped),
            "stopping_word": frame.stop,
            "timings": {
                "cache_n": frame.cached,
                **_timings("prompt", computed, frame.prompt_ns),
                **_timings("predicted", frame.answer_tokens, frame.answer_ns),
            },
        }
        return []

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The last object."""
        head = {"index": 0, "content": "", "tokens": [], "stop": True, "model": self._model}
        return [self._wanted(head | self._last | self._warning)]

    def whole(self, objects: list[Json], usage: Usage) -> Json:
        """The last object with all of the text."""
        text = "".join(each.get("content", "") for each in objects)
        head = {"index": 0, "content": text, "tokens": [], "stop": True, "model": self._model}
        return self._wanted(head | self._last | self._warning)

    def _wanted(self, whole: Json) -> Json:
        """The fields that the request wants, by their paths: `timings/prompt_n`."""
        if not self._fields:
            return whole
        found: Json = {}
        for path in self._fields:
            value: Any = whole
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found[path] = value
        return found


def _timings(what: str, tokens: int, nanoseconds: int) -> Json:
    """Tokens, milliseconds, and both ratios, by llama-server's names."""
    ms = nanoseconds / 1e6
    rates = {f"{what}_per_token_ms": ms / max(1, tokens), f"{what}_per_second": 1000 * tokens / ms if ms else 0.0}
    return {f"{what}_n": tokens, f"{what}_ms": ms} | rates
