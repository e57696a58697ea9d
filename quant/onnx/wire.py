"""Protocol Buffers, read by range and within bounds: which fields a message has, and where their bytes lie.

An ONNX file is one message of Protocol Buffers, and may hold gigabytes of weights between its names. The package `onnx`
would copy the whole file into memory, without a bound on what a stranger's file makes it allocate. It does not tell
where in the file a weight lies either, which the streaming pass needs, and weighs 28 MB with `protobuf`. So the format
is read here: it has four kinds of values, and a payload is skipped without being read unless somebody asks for it.

Every step moves forward inside a message that lies inside its own, so no file makes the reader go round in circles; the
number of fields and of bytes that are fetched is bounded. Source: "Encoding" of the Protocol Buffers' documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from quant.errors import MalformedFile

# Fields in one file: a decoder of 100 layers with all shapes noted has 300,000. Bytes fetched for names and numbers.
MAX_FIELDS = 4_000_000
MAX_FETCHED = 512 << 20
MAX_NAME = 4096  # bytes of a name
# Bytes fetched at once: few behind a payload that is skipped, more where fields follow each other.
_FIRST, _MOST = 16 << 10, 1 << 20
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class Field(NamedTuple):
    """A field of a message: its number, its value where it is a number, and where the bytes of its payload lie.

    `value` is the bits as an unsigned integer of up to 64 bits; of a field with bytes it is their number.
    """

    number: int
    kind: int
    value: int
    begin: int
    end: int

    @property
    def has_bytes(self) -> bool:
        """Whether it holds a text, bytes or another message."""
        return self.kind == _BYTES


class Wire:
    """A file of `size` bytes in the wire format; `read(offset, count)` gives its bytes, `name` names it.

    All methods raise MalformedFile where the file breaks the format or a bound, and the errors of `read`.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self.name, self.size = name, size
        self._read = read
        self._window, self._begin, self._next = b"", 0, _FIRST
        self._fields = self._fetched = 0

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message between two bytes, in order."""
        position = begin
        while position < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise self.broken(f"it has more than {MAX_FIELDS:,} fields")
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise self.broken(f"a field has the number {number}")
            value, first, position = self._payload(kind, position, end)
            yield Field(number, kind, value, first, position)

    def payload(self, field: Field, limit: int) -> bytes:
        """The payload of a field; `limit` is the most that it may have."""
        if not field.has_bytes or field.end - field.begin > limit:
            raise self.broken(f"a field has {field.end - field.begin:,} bytes, and at most {limit:,} are allowed")
        return self._get(field.begin, field.end)

    def text(self, field: Field, limit: int = MAX_NAME) -> str:
        """The payload as a text."""
        try:
            return self.payload(field, limit).decode()
        except UnicodeDecodeError:
            raise self.broken("a name is not UTF-8") from None

    def varints(self, field: Field, limit: int) -> list[int]:
        """Signed integers: one in a field of its own, or several packed in one; `limit` is their largest number."""
        if not field.has_bytes:
            return [signed(field.value)]
        found: list[int] = []
        position = field.begin
        while position < field.end:
            value, position = self._varint(position, field.end)
            found.append(signed(value))
            if len(found) > limit:
                raise self.broken(f"a list has more than {limit:,} numbers")
        return found

    def broken(self, rule: str) -> MalformedFile:
        """The error about this file."""
        reason = f"`{self.name}` is not a valid ONNX file: {rule}"
        return MalformedFile(reason, "the file may be incomplete; fetch it again")

    def _payload(self, kind: int, position: int, end: int) -> tuple[int, int, int]:
        """The value of a field, where its payload begins, and where it ends."""
        if kind == _VARINT:
            value, after = self._varint(position, end)
            return value, position, after
        if kind in (_EIGHT, _FOUR):
            length = 8 if kind == _EIGHT else 4
            self._inside(position, length, end)
            return int.from_bytes(self._get(position, position + length), "little"), position, position + length
        if kind != _BYTES:
            raise self.broken(f"a field is of kind {kind}")
        length, position = self._varint(position, end)
        self._inside(position, length, end)
        return length, position, position + length

    def _inside(self, position: int, length: int, end: int) -> None:
        if length > end - position:
            raise self.broken(f"a field claims {length:,} bytes, and {end - position:,} are left")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if position >= end or shift > 63:
                raise self.broken("a number has no end")
            octet = self._get(position, position + 1)[0]
            position += 1
            value |= (octet & 127) << shift
            if octet < 128:
                return value & (1 << 64) - 1, position
            shift += 7

    def _get(self, begin: int, end: int) -> bytes:
        first = begin - self._begin
        if first < 0 or end - self._begin > len(self._window):
            near = 0 <= first <= len(self._window) and self._window
            self._next = min(self._next * 4, _MOST) if near else _FIRST
            count = min(max(self._next, end - begin), self.size - begin)
            self._fetched += count
            if self._fetched > MAX_FETCHED:
                raise self.broken(f"more than {MAX_FETCHED >> 20} MB of it are names and numbers")
            self._window, self._begin, first = self._read(begin, count), begin, 0
        return self._window[first : first + end - begin]


def signed(value: int) -> int:
    """64 bits as a signed integer."""
    return value - (1 << 64) if value >> 63 else value


def as_float(value: int) -> float:
    """32 bits as a float."""
    return float(struct.unpack("<f", value.to_bytes(4, "little"))[0])
