"""`python -P -m server.doctor`: looks at the machine, llama.cpp and the home, and prints what it finds as JSON.

A process of its own, so that `lm doctor` works where the daemon does not start; llama.cpp is loaded in another one
(`runtime/machine/inspector.py`), so that a build that crashes is a finding too. It connects to nothing but the daemon's
address.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
from collections.abc import Iterator

import psutil

from runtime.machine.advise import size
from runtime.machine.hardware import Hardware, amd_gpus, detect
from runtime.machine.inspection import Examine, Examined, Refused, ask
from runtime.machine.rates import Rates
from runtime.processor import instruction_sets, processor_name
from server.config import BadSetting, Config
from server.doctor.owner import who_listens

OK, WARN, FAIL = "ok", "warn", "fail"
EXAMINE_SECONDS = 30.0
LITTLE_MEMORY, NO_MEMORY = 2_000_000_000, 500_000_000
LITTLE_DISK, NO_DISK = 10_000_000_000, 1_000_000_000
# What Linux calls an instruction set, and what llama.cpp calls it, where a build without it is much slower.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}
_REBUILD = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"
_WITHOUT_AMX = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"'
)

Finding = tuple[str, str, str, str]
"""Name of the check, `ok`, `warn` or `fail`, what was found, and what to do about it."""


def main() -> int:
    """Print the findings; the exit status is 1 where one is a failure."""
    try:
        config = Config.load()
    except BadSetting as error:
        findings: list[Finding] = [("settings", FAIL, str(error), error.hint)]
    else:
        findings = list(examine(config))
    keys = ("check", "state", "found", "hint")
    print(json.dumps([dict(zip(keys, finding, strict=True)) for finding in findings]))
    return int(any(state == FAIL for _, state, _, _ in findings))


def examine(config: Config) -> Iterator[Finding]:
    """Every finding, in the order in which they matter to each other."""
    hardware = detect()
    yield _memory(hardware)
    yield _disk(config)
    yield _home(config)
    yield _processor(hardware)
    engine = ask(Examine(), EXAMINE_SECONDS)
    if isinstance(engine, Examined):
        yield ("llama.cpp", OK, f"llama-cpp-python {engine.package}, llama.cpp {engine.version}", "")
        yield _instructions(engine)
        yield _amx(engine)
    else:
        yield ("llama.cpp", FAIL, engine.reason if isinstance(engine, Refused) else "it cannot be asked", _REBUILD)
    yield _graphics(hardware, engine if isinstance(engine, Examined) else None)
    yield _speed(config, hardware)
    yield _daemon(config)


def _memory(hardware: Hardware) -> Finding:
    found = f"models may use {size(hardware.budget)} of {size(hardware.memory_total)}"
    if hardware.memory_limit < hardware.memory_total:
        found += f"; a control group allows {size(hardware.memory_limit)}"
    found += f"; {size(hardware.memory_available)} are free now"
    if psutil.swap_memory().total:
        found += "; swap is not counted"
    if hardware.budget < NO_MEMORY:
        return ("memory", FAIL, found, "give the machine or the container more memory")
    hint = "small models only: see `lm fit NAME`"
    return ("memory", WARN, found, hint) if hardware.budget < LITTLE_MEMORY else ("memory", OK, found, "")


def _disk(config: Config) -> Finding:
    folder = next(path for path in (config.store, *config.store.parents) if path.exists())
    free = psutil.disk_usage(str(folder)).free
    found = f"{size(free)} free for models in {config.store}"
    hint = "make room, or set LM_HOME to a folder on a larger disk"
    if free < NO_DISK:
        return ("disk", FAIL, found, hint)
    return ("disk", WARN, found, hint) if free < LITTLE_DISK else ("disk", OK, found, "")


def _home(config: Config) -> Finding:
    folder = next(path for path in (config.home, *config.home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return ("home", FAIL, f"{folder} cannot be written: {error.strerror}", "set LM_HOME to a folder of your own")
    if config.home.exists() and config.home.stat().st_mode & 0o022:
        return ("home", WARN, f"others may write to {config.home}", f"chmod go-w {config.home}")
    return ("home", OK, str(config.home), "")


def _processor(hardware: Hardware) -> Finding:
    threads = psutil.cpu_count() or hardware.cpus
    cores = f"{hardware.cpus} core{'s' if hardware.cpus > 1 else ''}"
    found = f"{processor_name()}: {cores} used of {threads} processors"
    if hardware.cpus == 1 and threads > 1:
        return ("processor", WARN, found, "affinity or a control group holds lm to one core")
    return ("processor", OK, f"{found}, memory reads {size(int(hardware.bandwidth))}/s", "")


def _instructions(engine: Examined) -> Finding:
    present = instruction_sets() or frozenset()
    missing = [ours for linux, ours in _INSTRUCTIONS.items() if linux in present and engine.features.get(ours) != "1"]
    if missing:
        found = f"this processor has {', '.join(missing)}, and llama.cpp was built without"
        return ("instructions", WARN, found, f"compile it on this machine: {_REBUILD}")
    used = [ours for ours in _INSTRUCTIONS.values() if engine.features.get(ours) == "1"]
    return ("instructions", OK, ", ".join(used) or "none that matter", "")


def _amx(engine: Examined) -> Finding:
    if engine.amx_is_broken:
        found = "llama.cpp's AMX kernels crash on this processor, so weights are not repacked: prompts are read slower"
        return ("AMX", WARN, found, f"build without them: {_WITHOUT_AMX} {_REBUILD}")
    return ("AMX", OK, "not in the way", "")


def _graphics(hardware: Hardware, engine: Examined | None) -> Finding:
    """What cards there are, as the drivers say, against those that llama.cpp can use."""
    cards = [f"{gpu.name} ({size(gpu.memory_free)} of {size(gpu.memory_total)} free)" for gpu in hardware.gpus]
    cards += amd_gpus()
    used = [
        f"{device.name} ({device.what}), {size(device.free)} of {size(device.total)} free"
        + (", in main memory" if device.shared else "")
        for device in (engine.devices if engine else ())
        if device.kind in ("gpu", "igpu")
    ]
    if used:
        return ("graphics", OK, "; ".join(used), "")
    able = engine.gpu if engine else hardware.gpu_build
    if not cards:
        return ("graphics", OK, "no graphics card" + (", though llama.cpp could use one" if able else ""), "")
    if able:
        found = f"{', '.join(cards)}: there, and llama.cpp, though built for cards, finds none"
        return ("graphics", WARN, found, "is the driver as new as the build? For NVIDIA, `nvidia-smi` must work")
    kind = "cuda" if hardware.gpus else "hip"
    flag = "-DGGML_CUDA=on" if kind == "cuda" else "-DGGML_HIP=on"
    found = f"{', '.join(cards)}: there, and llama.cpp was built for the processor alone"
    return ("graphics", WARN, found, f'build it for the card: CMAKE_ARGS="{flag}" {_REBUILD}')


def _speed(config: Config, hardware: Hardware) -> Finding:
    known = Rates(config.cache, hardware.cpus).known()
    if known is None:
        return ("speed", OK, "not measured yet: the first large model has it measured", "")
    named = [f"{name} {size(int(known.rates[name]))}/s" for name in ("Q8_0", "Q4_K", "Q2_K") if name in known.rates]
    found = "weights are read at " + ", ".join(named)
    return ("speed", OK, found + ("" if known.steady else "; measured while the machine was busy, to be redone"), "")


def _daemon(config: Config) -> Finding:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(config.daemon_file.read_bytes())
        if psutil.pid_exists(int(known["pid"])):
            return ("daemon", OK, f"lm {known['version']} on {known['url']}, process {known['pid']}", "")
    host = config.url.removeprefix("http://").rpartition(":")[0].strip("[]")
    try:
        socket.create_connection((host, config.port), timeout=1).close()
    except OSError:
        return ("daemon", OK, "does not run; any command starts it", "")
    found = f"{config.url} is taken by {who_listens(config)}"
    return ("daemon", FAIL, found, "end that program, or set LM_PORT to another port")


if __name__ == "__main__":
    sys.exit(main())
