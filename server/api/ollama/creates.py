"""Ollama's routes that make models here, as its `docs/api.md` describes them: create, copy, blobs.

`/api/create` takes the fields of a model, or a whole Modelfile as text (`modelfile`), as older clients send it. Paths
are for the command line alone, which reads them: here files are uploaded ones, named by their digests. The one
exception is `from` with the path of a folder on this machine, which callers on this machine may name, as in
`/api/pull`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from registry.errors import BadModelfile, ModelNotFound
from registry.modelfile import ROLES, Modelfile, parse
from registry.names import Name, is_path
from registry.store.catalog import Model
from registry.words import canonical_level
from runtime.errors import BadRequest
from runtime.text.gotemplate.chat import fault_of
from server.access.callers import caller_of
from server.api.naming import new_name
from server.api.ollama.fields import OLLAMA
from server.api.parameters import checked
from server.api.request import FAILED, LOG_NOTE, ModelBody, answer, read, require_name, visible_model, warning_of
from server.api.sources import base_of, find_source
from server.api.uploads import require_blob
from server.creates.wish import CreateWish
from server.errors import BadBody
from server.http.problems import STATUS
from server.http.wire import NDJSON, Stream
from server.pulls.job import PullOptions
from server.pulls.lines import note_line, with_digest
from server.services import SERVICES, Services

Line = dict[str, Any]
Lines = AsyncGenerator[Line]
_UPLOADED = re.compile(r"@(sha256[:-][0-9a-f]{64})")
_VERSION = re.compile(r"v?[0-9]+(\.[0-9]+){0,2}([-+][0-9A-Za-z.-]+)?")
# Levels as Ollama's clients spell them.
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M"}
_CREATE = OLLAMA._replace(
    binding={name: hint for name, hint in OLLAMA.binding.items() if name != "template"}
    | {
        "path": "send the Modelfile's text as `modelfile`",
        "remote_host": "models of other hosts are not passed on",
    },
    noted={name: value for name, value in OLLAMA.noted.items() if name not in ("messages", "system")} | {"info": None},
)


class TurnField(msgspec.Struct):
    """A turn with which the chats of a model begin."""

    role: str
    content: str = ""


class CreateBody(ModelBody):
    """The body of `/api/create`; `from` is read as `base`."""

    base: str = msgspec.field(default="", name="from")
    files: dict[str, str] = msgspec.field(default_factory=dict)
    adapters: dict[str, str] = msgspec.field(default_factory=dict)
    draft: str = ""
    draft_files: dict[str, str] = msgspec.field(default_factory=dict)
    draft_quantize: str = ""
    quantize: str = ""
    quantization: str = ""
    template: str | None = None
    system: str | None = None
    license: str | list[str] = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    messages: list[TurnField] = msgspec.field(default_factory=list)
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    modelfile: str = ""
    stream: bool | None = None


class CopyBody(msgspec.Struct):
    """The body of `/api/copy`."""

    source: str = ""
    destination: str = ""


async def create(request: web.Request) -> web.StreamResponse:
    """`POST /api/create`: make a model of another one, of uploaded files or of a folder, with settings of its own."""
    body = await read(request, CreateBody, _CREATE)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    name = new_name(body.model_name)
    caller_of(request).require_listed(body.model_name, await services.library.meant(name.display))
    if body.modelfile:
        _take_modelfile(body, parse(body.modelfile))
    lines = _lines(request, services, body, name)
    async with aclosing(lines):
        if body.stream is False:
            last: Line = {}
            async for line in lines:
                last = line
            return answer(request, last, STATUS[last["code"]] if "error" in last else 200)
        # Trouble with the body itself has a status of its own; later trouble is a line.
        first = await anext(lines)
        stream = Stream(request, NDJSON)
        if warning := warning_of(request):
            await stream.send(note_line(warning) | {"warning": warning})
        await stream.send(first)
        async for line in lines:
            await stream.send(with_digest(name.display, line))
            if "error" in line:
                request[FAILED] = str(STATUS[line["code"]])
        return await stream.end()


async def copy(request: web.Request) -> web.Response:
    """`POST /api/copy`: give a model a further name."""
    body = await read(request, CopyBody, OLLAMA)
    services = request.app[SERVICES]
    model = await visible_model(request, require_name(body.source))
    request[LOG_NOTE] = f"{model.name} {body.destination}"
    if not body.destination:
        raise BadBody("the body names no destination", 'send `{"source": "NAME", "destination": "NAME"}`')
    name = new_name(body.destination)
    caller_of(request).require_listed(body.destination, await services.library.meant(name.display))
    if not name.same(model.key):
        await asyncio.to_thread(services.library.store.copy, model, name)
        await services.library.collect(services.pool.open_blobs())
        await services.pool.retire()
    return answer(request, {})


def _take_modelfile(body: CreateBody, found: Modelfile) -> None:
    """Put the instructions of a Modelfile into a body that has none of them. Raises BadModelfile."""
    for value in found.values("from"):
        _take_source(body, value, body.files, "model.gguf", "FROM")
    for value in found.values("adapter"):
        _take_source(body, value, body.adapters, "adapter.gguf", "ADAPTER")
    if draft := found.last("draft"):
        _take_draft(body, draft)
    body.template, body.system = found.last("template"), found.last("system")
    body.license, body.parameters = found.values("license"), dict(found.parameters)
    body.messages = [TurnField(each.role, each.content) for each in found.messages]
    marks = (found.last("renderer"), found.last("parser"), found.last("requires"))
    body.renderer, body.parser, body.requires = (each or "" for each in marks)


def _take_source(body: CreateBody, value: str, files: dict[str, str], name: str, instruction: str) -> None:
    """A file that was uploaded (`@sha256:…`), or the name of a model. Raises BadModelfile for a path."""
    if uploaded := _UPLOADED.fullmatch(value):
        files[name] = uploaded[1].replace("-", ":")
    elif is_path(value) or instruction == "ADAPTER" or value.lower().endswith(".gguf"):
        raise _path_not_read(instruction)
    else:
        body.base = value


def _take_draft(body: CreateBody, value: str) -> None:
    """A file that was uploaded, or the name of a model. Raises BadModelfile for a path."""
    if uploaded := _UPLOADED.fullmatch(value):
        body.draft_files["draft.gguf"] = uploaded[1].replace("-", ":")
    elif is_path(value) or value.lower().endswith(".gguf"):
        raise _path_not_read("DRAFT")
    else:
        body.draft = value


def _path_not_read(instruction: str) -> BadModelfile:
    return BadModelfile(
        f"{instruction} names a path, which is not read here",
        "`lm create NAME -f Modelfile` reads it; or upload the file, and name it as `@sha256:…`",
    )


async def _lines(request: web.Request, services: Services, body: CreateBody, name: Name) -> Lines:
    """Lines of a create, of which the last is `success`, or an error of the pull of a model that it is made of."""
    wish, notes = await _wish(services, body, name)
    for complete in (_with_base, _with_draft):
        async for line in complete(request, services, body, wish):
            if isinstance(line, CreateWish):
                wish = line
            else:
                yield line
                if "error" in line:
                    return
    yield {"status": "reading model metadata", "phase": "reading"}
    for note in notes:
        yield note_line(note)
    async with aclosing(services.creates.lines(wish)) as lines:
        async for line in lines:
            yield line


async def _with_base(
    request: web.Request, services: Services, body: CreateBody, wish: CreateWish
) -> AsyncGenerator[Line | CreateWish]:
    """The wish with the model or the path that `from` names, at last, after the lines of its pull."""
    if not body.base:
        return
    async for line in _found(request, services, body.base):
        if isinstance(line, Model):
            if line.is_adapter:
                raise BadRequest(
                    f"`{line.name}` is an adapter, and no model", "name a model, and the adapter beside it"
                )
            wish, source = replace(wish, model=line), str(line.own.get("source", ""))
        elif isinstance(line, str):
            wish, source = replace(wish, path=line), line
        else:
            yield line
            continue
        yield replace(wish, base_source=await base_of(request, services, source)) if wish.adapters and source else wish


async def _with_draft(
    request: web.Request, services: Services, body: CreateBody, wish: CreateWish
) -> AsyncGenerator[Line | CreateWish]:
    """The wish with the model that `draft` names, at last, after the lines of its pull."""
    if not body.draft:
        return
    async for line in _found(request, services, body.draft):
        if isinstance(line, str):
            raise BadRequest("`draft` names a path", "send its files as `draft_files`, or pull it first", "draft")
        if isinstance(line, Model):
            if line.is_adapter:
                raise BadRequest(f"`{line.name}` is an adapter, and no model", "name a model", "draft")
            yield replace(wish, draft=line)
        else:
            yield line


async def _wish(services: Services, body: CreateBody, name: Name) -> tuple[CreateWish, list[str]]:
    """The wish in a body but for the model that it is made of, and sentences for the user. Raises BadBody,
    BadModelfile, BadRequest, BadName."""
    if bool(body.base) == bool(body.files):
        if body.files:
            raise BadBody("`from` and `files` both say what the model is made of", "send one of them", "files")
        raise BadBody("neither 'from' or 'files' was specified", "say what the model is made of", "from")
    if body.requires and not _VERSION.fullmatch(body.requires):
        raise BadModelfile(f"REQUIRES is no version: `{body.requires[:40]}`", "it looks like `0.14.0`")
    if fault := fault_of(body.template) if body.template else "":
        raise BadModelfile(f"the TEMPLATE cannot be read: {fault}", "it is a template in Go's language")
    if body.draft and body.draft_files:
        raise BadBody("`draft` and `draft_files` both say what drafts", "send one of them", "draft")
    for digest in (*body.files.values(), *body.adapters.values(), *body.draft_files.values()):
        await require_blob(services, digest)
    parameters, idle = checked(body.parameters)
    marks = {key: value for key in ("renderer", "parser", "requires") if (value := getattr(body, key))}
    notes = [f"parameters that have no effect here: {', '.join(idle)}"] if idle else []
    notes += [
        f"{key.upper()} is kept, and not needed: lm learns that from the model's template"
        for key in ("renderer", "parser")
        if key in marks
    ]
    wish = CreateWish(
        name=name,
        files=body.files,
        adapters=body.adapters,
        level=_level(body.quantize or body.quantization),
        draft_files=body.draft_files,
        draft_level=_level(body.draft_quantize),
        template=body.template,
        system=body.system,
        licenses=[body.license] if isinstance(body.license, str) else body.license,
        parameters=parameters,
        messages=_turns(body.messages),
        marks=marks,
    )
    return wish, notes


async def _found(request: web.Request, services: Services, name: str) -> AsyncGenerator[dict[str, Any] | Model | str]:
    """The model that is here under a name, at last, after the lines of its pull; or the path of a folder or file."""
    try:
        yield await visible_model(request, name)
        return
    except ModelNotFound:
        caller_of(request).require_listed(name, [])
    found = await find_source(request, services, name, "naming a folder")
    if found.reference.on_disk:
        yield found.reference.text
        return
    if found.note:
        yield note_line(found.note)
    here = ""
    frames = services.jobs.follow(found.reference, PullOptions(services.config.hub), owner=caller_of(request).owner)
    async with aclosing(frames):
        async for frame in frames:
            if frame.get("status") == "success":
                here = str(frame["name"])
            else:
                yield with_digest(name, found.explained(frame))
    if here:
        yield await services.library.resolve(here)


def _turns(messages: list[TurnField]) -> list[Mapping[str, str]]:
    for each in messages:
        if each.role not in ROLES:
            raise BadBody(f"`{each.role[:40]}` is no role of a message", f"roles are {', '.join(ROLES)}", "messages")
    return [{"role": each.role, "content": each.content} for each in messages]


def _level(text: str) -> str | None:
    """The level to make, None for the weights as they are. Raises BadName."""
    level = canonical_level(text) if text else None
    return _ALIASES.get(level or "", level)
