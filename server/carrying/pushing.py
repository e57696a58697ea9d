"""Pushing a model of the store to a registry: which, to where, in which form, with which notes about its making."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from quant import notes
from quant.errors import QuantError
from quant.gguf.header import read_file
from registry.errors import BadName
from registry.names import Name, parse
from registry.net.network import Network
from registry.store.catalog import Model
from registry.store.store import Store
from registry.targets.forms import Form, Outgoing, as_modelpack, as_stored
from registry.targets.pushing import Push, Send
from server.carrying.following import Line, follow
from server.config import Config
from server.logins import read_logins
from server.pulls.lines import note_line

_LONGEST = 4000  # characters of one annotation


def target_of(model: Model, text: str) -> Name:
    """The name under which a model is pushed: `text`, where it is not "", else its own. Raises BadName."""
    target = parse(text or model.name)
    if not target.registry:
        raise BadName(
            f"`{text or model.name}` names no registry to push to",
            f"say where to: `lm push {model.name} HOST/NAMESPACE/MODEL`",
        )
    return target.name


def push(config: Config, store: Store, model: Model, target: Name, form: Form) -> AsyncGenerator[Line]:
    """Push a model; lines in Ollama's form, the last of them success. Raises errors of `registry`."""
    return push_outgoing(config, store, lambda: _outgoing(store, model, form), target)


async def push_outgoing(
    config: Config, store: Store, make: Callable[[], Outgoing], target: Name
) -> AsyncGenerator[Line]:
    """Push what `make` gives, which is called in a thread; as `push`."""
    yield {"status": "retrieving manifest", "phase": "resolving"}
    said: list[Send] = []

    def prepare() -> Push:
        hub = replace(config.hub, logins=read_logins(config))
        network = Network(notice=lambda text: said[0](note_line(text))).with_hub(hub)
        return Push(store, make(), target, network)

    pushing = await asyncio.to_thread(prepare)

    def work(send: Send) -> Line:
        said.append(send)
        digest = pushing.run(send)
        return {"status": "success", "phase": "done", "name": target.display, "manifest_digest": digest}

    async with aclosing(follow(work, pushing.abort)) as lines:
        async for line in lines:
            yield line


def _outgoing(store: Store, model: Model, form: Form) -> Outgoing:
    data, contents = store.manifest(model)
    if form == "ollama":
        return as_stored(data, contents)
    return as_modelpack(model, contents, _notes(model))


def _notes(model: Model) -> dict[str, str]:
    """The digests of the files that a model was made of, and its quality card, where it has them."""
    found: dict[str, Any] = {"quality": model.card}
    try:
        metadata = read_file(model.blob).metadata
        found["source-digests"] = metadata.get(notes.SOURCE_DIGESTS)
    except (QuantError, OSError):
        pass
    texts = {f"io.lm.{key}": json.dumps(value, ensure_ascii=False) for key, value in found.items() if value}
    return {key: text for key, text in texts.items() if len(text) <= _LONGEST}
