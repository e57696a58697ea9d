"""The processor's name and instruction sets, from files as x86 and ARM have them, and where there is none."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from runtime.processor import instruction_sets, lacking, processor_name

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu avx2 fma\n\n" * 2
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nvmx flags\t: none\n"


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (X86, "AMD EPYC 7763 64-Core Processor", {"fpu", "avx2", "fma"}),
        (ARM, platform.processor() or platform.machine(), {"fp", "asimd", "asimddp"}),
    ],
)
def test_the_processor_by_its_file(tmp_path: Path, text: str, name: str, instructions: set[str]) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert processor_name(cpuinfo) == name
    assert instruction_sets(cpuinfo) == instructions


def test_an_unreadable_file_is_not_a_processor_without_instructions(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path / "none") is None
    assert processor_name(tmp_path / "none")


@pytest.mark.parametrize(
    ("features", "present", "missing"),
    [
        ({"AVX2": "1", "AVX512": "1"}, {"avx2", "fma"}, ["AVX512"]),
        ({"AVX2": "1"}, {"avx2", "avx512f"}, []),
        ({"ARM_FMA": "1", "DOTPROD": "1"}, {"asimd"}, ["DOTPROD"]),
        ({"AVX512": "1"}, None, []),
    ],
    ids=range(4),
)
def test_a_library_for_another_processor_is_known_before_it_runs(
    features: dict[str, str], present: set[str] | None, missing: list[str]
) -> None:
    assert lacking(features, None if present is None else frozenset(present)) == missing
