"""The rate of a transfer, measured over its last seconds, at most a few times a second."""

from __future__ import annotations

import time
from collections import deque

REPORT_SECONDS = 0.1
WINDOW_SECONDS = 5.0


class Throughput:
    """Bytes per second over the last `WINDOW_SECONDS`."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._reported = 0.0

    def rate(self, completed: int, last: bool) -> float | None:
        """Note that `completed` bytes are done; the rate in bytes/s, or None within `REPORT_SECONDS` of the last one.

        The `last` call always gets a rate.
        """
        now = time.monotonic()
        if now - self._reported < REPORT_SECONDS and not last:
            return None
        self._reported = now
        self._samples.append((now, completed))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        began, before = self._samples[0]
        return (completed - before) / (now - began) if now > began else 0.0
