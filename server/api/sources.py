"""The source of a model that a request names: its reference, and the hub with the caller's token."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from aiohttp import web

from registry.errors import BadName, ModelNotFound, Offline, SourceUnavailable
from registry.names import LATEST, LIBRARY, LOCAL, OLLAMA, Name, Reference, parse
from registry.net.hub import Hub
from registry.net.reaching import is_loopback
from registry.sources import packages
from server.access.callers import caller_of
from server.access.peers import require_loopback
from server.api.request import visible_model
from server.config import Config
from server.errors import BadBody
from server.services import Services
from server.values import http_url


def callers_hub(request: web.Request, config: Config, endpoint: str, token: str) -> Hub:
    """The caller's hub and token, else the daemon's; the daemon's token goes to its own hub only.

    Raises Forbidden for a caller from another machine, BadBody.
    """
    if not (endpoint or token):
        return config.hub
    require_loopback(request, "naming a hub or a token")
    try:
        endpoint = http_url(endpoint or config.hf_endpoint)
    except ValueError:
        raise BadBody("`hf_endpoint` is not an http(s) URL", "send one such as `https://huggingface.co`") from None
    if not (token.isascii() and token.isprintable()):
        raise BadBody("`hf_token` is not a token", "send it as the hub gave it")
    own = config.hf_token if endpoint == config.hf_endpoint else ""
    return replace(config.hub, endpoint=endpoint, token=token or own)


class Found(NamedTuple):
    """The source that a request means, and a sentence on what a bare name was taken for; "" for a full name.

    `word` is a bare name that nothing here has, "" for any other; `near` asks for names that look like it.
    """

    reference: Reference
    note: str = ""
    word: str = ""
    near: str = ""

    def explained(self, line: dict[str, Any]) -> dict[str, Any]:
        """The last line of a pull: an error says that the word was nothing here, and which names are like it."""
        if not self.word or line.get("code") not in (ModelNotFound.code, SourceUnavailable.code, Offline.code):
            return line
        hint = f"{self.near} {line.get('hint', '')}".strip()
        return line | {"error": f"`{self.word}` is not here, and {line['error']}", "hint": hint}


async def find_source(request: web.Request, services: Services, name: str, doing: str) -> Found:
    """The source of the model of this name; a bare one means what is here, else an installed package's, else Ollama's.

    `doing` is the subject of the message when a client on another machine names a folder. Raises BadName,
    ModelNotFound, Forbidden.
    """
    reference = parse(name)
    if reference.kind == "bare":
        found = await _of_bare_name(services, reference, suggest=not caller_of(request).limited)
    elif reference.on_disk and not name.startswith("/"):
        raise BadName(f"`{name[:80]}` is a relative path", "send an absolute one: the daemon has another folder")
    else:
        found = Found(reference)
    if found.reference.on_disk:
        require_loopback(request, doing)
    elif is_loopback(found.reference.host):
        require_loopback(request, "pulling from the daemon's own machine")
    return found


async def base_of(request: web.Request, services: Services, name: str) -> str:
    """The source of the model that an adapter is for, by the name of the source or of a model here; "" for "".

    Raises as `find_source`.
    """
    if not name:
        return ""
    with suppress(ModelNotFound):
        model = await visible_model(request, name)
        if source := str(model.own.get("source", "")):
            return source
    reference = (await find_source(request, services, name, "naming a folder")).reference
    return replace(reference, level=None, name=reference.name.tagged(None)).text


async def _of_bare_name(services: Services, reference: Reference, *, suggest: bool) -> Found:
    """The source that a bare name means, and a sentence that says so; `suggest` names like it that are here.

    Raises BadName, StoreFailed.
    """
    if here := await _made_here(services, reference):
        return here
    if model := await asyncio.to_thread(packages.meant_by, reference.location):
        level = reference.name.tag
        found = parse(f"package://{model.location}" if level is None else f"package://{model.location}:{level}")
        return Found(found, f"`{reference.location}` is {model.sentence}")
    close = await asyncio.to_thread(services.library.store.similar, reference) if suggest else []
    near = f"did you mean `{'` or `'.join(close)}`?" if close else ""
    word = reference.location
    found = parse(f"{OLLAMA}/{LIBRARY}/{word}:{reference.name.tag or LATEST}")
    return Found(found, f"`{word}` is looked for in Ollama's registry", word, near)


async def _made_here(services: Services, reference: Reference) -> Found | None:
    """The source from which a model of this bare name was made here, or is being made.

    `lm pull ./mine` makes the model `mine`, and `lm pull mine` then means the same folder, at the level that the name
    means: no app that wants to be sure of a model gets another level of it.
    """
    wanted = reference.name
    key = Name(LOCAL, LIBRARY, wanted.model)
    sources = [(model.key, str(model.own.get("source") or "")) for model in await services.library.models()]
    sources += [(parse(row["name"]).name, row["source"]) for row in await services.jobs.partials()]
    for name, text in sources:
        if name.model.lower() == key.model.lower() and name.namespace == LIBRARY and (source := _again(text)):
            meaning = await services.library.meaning(reference.text)
            tag = wanted.tag if meaning is None else meaning.name.tag
            level = "" if tag is None or tag.lower() == LATEST else f":{tag}"
            return Found(parse(f"{source.text}{level}"), f"`{wanted.model}` is the model here made of `{source.text}`")
    return None


def _again(text: str) -> Reference | None:
    """The source of a model that can be made again, without a level; None where it was not made here."""
    with suppress(BadName):
        source = parse(text)
        if source.local:
            return replace(source, level=None, name=source.name.tagged(None))
    return None
