"""Trouble on the network: which trouble may pass, how often and when a request is repeated, the messages about it."""

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
    """No connection to `host`, a source or a proxy, can be made; `why` is the reason alone.

    `offline`: this machine seems to have no network.
    """

    def __init__(self, host: str, problem: OSError) -> None:
        unnamed = isinstance(problem, socket.gaierror)
        self.host = host
        self.offline = problem.errno == socket.EAI_AGAIN if unnamed else problem.errno in _NO_NETWORK
        why = "nothing arrived for too long" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
        if unnamed:
            why = "no name server answers" if self.offline else "its name is not known"
        self.why = f"{why[:1].lower()}{why[1:]}"
        super().__init__(problem.errno, f"`{host}` cannot be reached: {self.why}")


@dataclass(frozen=True)
class Retries:
    """How often, and after which pauses, a failed request is repeated; all times in seconds.

    - `tries`: failures in a row after which a request is given up.
    - `unheard`: the same, while this process has had no answer from any host. `silent`: the same, for a host that takes
      the request for a file and has sent nothing of it.
    - `shortest`: the pause after the first failure. It doubles with each further one, up to `longest`.
    - `patience`: the longest pause that a source may ask for.
    - `silence`: the time between two notices of the same trouble.
    - `slow`: where the rest of a piece will take longer than this, another connection takes over half of it.
    - `smallest`: bytes; a smaller half is not taken over.
    - `dead`: a connection that brings nothing for this long is replaced.
    """

    tries: int
    shortest: float
    longest: float
    patience: float
    unheard: int = 2
    silent: int = 2
    silence: float = 0.0
    slow: float = 1.0
    dead: float = 5.0
    smallest: int = 128 << 10

    def limit(self, problem: Exception, heard: bool, begun: bool = False) -> int:
        """Failures in a row after which `problem` is final.

        `heard`: some host has answered this process already; `begun`: some of this file has come.
        """
        if isinstance(problem, TimeoutError) and not begun:
            return min(self.tries, self.silent)
        return self.tries if heard or not isinstance(problem, Unreachable) else min(self.tries, self.unheard)

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row: between half and all of the doubled pause, at random."""
        return min(self.longest, self.shortest * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)


# For small answers, for which a user waits at the prompt; for files, which take long in any case.
FETCHES = Retries(tries=6, shortest=0.5, longest=16.0, patience=30.0)
DOWNLOADS = Retries(tries=8, shortest=0.25, longest=20.0, patience=300.0, silence=30.0)


def retry_after(headers: Message) -> float:
    """Seconds that a Retry-After header asks for, 0 without one (RFC 9110 §10.2.3: a number or a date).

    A date is compared with the answer's own `Date`, because the clock of this machine may be wrong.
    """
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    until = _moment(value)
    now = _moment(headers.get("Date") or "")
    return max(0.0, until - (time.time() if now is None else now)) if until is not None else 0.0


def _moment(date: str) -> float | None:
    """Seconds since 1970 of a date in a header, None where it is none."""
    from email.utils import parsedate_to_datetime

    with contextlib.suppress(ValueError, OverflowError):
        return parsedate_to_datetime(date).timestamp()
    return None


def requested_wait(problem: Exception) -> float:
    """Seconds that the source asks us to wait before the next request, 0 where it does not ask."""
    return problem.wait if isinstance(problem, Passing) else 0.0


def again(name: str, problem: Exception) -> str:
    """The sentence for a user when a request for the file `name` failed by `problem` and is repeated."""
    if isinstance(problem, Unreachable):
        return f"{problem.strerror}; trying again"
    return f"{_quoted(name)} cannot be read now: {trouble(problem)}; trying again"


def given_up(name: str, host: str, problem: Exception, failures: int, patience: float) -> SourceUnavailable:
    """The error when `problem` came `failures` times in a row for the file `name` at `host`.

    `patience`: seconds, longer than which nobody waits for a source that wants no requests.
    """
    if isinstance(problem, Unreachable):
        without = "what `lm list` shows, `demo` and folders need no network"
        if problem.offline:
            return SourceUnavailable(f"this machine is offline: {problem.strerror}", without)
        return SourceUnavailable(str(problem.strerror), f"check the network, `HF_ENDPOINT` and the proxy; {without}")
    if (wait := requested_wait(problem)) > patience:
        return SourceUnavailable(f"`{host}` wants no requests for {wait:,.0f} s", "try again after that time")
    return SourceUnavailable(
        f"{_quoted(name)} cannot be read from `{host}`: {trouble(problem)}, {failures} times in a row",
        "check the network and pull again: what has arrived is kept",
    )


def _quoted(name: str) -> str:
    """The name of a file in backticks; a description that has some, such as "the manifest of `…`", as it is."""
    return name if "`" in name else f"`{name}`"


def trouble(problem: Exception) -> str:
    """The trouble of a request, in a few words."""
    if isinstance(problem, Passing):
        return str(problem)
    if isinstance(problem, TimeoutError):
        return "nothing arrived for too long"
    if isinstance(problem, OSError):
        return (problem.strerror or str(problem) or type(problem).__name__).lower()
    return f"its answer is malformed ({type(problem).__name__})"
