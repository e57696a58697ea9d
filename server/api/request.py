"""From a request's body to a loaded model: the steps that all dialects share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from registry.errors import BadName, ModelNotFound
from registry.store.catalog import Model
from runtime.conversation import Turn
from runtime.errors import BadRequest, PromptTooLong
from runtime.messages import Submit
from server.access.callers import caller_of
from server.access.gate import GATE
from server.access.trail import RECORDER, TRAIL
from server.api.fields import KnownFields, passed_over, passed_within, refuse_field, warning
from server.errors import BadBody, ChildError, Unsupported
from server.http.bodies import read_body
from server.http.wire import reply
from server.library import capabilities
from server.loaded.wish import USUAL, LoadWish
from server.loaded.worker import Answer, Worker
from server.services import SERVICES, Services
from server.watching.activity import ACTIVITY, ASKED

# Words for the request's line in the log, after its route and status.
LOG_NOTE = web.RequestKey("note", str)
# The status of an error that came when the status line of a stream was out already.
FAILED = web.RequestKey("failed", str)
# Fields and options of the body that were passed over, as the warning names them.
PASSED_OVER = web.RequestKey("passed_over", list[str])

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_LONGEST_ROLE = 40
# Names that programs for the hosted services ask for.
_HOSTED = ("claude-", "gpt-", "gemini-")
# Names of models that an error lists.
_SHOWN = 10
Shape = TypeVar("Shape", bound=msgspec.Struct)


class ModelBody(msgspec.Struct):
    """A body that names a model, by `model` or, as old clients of Ollama do, by `name`."""

    model: str | None = None
    name: str | None = None

    @property
    def given_name(self) -> str | None:
        """The name, if there is one."""
        return self.model or self.name

    @property
    def model_name(self) -> str:
        """The name; raises BadBody where there is none."""
        return require_name(self.given_name)


async def read(request: web.Request, shape: type[Shape], known: KnownFields) -> Shape:
    """The request's body as `shape`. Fields that it has not are refused, or noted for the warning, by `known`.

    Raises Unsupported, and as `read_body`.
    """
    body = await read_body(request, shape)
    if request.app[RECORDER].text:
        request[TRAIL].request = msgspec.json.encode(body.given).decode()
    pass_over(request, [*passed_over(body.given, shape, known), *passed_within(body.unknown, known)])
    value: Shape = body.value
    return value


def pass_over(request: web.Request, shown: list[str]) -> None:
    """Note names for the warning of this request's answer."""
    request[PASSED_OVER] = [*request.get(PASSED_OVER, []), *shown]


def warning_of(request: web.Request) -> str:
    """The sentence about what was passed over, for the answer's `warning` and the header; "" for nothing."""
    return warning(request.get(PASSED_OVER, []))


def answer(request: web.Request, value: dict[str, Any], status: int = 200) -> web.Response:
    """One JSON answer, with the `warning` of its request if it has one."""
    text = warning_of(request)
    return reply(value | {"warning": text} if text else value, status)


def require_name(name: str | None) -> str:
    """The name of a model in a body; raises BadBody where there is none."""
    if not name:
        raise BadBody("the body names no model", 'send `{"model": "NAME"}`', "model")
    return name


@dataclass
class InUse:
    """A loaded model while a request uses it, and how long this request waited for the load, in ns.

    `context_reason` is what the model's context means for its answers, where this request loaded it.
    """

    worker: Worker
    load_ns: int
    context_reason: str = ""

    @asynccontextmanager
    async def frames(self, submit: Submit) -> AsyncIterator[AsyncIterator[Answer]]:
        """The frames of one prompt's answers; leaving the block early cancels them."""
        async with aclosing(self.worker.answer(submit)) as frames:
            yield frames


async def find_model(request: web.Request, name: str | None, able: str = "") -> Model:
    """The model or adapter of this name, which the log gets too. Without a name it is the only one that may be meant.

    Raises BadBody where none or several may be meant, ModelNotFound, BadName.
    """
    request.app[ACTIVITY].begin(request, caller_of(request), name or "")
    if not name:
        model = request[TRAIL].model = await only_model(request, able)
        request[LOG_NOTE] = model.name
    else:
        request[LOG_NOTE] = name
        try:
            model = request[TRAIL].model = await visible_model(request, name)
        except (ModelNotFound, BadName) as error:
            error.field = "model"
            raise
    if asked := request.get(ASKED):
        asked.found(model)
    return model


