"""SHA-256 whose state can be saved and restored, which `hashlib` does not offer.

A resumed download goes on hashing from the saved state, so each byte is read once however often the machine stops. The
rounds are libcrypto's, through ctypes: the library that Python's own `_hashlib` is linked with. Its `SHA256_CTX` is
eight words, a bit count and a partial block. Without libcrypto, Numba compiles the same rounds; it is imported on first
use, and about six times slower. `engine()` tells which is in use. Both release the GIL, and write the same state.

State: one byte version (1), the eight words big-endian, the number of bytes so far (64 bits, big-endian), and the
bytes of the unfinished block (`length % 64`): 41 to 104 bytes. Algorithm: FIPS 180-4.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

from registry.errors import StoreDamaged

BLOCK = 64
VERSION = 1
_HEAD = struct.Struct(">B8IQ")
_NAMES = {"darwin": ("libcrypto.3.dylib", "libcrypto.1.1.dylib")}
_PROBE = bytes(range(200))


class _Context(ctypes.Structure):
    """`SHA256_CTX` of <openssl/sha.h>; BoringSSL, LibreSSL and AWS-LC have the same."""

    _fields_: ClassVar = [
        ("h", ctypes.c_uint32 * 8),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("data", ctypes.c_uint8 * BLOCK),
        ("num", ctypes.c_uint32),
        ("md_len", ctypes.c_uint32),
    ]


class _Native:
    """libcrypto's rounds on a context of our own."""

    library: ClassVar[Any] = None

    def __init__(self) -> None:
        self._context = _Context()
        self.library.SHA256_Init(ctypes.byref(self._context))

    def update(self, buffer: bytes | bytearray | memoryview) -> None:
        self.library.SHA256_Update(ctypes.byref(self._context), *_pointer(buffer))

    def snapshot(self) -> tuple[tuple[int, ...], int, bytes]:
        context = self._context
        length = (context.high << 32 | context.low) >> 3
        return tuple(context.h), length, bytes(context.data)[: context.num]

    def restore(self, words: tuple[int, ...], length: int, tail: bytes) -> None:
        context = self._context
        context.h[:] = words
        context.low, context.high = length << 3 & 0xFFFFFFFF, length >> 29 & 0xFFFFFFFF
        context.num = len(tail)
        ctypes.memmove(context.data, tail, len(tail))

    def digest(self) -> bytes:
        copy = _Context.from_buffer_copy(self._context)
        out = ctypes.create_string_buffer(32)
        self.library.SHA256_Final(out, ctypes.byref(copy))
        return out.raw


class _Compiled:
    """The interface of `_Native` on rounds compiled by Numba."""

    def __init__(self) -> None:
        import numpy as np

        self._words = np.array(_INITIAL, np.uint32)
        self._length = 0
        self._tail = b""
        self._fold = _compile()

    def update(self, buffer: bytes | bytearray | memoryview) -> None:
        import numpy as np

        data = memoryview(buffer).cast("B")
        self._length += len(data)
        if self._tail:
            missing = BLOCK - len(self._tail)
            self._tail, data = self._tail + bytes(data[:missing]), data[missing:]
            if len(self._tail) < BLOCK:
                return
            self._fold(self._words, np.frombuffer(self._tail, np.uint8))
        whole = len(data) - len(data) % BLOCK
        # `fold` is compiled once for writable and once for read-only buffers: cheaper than a copy of the latter.
        self._fold(self._words, np.frombuffer(data[:whole], np.uint8))
        self._tail = bytes(data[whole:])

    def snapshot(self) -> tuple[tuple[int, ...], int, bytes]:
        return tuple(int(word) for word in self._words), self._length, self._tail

    def restore(self, words: tuple[int, ...], length: int, tail: bytes) -> None:
        self._words[:] = words
        self._length, self._tail = length, tail

    def digest(self) -> bytes:
        other = _Compiled()
        other.restore(*self.snapshot())
        padding = b"\x80" + bytes(-(self._length + 9) % BLOCK) + (self._length << 3).to_bytes(8, "big")
        other.update(padding)
        return struct.pack(">8I", *other.snapshot()[0])


class Sha256:
    """A running SHA-256; not for two threads at once.

    state: the result of an earlier `state()`, None for a new hash. Raises StoreDamaged for other bytes.
    """

    def __init__(self, state: bytes | None = None) -> None:
        self._engine: _Native | _Compiled = (_native() or _Compiled)()
        self.length = 0
        if state is not None:
            words, self.length, tail = _parse(state)
            self._engine.restore(words, self.length, tail)

    def update(self, buffer: bytes | bytearray | memoryview) -> None:
        """Hash further bytes: any contiguous buffer. The GIL is released meanwhile: leave the buffer as it is."""
        self._engine.update(buffer)
        self.length += memoryview(buffer).nbytes

    def state(self) -> bytes:
        """All that is needed to go on from here, in the format that the module describes."""
        words, length, tail = self._engine.snapshot()
        return _HEAD.pack(VERSION, *words, length) + tail

    def hexdigest(self) -> str:
        """The digest of the bytes so far; more may follow."""
        return self._engine.digest().hex()


