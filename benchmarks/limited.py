"""Loads a model under a limit of memory, weights read instead of mapped, and runs it, for `benchmarks/fit.py`.

    python -m benchmarks.limited PATH CONTEXT SEQUENCES LIMIT [GROUP]

The limit is that of a control group made for it, version 1 or 2, where we may make one: then the kernel kills what
exceeds it. Elsewhere it is `RLIMIT_DATA`. Prints what the process then holds, and what of its address space counts
against `RLIMIT_DATA`, in bytes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from runtime.llama.context import Context, ContextParams, sequence_count
from runtime.llama.model import LlamaModel
from runtime.machine.hardware import usable_cpus

LIMITS = ("memory.max", "memory.limit_in_bytes")


@cache
def parent_group() -> Path | None:
    """Our own memory group, if we may make others in it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = Path("/sys/fs/cgroup") / controllers / path.lstrip("/")
            with contextlib.suppress(OSError), _made(folder) as child:
                if any((child / name).exists() for name in LIMITS):
                    return folder
    return None


@contextlib.contextmanager
def _made(parent: Path) -> Iterator[Path]:
    child = parent / f"lm-limited-{os.getpid()}"
    child.mkdir()
    try:
        yield child
    finally:
        child.rmdir()


@contextlib.contextmanager
def group(limit: int) -> Iterator[Path | None]:
    """A control group with a limit in bytes, for a process to join; None for no limit, or where none can be made."""
    parent = parent_group()
    if not limit or parent is None:
        yield None
        return
    with _made(parent) as child:
        next(child / name for name in LIMITS if (child / name).exists()).write_text(str(limit))
        yield child


def main(path: Path, context: int, running: int, limit: int, folder: Path | None) -> None:
    """Fill a batch of the context, and then one token."""
    if folder:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    elif limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model = LlamaModel(path, mapped=False)
    made = Context(model, ContextParams(context, sequence_count(model, running), running, usable_cpus()))
    tokens = min(made.batch_size, context - 1)
    made.put_prompt(0, memoryview(bytes(4 * tokens)).cast("i"), 0, 0, 1)
    made.decode(tokens)
    made.put_token(0, 0, tokens, 0)
    made.decode(1)
    status = Path("/proc/self/status").read_text().splitlines()
    print(*(int(line.split()[1]) << 10 for name in ("RssAnon", "VmData") for line in status if line.startswith(name)))


if __name__ == "__main__":
    named = Path(sys.argv[5]) if sys.argv[5:] and sys.argv[5] else None
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), folder=named)
