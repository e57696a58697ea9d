"""Finding the daemon, and starting one where there is none.

The daemon is looked for at the address of the settings. If that is the default, or a free port, the daemon that this
home names in `daemon.json` comes first: `lm serve --port 11435` is found without a setting. Two commands at once start
one daemon: the command that gets the lock `start.lock` starts it, the other waits for the lock and then finds it. The
daemon says on a pipe that it is ready, or why it is not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from cli.console import status
from cli.errors import UNREACHABLE, Failure
from cli.http import request
from server.config import VERSION, Config, default_home
from server.values import is_loopback, socket_path

PROBE_SECONDS = 5.0
START_SECONDS = 60.0
END_SECONDS = 30.0
# A daemon that somebody else started has this long from taking the home to its first answer.
BEGIN_SECONDS = 15.0


def find(config: Config, start: bool) -> str:
    """The URL of a daemon of our version, started unless `start` is False. Raises Failure."""
    running = running_daemon(config)
    if running is not None:
        url, version, offline = running
        if version != VERSION:
            raise _mismatch(url, version)
        if config.offline and not offline:
            raise Failure(
                "`offline` is set here, and the daemon runs without it",
                "`lm stop --daemon` ends it; the next command starts one that is offline",
                UNREACHABLE,
            )
        return url
    if not start:
        raise Failure(f"no daemon answers at {_address(config.url)}", "`lm serve` starts one", UNREACHABLE)
    if not (is_loopback(config.host) or config.host in ("0.0.0.0", "::")):
        raise Failure(f"no lm daemon answers at {_address(config.url)}", "start it there with `lm serve`", UNREACHABLE)
    return _start(config)


class Running(NamedTuple):
    """A daemon that runs: its URL and version, and whether it asks no other machine."""

    url: str
    version: str
    offline: bool


def running_daemon(config: Config) -> Running | None:
    """The daemon that runs, None where there is none of lm.

    Raises Failure when the program there does not answer, and when the daemon serves another home than LM_HOME.
    """
    for url in _urls(config):
        answer = _ask_version(url, config)
        if answer is not None:
            _check_home(url, answer.get("home"), config)
            return Running(url, answer["lm"], answer.get("offline") is True)
    return None


def _check_home(url: str, mark: object, config: Config) -> None:
    if mark in (None, config.home_mark) or not is_loopback(config.host) or config.home == default_home():
        return  # a user who names no home takes the daemon's
    raise Failure(
        f"the daemon at {_address(url)} has another home than `{config.home}`",
        "set LM_PORT to give this home a daemon of its own, or leave LM_HOME out to use the other",
        UNREACHABLE,
    )


def other_home(config: Config) -> str:
    """The URL of a daemon of another home that commands of this environment would find; "" where there is none."""
    for url in _urls(config):
        try:
            answer = _ask_version(url, config)
        except Failure:
            return url  # it wants a key that this home has not
        if answer is not None:
            return url if answer.get("home") not in (None, config.home_mark) else ""
    return ""


def end(config: Config) -> bool:
    """End the daemon, of whatever version, and wait until it is gone; whether there was one. Raises Failure."""
    running = running_daemon(config)
    if running is None:
        return False
    try:
        with request(running[0], config, "POST", "/lm/shutdown", {}, PROBE_SECONDS) as response:
            answer = json.loads(response.read())
    except (OSError, ValueError, HTTPException):
        raise Failure(f"the daemon at {_address(running[0])} does not answer", "`lm logs` may say why") from None
    if "error" in answer:
        raise Failure.of(answer)
    _wait_for_end(int(answer["pid"]))
    return True


def _wait_for_end(pid: int) -> None:
    """Wait until a process has ended, even if its parent has not collected the exit status yet."""
    if not _ended(pid, END_SECONDS):
        raise Failure(f"the daemon (process {pid}) is still finishing", f"`kill -9 {pid}` does not wait")


def _ended(pid: int, seconds: float) -> bool:
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)
    import psutil

    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _urls(config: Config) -> list[str]:
    urls = [config.url] if config.port else []
    if config.port == 0 or (config.host, config.port) == (Config.host, Config.port):
        own = _own_url(config)
        urls = [own, *(url for url in urls if url != own)] if own else urls
    return urls


def _own_url(config: Config) -> str:
    """Where the daemon of this home says that it is, empty where none says so. Raises Failure."""
    try:
        url = json.loads(config.daemon_file.read_bytes())["url"]
        return url if isinstance(url, str) and (socket_path(url) or urlsplit(url).port) else ""
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return ""
    except OSError as error:
        why = f"`{config.daemon_file}`, which names the daemon, cannot be read: {error.strerror}"
        raise Failure(why, "set LM_HOME to a folder of your own") from None


def unheard(config: Config, url: str) -> list[tuple[str, str, str]]:
    """The rows of `Config.unheard` for the daemon at `url`; none where it is not the daemon of this home."""
    try:
        told = json.loads(config.daemon_file.read_bytes())
        return config.unheard(told["settings"]) if told["url"] == url else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _ask_version(url: str, config: Config) -> dict[str, Any] | None:
    """The version record of the lm that answers at `url`, None when nobody or another program does."""
    try:
        with request(url, config, "GET", "/api/version", seconds=PROBE_SECONDS) as response:
            answer = json.loads(response.read(4096))
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except ssl.SSLError as error:
        raise Failure(
            f"{_address(url)} is not trusted: {error.reason or error}",
            "set LM_TLS_CA to the file of its certificate, or of the authority behind it",
            UNREACHABLE,
        ) from None
    except (ValueError, HTTPException, ConnectionResetError):
        return None  # somebody else's; the daemon that cannot start there will say whose
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise Failure(
            f"{_address(url)} does not answer: {why}", "see `LM_HOST`, and what listens there", UNREACHABLE
        ) from None
    return _lm_record(answer)


def _lm_record(answer: Any) -> dict[str, Any] | None:
    if not isinstance(answer, dict):
        return None
    if "error" in answer and "code" in answer:  # lm itself, but not for us: a wrong key
        raise Failure.of(answer)
    return answer if isinstance(answer.get("lm"), str) else None


def _mismatch(url: str, version: str) -> Failure:
    try:
        older = [int(part) for part in version.split(".")] < [int(part) for part in VERSION.split(".")]
    except ValueError:
        older = False
    age = "older" if older else "newer"
    message = f"the daemon at {_address(url)} is lm {version[:20]}, {age} than this lm {VERSION}"
    return Failure(message, "`lm stop --daemon` ends it; the next command starts the right one", UNREACHABLE)


def _start(config: Config) -> str:
    """Start a daemon, unless another command has started it meanwhile; its URL. Raises Failure."""
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock_file(config.home) as lock, status("starting the daemon"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            running = running_daemon(config) or _spawn_unless_begun(config)
    except OSError as error:
        raise Failure(
            f"`{config.home}` cannot be used: {error.strerror}", "set LM_HOME to a folder of your own"
        ) from None
    return running[0] if running else _own_url(config) or config.url


@contextmanager
def _lock_file(home: Path) -> Iterator[int]:
    """A descriptor to lock: of a file, or of the home itself where the disk is full or read-only. Raises OSError."""
    try:
        descriptor = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        descriptor = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _log(config: Config) -> IO[bytes]:
    """The daemon's log for what it prints before it writes the log itself; nothing where no file can be made."""
    try:
        config.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return config.log_file.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _spawn_unless_begun(config: Config) -> Running | None:
    """Start a daemon; where one of this home has begun and does not listen yet, wait for it, as `running_daemon`."""
    try:
        _spawn(config)
    except Failure as failure:
        if failure.body.get("code") != "store_locked" or _own_url(config):
            raise
        deadline = time.monotonic() + BEGIN_SECONDS
        while (running := running_daemon(config)) is None:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        return running
    return None


