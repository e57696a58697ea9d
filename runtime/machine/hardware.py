"""Which hardware may we use? Memory, processors, bandwidth and graphics cards of the machine or the container.

Limits of control groups count (v2 and v1, every level from ours up to the root), swap never does. Processors are
counted once per core: two hardware threads of one core share the units that inference keeps busy. The bandwidth probe
reads memory in C (`memchr`), one thread per processor, for some 50 ms; whoever calls it keeps the result.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from runtime.child import child_environment
from runtime.machine.inspection import Examine, Examined, Refused, ask

T = TypeVar("T")

log = logging.getLogger("lm.memory")
_PROBE_BYTES = 64 << 20
_PROBE_PASSES = 3
# v1 says "no limit" with a number near 2^63, in pages.
_NO_LIMIT = 1 << 60
_EXAMINE_SECONDS = 30.0
_GPU_LIBRARIES = ("cuda", "hip", "vulkan", "metal", "sycl")


@dataclass(frozen=True)
class Gpu:
    """A graphics card, and the bytes of its memory."""

    name: str
    memory_total: int
    memory_free: int
    shared: bool = False
    """Whether its memory is the machine's own (Apple, integrated cards)."""


@dataclass(frozen=True)
class Hardware:
    """The hardware that we may use: memory in bytes, `bandwidth` in bytes per second, `cpus` in cores.

    `memory_limit` is the machine's memory, or the smallest limit of a control group that we are in.
    """

    memory_total: int
    memory_limit: int
    memory_available: int
    cpus: int
    bandwidth: float
    gpus: tuple[Gpu, ...] = ()
    gpu_build: bool = False
    """Whether the installed llama.cpp can use a graphics card at all."""
    cards: tuple[Gpu, ...] = ()
    """The cards that it can use, with the memory that is free on them now."""
    unknown: tuple[str, ...] = ()
    """Sentences about whatever could not be found out: it counts as absent, and somebody should be told."""

    @property
    def reserve(self) -> int:
        """Bytes left to everything else: a tenth of the limit, but at least 1 GiB, or a quarter where that is less."""
        tenth = self.memory_limit // 10
        return max(tenth, min(1 << 30, self.memory_limit // 4))

    @property
    def budget(self) -> int:
        """Bytes that all models together may use."""
        return self.memory_limit - self.reserve


def detect(bandwidth: float | None = None) -> Hardware:
    """Look at this machine; `bandwidth` from an earlier call saves the probe."""
    memory = psutil.virtual_memory()
    unknown: list[str] = []
    none: tuple[Gpu, ...] = ()
    group = _known(memory_group, None, unknown, "the memory limits of control groups cannot be read")
    limit = min(memory.total, group.limit) if group else memory.total
    available = min(memory.available, max(0, group.limit - group.used)) if group else memory.available
    cpus = usable_cpus()
    cards = _known(llama_cards, none, unknown, "llama.cpp does not say which graphics cards it sees")
    gpus = _known(nvidia_gpus, none, unknown, "nvidia-smi does not say which graphics cards there are")
    for sentence in unknown:
        log.warning("%s", sentence)
    return Hardware(
        memory_total=memory.total,
        memory_limit=limit,
        memory_available=available,
        cpus=cpus,
        bandwidth=bandwidth or measure_bandwidth(cpus),
        gpus=gpus,
        gpu_build=has_gpu_build(),
        cards=cards,
        unknown=tuple(unknown),
    )


def _known(find: Callable[[], T], default: T, unknown: list[str], sentence: str) -> T:
    """The answer of `find`, or the default, and then a word to `unknown`."""
    try:
        return find()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        unknown.append(f"{sentence}: {error}")
        return default


# ---- control groups


@dataclass(frozen=True)
class MemoryGroup:
    """The tightest memory limit of the groups that we are in, and the bytes in use (cached files not counted)."""

    limit: int
    used: int


def memory_group(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> MemoryGroup | None:
    """The limit that binds, of version 2 or 1, or None where there is none.

    Raises OSError or ValueError when the kernel's files are there and cannot be read: nobody knows the limit then.
    """
    found = []
    for folder, names in _folders(root, own, "memory"):
        limit = _number(folder / names[0])
        if limit is None or limit >= _NO_LIMIT:
            continue
        cached = _stat(folder / "memory.stat", "inactive_file") + _stat(folder / "memory.stat", "active_file")
        used = max(0, (_number(folder / names[1]) or 0) - cached)
        found.append(MemoryGroup(limit, used))
    return min(found, key=lambda group: group.limit - group.used, default=None)


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """How many processors' worth of time our groups allow, None where they set no limit. Raises as `memory_group`."""
    quotas = []
    for folder, _ in _folders(root, own, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _quota(folder: Path) -> tuple[int, int]:
    """Quota and period in microseconds; the quota is 0 where there is none."""
    if (text := _text(folder / "cpu.max")) is not None:
        quota, period = text.split()
        return (0 if quota == "max" else int(quota)), int(period)
    return _number(folder / "cpu.cfs_quota_us") or 0, _number(folder / "cpu.cfs_period_us") or 0


def _folders(root: Path, own: Path, controller: str) -> list[tuple[Path, tuple[str, str]]]:
    """Our group's folders, from the innermost to the root, with the names of the memory files there.

    In a container the path in `own` is often the host's, and does not exist here: then the root is ours.
    """
    folders: list[tuple[Path, tuple[str, str]]] = []
    for line in (_text(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current")
            base = root / "unified" if (root / "unified").is_dir() else root
        elif controller in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            base = root / controllers if (root / controllers).is_dir() else root / controller
        else:
            continue
        inner = Path(path.lstrip("/"))
        folders += [(base / level, names) for level in (inner, *inner.parents) if (base / level).is_dir()]
    return folders


def _text(path: Path) -> str | None:
    """The content of a file of the kernel, None only where there is no such file."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or it says that there is no limit."""
    text = _text(path)
    return None if text is None or text.strip() == "max" else int(text)


def _stat(path: Path, key: str) -> int:
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return next((int(pair[1]) for pair in pairs if pair[:1] == [key]), 0)


# ---- processors


def usable_cpus(
    topology: Path = Path("/sys/devices/system/cpu"), affinity: set[int] | None = None, quota: float | None = None
) -> int:
    """Cores that we may run on: hardware threads of one core count once, and no more than the group's time allows.

    llama.cpp hangs when it has more threads than processors, so affinity binds.
    """
    if affinity is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        with contextlib.suppress(OSError, ValueError):  # without it threads wait for their turn: slow, no more
            quota = cpu_quota()
    cores = {_core(topology, cpu) for cpu in affinity}
    if sys.platform == "darwin":
        cores = set(list(cores)[: psutil.cpu_count(logical=False) or len(cores)])
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def _core(topology: Path, cpu: int) -> str:
    with contextlib.suppress(OSError):
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    return str(cpu)


# ---- memory bandwidth


def measure_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory together, the best of a few passes."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    buffers = [ctypes.create_string_buffer(_PROBE_BYTES) for _ in range(threads)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, _PROBE_BYTES)  # untouched pages would all be one page of zeros

    def read(buffer: ctypes.Array[ctypes.c_char]) -> None:
        memchr(buffer, 2, _PROBE_BYTES)

    best = 0.0
    for _ in range(_PROBE_PASSES):
        workers = [threading.Thread(target=read, args=(buffer,)) for buffer in buffers]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, threads * _PROBE_BYTES / (time.perf_counter() - start))
    return best


# ---- graphics cards


def llama_cards() -> tuple[Gpu, ...]:
    """The cards that llama.cpp sees, with the memory that is free on them; none where it was built without any.

    Asks llama.cpp in a child process; raises OSError when that cannot be asked.
    """
    if not has_gpu_build():
        return ()
    answer = ask(Examine(), _EXAMINE_SECONDS)
    if not isinstance(answer, Examined):
        raise OSError(answer.reason if isinstance(answer, Refused) else "it answers something else")
    kinds = ("gpu", "igpu")
    return tuple(
        Gpu(device.name, device.total, device.free, device.shared) for device in answer.devices if device.kind in kinds
    )


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA cards that the driver shows; none where its tool `nvidia-smi` is not installed.

    Raises OSError, SubprocessError or ValueError when the tool does not answer, or answers something else.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    text = subprocess.run(
        command, capture_output=True, text=True, timeout=5, check=True, env=child_environment()
    ).stdout
    rows = ([part.strip() for part in line.rsplit(",", 2)] for line in text.splitlines())
    return tuple(Gpu(name, int(total) << 20, int(free) << 20) for name, total, free in rows)


def amd_cards(drm: Path = Path("/sys/class/drm"), compute: Path = Path("/dev/kfd")) -> tuple[str, ...]:
    """AMD's cards that programs can compute on, by the kernel's names."""
    found = []
    for vendor in sorted(drm.glob("card[0-9]/device/vendor")) if compute.exists() else ():
        with contextlib.suppress(OSError):
            if vendor.read_text().strip() == "0x1002":
                found.append(f"AMD graphics card ({vendor.parts[-3]})")
    return tuple(found)


def has_gpu_build() -> bool:
    """Whether a graphics backend lies beside the installed llama.cpp (looked up, not loaded)."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = spec.submodule_search_locations if spec else None
    return any(
        any(f"ggml-{name}" in file.name for name in _GPU_LIBRARIES)
        for folder in folders or ()
        for file in (Path(folder) / "lib").glob("*ggml-*")
    )
