"""The `lm` command as a user runs it: a process of its own, on pipes or on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.daemon import environment

LM = str(Path(sys.executable).with_name("lm"))
SECONDS = 20.0
# Makes the terminal on stdin the controlling one, so that Ctrl-C is a signal, then becomes the command.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cli:
    """`lm` with settings of its own; `program` is the one beside the Python that runs the tests, or another."""

    env: Mapping[str, str]
    program: str = LM

    @classmethod
    def at(cls, home: Path, host: str = "127.0.0.1:0", program: str = LM, **more: str) -> Cli:
        env = environment() | {"LM_HOME": str(home), "LM_HOST": host, "PROMPT_TOOLKIT_NO_CPR": "1"} | more
        return cls(env, program)

    def popen(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([self.program, *arguments], env=dict(self.env), **pipes | more)

    def __call__(self, *arguments: str, stdin: bytes | None = None, cwd: Path | None = None) -> Ended:
        """Run to the end; without `stdin` there is none."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(
            [self.program, *arguments],
            env=dict(self.env),
            capture_output=True,
            timeout=60,
            cwd=cwd,
            check=False,
            **given,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """`lm` on a pseudo-terminal; `with Terminal(cli, "run", "demo") as terminal`."""

    def __init__(self, cli: Cli, *arguments: str, columns: int = 0) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, columns))
        self.raw = b""
        self._seen = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, cli.program, *arguments],
            env={"TERM": "xterm", "COLUMNS": "100", "LINES": "30", **cli.env},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """All that was shown, without escape codes and carriage returns."""
        return _ESCAPE.sub("", self.raw.decode(errors="replace")).replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, wanted: str, seconds: float = SECONDS) -> str:
        """Read until `wanted` is shown, later than what was waited for before; what was shown between."""
        deadline = time.monotonic() + seconds
        while wanted not in self.text[self._seen :]:
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"no {wanted!r} in {self.text[self._seen :]!r}"
        begun = self._seen
        self._seen = self.text.index(wanted, begun) + len(wanted)
        return self.text[begun : self._seen]

    def end(self, seconds: float = SECONDS) -> int:
        """Read until the command ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            part = os.read(self._master, 65536)
        except OSError:  # how Linux says that nobody has the other end open
            return False
        self.raw += part
        return bool(part)
