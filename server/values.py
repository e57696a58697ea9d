"""Values of settings and of fields, checked: durations, addresses, URLs, lists. Each raises ValueError."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from runtime.defaults import CACHE_TYPES

DEFAULT_HOST = "127.0.0.1"
FOREVER = -1.0
# Before the path of a Unix socket, where a host may stand.
UNIX = "unix:"
HTTPS = "https://"
# sun_path of unix(7) has 108 bytes, of which the last one is a zero; other systems have a few less.
_LONGEST_SOCKET = 100
# Who may do what: ask models; bring them in and remove them too; everything.
Role = Literal["infer", "operator", "admin"]
# The sources by which models are improved while nobody asks: none, sources of this machine, or a hub's too.
Improve = Literal["off", "local", "hub"]
# How much the audit log has: all, nothing about answers, nothing.
Extent = Literal["all", "acts", "off"]

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|µs|ms|s|m|h|d))+")
_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h|d)")
_LONGEST_DURATION = 80  # characters
_AGES = 1e9
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")


def duration(value: object) -> float:
    """Seconds from a number, or a text such as `5m`, `1h30m`, `1d`, `300`; below zero is for ever.

    Thirty years and more are for ever too. Raises ValueError.
    """
    if isinstance(value, bool):
        raise ValueError("not a duration")
    if isinstance(value, int | float):
        return float(value) if 0 <= value < _AGES else FOREVER
    text = str(value)
    if len(text) > _LONGEST_DURATION:
        raise ValueError("not a duration")
    text = text.strip()
    negative = text.startswith("-")
    text = text.removeprefix("-")
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise ValueError("not a duration")
    return FOREVER if negative or seconds >= _AGES else seconds


def improvement_extent(value: object) -> str:
    """The sources by which models are improved while nobody asks, in upper case or lower. Raises ValueError."""
    text = str(value).strip().lower()
    if text not in get_args(Improve):
        raise ValueError("not off, local or hub")
    return text


def hours(value: object) -> str:
    """A part of the day such as `22-6` or `22:30-06:00`, as `22:00-06:00`; "" for all of it. Raises ValueError."""
    text = str(value).replace(" ", "")
    if not text:
        return ""
    match = re.fullmatch(r"([0-9]{1,2})(?::([0-9]{2}))?[-–]([0-9]{1,2})(?::([0-9]{2}))?", text)
    if match is None:
        raise ValueError("no part of the day")
    ends = [(int(match[1]), int(match[2] or 0)), (int(match[3]), int(match[4] or 0))]
    if any(hour > 24 or minute > 59 or (hour == 24 and minute) for hour, minute in ends) or ends[0] == ends[1]:
        raise ValueError("no part of the day")
    return "-".join(f"{hour % 24:02}:{minute:02}" for hour, minute in ends)


def minutes_of(text: str) -> tuple[int, int]:
    """The ends of a part of the day, as `hours` writes it, in minutes after midnight."""
    first, last = (int(hour) * 60 + int(minute) for hour, minute in (end.split(":") for end in text.split("-")))
    return first, last


def audit_extent(value: object) -> str:
    """How much the audit log has, in upper case or lower. Raises ValueError."""
    text = str(value).strip().lower()
    if text not in get_args(Extent):
        raise ValueError("no extent of the audit log")
    return text


def cache_type(value: object) -> str:
    """A type of the KV cache, in upper case or lower. Raises ValueError."""
    name = str(value).strip().upper()
    if name not in CACHE_TYPES:
        raise ValueError("no cache type")
    return name


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return _LOOPBACK.fullmatch(host.strip("[]")) is not None or socket_path(host) != ""


def on_this_machine(host: str) -> bool:
    """Whether a connection to `host` stays on this machine: loopback, a Unix socket, an address of its own.

    No name but `localhost` is looked up: a name server may be another machine.
    """
    if is_loopback(host):
        return True
    bare = host.strip("[]")
    with contextlib.suppress(ValueError, OSError):
        version = ipaddress.ip_address(bare).version
        with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as trial:
            trial.bind((bare, 0))  # the kernel knows which addresses are its own
        return True
    return False


def socket_path(host: str) -> str:
    """The path of a Unix socket, "" for a host of another kind."""
    return host.removeprefix(UNIX) if host.startswith(UNIX) else ""


def address(text: str) -> tuple[str, int | None]:
    """Host and port of `host`, `host:port`, `:port`, `[v6]:port`, or a URL with one of these; or `unix:/path` itself.

    Raises ValueError.
    """
    if path := socket_path(text.strip()):
        if not path.startswith("/") or len(path.encode()) > _LONGEST_SOCKET:
            raise ValueError("not the absolute path of a socket")
        return text.strip(), None
    rest = re.sub(r"^https?://", "", text.strip(), flags=re.IGNORECASE).rstrip("/")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*)(?::([0-9]{1,5}))?", rest)
    if not rest or match is None or int(match[2] or 0) > 65535:
        raise ValueError("not an address")
    return match[1].strip("[]") or DEFAULT_HOST, int(match[2]) if match[2] else None


def whole_number(low: int, high: int) -> Callable[[object], int]:
    """A check for a whole number within these bounds."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)) or not low <= int(str(value)) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(str(value))

    return check


def factor(value: object) -> float:
    """A number from 1 to 1000."""
    number = float(str(value))
    if not 1 <= number <= 1000:
        raise ValueError(number)
    return number


def plain_text(value: object) -> str:
    """A text without control characters."""
    text = str(value).strip()
    if any(ord(letter) < 32 for letter in text):
        raise ValueError("control characters")
    return text


def http_url(value: object) -> str:
    """An http(s) URL without a slash at its end. Raises ValueError, also for one with a user or a password."""
    text = plain_text(value).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/@]+(?:/[^\s@]*)?", text):
        raise ValueError("not an http(s) URL")
    return text


def listening(value: object) -> str:
    """An address; quotes around it, which some profiles and unit files leave there, do not count."""
    text = plain_text(value).strip("\"'").strip()
    address(text)
    return text


def listed(value: object) -> tuple[str, ...]:
    """The parts of a list, or of a text with commas."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(plain_text(part) for part in parts if plain_text(part))


def aliases(value: object) -> tuple[str, ...]:
    """Entries `PATTERN=NAME`. Raises ValueError."""
    found = listed(value)
    if not all(re.fullmatch(r"[^\s=]+=[^\s=]+", entry) for entry in found):
        raise ValueError("not names with their meanings")
    return found


def hosts(value: object) -> tuple[str, ...]:
    """Hosts of registries; `http://` before a host allows no TLS, `https://` demands it. Raises ValueError."""
    found = listed(value)
    if not all(re.fullmatch(r"(?:https?://)?[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?", host) for host in found):
        raise ValueError("not hosts")
    return found


def flag(value: object) -> bool:
    """True or false, in several words."""
    text = str(value).lower()
    if text not in ("1", "true", "yes", "0", "false", "no"):
        raise ValueError("not true or false")
    return text in ("1", "true", "yes")


def file_path(value: object) -> Path:
    """An absolute path, `~` for the home folder."""
    return Path(plain_text(value)).expanduser().absolute()


def role_name(value: object) -> Role:
    """A role, by its name."""
    roles: tuple[Role, ...] = get_args(Role)
    for role in roles:
        if value == role:
            return role
    raise ValueError("not a role")
