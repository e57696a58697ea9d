"""The values of a GGUF header: their layout, the bounds on their sizes, how they are read and written.

Source: `docs/gguf.md` of ggml. Lengths and counts in a file are claims: none is believed before it was compared with
the bytes that are left, so memory is never taken for more than the file holds. Integers are Python's, so no sum or
product can wrap.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from quant.errors import MalformedFile

# Several times what the largest vocabularies need (about 16 MB, 1.3 million elements), and little enough that no header
# can take more than a few hundred MB once its values are Python objects. One text may fill it.
MAX_HEADER = 64 << 20
MAX_ELEMENTS = 4 << 20
STRING, ARRAY = 8, 9
# GGUF's number of a kind → (name, format of `struct` and `array`, bytes)
SCALARS = {
    0: ("u8", "B", 1),
    1: ("i8", "b", 1),
    2: ("u16", "H", 2),
    3: ("i16", "h", 2),
    4: ("u32", "I", 4),
    5: ("i32", "i", 4),
    6: ("f32", "f", 4),
    7: ("bool", "B", 1),
    10: ("u64", "Q", 8),
    11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}
_NUMBERS = {"str": STRING, **{kind: number for number, (kind, _, _) in SCALARS.items()}}
# Bytes of the first read, and the most of a later one: each read is four times as long as the one before. The first is
# small, because the header of a split model's second or third part is.
_FIRST, _WINDOW = 1 << 16, 1 << 20
# How bytes that are not UTF-8 become characters, and these the same bytes again.
_BYTES = "surrogateescape"
_LENGTH = struct.Struct("<Q")


class Cursor:
    """Reads forward through the first bytes of a file, never past its end nor past `MAX_HEADER`.

    `elements` counts the elements of all arrays so far.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self.name = name
        self.size = size
        self.elements = 0
        self._read = read
        self._buffer = b""
        self._base = 0
        self._next = 0
        self._window = _FIRST

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._base + self._next

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file, or to `MAX_HEADER` in a longer file."""
        return min(self.size, MAX_HEADER) - self.position

    def fail(self, rule: str) -> MalformedFile:
        """The error for a file that breaks `rule`, a clause such as `its version is 7`; the caller raises it."""
        return MalformedFile(f"`{self.name}` is not a valid GGUF file: {rule}")

    def beginning(self, count: int) -> bytes:
        """The first bytes of the file, at most `count`."""
        return self._read(0, min(count, self.size))

    def need(self, count: int, what: str) -> None:
        """Raise MalformedFile unless `count` more bytes are there; `what` names them in the message."""
        if count > self.left:
            limit = "the header would be larger than 64 MiB" if self.size > MAX_HEADER else "the file ends too early"
            raise self.fail(f"{limit} ({what} at byte {self.position})")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; MalformedFile where the file ends before, or the header is too long."""
        end = self._next + count
        if end > len(self._buffer):
            self.need(count, what)
            start = self.position
            wanted = min(max(count, self._window), self.size - start)
            self._window = min(4 * self._window, _WINDOW)
            self._buffer, self._base, self._next, end = self._read(start, wanted), start, 0, count
            if len(self._buffer) < count:
                raise self.fail(f"the file ends too early ({what} at byte {start})")
        piece = self._buffer[self._next : end]
        self._next = end
        return piece

    def u32(self, what: str) -> int:
        """An unsigned number of 4 bytes."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """An unsigned number of 8 bytes."""
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str, limit: int = MAX_HEADER) -> str:
        """The next string: a length of 8 bytes, at most `limit`, then that many bytes (see `decode`)."""
        length = self.u64(what)
        if length > limit:
            raise self.fail(f"{what} claims {length} bytes, and at most {limit} are allowed")
        return decode(self.take(length, what))

    def strings(self, count: int, what: str) -> list[str]:
        """The next `count` strings: as `string`, but with fewer calls, since a tokenizer has half a million of them."""
        found: list[str] = []
        buffer, place = self._buffer, self._next
        for _ in range(count):
            begin = place + _LENGTH.size
            end = begin + _LENGTH.unpack_from(buffer, place)[0] if begin <= len(buffer) else begin
            if end > len(buffer) or begin > len(buffer):
                self._next = place
                found.append(self.string(what))  # fetches more bytes, or raises
                buffer, place = self._buffer, self._next
                continue
            found.append(decode(buffer[begin:end]))
            place = end
        self._next = place
        return found


def decode(raw: bytes) -> str:
    """The text of a string. Bytes that are not UTF-8, which llama.cpp takes, stay as Python's lone surrogates."""
    return raw.decode(errors=_BYTES)


