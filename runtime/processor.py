"""The processor as Linux describes it in /proc/cpuinfo: its name, and the instruction sets that it has."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that llama.cpp is compiled for: Linux's name, and llama.cpp's.
INSTRUCTIONS = {
    "ssse3": "SSSE3",
    "avx": "AVX",
    "avx2": "AVX2",
    "bmi2": "BMI2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
}
FOREIGN = "llama.cpp was compiled for another processor and met an instruction that this one lacks (SIGILL)"


def lacking(features: Mapping[str, str], present: frozenset[str] | None) -> list[str]:
    """The instruction sets, by llama.cpp's names, that it was compiled for (`features`) and this processor lacks.

    None are known to lack where it is not known which are `present`.
    """
    if present is None:
        return []
    return [name for linux, name in INSTRUCTIONS.items() if features.get(name) == "1" and linux not in present]


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
