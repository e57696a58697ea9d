"""`lm verify --deep`: the tensors of a model made anew from their source, by the pass that made them, and compared.

This proves the source that a model was quantized from: the same source, level and version give the same bytes. The
file is made in the cache, by a puller as for a pull, and thrown away.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.gguf.header import Header, read_file
from registry.errors import StoreFailed
from registry.names import Reference, parse
from registry.net.hub import Hub
from registry.store import fsops
from registry.store.catalog import Model
from registry.store.fsops import plainly
from registry.store.partial import DATA
from runtime.messages import CacheConfig
from server.carrying.following import Line, Send, follow
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.errors import Unsupported
from server.logins import read_logins
from server.pulls.frames import Done, FromPuller, ModelRequest, PullTask
from server.pulls.lines import frame_line, phase_line
from server.pulls.pull import NICE

_STEP = 4 << 20
_MOST_NAMED = 10
_turn = asyncio.Lock()


async def verify_deep(config: Config, model: Model, reference: Reference, hub: Hub) -> AsyncGenerator[Line]:
    """Make a model anew and compare; the last line has `tensors`, `equal` and the names of `different` ones.

    Raises Unsupported for an adapter and for a model that was quantized with statistics, and as a pull.
    """
    if statistics := model.own.get("statistics"):
        raise Unsupported(
            f"`{model.name}` was quantized with {statistics}, which its source does not have",
            "`lm verify` without `--deep` checks its blobs; `lm quantize` makes it anew",
        )
    if model.is_adapter:
        raise Unsupported(f"`{model.name}` is an adapter, and only models are made anew", "verify its base")
    async with _turn:
        folder = config.cache / "deep"
        await asyncio.to_thread(_prepare, config, folder)
        try:
            yield phase_line("resolving")
            task = await asyncio.to_thread(_task, config, model, reference, hub, folder)
            process = task_process(
                "server.pulls.puller",
                task,
                frames=FromPuller,
                log=log_file(config.logs, "puller"),
                purpose=f"made `{model.name}` anew",
                nice=NICE,
            )
            async with process as puller:
                while not isinstance(frame := await puller.receive(), Done):
                    yield frame_line(frame)
            async with aclosing(follow(lambda send: _compare(model, folder / DATA, send), lambda: None)) as lines:
                async for line in lines:
                    yield line | ({"source": reference.text} if line.get("phase") == "done" else {})
        finally:
            await asyncio.shield(asyncio.to_thread(fsops.remove_tree, folder))


def _prepare(config: Config, folder: Path) -> None:
    with plainly(config.cache):
        config.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsops.remove_tree(folder)
        fsops.mkdir(folder)


def _task(config: Config, model: Model, reference: Reference, hub: Hub, folder: Path) -> PullTask:
    """The task of the puller: the source at the model's level."""
    published = str(model.own.get("published", ""))
    level = published.rpartition("/")[2] if published and reference.kind == "hub" else str(model.own.get("level", ""))
    if level and reference.level is None and not (reference.registry or reference.kind == "store"):
        reference = parse(f"{reference.text}:{level}")
    return PullTask(
        model=ModelRequest(
            source=reference.text,
            hub=replace(hub, logins=read_logins(config)) if reference.registry else hub,
            cache_folder=str(config.cache),
            disk_free=shutil.disk_usage(folder).free,
            cache_config=CacheConfig.wanted(config.context, config.sequences),
        ),
        folder=str(folder),
        limit_rate=0.0,
        pre=str(model.own.get("pre", "")),
        here=[],
        accept_unknown_keys=True,
        base="",
        sharing="copy",
    )


def _compare(model: Model, made: Path, send: Send) -> Line:
    """The last line: how many tensors of a model the file that was made anew has, byte for byte."""
    try:
        ours, theirs = read_file(model.blob), read_file(made)
        different = _differing(ours, theirs, model.blob, made, send)
    except OSError as error:
        raise StoreFailed(f"the file of `{model.name}` cannot be read: {error.strerror}", "check its disk") from None
    except QuantError as error:
        raise StoreFailed(f"the file of `{model.name}` cannot be used: {error}", "`lm verify` checks it") from None
    names = {tensor.name for tensor in ours.tensors}
    missing = sorted({tensor.name for tensor in theirs.tensors} - names)
    last: dict[str, Any] = {"status": "success", "phase": "done", "model": model.name}
    last |= {"tensors": len(names), "equal": len(names) - len(different)}
    return last | {"different": [*different, *missing][:_MOST_NAMED], "same": not different and not missing}


def _differing(ours: Header, theirs: Header, own: Path, made: Path, send: Send) -> list[str]:
    """The names of our tensors that are not the same in the other file."""
    others = {tensor.name: tensor for tensor in theirs.tensors}
    total, done, found = sum(tensor.nbytes for tensor in ours.tensors), 0, []
    with own.open("rb", buffering=0) as first, made.open("rb", buffering=0) as second:
        for tensor in ours.tensors:
            other = others.get(tensor.name)
            same = other is not None and (other.shape, other.type) == (tensor.shape, tensor.type)
            if same and other is not None:
                first.seek(ours.data_offset + tensor.offset)
                second.seek(theirs.data_offset + other.offset)
                left = tensor.nbytes
                while left and same:
                    count = min(_STEP, left)
                    same, left = first.read(count) == second.read(count), left - count
            done += tensor.nbytes
            found += [] if same else [tensor.name]
            send({"status": "comparing", "phase": "comparing", "digest": "", "total": total, "completed": done})
    return found
