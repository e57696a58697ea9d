"""The process that holds one model: `python -P -m runtime.worker`, spawned by `runtime.child.Child`.

Its first frame is `Load`; it answers with `Ready` or `Failed` with id 0 (and ends). From then on it
takes `Submit`, `Embed`, `Rank`, `Tokenize`, `Cancel` and `Shutdown` in any order, and sends a `Beat` every second. A
crash of llama.cpp, which aborts on a bad file, ends this process; the daemon sees that and nothing else.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from runtime import messages as m
from runtime.child import Parent
from runtime.confinement import SWITCHED_OFF, Confinement, cards_here, confine, refuse_calls
from runtime.errors import BadRequest, EngineError

BEAT_SECONDS = 1.0
# A thread that renders or encodes must not keep the engine's thread from the interpreter for long (default 5 ms).
SWITCH_SECONDS = 0.0005


class Numbered(msgspec.Struct):
    """The id alone of a frame of any kind, to answer one that breaks a range; 0 for a frame without an id."""

    id: int = 0


class Engine(Protocol):
    """Answers requests: a real engine in `runtime.engine.loop`, a scripted one in `runtime.fake`."""

    steps: int
    """Steps so far. A count that stands still while the engine is busy means that the engine hangs."""

    @classmethod
    def open(cls, load: m.Load, send: Callable[..., None]) -> tuple[Self, m.Ready]:
        """Load the model; raises EngineError. `send` takes frames for the daemon, from any thread."""

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""

    @property
    def spilled(self) -> int:
        """Bytes of copies of sequences, of adapters, and of the second context for long prompts."""

    @property
    def obstacle(self) -> str:
        """Why long prompts are not read beside answers; "" where they are."""

    @property
    def drafts(self) -> m.Drafts:
        """Tokens of drafts so far."""

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters in memory."""

    def take(self, frame: Any) -> None:
        """Accept a frame; called from the thread that reads the socket."""

    def run(self) -> None:
        """Serve until `Shutdown` comes."""


def main(argv: list[str]) -> int:
    """Serve one model until `Shutdown`; the exit status is 1 when it could not be loaded."""
    parent = Parent.connect(argv, m.ToWorker)
    load = parent.receive()
    if not isinstance(load, m.Load):
        return 1
    sys.setswitchinterval(SWITCH_SECONDS)
    cards = cards_here()
    # Before the engine's modules start threads, which Landlock would not reach, and before the file is read.
    walls = confine(_files(load), cards=cards) if load.sandbox else Confinement(missing=(SWITCHED_OFF,))
    try:
        engine, ready = _engine(load.engine).open(load, parent.send)
    except EngineError as error:
        parent.send(m.Failed(0, error.code, str(error), error.hint))
        return 1
    ready.confinement = refuse_calls(walls) if cards and load.sandbox else walls
    parent.send(ready)
    parent.listen(engine.take, partial(_refuse, parent.send))
    threading.Thread(target=_beat, args=(engine, parent.send), name="beat", daemon=True).start()
    engine.run()
    return 0


def _files(load: m.Load) -> list[Path]:
    """The folders of the model and of its draft model, where adapters lie too, and the links in them."""
    folders = {Path(path).parent for path in (load.path, load.draft[0]) if path}
    seen = [folder for folder in folders if os.access(folder, os.R_OK)]
    links = [Path(entry) for folder in seen for entry in os.scandir(folder) if entry.is_symlink()]
    return [*folders, *links]


def _engine(name: str) -> type[Engine]:
    if name == "fake":
        from runtime.fake import FakeEngine

        return FakeEngine
    from runtime.engine.loop import LlamaEngine  # llama.cpp takes a quarter of a second to import

    return LlamaEngine


def _refuse(send: Callable[..., None], body: bytes, error: msgspec.ValidationError) -> None:
    """Answer a frame that breaks a range of `runtime/options.py`; the daemon checks them too, and sends none."""
    frame = msgspec.msgpack.decode(body, type=Numbered)
    send(m.Failed(frame.id, BadRequest.code, str(error)))


def _beat(engine: Engine, send: Callable[..., None]) -> None:
    while True:
        send(m.Beat(engine.steps, engine.busy, engine.spilled, engine.obstacle, engine.drafts, engine.adapters))
        time.sleep(BEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
