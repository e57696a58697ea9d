"""Dates in objects, as OpenAI's clients read them."""

from __future__ import annotations

import time


def now() -> int:
    """The date, in seconds since 1970."""
    return int(time.time())
