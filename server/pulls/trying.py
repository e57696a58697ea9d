"""How often a pull that nobody waits for is tried: after trouble that may pass, again and again; else not."""

from __future__ import annotations

from registry.errors import DiskFull, SourceUnavailable
from server.errors import ServerError

# Trouble of the network and of the disk, and a process that was killed.
_PASSING = frozenset({SourceUnavailable.code, DiskFull.code, ServerError.code})
# Seconds before each further try: five hours in all.
PAUSES = (60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 3600.0, 3600.0, 3600.0)


def pause_after(error: Exception, tries: int) -> float | None:
    """Seconds to wait after `tries` earlier failures and this one; None where another try would be of no use."""
    passing = getattr(error, "code", "") in _PASSING
    return PAUSES[tries] if passing and tries < len(PAUSES) else None