async def only_model(request: web.Request, able: str) -> Model:
    """The one model that is loaded, or else the only one here; of those with the capability `able`, if there are any.

    Raises BadBody where there are none or several.
    """
    services, sees = request.app[SERVICES], caller_of(request).sees
    here = [each for each in await services.library.models() if not each.is_adapter and sees(each)]
    loaded = {model.blob_digest for model in services.pool.models()}
    sound = [each for each in here if not each.problem]
    fitting = [each for each in sound if able in capabilities(each)] or sound
    found = [each for each in fitting if each.blob_digest in loaded] or fitting
    if len({each.blob_digest for each in found}) == 1:
        return found[0]
    if not found:
        raise BadBody("the body names no model, and there is none here", "`lm pull NAME` brings one in", "model")
    names = ", ".join(f"`{each.name}`" for each in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    raise BadBody(f"the body names no model, and several are here: {names}", 'send `{"model": "NAME"}`', "model")


async def visible_model(request: web.Request, name: str) -> Model:
    """The model of this name, or of an alias in the settings, if it exists for the caller's key.

    Raises ModelNotFound, BadName.
    """
    caller = caller_of(request)
    try:
        model = await _resolved(request.app[SERVICES], name)
    except ModelNotFound:
        if caller.limited:
            raise caller.not_found(name) from None  # the error itself names what comes close
        raise
    if not caller.sees(model):
        raise caller.not_found(name)
    return model


async def _resolved(services: Services, name: str) -> Model:
    try:
        return await services.library.resolve(name)
    except ModelNotFound as error:
        entries = (entry.partition("=") for entry in services.config.model_aliases)
        meant = next((target for pattern, _, target in entries if fnmatchcase(name, pattern)), "")
        if not meant:
            if name.startswith(_HOSTED):
                error.hint = f"LM_MODEL_ALIASES={name.partition('-')[0]}-*=NAME gives such names a model that is here"
            raise
    try:
        return await services.library.resolve(meant)
    except ModelNotFound as error:
        message = f"`{name[:100]}` means `{meant}` by LM_MODEL_ALIASES, and there is no such model here"
        raise ModelNotFound(message, error.hint) from None


def spend(request: web.Request, tokens: int, answered: int = 0) -> None:
    """Count tokens, read or written, against the quota of the caller's key; N of them are `answered`."""
    request[TRAIL].tokens += tokens
    if asked := request.get(ASKED):
        asked.prompt_tokens += tokens - answered
        asked.answer_tokens += answered
    key = caller_of(request).key
    if key is not None:
        request.app[GATE].limits.spend(key, tokens)


async def resolve_model(request: web.Request, name: str | None, able: str = "") -> Model:
    """As `find_model`, for a route that no adapter changes. Raises Unsupported for an adapter, too."""
    model = await find_model(request, name, able)
    if model.adapters:
        raise Unsupported(
            f"`{model.name}` has an adapter, and adapters change answers alone", "ask its base, or for an answer"
        )
    return model


async def is_installed(services: Services, name: str) -> bool:
    """Whether the store has a model of this name, even a broken one. Raises BadName."""
    try:
        await services.library.find(name)
    except ModelNotFound:
        return False
    return True


@asynccontextmanager
async def in_use(services: Services, model: Model, wish: LoadWish = USUAL) -> AsyncIterator[InUse]:
    """Keep `model` loaded as wished while the block runs, and `keep_alive` seconds longer. Raises as `Pool.use`."""
    wish = replace(wish, context=wish.context or _own_context(model))
    clock = asyncio.get_running_loop().time
    start, before = clock(), [worker for worker, _ in services.pool.loaded()]
    if wish.draft is None and services.config.speculation:
        wish = replace(wish, draft=await services.library.own_draft(model))
    async with services.pool.use(model, wish) as worker:
        size = await services.library.model_size(model)
        reason = "" if worker in before else size.context_reason(worker.context)
        yield InUse(worker, round((clock() - start) * 1e9), reason)


def _own_context(model: Model) -> int | None:
    """The context that the model's own settings ask for (`num_ctx`), in tokens; None where they do not."""
    tokens = model.params.get("num_ctx")
    return int(tokens) if isinstance(tokens, int | float) and tokens >= 1 else None


def with_instructions(model: Model, turns: list[Turn]) -> list[Turn]:
    """The turns, after the model's own instructions where they have none, and its own first turns."""
    first = [Turn.of(each["role"], each["content"]) for each in model.messages]
    if any(turn.role in ("system", "developer") for turn in turns):
        return [*turns[:1], *first, *turns[1:]] if turns[0].role in ("system", "developer") else [*first, *turns]
    return [*([Turn.of("system", model.system)] if model.system else []), *first, *turns]


def begun_answer(turns: list[Turn]) -> str | None:
    """The text from which the answer goes on, where the last turn is the assistant's: it is taken off."""
    if not turns or turns[-1].role != "assistant" or turns[-1].calls:
        return None
    return turns.pop().text


async def require_roles(request: web.Request, model: Model, turns: Iterable[Turn]) -> None:
    """Raise BadRequest for a turn whose role neither the dialects nor the model's template know."""
    others = {turn.role for turn in turns} - _ROLES
    if not others:
        return
    facts = await request.app[SERVICES].library.facts(model)
    template = str(facts.plan.metadata.get("tokenizer.chat_template", ""))
    for role in others:
        named = len(role) <= _LONGEST_ROLE and (f"'{role}'" in template or f'"{role}"' in template)
        if not named:
            known = ", ".join(sorted(_ROLES))
            raise BadRequest(f"there is no role `{role[:_LONGEST_ROLE]}`", f"roles are {known}", "messages")


@contextmanager
def prompt_from(field: str) -> Iterator[None]:
    """Say of a prompt that is too long for the model by which field it came."""
    try:
        yield
    except (ChildError, PromptTooLong) as error:
        if error.code == PromptTooLong.code:
            error.field = field
        raise


def refuse(**fields: Any) -> None:
    """Raise Unsupported for the first of `fields` that is not empty; the keywords are the names in the message."""
    for name, value in fields.items():
        if value:
            refuse_field(name)


# The fields by which a capability is asked for.
_ASKING = {"completion": "model", "insert": "suffix", "thinking": "think", "tools": "tools"}


def require(model: Model, capability: str) -> None:
    """Raise Unsupported unless the model has this capability."""
    if capability not in capabilities(model):
        message, hint = f"`{model.name}` does not support {capability}", f"it offers {', '.join(capabilities(model))}"
        raise Unsupported(message, hint, _ASKING.get(capability, ""))
