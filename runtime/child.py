"""Child processes that cannot be forgotten: spawn, frames over a socket pair, and death with the parent.

Both ends live here. `Child` is the daemon's end (asyncio) of a process that lives for a while; `ask` blocks until a
process has answered one question; `Parent` is the child's end of both (blocking calls, threads). A frame is a 4-byte
little-endian length and that many bytes of MessagePack (a tagged msgspec struct), never above `FRAME_LIMIT`. The
child's stdin is empty and its output goes to a log or nowhere: the socket alone carries messages.

Every Python process that lm starts is started here, but for three that the command line starts. `server` has to outlive
the command that starts it; `server.doctor` and `server.verify` run while the user waits, and print to a pipe because
the command line imports neither msgspec nor asyncio.

Not covered: restarting, deadlines and heartbeats, the business of whoever spawns (`server/loaded/pool.py`,
`server/pulls/pull.py`, `server/advice/asking.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

if TYPE_CHECKING:
    import asyncio

FRAME_LIMIT = 16 << 20
LINGER_SECONDS = 0.5
_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_RECEIVE_BYTES = 1 << 18
# Bytes of a core file. Every one is larger; and to Linux 1 forbids the pipe to a program as well, which 0 does not.
_NO_CORE = 1 if sys.platform == "linux" else 0
# The signals of a process that broke on what it was given; any other may come from outside, as SIGKILL does.
_FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_CRASHES = {-number: number.name for number in _FAULTS}
# Settings of lm, Ollama, Docker and the hub (children get theirs in frames), proxies (a URL may hold a password), the
# service manager's socket, and secrets.
_WITHHELD = re.compile(
    r"^(lm|ollama|docker|hf)_|_proxy$|token|secret|passw|credential|(^|_|api|access|private)key(_|$)|_(auth|pat|dsn|sas)$"
    r"|cookie|bearer|connection_string|^(notify_socket|watchdog_|listen_|credentials_dir|invocation_id|journal_)",
    re.IGNORECASE,
)
# A URL with a password in it, whatever its variable is called.
_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def child_environment() -> dict[str, str]:
    """The environment of every child process: ours without settings, proxies and secrets."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251
        if not (_WITHHELD.search(name) or _WITH_PASSWORD.search(value))
    }


def encode(encoder: msgspec.msgpack.Encoder, frames: Sequence[msgspec.Struct]) -> bytes:
    """The bytes of `frames` as they travel, one after the other; raises ValueError for one above `FRAME_LIMIT`."""
    parts: list[bytes] = []
    for frame in frames:
        body = encoder.encode(frame)
        if len(body) > FRAME_LIMIT:
            raise ValueError(f"a frame of {len(body)} bytes is above the limit of {FRAME_LIMIT}")
        parts += (_LENGTH.pack(len(body)), body)
    return b"".join(parts)


