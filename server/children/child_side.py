"""The child's half of a process that does one task for the daemon (the daemon's half: `daemon_side.py`).

Such a process receives one frame, the task, and sends N frames while it works. Its last frame is the result or an
`ErrorReport`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

from registry.errors import DiskFull
from registry.store.fsops import FULL
from runtime.child import Parent
from server.children.frames import ErrorReport
from server.errors import INTERNAL, PUBLIC_ERRORS

Task = TypeVar("Task", bound=msgspec.Struct)


def run_task(argv: list[str], task_type: type[Task], work: Callable[[Task, Parent], msgspec.Struct]) -> int:
    """Receive the task, and send what `work` returns; the exit status is 1 when it raised.

    An exception becomes an `ErrorReport`. The process ends at once when the daemon is gone.
    """
    parent = Parent.connect(argv, task_type)
    task = parent.receive()
    if not isinstance(task, task_type):
        return 1
    parent.listen(lambda _: None)
    try:
        parent.send(work(task, parent))
    except PUBLIC_ERRORS as error:
        parent.send(ErrorReport(error.code, str(error), error.hint))
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            parent.send(ErrorReport(DiskFull.code, f"a disk is full: {error}", "make room, then try again"))
            return 1
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            traceback.print_exc()
        parent.send(ErrorReport(*INTERNAL))
        return 1
    return 0


def exit_now(status: int) -> NoReturn:
    """End without waiting for threads, which may still be compiling."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