def engine() -> str:
    """The library that computes the hash in this process: `libcrypto` or `numba`."""
    return "libcrypto" if _native() else "numba"


def _parse(state: bytes) -> tuple[tuple[int, ...], int, bytes]:
    if len(state) >= _HEAD.size:
        version, *words, length = _HEAD.unpack_from(state)
        tail = state[_HEAD.size :]
        if version == VERSION and len(tail) == length % BLOCK:
            return tuple(words), length, tail
    raise StoreDamaged("the saved state of a download's hash is malformed", "start the download again")


def _pointer(buffer: bytes | bytearray | memoryview) -> tuple[Any, int]:
    """Address and length for C. A read-only view is copied: ctypes gives no pointer into one."""
    if isinstance(buffer, bytes):
        return buffer, len(buffer)
    view = memoryview(buffer).cast("B")
    if view.readonly:
        return bytes(view), len(view)
    return (ctypes.byref(ctypes.c_char.from_buffer(view)) if len(view) else None), len(view)


@cache
def _native() -> type[_Native] | None:
    """The engine on libcrypto, or None where there is none that agrees with hashlib and with our layout."""
    for load in _candidates():
        try:
            library = load()
            _declare(library)
        except (OSError, AttributeError):
            continue
        found = type("_Found", (_Native,), {"library": library})  # `_Native` itself has no library
        if _agrees(found):
            return found
    return None


def _candidates() -> list[Callable[[], ctypes.CDLL]]:
    """Ways to libcrypto: a handle on `_hashlib` also finds the symbols of its libraries, so no path is guessed."""
    import _hashlib

    paths = [getattr(_hashlib, "__file__", None), None]
    paths += _NAMES.get(sys.platform, ("libcrypto.so.3", "libcrypto.so.1.1"))
    return [lambda path=path: ctypes.CDLL(path) for path in paths]  # type: ignore[misc]


def _declare(library: ctypes.CDLL) -> None:
    pointer = ctypes.POINTER(_Context)
    library.SHA256_Init.argtypes = [pointer]
    library.SHA256_Update.argtypes = [pointer, ctypes.c_void_p, ctypes.c_size_t]
    library.SHA256_Final.argtypes = [ctypes.c_void_p, pointer]


def _agrees(found: type[_Native]) -> bool:
    """Whether digest, word order, count and partial block are where we read them, and a restored state goes on."""
    first = found()
    first.update(_PROBE[:100])
    words, length, tail = first.snapshot()
    if (length, tail) != (100, _PROBE[BLOCK:100]):
        return False
    second = found()
    second.restore(words, length, tail)
    second.update(_PROBE[100:])
    return second.digest() == hashlib.sha256(_PROBE).digest()


_INITIAL = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip


def _constants() -> list[int]:
    """The first 32 bits of the fractional parts of the cube roots of the first 64 primes, in exact integers."""
    primes = [n for n in range(2, 312) if all(n % p for p in range(2, int(n**0.5) + 1))]
    return [_cube_root(p << 96) & 0xFFFFFFFF for p in primes]


def _cube_root(n: int) -> int:
    low, high = 0, 1 << (n.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= n else (low, middle - 1)
    return low


@cache
def _compile() -> Callable[[Any, Any], None]:
    """`fold(words: uint32[8], data: uint8[n])`: whole blocks of `data` into `words`."""
    import numpy as np
    from numba import njit

    u32 = np.uint32
    constants = np.array(_constants(), np.uint32)

    @njit(inline="always")  # type: ignore[untyped-decorator]
    def turn(x: Any, n: int) -> Any:
        return u32((x >> u32(n)) | (x << u32(32 - n)))

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def fold(words: Any, data: Any) -> None:
        w = np.empty(64, np.uint32)
        for start in range(0, data.size - 63, 64):
            for i in range(16):
                j = start + 4 * i
                w[i] = (
                    (u32(data[j]) << u32(24))
                    | (u32(data[j + 1]) << u32(16))
                    | (u32(data[j + 2]) << u32(8))
                    | u32(data[j + 3])
                )
            for i in range(16, 64):
                x, y = w[i - 15], w[i - 2]
                low = turn(x, 7) ^ turn(x, 18) ^ (x >> u32(3))
                high = turn(y, 17) ^ turn(y, 19) ^ (y >> u32(10))
                w[i] = u32(w[i - 16] + low + w[i - 7] + high)
            a, b, c, d, e, f, g, h = words
            for i in range(64):
                choice = (e & f) ^ (~e & g)
                t = u32(h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + choice + constants[i] + w[i])
                majority = (a & b) ^ (a & c) ^ (b & c)
                s = u32((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + majority)
                h, g, f, e, d, c, b, a = g, f, e, u32(d + t), c, b, a, u32(t + s)
            words += np.array((a, b, c, d, e, f, g, h), np.uint32)

    return fold  # type: ignore[no-any-return]
