"""Huge pages on the real kernel: memory becomes huge pages, its contents stay, and the process takes no more of it."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from runtime.engine.huge_pages import HugePages

SMAPS = Path("/proc/self/smaps_rollup")
MEGABYTES = 64


def held(kind: str) -> int:
    found = re.search(rf"{kind}: +(\d+) kB", SMAPS.read_text())
    assert found
    return int(found[1]) >> 10


@pytest.mark.skipif(not SMAPS.exists(), reason="Linux only")
def test_memory_in_use_becomes_huge_pages() -> None:
    pages = HugePages()
    with mmap.mmap(-1, 2 * MEGABYTES << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, MEGABYTES << 20, 4096):
            memory[start : start + 8] = start.to_bytes(8, "little")  # the second half is never touched
        large, resident = held("AnonHugePages"), held("Rss")
        while pages.collapse_next():
            pass
        if held("AnonHugePages") == large:
            pytest.skip("this machine has no huge pages, or its kernel cannot collapse pages")
        assert held("AnonHugePages") >= min(large + MEGABYTES, resident) - 4
        assert held("Rss") <= resident + 4
        for start in range(0, MEGABYTES << 20, 4096):
            assert memory[start : start + 8] == start.to_bytes(8, "little")
