"""A meter at work for the daemon: its task, its process, the folders and the text that it finds."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from registry.store import fsops
from registry.store.fsops import plainly
from server.children.child_log import log_file
from server.children.daemon_side import TaskProcess, task_process
from server.config import Config
from server.pulls.pull import NICE
from server.quality.frames import FromMeter, MeterTask, ReadThrough, Step
from server.quality.wish import QualityWish

# Folders in the cache: of measurements, and in it of a reference's file.
FOLDER, SOURCE = "quality", "source"
_CHECKED, _TEXT = "checked", "text.txt"


def prepare(config: Config, folder: Path) -> None:
    """Make a folder in the cache. Raises DiskFull, StoreFailed."""
    with plainly(config.cache):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def note_text(folder: Path, text: str) -> None:
    """Write the user's text for a meter; what no Unicode has becomes `?`. Raises OSError."""
    fsops.replace(folder / _TEXT, text.encode(errors="replace"))


def task_of(wish: QualityWish, step: Step, path: Path, folder: Path, window: int, reference: str = "") -> MeterTask:
    """The task of one step; the user's text, if there is one, lies in `folder`."""
    return MeterTask(
        step=step,
        path=str(path),
        folder=str(folder),
        digest=wish.model.blob_digest.rpartition(":")[2],
        name=reference if reference and step != "model" else wish.model.name,
        reference=reference,
        text=str(folder / _TEXT) if wish.text else "",
        windows=wish.windows,
        window=window,
        learned=[str(mark) for mark in wish.model.own.get("learned") or ()],
    )


def meter_process(config: Config, task: MeterTask) -> AbstractAsyncContextManager[TaskProcess]:
    """The process that does a task."""
    log, purpose = log_file(config.logs, "meter"), f"reads text with `{task.name}`"
    return task_process("server.quality.meter", task, frames=FromMeter, log=log, purpose=purpose, nice=NICE)


async def check_text(config: Config, wish: QualityWish, root: Path, window: int) -> None:
    """Raise ChildError where the user's text is too short for one window, before a reference is made."""
    folder = root / _CHECKED
    await asyncio.to_thread(_note_checked, config, folder, wish.text)
    async with meter_process(config, task_of(wish, "text", wish.model.blob, folder, window)) as meter:
        while not isinstance(await meter.receive(), ReadThrough):
            pass


def _note_checked(config: Config, folder: Path, text: str) -> None:
    prepare(config, folder)
    with plainly(config.cache):
        note_text(folder, text)
