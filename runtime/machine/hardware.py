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
from typing import NamedTuple, TypeVar

import psutil

from runtime.child import child_environment
from runtime.machine.control_groups import ControlGroups
from runtime.machine.inspection import EXAMINE_SECONDS, Examine, Examined, Refused, ask

T = TypeVar("T")

log = logging.getLogger("lm.memory")
_PROBE_BYTES = 64 << 20
_PROBE_PASSES = 3
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


class MemoryNow(NamedTuple):
    """Bytes of main memory now: the machine's, as many as control groups allow us, and as many as are available."""

    total: int
    limit: int
    available: int


def memory_now(groups: ControlGroups | None = None) -> MemoryNow:
    """Look at the memory alone, which takes a fraction of a millisecond."""
    memory, group = psutil.virtual_memory(), (groups or ControlGroups()).memory()
    if group is None:
        return MemoryNow(memory.total, memory.total, memory.available)
    return MemoryNow(
        memory.total, min(memory.total, group.limit), min(memory.available, max(0, group.limit - group.used))
    )


def detect(bandwidth: float | None = None) -> Hardware:
    """Look at this machine; `bandwidth` from an earlier call saves the probe."""
    unknown: list[str] = []
    none: tuple[Gpu, ...] = ()
    groups = ControlGroups()
    memory = memory_now(groups)
    cpus = usable_cpus()
    cards = _or_default(llama_cards, none, unknown, "llama.cpp does not say which graphics cards it sees")
    gpus = _or_default(nvidia_gpus, none, unknown, "nvidia-smi does not say which graphics cards there are")
    unknown += groups.unknown
    for sentence in unknown:
        log.warning("%s", sentence)
    return Hardware(
        memory_total=memory.total,
        memory_limit=memory.limit,
        memory_available=memory.available,
        cpus=cpus,
        bandwidth=bandwidth or measure_bandwidth(cpus),
        gpus=gpus,
        gpu_build=has_gpu_build(),
        cards=cards,
        unknown=tuple(unknown),
    )


def _or_default(find: Callable[[], T], default: T, unknown: list[str], sentence: str) -> T:
    """The result of `find`; where it fails, the default, and `sentence` with the error is added to `unknown`."""
    try:
        return find()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        unknown.append(f"{sentence}: {error}")
        return default


# ---- processors


def usable_cpus(
    topology: Path = Path("/sys/devices/system/cpu"), affinity: set[int] | None = None, quota: float | None = None
) -> int:
    """Cores that we may run on: hardware threads of one core count once, and no more than the group's time allows.

    llama.cpp hangs when it has more threads than processors, so affinity binds.
    """
    if affinity is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        quota = ControlGroups().cpu_quota()
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
    answer = ask(Examine(), EXAMINE_SECONDS)
    if not isinstance(answer, Examined):
        raise OSError(answer.reason if isinstance(answer, Refused) else "it answers something else")
    return tuple(
        Gpu(device.name, device.total, device.free, device.shared) for device in answer.devices if device.graphics
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
    cards = []
    for vendor in sorted(drm.glob("card[0-9]/device/vendor")) if compute.exists() else ():
        with contextlib.suppress(OSError):
            if vendor.read_text().strip() == "0x1002":
                cards.append(f"AMD graphics card ({vendor.parts[-3]})")
    return tuple(cards)


def cards_now() -> tuple[Gpu, ...]:
    """The cards whose memory can be asked for without llama.cpp, by NVIDIA's tool and AMD's kernel driver.

    None where nothing says: whoever shows memory shows what is known.
    """
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        return (*nvidia_gpus(), *amd_gpus())
    return amd_gpus()


def amd_gpus(drm: Path = Path("/sys/class/drm")) -> tuple[Gpu, ...]:
    """AMD's cards with their memory, as the kernel's driver counts it (`amdgpu`, `mem_info_vram_*`)."""
    found = []
    for total in sorted(drm.glob("card[0-9]/device/mem_info_vram_total")):
        with contextlib.suppress(OSError, ValueError):
            size, used = int(total.read_text()), int(total.with_name("mem_info_vram_used").read_text())
            found.append(Gpu(f"AMD graphics card ({total.parts[-3]})", size, max(0, size - used)))
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
