"""The source of a model that a request names: its reference, and the hub with the caller's token."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from registry.errors import BadName, ModelNotFound
from registry.names import LATEST, LIBRARY, LOCAL, Name, Reference, parse
from registry.net.hub import Hub
from server.access.guard import require_loopback
from server.config import Config, http_url
from server.errors import BadBody
from server.services import Services


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


async def find_source(request: web.Request, services: Services, name: str, doing: str) -> Reference:
    """The source of the model of this name: a folder, a hub's repository, or the folder that a model here was made of.

    `doing` is the subject of the message when a client on another machine names a folder. Raises BadName,
    ModelNotFound, Forbidden.
    """
    reference = parse(name)
    if reference.kind == "ollama":
        reference = await _folder_of(services, reference)
    elif reference.kind == "folder" and not name.startswith("/"):
        raise BadName(f"`{name[:80]}` is a relative path", "send an absolute one: the daemon has another folder")
    if reference.kind == "folder":
        require_loopback(request, doing)
    elif reference.kind not in ("demo", "hub"):
        close = await asyncio.to_thread(services.library.store.similar, reference)
        hint = "`lm list` shows what there is; Ollama's own models are found at huggingface.co as `org/repo`"
        raise ModelNotFound(
            f"`{name}` is not in the store, and this version pulls from hf.co and folders only",
            f"did you mean `{'` or `'.join(close)}`?" if close else hint,
        )
    return reference


async def _folder_of(services: Services, reference: Reference) -> Reference:
    """The folder from which a model of this bare name was made, or is being made; else `reference` itself.

    `lm pull ./mine` makes the model `mine`, and `lm pull mine` then means the same folder, at the level that the name
    means: no app that wants to be sure of a model gets another level of it.
    """
    wanted = reference.name
    if wanted.namespace != LIBRARY:
        return reference
    key = Name(LOCAL, LIBRARY, wanted.model)
    sources = [(model.key, str(model.own.get("source") or "")) for model in await services.library.models()]
    sources += [(parse(row["name"]).name, row["source"]) for row in await services.jobs.partials()]
    for name, source in sources:
        if source.startswith("/") and name.model.lower() == key.model.lower() and name.namespace == LIBRARY:
            folder = parse(source)
            location = Reference("folder", folder.location, None, folder.name.tagged(None))
            meaning = await services.library.meaning(reference.text)
            tag = wanted.tag if meaning is None else meaning.name.tag
            level = "" if tag is None or tag.lower() == LATEST else f":{tag}"
            return parse(f"{location.text}{level}")
    return reference
