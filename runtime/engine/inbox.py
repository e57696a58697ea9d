"""Frames on their way from the thread that reads the socket to the loop, and the requests that are prepared meanwhile.

A request that takes long to prepare, because its text is long or its grammar has to be compiled, is prepared in a
thread of its own (`runtime/engine/compiling.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock
from typing import Any

from runtime import messages as m
from runtime.engine.compiling import Compiling
from runtime.engine.intake import Intake
from runtime.engine.session import Session
from runtime.errors import EngineError

# Texts of more letters take longer than 50 ms to turn into tokens, some 1.2 million a second.
_LONG_TEXT = 1 << 16


class Inbox:
    """The frames that the loop has not seen yet. The loop alone calls `get`; any thread may call the others."""

    def __init__(self, intake: Intake, send: Callable[..., None]) -> None:
        """`send` gets tokens, and the frames of requests that fail or are cancelled before the loop sees them."""
        self._intake = intake
        self._send = send
        self._tokenizing: ThreadPoolExecutor | None = None
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._compiling = Compiling(intake.sessions, self._enqueue, send)
        self._reading = Compiling(intake.sessions, self._enqueue, send, "reading")
        self._queued = 0
        """Requests among the items; several threads put some in, and the loop takes them out."""
        self._counting = Lock()

    @property
    def requests(self) -> int:
        """Requests that are ready for the loop."""
        return self._queued

    @property
    def waiting(self) -> int:
        """Requests that are ready, and requests that are being prepared."""
        return self._queued + len(self._compiling) + len(self._reading)

    @property
    def empty(self) -> bool:
        """Whether `get` would wait."""
        return self._items.empty()

    def submit(self, request: m.Submit) -> None:
        """Prepare a request, at once or in a thread. Raises what `Intake.sessions` raises."""
        if request.letters > _LONG_TEXT:
            self._reading.add(request)
        elif request.compiles:
            self._compiling.add(request)
        else:
            self._enqueue(self._intake.sessions(request))

    def tokenize(self, request: m.Tokenize) -> None:
        """Send the tokens of a text, of a long one from a thread. Raises what `Intake.tokens` raises."""
        letters = sum(map(len, m.texts_of(request.text))) + (request.submit.letters if request.submit else 0)
        if letters <= _LONG_TEXT:
            self._send(self._intake.tokens(request))
            return
        if self._tokenizing is None:
            self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._tokenizing.submit(self._tokenize_long, request)

    def _tokenize_long(self, request: m.Tokenize) -> None:
        try:
            self._send(self._intake.tokens(request))
        except EngineError as error:
            self._send(m.Failed.of(request.id, error))

    def put(self, item: Any) -> None:
        """Hand anything but a request to the loop."""
        self._items.put(item)

    def cancel(self, request: int) -> bool:
        """End a request that is still being prepared; False where it is not here."""
        return self._compiling.cancel(request) or self._reading.cancel(request)

    def get(self) -> Any:
        """The next item, waited for where there is none: the sessions of a request, or what was `put`."""
        item = self._items.get()
        if isinstance(item, list):
            with self._counting:
                self._queued -= 1
        return item

    def _enqueue(self, sessions: list[Session]) -> None:
        """Hand the sessions of a request to the loop."""
        with self._counting:
            self._queued += 1
        self._items.put(sessions)
