"""The daemon's side of advice: ask an adviser process, and wait for its answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from server.advice.frames import AdviceTask, Advised, FromAdviser
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.errors import ServerError

ADVISE_SECONDS = 120.0


async def ask_adviser(task: AdviceTask, logs: Path) -> dict[str, Any]:
    """The body that answers `POST /lm/advise`; the process's log lies in the folder `logs`.

    Raises ServerError when it takes longer than `ADVISE_SECONDS`, and as `TaskProcess.receive`.
    """
    log = log_file(logs, "adviser")
    try:
        async with asyncio.timeout(ADVISE_SECONDS):
            async with task_process(
                "server.advice.adviser", task, frames=FromAdviser, log=log, purpose="was asked"
            ) as adviser:
                advised: Advised = await adviser.receive()
                return advised.answer
    except TimeoutError:
        raise ServerError(f"no advice within {ADVISE_SECONDS:.0f} s", "is the source reachable?") from None
