"""KeyLimits of keys: requests within a time, by a bucket that fills up; tokens within a time, counted through restarts.

Both run on a monotonic clock, so that a clock that is set gives nobody more. It goes on over a restart of the daemon.
Over a restart of the machine the clock on the wall says how long it took; if it was set back, no time has passed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from server.errors import QuotaUsed, RateLimited, StartFailed
from server.http.problems import Dialect
from server.keys.record import Allowance, ApiKey

_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def clock() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps where there is one."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


@dataclass
class Bucket:
    """Requests that are left, at a moment of the clock."""

    left: float
    at: float


@dataclass
class TokenWindow:
    """Tokens that were used since a window began, and the moment of the clock when it ends."""

    used: int
    ends: float


class Standing(NamedTuple):
    """How a key stands with one of its limits: what is left of it, and seconds until all of it is back."""

    kind: str
    limit: int
    left: int
    reset: float


def _this_boot() -> str:
    """A mark of the time since this machine started, "" where there is none: within it, `clock` goes on."""
    if _BOOT is None:
        return ""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class _Saved(msgspec.Struct):
    """The file of used tokens, with both clocks in seconds; `windows` has tokens and the seconds left."""

    boot: str
    clock: float
    wall: float
    windows: dict[str, tuple[int, float]]


class KeyLimits:
    """The use that keys have made of their limits, by owners of keys: a key in the place of another has the same."""

    def __init__(
        self, now: Callable[[], float] = clock, wall: Callable[[], float] = time.time, boot: str | None = None
    ) -> None:
        """`now` and `wall` are the clocks, `boot` the mark of the time in which `now` goes on, "" for none."""
        self._now = now
        self._wall = wall
        self._boot = _this_boot() if boot is None else boot
        self._buckets: dict[str, Bucket] = {}
        self._windows: dict[str, TokenWindow] = {}
        self.changed = False
        """Whether tokens were used since `saved`."""

    def admit(self, key: ApiKey) -> None:
        """Count one request. Raises RateLimited, QuotaUsed: then it does not count."""
        if key.tokens is not None:
            window = self._window(key, key.tokens)
            if window.used >= key.tokens.count:
                wait = window.ends - self._now()
                raise QuotaUsed(
                    f"this key has used its {key.tokens.count:,} tokens of {_within(key.tokens)}",
                    "wait, or ask for a larger quota",
                    retry_after=wait,
                )
        if key.rate is not None:
            bucket = self._bucket(key, key.rate)
            if bucket.left < 1:
                wait = (1 - bucket.left) * key.rate.seconds / key.rate.count
                message = f"this key may send {key.rate.count:,} requests within {_within(key.rate)}"
                raise RateLimited(message, "send fewer, or wait", retry_after=wait)
            bucket.left -= 1

    def spend(self, key: ApiKey, tokens: int) -> None:
        """Count tokens, read or written."""
        if key.tokens is not None and tokens > 0:
            self._window(key, key.tokens).used += tokens
            self.changed = True

    def standings(self, key: ApiKey) -> list[Standing]:
        """How the key stands with each limit that it has."""
        found = []
        if key.rate is not None:
            bucket = self._bucket(key, key.rate)
            back = (key.rate.count - bucket.left) * key.rate.seconds / key.rate.count
            found.append(Standing("requests", key.rate.count, int(bucket.left), back))
        if key.tokens is not None:
            window = self._window(key, key.tokens)
            left = max(0, key.tokens.count - window.used)
            found.append(Standing("tokens", key.tokens.count, left, window.ends - self._now()))
        return found

    def saved(self) -> bytes:
        """The used tokens, as `restore` takes them."""
        now = self._now()
        self.changed = False
        windows = {owner: (each.used, each.ends - now) for owner, each in self._windows.items() if each.ends > now}
        return msgspec.json.encode(_Saved(self._boot, now, self._wall(), windows))

    def restore(self, data: bytes) -> None:
        """Go on from what an earlier daemon saved. Raises StartFailed for what none has written."""
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StartFailed(
                "the file `usage.json` in the home, which counts the tokens of keys, is broken",
                "move it away: all quotas begin anew",
            ) from None
        now = self._now()
        same = bool(self._boot) and self._boot == saved.boot
        away = max(0.0, now - saved.clock if same else self._wall() - saved.wall)
        for owner, (used, left) in saved.windows.items():
            if left > away:
                self._windows[owner] = TokenWindow(used, now + left - away)

    def _bucket(self, key: ApiKey, rate: Allowance) -> Bucket:
        now = self._now()
        bucket = self._buckets.get(key.owner)
        if bucket is None:
            bucket = self._buckets[key.owner] = Bucket(rate.count, now)
        bucket.left = min(rate.count, bucket.left + (now - bucket.at) * rate.count / rate.seconds)
        bucket.at = now
        return bucket

    def _window(self, key: ApiKey, tokens: Allowance) -> TokenWindow:
        now = self._now()
        window = self._windows.get(key.owner)
        if window is None or window.ends <= now:
            window = self._windows[key.owner] = TokenWindow(0, now + tokens.seconds)
        return window


def limit_headers(standings: list[Standing], dialect: Dialect) -> dict[str, str]:
    """Headers for a dialect's clients: OpenAI's `x-ratelimit-…`, or Anthropic's with the time of the reset."""
    headers: dict[str, str] = {}
    for kind, limit, left, reset in standings:
        if dialect == "anthropic":
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(time.time() + reset)))
            prefix, names, value = f"anthropic-ratelimit-{kind}", ("limit", "remaining", "reset"), when
            headers |= dict(zip((f"{prefix}-{name}" for name in names), (str(limit), str(left), value), strict=True))
        else:
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(left)
            headers[f"x-ratelimit-reset-{kind}"] = _go_duration(reset)
    return headers


def _within(allowance: Allowance) -> str:
    names = {1: "a second", 60: "a minute", 3600: "an hour", 86400: "a day"}
    return names.get(allowance.seconds, f"{allowance.seconds} s")


def _go_duration(seconds: float) -> str:
    """A length of time as OpenAI writes it: `20ms`, `1s`, `6m0s`, `1h30m0s`."""
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
