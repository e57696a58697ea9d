"""The time in which a certificate holds, read from its DER (X.509, RFC 5280 §4.1), for `lm doctor` and the start."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION = 0x30, 0xA0
_UTC_TIME, _GENERAL_TIME = 0x17, 0x18
# Years of two digits up to this one are of this century.
_LAST_SHORT_YEAR = 49


class Validity(NamedTuple):
    """The moments between which a certificate holds, in seconds since 1970."""

    begins: float
    ends: float


def validities(path: Path) -> list[Validity]:
    """The times of all certificates in a file of PEM. Raises OSError, ValueError for what is none."""
    found = [_validity(ssl.PEM_cert_to_DER_cert(text)) for text in _PEM.findall(path.read_text("ascii", "replace"))]
    if not found:
        raise ValueError("no certificate in PEM")
    return found


def _validity(der: bytes) -> Validity:
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = [each for each in _elements(signed) if each[0] != _VERSION]
    # Serial number, signature algorithm, issuer, validity.
    begins, ends = _elements(fields[3][1])
    return Validity(_moment(*begins), _moment(*ends))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a constructed value: each a tag and the bytes of its value. Raises ValueError."""
    place = 0
    while place < len(data):
        try:
            tag, length = data[place], data[place + 1]
        except IndexError:
            raise ValueError("an element that is cut off") from None
        place += 2
        if length >= 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[place : place + count])
            place += count
        if place + length > len(data):
            raise ValueError("an element that is longer than its place")
        yield tag, data[place : place + length]
        place += length


def _moment(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) <= _LAST_SHORT_YEAR else "19") + text
    elif tag != _GENERAL_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
