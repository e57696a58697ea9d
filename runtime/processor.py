"""The processor as Linux describes it in /proc/cpuinfo: its name, and the instruction sets that it has."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The name of the processor, `AMD EPYC 7763` say; on other systems Python's name for it."""
    names = _values("model name", cpuinfo) or []
    return names[0] if names else platform.processor() or platform.machine()


def instruction_sets(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """The instruction sets by Linux's names (`avx2`, `asimddp`); None where it cannot be read, as on macOS."""
    lines = _values("flags", cpuinfo)
    arm = _values("Features", cpuinfo)
    if lines is None or arm is None:
        return None
    return frozenset(name for line in (*lines, *arm) for name in line.split())


def _values(key: str, cpuinfo: Path) -> list[str] | None:
    """The values of a key, one for each processor that has it; None where the file cannot be read."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]
