"""Limits of control groups and processors, on folders laid out as kernels do; and this machine against psutil."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from runtime.machine.control_groups import ControlGroups, MemoryGroup
from runtime.machine.hardware import detect, measure_bandwidth, usable_cpus

GIB = 1 << 30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


def test_version_2_the_tightest_level_binds(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "cg",
        {
            "a/memory.max": f"{8 * GIB}\n",
            "a/memory.current": f"{3 * GIB}\n",
            "a/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n",
            "a/b/memory.max": "max\n",
            "a/b/memory.current": f"{GIB}\n",
            "a/b/cpu.max": "150000 100000\n",
            "a/cpu.max": "max 100000\n",
        },
    )
    mine = own(tmp_path, "0::/a/b\n")
    assert ControlGroups(root, mine).memory() == MemoryGroup(8 * GIB, GIB)
    assert ControlGroups(root, mine).cpu_quota() == 1.5


def test_version_1_by_controller_and_no_limit(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "cg",
        {
            "memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory/job/memory.usage_in_bytes": f"{GIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": f"{9 * GIB}\n",
            "cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
    )
    mine = own(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job\n2:cpuset:/\n")
    assert ControlGroups(root, mine).memory() == MemoryGroup(2 * GIB, GIB)
    assert ControlGroups(root, mine).cpu_quota() == 0.5


def test_in_a_container_the_root_is_ours(tmp_path: Path) -> None:
    root = lay(tmp_path / "cg", {"memory.max": f"{GIB}\n", "memory.current": "5\n", "cpu.max": "max 100000\n"})
    mine = own(tmp_path, "0::/system.slice/docker-0123.scope\n")
    assert ControlGroups(root, mine).memory() == MemoryGroup(GIB, 5)
    assert ControlGroups(root, mine).cpu_quota() is None


@pytest.mark.parametrize("text", ["", "0::/\n", None])
def test_no_groups_no_limit(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "cg").mkdir()
    mine = tmp_path / "none" if text is None else own(tmp_path, text)
    assert ControlGroups(tmp_path / "cg", mine).memory() is None
    assert ControlGroups(tmp_path / "cg", mine).cpu_quota() is None


def test_a_limit_that_cannot_be_read_is_told_and_the_others_count(tmp_path: Path) -> None:
    files = {"memory.max": "rubbish\n", "a/memory.max": f"{GIB}\n", "a/memory.current/x": "", "a/b/cpu.max": "1\n"}
    groups = ControlGroups(lay(tmp_path / "cg", files), own(tmp_path, "0::/a/b\n"))
    assert groups.memory() == MemoryGroup(GIB, 0)
    assert groups.cpu_quota() is None
    told = [sentence.removeprefix(f"{tmp_path}/cg/").partition(" ")[0] for sentence in groups.unknown]
    assert told == ["a/memory.current", "memory.max", "a/b/cpu.max"]


def test_a_list_of_groups_that_makes_no_sense_is_told(tmp_path: Path) -> None:
    groups = ControlGroups(tmp_path, own(tmp_path, "rubbish"))
    assert groups.memory() is None
    assert "not a list of groups" in groups.unknown[0]


def test_a_machine_says_what_it_could_not_find_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (sentence,) = detect(bandwidth=1e10).unknown
    assert sentence.startswith("nvidia-smi does not say which graphics cards there are: ")


def test_threads_of_one_core_count_once_and_the_quota_binds(tmp_path: Path) -> None:
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2"}
    lay(tmp_path, {f"cpu{n}/topology/thread_siblings_list": f"{text}\n" for n, text in siblings.items()})
    assert usable_cpus(tmp_path, {0, 1, 2, 4, 5}) == 3
    assert usable_cpus(tmp_path, {0, 4}) == 1
    assert usable_cpus(tmp_path, {0, 1, 2}, quota=2.9) == 2
    assert usable_cpus(tmp_path, {0, 1}, quota=0.5) == 1
    assert usable_cpus(tmp_path / "absent", {0, 1}) == 2


def test_this_machine() -> None:
    hardware = detect(bandwidth=1e10)
    assert hardware.memory_limit <= hardware.memory_total == psutil.virtual_memory().total
    assert 0 < hardware.memory_available <= hardware.memory_limit
    assert hardware.reserve >= hardware.memory_limit // 10
    assert hardware.budget + hardware.reserve == hardware.memory_limit
    assert 1 <= hardware.cpus <= (psutil.cpu_count() or 1)
    assert 5e8 < measure_bandwidth(1) < 2e12
