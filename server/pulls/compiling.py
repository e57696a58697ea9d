"""Kernels compiled before a pull calls them, in several processes at once: `python -P -m server.pulls.compiling`.

Numba compiles one function at a time in a process, and holds the interpreter for most of that time. So a puller shares
the kernels out among processes, which leave the code in the cache, and goes on with its download.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runtime.child import Parent, ask

if TYPE_CHECKING:
    from quant.kernels.vectors.compiler import Kernel

# Processes at most: a level needs two searches or three, and each process takes 150 MB.
MOST_PROCESSES = 3
# The slowest kernel takes 8 s of an idle core; a machine that needs longer than this compiles it in the puller.
_SECONDS = 120.0
_POLL_SECONDS = 0.2


class CompileTask(msgspec.Struct, tag="compile"):
    """Puller to a compiling process: types, and the names of the kernels to compile for them."""

    folder: str
    types: list[str]
    kernels: list[str]


class Compiled(msgspec.Struct, tag="compiled"):
    """The answer: the code is in the folder."""


def main(argv: Sequence[str]) -> int:
    """Compile one share."""
    from quant.kernels import blocks
    from quant.kernels.vectors import cache

    parent = Parent.connect(argv, CompileTask)
    task = parent.receive()
    if not isinstance(task, CompileTask):
        return 1
    cache.use(Path(task.folder))
    for kernel in blocks.needed(task.types):
        if kernel.name in task.kernels:
            kernel.compile()
    parent.send(Compiled())
    return 0


def warm(types: Iterable[str], processes: int, told: Callable[[int, int], None]) -> None:
    """Compile the kernels of the named types, or load them from the cache; whoever calls one meanwhile waits for it.

    `told(done, total)` is called with numbers of kernels where any has to be compiled: with 0, then at each change.
    """
    from quant.kernels import blocks
    from quant.kernels.vectors import cache, compiler

    with compiler.reserved():
        types = sorted(types)
        kernels = blocks.needed(types)
        missing = [kernel for kernel in kernels if not kernel.is_compiled]
        if missing:
            told(0, len(missing))
        shares = share([kernel.name for kernel in missing], min(processes, MOST_PROCESSES))
        if len(shares) > 1:
            _compile_elsewhere([CompileTask(str(cache.folder()), types, names) for names in shares], missing, told)
        for done, kernel in enumerate(missing, 1):  # what a process could not do is compiled here
            kernel.compile()
            if len(shares) == 1 or done == len(missing):
                told(done, len(missing))
        for kernel in kernels:
            kernel.compile()


def share(names: Sequence[str], processes: int) -> list[list[str]]:
    """Names of kernels in shares that take about the same time; a search takes as long as four others."""
    shares: list[tuple[list[str], list[int]]] = [([], []) for _ in range(min(processes, len(names)))]
    for cost, name in sorted(((4 if "search" in name else 1, name) for name in names), reverse=True):
        own, costs = min(shares, key=lambda share: sum(share[1]))
        own.append(name)
        costs.append(cost)
    return [own for own, _ in shares]


def _compile_elsewhere(tasks: list[CompileTask], missing: list[Kernel], told: Callable[[int, int], None]) -> None:
    """Run a process for each task, and tell whenever more of the missing kernels have come into the cache."""
    threads = [threading.Thread(target=_ask, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    before = 0
    for thread in threads:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            done = sum(kernel.is_compiled for kernel in missing)
            if done != before:
                told(done, len(missing))
            before = done


def _ask(task: CompileTask) -> None:
    with contextlib.suppress(OSError, EOFError, msgspec.MsgspecError):  # TimeoutError is an OSError
        ask("server.pulls.compiling", task, Compiled, _SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
