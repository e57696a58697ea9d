"""The check of a finished file, before it is listed: does it load, and does it compute? In a child process.

A file that fails is thrown away, and the model of that name stays as it was. Where nobody can say, as with a model for
which there is no memory at the moment, the user is told, and the pull goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.child import Child
from runtime.machine.hardware import detect
from runtime.machine.inspection import INSPECTOR, Answer, Refused, Tried, Try
from server.errors import CheckFailed

# A model larger than memory is read from disk: at some speed of a disk, and a minute for the rest.
_SECONDS, _BYTES_PER_SECOND = 60.0, 200e6


async def check_file(path: Path, level: str, log: Path, note: Callable[[str], None]) -> None:
    """Raise CheckFailed where the model in the file at `path` does not work; `note` gets a sentence about the rest."""
    hardware = await asyncio.to_thread(detect, 1.0)
    question = Try(str(path), hardware.cpus, hardware.memory_available)
    seconds = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    answer = await _ask(question, seconds, log)
    match answer:
        case Tried(fault=""):
            if answer.remark:
                note(answer.remark)
        case Tried():
            raise CheckFailed(f"the finished model does not work at {level}: {answer.fault}", _hint(level))
        case Refused(unloadable=True):
            raise CheckFailed(f"the finished model does not load in llama.cpp: {answer.reason}", _hint(level))
        case _:
            note(f"the finished model is not checked: {answer.reason}")


def _hint(level: str) -> str:
    return "nothing of it was kept; report it, and try another level, or another file of the model"


async def _ask(question: Try, seconds: float, log: Path) -> Tried | Refused:
    """The inspector's answer; it is dead and reaped when this returns, however that is."""
    try:
        child = await Child.spawn(INSPECTOR, frames=Answer, log=log)
    except OSError as error:
        return Refused(f"no process could be started ({error.strerror})")
    try:
        async with asyncio.timeout(seconds):
            await child.send(question)
            answer: Any = await child.receive()
            if answer is None:
                await child.reap()
    except TimeoutError:
        return Refused(f"it took longer than {seconds:.0f} s")
    finally:
        child.kill()
        await asyncio.shield(child.wait())
    if isinstance(answer, Tried | Refused):
        return answer
    if crash := child.crash:
        return Refused.crash(crash)
    return Refused(f"the process that checked it {child.ending}")
