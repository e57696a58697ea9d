"""How fast something goes, told now and then."""

from __future__ import annotations

import time
from collections import deque

TELL_SECONDS = 0.1
SECONDS = 5.0


class Pace:
    """Bytes per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._told = 0.0

    def rate(self, completed: int, last: bool) -> float | None:
        """The rate now, or None where it was told just before; `last` is always worth telling."""
        now = time.monotonic()
        if now - self._told < TELL_SECONDS and not last:
            return None
        self._told = now
        self._seen.append((now, completed))
        while now - self._seen[0][0] > SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        return (completed - before) / (now - began) if now > began else 0.0
