"""A child process that does one errand for the daemon: receive it, do it, answer or tell what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

from runtime.child import Parent
from server.errors import PUBLIC_ERRORS
from server.http.problems import Problem
from server.pulls.frames import Failure

Wanted = TypeVar("Wanted", bound=msgspec.Struct)


def main(argv: list[str], wanted: type[Wanted], work: Callable[[Wanted, Parent], msgspec.Struct]) -> int:
    """Do the errand of `wanted`, the first frame, and answer with what `work` returns; 1 when that failed.

    What `work` raises is told as a `Failure`; the process ends at once when the daemon is gone.
    """
    parent = Parent.connect(argv, wanted)
    task = parent.receive()
    if not isinstance(task, wanted):
        return 1
    parent.listen(lambda _: None)
    try:
        parent.send(work(task, parent))
    except Exception as error:
        problem = Problem.of(error)
        if not isinstance(error, PUBLIC_ERRORS):
            traceback.print_exc()
        parent.send(Failure(problem.code, problem.message, problem.hint))
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End without waiting for threads, which may still be compiling."""
    sys.stderr.flush()
    os._exit(status)
