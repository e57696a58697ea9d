"""How many bytes an improvement would fetch from another machine: planned from headers only."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from registry.net.hub import Hub
from registry.store.model import Model
from runtime.messages import CacheConfig
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.improving.suitable import source_for
from server.library import Library
from server.pulls.frames import FromPuller, ModelRequest, Planned, PullTask
from server.pulls.origin import is_local
from server.pulls.pull import NICE, check_content


async def source_bytes(config: Config, library: Library, model: Model, hub: Hub) -> int:
    """Bytes that are fetched at most for an improvement of `model`; 0 where its source is on this machine.

    The weights are read for the new file, and once more for the reference that both files are measured against.
    Raises as `source_for` and as a puller; Conflict where the source has changed.
    """
    source = source_for(model, library.rules)
    if is_local(source):
        return 0
    folder = Path(await asyncio.to_thread(_folder, config))
    task = PullTask(
        model=ModelRequest(
            source=source.text,
            hub=hub,
            cache_folder=str(config.cache),
            disk_free=await asyncio.to_thread(library.store.obtainable_bytes),
            cache_config=CacheConfig.wanted(config.context, config.sequences, config.kv_type),
        ),
        folder=str(folder),
        pre=str(model.own.get("pre", "")),
        accept_unknown_keys=True,
        rules=library.rules,
    )
    log, purpose = log_file(config.logs, "puller"), f"looks at the source of `{model.name}`"
    try:
        process = task_process("server.pulls.puller", task, frames=FromPuller, log=log, purpose=purpose, nice=NICE)
        async with process as puller:
            while True:
                frame = await puller.receive()
                if isinstance(frame, Planned):
                    check_content(frame, str(model.own["content"]), model.name)
                    return 2 * frame.source_bytes
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _folder(config: Config) -> str:
    config.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=config.cache, prefix="foreseen-")
