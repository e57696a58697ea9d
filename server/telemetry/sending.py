"""Sends samples of the metrics to a collector, by OTLP over HTTP with JSON; acknowledged ones are never sent again.

The ring is what waits. A sample that leaves it before it was acknowledged is counted as missing, by its number. Where
an answer is lost, samples go once more, with the times that they have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.collector import Collector, only_sender, read_sent, write_sent
from server.config import Config
from server.telemetry.otlp import request_of
from server.telemetry.ring import samples_behind

COMMAND = "lm metrics push"
_LOCK = "sent.lock"
# The bytes of samples in one request, but for the last one.
MOST_BYTES = 1 << 20


@dataclass
class Samples:
    """One push: the samples sent now, the number of the last one that the collector has, how many are gone unsent."""

    sent: int = 0
    last: int = 0
    missing: int = 0


def send(config: Config, url: str, token: str = "") -> Samples:
    """Send all samples behind the last one that the collector at `url` acknowledged; `token` is a bearer.

    Raises Offline, SourceUnavailable, AccessDenied, SentUnknown; what was acknowledged until then stays so. Raises
    OSError where the ring, or the file of numbers that were sent, cannot be used.
    """
    folder = config.metrics_folder
    with (
        contextlib.closing(Collector(config, url, token, "samples")) as collector,
        only_sender(folder / _LOCK, COMMAND),
    ):
        notes = read_sent(folder, int)
        samples = Samples(last=notes.get(url, 0))
        for lines, last in _requests(folder, samples):
            later = f"those that wait stay until there are newer ones for `metrics_mib`; `{COMMAND}` goes on"
            collector.post(request_of(lines), "application/json", later)
            samples.missing += last - samples.last - len(lines)
            samples.sent += len(lines)
            notes[url] = samples.last = last
            write_sent(folder, notes)
    return samples


def _requests(folder: Path, samples: Samples) -> Iterator[tuple[list[bytes], int]]:
    """The lines of each request, with the number of the last one; what is no JSON is left out, and so missing."""
    lines, size, last = list[bytes](), 0, samples.last
    for number, line in samples_behind(folder, samples.last):
        if not _is_json(line):
            continue
        if size >= MOST_BYTES:
            yield lines, last
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        last = number
    if lines:
        yield lines, last


def _is_json(line: bytes) -> bool:
    """Whether a line is an object: a power cut may leave other bytes."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