def readable(text: str) -> str:
    """A text for people and for JSON: bytes that are not UTF-8 are shown as �."""
    return text if text.isprintable() else text.encode(errors=_BYTES).decode(errors="replace")


def read_value(cursor: Cursor, key: str) -> tuple[str, Any]:
    """The kind (`u32`, `str`, `arr[i32]`, …) and the value of metadata entry `key`."""
    number = cursor.u32(f"the kind of `{key}`")
    if number == STRING:
        return "str", cursor.string(f"the value of `{key}`")
    if number == ARRAY:
        return _read_array(cursor, key)
    if number not in SCALARS:
        raise cursor.fail(f"`{key}` has the unknown kind {number}")
    kind, form, size = SCALARS[number]
    value = struct.unpack("<" + form, cursor.take(size, f"the value of `{key}`"))[0]
    return kind, (bool(value) if kind == "bool" else value)


def _read_array(cursor: Cursor, key: str) -> tuple[str, list[Any]]:
    number = cursor.u32(f"the kind of `{key}`")
    count = cursor.u64(f"the length of `{key}`")
    if number != STRING and number not in SCALARS:
        raise cursor.fail(f"`{key}` is an array of the kind {number}, which may not be in one")
    cursor.elements += count
    if cursor.elements > MAX_ELEMENTS:
        raise cursor.fail(f"`{key}` claims {count} elements, and at most {MAX_ELEMENTS} are allowed in all arrays")
    smallest = 8 if number == STRING else SCALARS[number][2]
    cursor.need(count * smallest, f"the elements of `{key}`")
    if number == STRING:
        return "arr[str]", cursor.strings(count, f"an element of `{key}`")
    kind, form, size = SCALARS[number]
    values = struct.unpack(f"<{count}{form}", cursor.take(count * size, f"the elements of `{key}`"))
    return f"arr[{kind}]", list(map(bool, values)) if kind == "bool" else list(values)


def encode_string(text: str) -> bytes:
    """A string as GGUF writes it: the length in 8 bytes, then UTF-8, or the bytes that `decode` kept."""
    raw = text.encode(errors=_BYTES)
    return struct.pack("<Q", len(raw)) + raw


def encode_value(value: Any, kind: str = "") -> bytes:
    """Kind and value as GGUF writes them; `kind` is a name as `read_value` gives it: `u32`, `str`, `arr[i32]`, ….

    Without `kind` the Python type decides, as llama.cpp expects it. A whole number is u32, i32 below zero, u64 above 4
    bytes. A list of whole numbers is `arr[i32]`, or `arr[u32]` when one does not fit. A float is f32, `bytes` are
    `arr[u8]`.
    """
    if kind.startswith("arr[") or isinstance(value, bytes | list | tuple):
        return struct.pack("<I", ARRAY) + _encode_array(value, _NUMBERS.get(kind[4:-1]))
    number = _kind(value) if not kind else _NUMBERS[kind]
    if number == STRING:
        return struct.pack("<I", STRING) + encode_string(value)
    return struct.pack("<I" + SCALARS[number][1], number, value)


def _kind(value: Any) -> int:
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 5 if value < 0 else 4 if value < 1 << 32 else 10
    if isinstance(value, float):
        return 6
    raise TypeError(f"GGUF has no kind for {type(value).__name__}")


def _kind_of_elements(values: Sequence[Any]) -> int:
    if isinstance(values, bytes):
        return 0
    if values and isinstance(values[0], str | bool | float):
        return _kind(values[0])
    return 5 if all(-(1 << 31) <= value < 1 << 31 for value in values) else 4


def _encode_array(values: Sequence[Any], number: int | None) -> bytes:
    number = _kind_of_elements(values) if number is None else number
    head = struct.pack("<IQ", number, len(values))
    if number == STRING:
        return head + b"".join(map(encode_string, values))
    packed = array("B" if isinstance(values, bytes) else SCALARS[number][1], values)
    if sys.byteorder == "big":  # `array` has the order of this machine, GGUF is little-endian
        packed.byteswap()
    return head + packed.tobytes()
