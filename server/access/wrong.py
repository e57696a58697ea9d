"""Wrong keys slow the machine down that sends them: each is answered later than the one before, then not at all."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable

# Each wrong key from a machine is answered one step later than the one before it, but never later than the limit.
WRONG_KEY_SECONDS = 0.5
LONGEST_HOLD = 10.0
# After this many within a time, in seconds, a machine's keys are not looked at any more.
MOST_WRONG = 20
WRONG_WITHIN = 60.0
_MOST_MACHINES = 10_000


class WrongKeys:
    """The wrong keys of the last minute, by machine; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sent: dict[str, deque[float]] = {}
        self._due: dict[str, float] = {}

    def blocked(self, peer: str) -> float:
        """Seconds for which the machine's keys are not looked at, 0 where they are."""
        sent = self._sent.get(machine(peer))
        if sent is None or len(sent) < MOST_WRONG:
            return 0.0
        return max(0.0, sent[0] + WRONG_WITHIN - self._clock())

    def note(self, peer: str) -> float:
        """Count a wrong key; the seconds after which it may be answered."""
        name, now = machine(peer), self._clock()
        # The machine that has been quiet for longest is forgotten first.
        sent = self._sent.pop(name, None) or deque(maxlen=MOST_WRONG)
        while len(self._sent) >= _MOST_MACHINES:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            self._due.pop(oldest, None)
        self._sent[name] = sent
        sent.append(now)
        due = max(now, self._due.get(name, 0.0)) + WRONG_KEY_SECONDS
        self._due[name] = min(due, now + LONGEST_HOLD)
        return self._due[name] - now


def machine(peer: str) -> str:
    """The machine of an address: the 64 bits in front of an IPv6 address, which one machine has whole."""
    try:
        address = ipaddress.ip_address(peer.split("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
