"""Leases: blobs that no manifest lists yet, and that stay for a while because something is about to be made of them.

They are kept in memory: a blob that nothing was made of before the daemon ended goes when the store is opened again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from registry.errors import StoreFailed

SECONDS = 3600.0
MOST = 4096


class Leases:
    """The digests of blobs that stay. May be used by several threads."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, digest: str, seconds: float = SECONDS) -> None:
        """Keep a blob for so long from now on. Raises StoreFailed where very many are kept."""
        with self._lock:
            self._prune()
            if len(self._until) >= MOST and digest not in self._until:
                raise StoreFailed(f"{MOST:,} files wait for the models to be made of them", "make those first, or wait")
            self._until[digest] = time.monotonic() + seconds

    def release(self, digests: Collection[str]) -> None:
        """Keep these blobs no longer."""
        with self._lock:
            for digest in digests:
                self._until.pop(digest, None)

    def held(self) -> set[str]:
        """The digests of all blobs that stay now."""
        with self._lock:
            self._prune()
            return set(self._until)

    def _prune(self) -> None:
        now = time.monotonic()
        for digest in [digest for digest, until in self._until.items() if until <= now]:
            del self._until[digest]
