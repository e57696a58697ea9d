"""A process with one task for `test_children.py`: it does as its task says."""

from __future__ import annotations

import os
import sys
import time

import msgspec

from registry.errors import BadName
from runtime.child import Parent
from server.children.child_side import exit_now, run_task


class Work(msgspec.Struct, tag="work"):
    how: str


class Result(msgspec.Struct, tag="result"):
    pid: int


def work(task: Work, parent: Parent) -> Result:
    match task.how:
        case "refuse":
            raise BadName("there is no such name", "give another")
        case "fail":
            raise RuntimeError("a detail that is nobody's business")
        case "exit":
            os._exit(3)
        case "hang":
            parent.send(Result(os.getpid()))
            time.sleep(60)
    return Result(os.getpid())


if __name__ == "__main__":
    exit_now(run_task(sys.argv[1:], Work, work))
