"""A command done again and again, for a service: less often while it fails, and never at an exact beat."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NoReturn

from cli import console
from cli.errors import Failure

# Seconds: the first pause after a failure, and the longest one.
_FIRST, _LONGEST = 10.0, 900.0
# A part of a pause: many boxes that began together do not ask together for ever.
_JITTER = 0.2
_USAGE = 2


def repeat(once: Callable[[], int], seconds: float) -> NoReturn:
    """Do `once`, which returns an exit code, with `seconds` between two, until Ctrl-C.

    A Failure is shown, and tried again later. The first time raises one that is of wrong use: nobody has set it right
    before, so nothing comes of trying.
    """
    failures, is_first = 0, True
    while True:
        try:
            failures = 0 if once() == 0 else failures + 1
        except Failure as error:
            if is_first and error.exit_code == _USAGE:
                raise
            console.complain(str(error), error.hint)
            failures += 1
        is_first = False
        pause = pause_after(failures, seconds) * random.uniform(1 - _JITTER, 1 + _JITTER)
        if failures:
            console.note(f"trying again in {pause:,.0f} s")
        time.sleep(pause)


def pause_after(failures: int, seconds: float) -> float:
    """Seconds to wait after N failures in a row: twice as long after each, a quarter of an hour at most."""
    if not failures:
        return seconds
    return min(_LONGEST, max(seconds, _FIRST * 2.0 ** min(failures - 1, 10)))
