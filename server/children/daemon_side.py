"""The daemon's half of a process that does one task for it (the child's half: `child_side.py`).

async with task_process("server.pulls.puller", task, frames=FromPuller, log=path, purpose="pulled `demo`") as child:
    while True:
        match await child.receive():
            case Done() as done:
                return done
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from runtime.child import Child
from server.children.background import BACKGROUND
from server.children.frames import ErrorReport
from server.errors import ChildError, ServerError


class TaskProcess:
    """A running process that has its task. `purpose` completes the sentence "the process that …"."""

    def __init__(self, child: Child, purpose: str) -> None:
        self._child = child
        self._purpose = purpose

    async def receive(self) -> Any:
        """The next frame.

        Raises ChildError with the process's own error, ServerError when it ended without a result.
        """
        frame = await self._child.receive()
        if isinstance(frame, ErrorReport):
            raise ChildError(frame.code, frame.message, frame.hint)
        if frame is None:
            await self._child.reap()
            ending = self._child.problem or self._child.ending
            raise ServerError(f"the process that {self._purpose} {ending}", "try again; see `lm logs` if that recurs")
        return frame


@asynccontextmanager
async def task_process(
    module: str, task: msgspec.Struct, *, frames: Any, log: Path, purpose: str, nice: int = 0
) -> AsyncIterator[TaskProcess]:
    """Start `python -P -m module` and send it `task`; it is dead and reaped when the block is left, however it is left.

    `frames` is the union of structs that it may send, `ErrorReport` among them; its output is appended to `log`.
    Raises OSError when it cannot start.
    """
    child = await Child.spawn(module, frames=frames, nice=nice, log=log)
    work = BACKGROUND.get()
    try:
        with work.has(child) if work else nullcontext():
            await child.send(task)
            yield TaskProcess(child, purpose)
    finally:
        child.kill()
        await asyncio.shield(child.wait())
