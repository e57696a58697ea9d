"""Child processes that cannot be forgotten: spawn, frames over a socket pair, and death with the parent.

Both ends live here: `Child` is what the daemon holds (asyncio), `Parent` is what the child holds (blocking calls,
threads). A frame is a 4-byte little-endian length and that many bytes of MessagePack (a tagged msgspec struct), never
above `FRAME_LIMIT`. The child's stdin is empty, its stdout and stderr go to the log: the socket alone carries messages.

Not covered: restarting, deadlines and heartbeats, the business of whoever spawns (`server/loaded/pool.py`,
`server/pulls/jobs.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

if TYPE_CHECKING:
    import asyncio

FRAME_LIMIT = 16 << 20
_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_RECEIVE_BYTES = 1 << 18


def encode(encoder: msgspec.msgpack.Encoder, frames: Sequence[msgspec.Struct]) -> bytes:
    """The bytes of `frames` as they travel, one after the other; raises ValueError for one above `FRAME_LIMIT`."""
    parts: list[bytes] = []
    for frame in frames:
        body = encoder.encode(frame)
        if len(body) > FRAME_LIMIT:
            raise ValueError(f"a frame of {len(body)} bytes is above the limit of {FRAME_LIMIT}")
        parts += (_LENGTH.pack(len(body)), body)
    return b"".join(parts)


class Child:
    """A running child process, seen from the event loop that spawned it.

    Spawn from the loop's own thread: on Linux the child dies with the *thread* that made it.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        frames: Any,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(frames)
        self._buffer = bytearray()
        self.pid = process.pid
        self.problem = ""
        """What was wrong with the last frame, when a child was killed for sending nonsense."""

    @classmethod
    async def spawn(
        cls,
        module: str,
        args: Sequence[str] = (),
        *,
        frames: Any = Any,
        nice: int = 0,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `python -P -m module`; `frames` is the union of structs that it may send, `env` None means ours.

        The child's output is appended to `log`; without one it goes to our stderr. Raises OSError when it cannot start.
        """
        import asyncio  # the child's side does without it, and starts sooner

        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), str(nice), *args]
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(theirs.close)
                output = stack.enter_context(log.open("ab")) if log else sys.stderr.fileno()
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's to handle
                    env=env,
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer, frames)

    async def send(self, *frames: msgspec.Struct) -> None:
        """Send some frames; a child that is gone swallows them (its end shows in `receive`)."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(encode(self._encoder, frames))
            await self._writer.drain()

    async def receive(self) -> Any | None:
        """The next frame, or None when the child is gone. A child that sends nonsense is killed: `problem` says why."""
        try:
            while (frame := self._taken()) is None:
                data = await self._reader.read(_RECEIVE_BYTES)
                if not data:
                    return None
                self._buffer += data
            return frame
        except ConnectionError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.problem = f"it sent a malformed frame: {error}"
            self.kill()
            return None

    def _taken(self) -> Any | None:
        """The first frame of what has come, once it is whole: several come at once, and the loop waits for none."""
        start = _LENGTH.size
        if len(self._buffer) < start:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if size > FRAME_LIMIT:
            raise msgspec.DecodeError(f"frame of {size} bytes")
        if len(self._buffer) < start + size:
            return None
        frame = self._decoder.decode(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return frame

    def kill(self) -> None:
        """End it now, with SIGKILL; harmless when it is gone."""
        # Not `process.kill`: that collects a status that is waiting, and `wait` would never learn it.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status once it has ended (negative: the signal), with the socket closed."""
        status = await self._process.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return status

    @property
    def ending(self) -> str:
        """How it ended, in words that complete a sentence: "was killed by SIGSEGV", "exited with status 3"."""
        status = self._process.returncode
        if status is None:
            return "is running"
        if status >= 0:
            return f"exited with status {status}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
        return f"was killed by signal {-status}"


class Parent:
    """The process that spawned us, seen from the child: blocking calls; `send` may be called from any thread."""

    def __init__(self, sock: socket.socket, args: list[str], frames: Any) -> None:
        self.args = args
        self._socket = sock
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(frames)

    @classmethod
    def connect(cls, argv: Sequence[str], frames: Any = Any) -> Parent:
        """Take up the connection that `Child.spawn` left in `argv` (no program name in it), and tie our life to it."""
        descriptor, parent, nice, *args = argv
        _die_with(int(parent))
        _step_back(int(nice))
        return cls(socket.socket(fileno=int(descriptor)), args, frames)

    def send(self, *frames: msgspec.Struct) -> None:
        """Send some frames in one write. Never returns when the parent is gone: there is nobody to work for."""
        data = encode(self._encoder, frames)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            _leave()

    def receive(self) -> Any | None:
        """The next frame, or None when the parent has closed its end."""
        body = self._body()
        return None if body is None else self._decoder.decode(body)

    def listen(
        self, handle: Callable[[Any], None], refuse: Callable[[bytes, msgspec.ValidationError], None] | None = None
    ) -> threading.Thread:
        """Hand every frame to `handle` from a thread of its own; the process ends at once when the parent is gone.

        `refuse` gets the bytes of a frame that does not match its type, and why; without it, that ends the process.
        """
        thread = threading.Thread(target=self._listen, args=(handle, refuse), name="parent", daemon=True)
        thread.start()
        return thread

    def _listen(
        self, handle: Callable[[Any], None], refuse: Callable[[bytes, msgspec.ValidationError], None] | None
    ) -> None:
        try:
            while (body := self._body()) is not None:
                try:
                    frame = self._decoder.decode(body)
                except msgspec.ValidationError as error:
                    if refuse is None:
                        raise
                    refuse(body, error)
                else:
                    handle(frame)
        except BaseException:  # no memory, most likely; whoever waits for an answer learns of it by our end
            traceback.print_exc()
            os._exit(1)
        _leave()

    def _body(self) -> bytes | None:
        head = self._take(_LENGTH.size)
        return head and self._take(_LENGTH.unpack(head)[0])

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError:
                data = b""
            if not data:
                return None
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _leave() -> NoReturn:
    # Threads may sit in C calls that take seconds, and nothing needs an orderly exit: all that lasts was made durable.
    os._exit(0)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above; elsewhere, end of file on the socket tells us
        _leave()


def _step_back(nice: int) -> None:
    """Let the kernel end us before the daemon when memory is short; leave no core file; take less CPU if asked."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if nice:
        os.nice(nice)
