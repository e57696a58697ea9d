"""One key as the file keeps it: never itself, only its hash, with its role and its limits."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, get_args

from server.values import Role

PREFIX = "lm_"
SECRET_BYTES = 32
LONGEST_NAME = 64
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Digits of base 62 that hold any number of `SECRET_BYTES` bytes.
_SECRET_LENGTH = 43
_SECRET = re.compile(PREFIX + r"[0-9A-Za-z]{43}")
# Scheme, name and password, host and path, and the query, which may hold a signature.
_URL = re.compile(r"(https?://)([^\s/?#`]*@)?([^\s?#`]*)(\?[^\s#`]*)?")
_ID = re.compile(r"[0-9A-Za-z]{8}")
_HASH = re.compile(r"[0-9a-f]{64}")
_ALLOWANCE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([kKmMgG]?)/([a-z]+)")
_MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WORDS = {
    **{word: "s" for word in ("s", "sec", "second")},
    **{word: "m" for word in ("m", "min", "minute")},
    **{word: "h" for word in ("h", "hour")},
    **{word: "d" for word in ("d", "day")},
}
_MOST = 10**15
# The beginning of the year 9999, in seconds since 1970: a later moment has no date.
_LATEST = 253_370_764_800


@dataclass(frozen=True)
class Allowance:
    """An amount within a time: `count` requests or tokens in `seconds`."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Allowance:
        """From a text such as `60/m`, `1M/day`, `500k/h`. Raises ValueError."""
        match = _ALLOWANCE.fullmatch(text.strip())
        if match is None or match[3] not in _WORDS:
            raise ValueError("not an amount within a time")
        count = Decimal(match[1]) * _MULTIPLES[match[2].lower()]
        if not 1 <= count <= _MOST or count % 1:
            raise ValueError("not an amount within a time")
        return cls(int(count), _UNITS[_WORDS[match[3]]])

    def __str__(self) -> str:
        """As `parse` reads it."""
        unit = next((name for name, seconds in _UNITS.items() if seconds == self.seconds), f"{self.seconds} s")
        return f"{self.count}/{unit}"


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times are seconds since 1970, None where there is none.

    `hash` is the SHA-256 of the whole key in hexadecimal: of 256 random bits, so nothing slower is needed. `models` are
    the names that exist for it, all where there are none. `owner` is the id of the first key of a row of rotated ones:
    objects and quotas belong to it.
    """

    id: str
    hash: str
    role: Role
    owner: str
    created: float
    name: str = ""
    models: tuple[str, ...] = ()
    expires: float | None = None
    revoked: float | None = None
    rate: Allowance | None = None
    tokens: Allowance | None = None

    def ended(self, now: float) -> bool:
        """Whether it is revoked, or has expired by the wall clock."""
        return self.revoked is not None or (self.expires is not None and self.expires <= now)

    def state(self, now: float) -> str:
        """A word for a list."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.ended(now) else "valid"

    def as_json(self) -> dict[str, Any]:
        """The record of it in the file; what is not set is left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "", ())}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ApiKey:
        """From a record in the file. Raises ValueError, KeyError, TypeError for what is none."""
        values = dict(record)
        for name in ("rate", "tokens"):
            if name in values:
                values[name] = _allowance(values[name])
        if "models" in values:
            # An empty list would mean every model, and a text its letters.
            if not isinstance(values["models"], list) or not values["models"]:
                raise ValueError("no list of models")
            values["models"] = tuple(values["models"])
        key = cls(**values)
        moments = (key.created, *(moment for moment in (key.expires, key.revoked) if moment is not None))
        if not (
            _ID.fullmatch(key.id)
            and _ID.fullmatch(key.owner)
            and _HASH.fullmatch(key.hash)
            and key.role in get_args(Role)
            and all(type(moment) in (int, float) and 0 <= moment <= _LATEST for moment in moments)
            and is_name(key.name)
            and all(is_name(model, longest=400) and model for model in key.models)
        ):
            raise ValueError("a field of the wrong form")
        return key


def _allowance(record: Mapping[str, Any]) -> Allowance:
    allowance = Allowance(**record)
    if not all(type(number) is int and 1 <= number <= _MOST for number in (allowance.count, allowance.seconds)):
        raise ValueError("not an amount within a time")
    return allowance


def is_name(text: object, longest: int = LONGEST_NAME) -> bool:
    """Whether a text can be shown in a line: no control characters, none that turn the direction of text."""
    return isinstance(text, str) and text.isprintable() and len(text) <= longest


def is_secret(text: str) -> bool:
    """Whether a text has the form of a key that `new_secret` makes."""
    return _SECRET.fullmatch(text) is not None


def redacted(text: str) -> str:
    """The text for a log, without what is secret in it.

    That are keys that `new_secret` makes, which a client may have put in a wrong place, and the queries, names and
    passwords of URLs.
    """
    text = _URL.sub(_without_secrets, text) if "://" in text else text
    return _SECRET.sub(f"{PREFIX}…", text) if PREFIX in text else text


def _without_secrets(url: re.Match[str]) -> str:
    return url[1] + ("…@" if url[2] else "") + url[3] + ("?…" if url[4] else "")


def new_secret() -> str:
    """A new key: `lm_` and 256 random bits in base 62."""
    return PREFIX + _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), _SECRET_LENGTH)


def new_id() -> str:
    """A new id: eight letters and digits, which say nothing about the key."""
    return "".join(secrets.choice(_DIGITS) for _ in range(8))


def hash_of(secret: str) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_key(role: Role, **more: Any) -> tuple[str, ApiKey]:
    """A new key, and its record; `more` are fields of the record."""
    secret, identity = new_secret(), new_id()
    return secret, ApiKey(identity, hash_of(secret), role, identity, time.time(), **more)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
