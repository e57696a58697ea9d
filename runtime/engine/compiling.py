"""Requests that take long to prepare, by a grammar or a long text: one after the other, in a thread of their own.

The engine's thread goes on with its steps, and the socket's thread takes other requests. The thread begins with the
first request, because its stack is large.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from runtime import messages as m
from runtime.engine.session import Session
from runtime.errors import EngineError

# llguidance follows rules and references by recursion. Stack is memory only as far as it is used.
STACK_BYTES = 256 << 20


class Compiling:
    """A queue of requests. `add`, `cancel` and `len` are called by the socket's thread."""

    def __init__(
        self,
        make: Callable[[m.Submit], list[Session]],
        hand_on: Callable[[list[Session]], None],
        send: Callable[..., None],
        name: str = "compiling",
    ) -> None:
        """`make` compiles, and raises EngineError; `hand_on` gets its result, `send` the frames of others."""
        self._make, self._hand_on, self._send = make, hand_on, send
        self._name = name
        self._requests: SimpleQueue[m.Submit] = SimpleQueue()
        self._pending: set[int] = set()
        """The ids of requests that are here and not cancelled."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, request: m.Submit) -> None:
        """Prepare the request when its turn comes."""
        self._pending.add(request.id)
        self._requests.put(request)
        if self._thread is None:
            before = threading.stack_size(STACK_BYTES)
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
            threading.stack_size(before)

    def cancel(self, request: int) -> bool:
        """Let a request end as cancelled when its turn comes; False where it is not here."""
        with self._lock:
            here = request in self._pending
            self._pending.discard(request)
            return here

    def _run(self) -> None:
        while True:
            self._compile(self._requests.get())

    def _compile(self, request: m.Submit) -> None:
        try:
            sessions = self._make(request) if request.id in self._pending else []
        except BaseException as error:  # a panic of llguidance is no Exception
            self._pending.discard(request.id)
            if not isinstance(error, EngineError):
                traceback.print_exc()
                what = "grammar could not be compiled" if request.compiles else "prompt could not be read"
                error = EngineError(f"the {what}", "make it simpler")
            self._send(m.Failed.of(request.id, error))
            return
        with self._lock:
            if request.id in self._pending:
                self._pending.remove(request.id)
                self._hand_on(sessions)
                return
        self._send(*(m.Finished(request.id, "cancelled", 0, 0, index=index) for index in range(request.count)))
