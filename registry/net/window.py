"""The window of a download: pieces of the file in file order, each with a buffer; many threads fill, one reads.

Buffers are made once and used again; a new piece needs a free one, so the window is bounded. Where a worker finds no
free buffer or no piece left, and the first unfinished piece is slow, it takes over the second half of that piece. So
one bad connection out of many does not hold up the file. No networking here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from registry.net.retries import Retries

MIB = 1 << 20
# A chunk is delivered when it has this size, or ends its piece: the consumer's cost per chunk stays small.
QUANTUM = MIB
# A piece is so large that a connection fetches it in about this time (seconds): what a cut makes useless, because the
# bytes before it have not come, is no more than that. The first pieces have `_FIRST` bytes, no piece has fewer than
# `_LEAST`.
_PIECE_SECONDS = (0.5, 2.0)
_FIRST, _LEAST = 256 * 1024, 64 * 1024


@dataclass(slots=True, eq=False)
class FilePiece:
    """Bytes `start` … `end` of the file, all offsets in the file.

    - `have`: the bytes before it have arrived. `reach`: the bytes before it are being received, or have arrived.
    - `buffer`: the memory of the piece, from `start` on.
    - `base`: the whole buffer, where this piece is the last one in it; it becomes free with this piece. Else None.
    - `restart`: ends the request that fetches the piece, so that its worker makes it again.
    - `began`, `moved`: when the piece was assigned, and when bytes arrived last (`time.monotonic`).
    """

    start: int
    end: int
    buffer: memoryview
    base: memoryview | None
    restart: Callable[[], None]
    have: int = field(init=False)
    reach: int = field(init=False)
    began: float = field(init=False)
    moved: float = field(init=False)

    def __post_init__(self) -> None:
        self.have = self.reach = self.start
        self.began = self.moved = time.monotonic()


class Window:
    """The pieces of bytes `start` … `size` of a file. `changed` guards all fields, and waiting threads wait for it.

    `position` is the offset of the next byte to deliver, `received` the number of bytes that have arrived.
    """

    def __init__(self, start: int, size: int, piece: int, buffers: int, retries: Retries) -> None:
        """`piece`: bytes of each piece but the last. `buffers`: their greatest number. `retries`: `slow` and `dead`."""
        self.position, self.size = start, size
        self.received = 0
        self.changed = threading.Condition()
        self.closed = threading.Event()
        self._piece, self._buffers = piece, buffers
        self._present = min(piece, _FIRST)
        self._retries = retries
        self._next = start
        self._pieces: deque[FilePiece] = deque()
        self._spare: list[memoryview] = []

    @property
    def unassigned(self) -> int:
        """The number of pieces that no worker has been assigned yet."""
        return -(-(self.size - self._next) // self._present)

    def assign(self, restart: Callable[[], None]) -> FilePiece | None:
        """The next piece to fetch, in file order; waits for a buffer. None when there is nothing left to do."""
        with self.changed:
            while not self.closed.is_set() and self.position < self.size:
                if self._next < self.size and (buffer := self._buffer()) is not None:
                    start, self._next = self._next, min(self._next + self._present, self.size)
                    self._pieces.append(FilePiece(start, self._next, buffer, buffer, restart))
                    return self._pieces[-1]
                slow = next((piece for piece in self._pieces if piece.have < piece.end), None)
                if slow is not None and (piece := self._share(slow, restart)):
                    return piece
                if slow is None and self._next == self.size:
                    return None
                # No notification comes when a piece has become slow: look again after a while.
                self.changed.wait(self._retries.slow / 4 if slow else None)
        return None

    def room(self, piece: FilePiece, most: int) -> memoryview:
        """Memory for the next bytes of `piece`, at most `most`, which nobody else writes; empty when it is whole."""
        with self.changed:
            piece.reach = min(piece.have + most, piece.end)
            return piece.buffer[piece.have - piece.start : piece.reach - piece.start]

    def arrived(self, piece: FilePiece, count: int) -> None:
        """Note that the next `count` bytes of `piece` are in its buffer."""
        with self.changed:
            piece.have += count
            self.received += count
            piece.moved = time.monotonic()
            if piece.have == piece.end:
                self._adapt(piece)
            if self._pieces[0] is piece or piece.have == piece.end:
                self.changed.notify_all()

    def take(self, least: int = QUANTUM) -> memoryview | None:
        """The bytes that have arrived at `position`, which moves on; None if they are fewer than `least`.

        The bytes taken before may be overwritten from now on. Call with `changed` held.
        """
        if self._pieces and self.position == self._pieces[0].end:
            if (base := self._pieces.popleft().base) is not None:
                self._spare.append(base)
            self.changed.notify_all()
        if not self._pieces:
            return None
        piece = self._pieces[0]
        first, end = self.position - piece.start, piece.have - piece.start
        if end <= first or (end - first < least and piece.have < piece.end):
            return None
        self.position = piece.have
        return piece.buffer[first:end]

    def close(self) -> None:
        """End every wait, for good."""
        with self.changed:
            self.closed.set()
            self.changed.notify_all()

    def _adapt(self, piece: FilePiece) -> None:
        """Make the next pieces larger after one that came fast, smaller after one that came slowly."""
        shortest, longest = _PIECE_SECONDS
        seconds, size = piece.moved - piece.began, piece.end - piece.start
        if seconds < shortest and size >= self._present:
            self._present = min(2 * self._present, self._piece)
        elif seconds > longest and size <= self._present:
            self._present = max(self._present // 2, min(_LEAST, self._piece))

    def _buffer(self) -> memoryview | None:
        if not self._spare and self._buffers:
            self._buffers -= 1
            self._spare.append(memoryview(bytearray(min(self._piece, self.size - self._next))))
        return self._spare.pop() if self._spare else None

    def _share(self, piece: FilePiece, restart: Callable[[], None]) -> FilePiece | None:
        """A new piece with the second half of the missing bytes of `piece`, None where these will come soon enough.

        A dead piece is restarted.
        """
        now = time.monotonic()
        if now - piece.moved > self._retries.dead:
            piece.moved = now
            piece.restart()
        age, left = now - piece.began, piece.end - piece.have
        middle = max(piece.reach, piece.have + left // 2)
        most = self._retries.slow
        slow = age > most and left * age > most * (piece.have - piece.start)
        if not slow or piece.end - middle < self._retries.smallest:
            return None
        rest = FilePiece(middle, piece.end, piece.buffer[middle - piece.start :], piece.base, restart)
        piece.end, piece.base = middle, None
        self._pieces.insert(self._pieces.index(piece) + 1, rest)
        return rest