def _spawn(config: Config) -> None:
    """A daemon in a session of its own; returns when it is ready. Raises Failure."""
    receiver, sender = os.pipe()
    # The home is given as a path that does not depend on the current folder, which the daemon leaves.
    command = [sys.executable, "-P", "-m", "server", "--home", str(config.home), "--ready-fd", str(sender)]
    try:
        with _log(config) as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=config.home,
                pass_fds=(sender,),
                start_new_session=True,
            )
    finally:
        os.close(sender)
    with os.fdopen(receiver, "rb", buffering=0) as pipe:
        message = _first_line(pipe.fileno())
    if message != b"ready":
        with suppress(subprocess.TimeoutExpired):
            process.wait(PROBE_SECONDS)
        raise _not_started(config, message)


def _first_line(descriptor: int) -> bytes:
    """The first line from a pipe, or what there was of it at its end; raises Failure when nothing comes."""
    message = b""
    while not message.endswith(b"\n"):
        if not select.select([descriptor], [], [], START_SECONDS)[0]:
            raise Failure(f"the daemon is not ready after {START_SECONDS:.0f} s", "`lm logs` may say why", UNREACHABLE)
        part = os.read(descriptor, 65536)
        if not part:
            break
        message += part
    return message.strip()


def _not_started(config: Config, message: bytes) -> Failure:
    """Why the daemon did not start: the message on its pipe, else the last line of its log."""
    try:
        answer = json.loads(message)
        reason = f"the daemon cannot start: {answer['error']}"
        return Failure(reason, str(answer.get("hint") or ""), UNREACHABLE, answer)
    except (ValueError, KeyError, TypeError):
        lines = ["it left no message"]
        with suppress(OSError):
            lines = config.log_file.read_text(encoding="utf-8", errors="replace").splitlines() or lines
        return Failure(f"the daemon ended before it was ready: {lines[-1]}", "`lm logs` shows more", UNREACHABLE)


def _address(url: str) -> str:
    return url.removeprefix("http://").removeprefix("https://")
