"""Trouble on the network: which may pass, how often and how long a request is tried again, and how that is told."""

from __future__ import annotations

import contextlib
import errno
import random
import re
import socket
import time
from dataclasses import dataclass
from email.message import Message

from registry.errors import SourceUnavailable

_NO_NETWORK = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


class Passing(Exception):
    """Trouble that may pass: try again, after `wait` seconds if the other side says so."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Unreachable(OSError):
    """There is no connection to `host`, the source's or a proxy's. `offline`: no sign of a network at all."""

    def __init__(self, host: str, problem: OSError) -> None:
        unnamed = isinstance(problem, socket.gaierror)
        self.host = host
        self.offline = problem.errno == socket.EAI_AGAIN if unnamed else problem.errno in _NO_NETWORK
        why = "nothing arrived for too long" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
        if unnamed:
            why = "no name server answers" if self.offline else "its name is not known"
        super().__init__(problem.errno, f"`{host}` cannot be reached: {why[:1].lower()}{why[1:]}")


@dataclass(frozen=True)
class Retries:
    """How long trouble is borne with; all times in seconds.

    tries: how often a request may fail in a row. unheard: the same as long as no host at all has answered this process.
    shortest, longest: the pause after the first failure, which doubles with each further one, and its limit.
    patience: the longest pause that a source may ask for. silence: between two notices of the same trouble.
    slow: a piece that would last this much longer is shared with another connection; not with fewer than `smallest`
    bytes to share.
    dead: a connection that brings nothing for this long is made anew.
    """

    tries: int
    shortest: float
    longest: float
    patience: float
    unheard: int = 2
    silence: float = 0.0
    slow: float = 1.0
    dead: float = 5.0
    smallest: int = 128 << 10

    def limit(self, problem: Exception, heard: bool) -> int:
        """How often a request may fail in this way; `heard`: whether any host has answered this process before."""
        return self.tries if heard or not isinstance(problem, Unreachable) else min(self.tries, self.unheard)

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row: between half and all of the doubled pause, at random."""
        return min(self.longest, self.shortest * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)


# A small answer, for which somebody waits; a file, for which somebody waits in any case.
FETCHES = Retries(tries=6, shortest=0.5, longest=16.0, patience=30.0)
DOWNLOADS = Retries(tries=8, shortest=0.25, longest=20.0, patience=300.0, silence=30.0)


def retry_after(headers: Message) -> float:
    """Seconds that a Retry-After header asks for, 0 without one (RFC 9110 §10.2.3: a number or a date)."""
    from email.utils import parsedate_to_datetime

    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def asked_wait(problem: Exception) -> float:
    """Seconds that the other side asks to wait, 0 where it says nothing."""
    return problem.wait if isinstance(problem, Passing) else 0.0


def again(name: str, problem: Exception) -> str:
    """The sentence for a user when a request for the file `name` is made again."""
    if isinstance(problem, Unreachable):
        return f"{problem.strerror}; trying again"
    return f"`{name}` cannot be read now: {trouble(problem)}; trying again"


def given_up(name: str, host: str, problem: Exception, failures: int) -> SourceUnavailable:
    """The error when `problem` came `failures` times in a row for the file `name` at `host`."""
    if isinstance(problem, Unreachable):
        without = "what `lm list` shows, `demo` and folders need no network"
        if problem.offline:
            return SourceUnavailable(f"this machine is offline: {problem.strerror}", without)
        return SourceUnavailable(str(problem.strerror), f"check the network, `HF_ENDPOINT` and the proxy; {without}")
    return SourceUnavailable(
        f"`{name}` cannot be read from `{host}`: {trouble(problem)}, {failures} times in a row",
        "check the network and pull again: what has arrived is kept",
    )


def trouble(problem: Exception) -> str:
    """The trouble of a request, in a few words."""
    if isinstance(problem, Passing):
        return str(problem)
    if isinstance(problem, TimeoutError):
        return "nothing arrived for too long"
    if isinstance(problem, OSError):
        return (problem.strerror or str(problem) or type(problem).__name__).lower()
    return f"its answer is malformed ({type(problem).__name__})"