class FrameBuffer:
    """Bytes from a socket, cut into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        """Append received bytes."""
        self._bytes += data

    def take(self) -> bytearray | None:
        """Remove the first frame and return its MessagePack, or None until it is whole.

        Raises msgspec.DecodeError for a frame above `FRAME_LIMIT`.
        """
        start = _LENGTH.size
        if len(self._bytes) < start:
            return None
        (size,) = _LENGTH.unpack_from(self._bytes)
        if size > FRAME_LIMIT:
            raise msgspec.DecodeError(f"frame of {size} bytes")
        if len(self._bytes) < start + size:
            return None
        body = self._bytes[start : start + size]
        del self._bytes[: start + size]
        return body


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
        self._received = FrameBuffer()
        self.pid = process.pid
        self.problem = ""
        """Why a child was killed for sending nonsense, in words that complete a sentence: "sent a malformed frame"."""

    @classmethod
    async def spawn(
        cls, module: str, args: Sequence[str] = (), *, frames: Any = Any, nice: int = 0, log: Path | None = None
    ) -> Child:
        """Start `python -P -m module`; `frames` is the union of structs that it may send.

        The child's output is appended to `log`; without one it goes to our stderr. Raises OSError when it cannot start.
        """
        import asyncio  # the child's side does without it, and starts sooner

        ours, theirs = socket.socketpair()
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(theirs.close)
                output = stack.enter_context(log.open("ab")) if log else sys.stderr.fileno()
                process = await asyncio.create_subprocess_exec(
                    *_command(module, theirs, nice, args),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's to handle
                    env=child_environment(),
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
            while (body := self._received.take()) is None:
                data = await self._reader.read(_RECEIVE_BYTES)
                if not data:
                    return None
                self._received.add(data)
            return self._decoder.decode(body)
        except ConnectionError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.problem = f"sent a malformed frame: {error}"
            self.kill()
            return None

    def kill(self) -> None:
        """End it now, with SIGKILL; harmless when it is gone."""
        self._signal(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop it until `resume`, with SIGSTOP. It keeps its memory, and can be killed."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, with SIGCONT; harmless when it was not stopped."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # Not `process.kill`: it would collect the exit status of an ended process, and `wait` would never get it.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit status once it has ended (negative: the signal), with the socket closed."""
        status = await self._process.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return status

    async def reap(self) -> None:
        """Wait for the end of a child whose socket is closed; kill it when it lingers."""
        import asyncio

        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    @property
    def crash(self) -> str:
        """The name of the signal by which it broke on what it was given, such as `SIGSEGV`; "" for any other end."""
        status = self._process.returncode
        return _CRASHES.get(status, "") if status is not None else ""

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


class Crashed(EOFError):
    """A process ended without an answer by a fault of its own; `signal` is the name, such as `SIGSEGV`."""

    def __init__(self, signal: str) -> None:
        super().__init__(f"killed by {signal}")
        self.signal = signal


def ask(module: str, question: msgspec.Struct, answers: Any, seconds: float) -> Any:
    """The answer of `python -P -m module` to one question: one frame each way. Blocks, for at most `seconds`.

    `answers` is the union of structs that may come; the child's output is thrown away. Raises OSError when it cannot
    start, TimeoutError, Crashed or another EOFError when it ended without an answer, msgspec.MsgspecError for an answer
    of no such struct.
    """
    deadline = time.monotonic() + seconds
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                _command(module, theirs, 0, ()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=child_environment(),
            )
        received = FrameBuffer()
        try:
            ours.sendall(encode(msgspec.msgpack.Encoder(), (question,)))
            while (body := received.take()) is None:
                ours.settimeout(max(0.001, deadline - time.monotonic()))
                data = ours.recv(_RECEIVE_BYTES)
                if not data:
                    raise EOFError
                received.add(data)
            return msgspec.msgpack.decode(body, type=answers)
        except (EOFError, ConnectionError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(LINGER_SECONDS)
                if status in _CRASHES:
                    raise Crashed(_CRASHES[status]) from error
            raise EOFError(f"{module} ended without an answer") from error
        finally:
            process.kill()
            process.wait()


def _command(module: str, theirs: socket.socket, nice: int, args: Sequence[str]) -> list[str]:
    """The command line of a child, which `Parent.connect` reads."""
    return [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), str(nice), *args]


class Parent:
    """The process that spawned us, seen from the child: blocking calls; `send` may be called from any thread."""

    def __init__(self, sock: socket.socket, args: list[str], frames: Any) -> None:
        self.args = args
        self._socket = sock
        self._received = FrameBuffer()
        self._sending = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(frames)

    @classmethod
    def connect(cls, argv: Sequence[str], frames: Any = Any) -> Parent:
        """Take up the connection that the parent left in `argv` (no program name in it), and tie our life to it.

        `frames` is the union of structs that the parent may send.
        """
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
                    refuse(bytes(body), error)
                else:
                    handle(frame)
        except BaseException:  # no memory, most likely; whoever waits for an answer learns of it by our end
            traceback.print_exc()
            os._exit(1)
        _leave()

    def _body(self) -> bytearray | None:
        while (body := self._received.take()) is None:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._received.add(data)
        return body


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
    resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE, _NO_CORE))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if nice:
        os.nice(nice)
