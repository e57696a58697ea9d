"""The judgement of `lm doctor`: a finding says whether something is well, and what to do where it is not."""

from __future__ import annotations

from runtime.llama.library import PACKAGE_VERSION
from runtime.machine.hardware import Hardware
from runtime.machine.inspection import Examined, Probed, Refused
from runtime.processor import INSTRUCTIONS
from runtime.units import size_text
from server.config import Config
from server.doctor.frames import FAIL, OK, WARN, Finding
from server.doctor.observations import Address, Home, Observations
from server.settings import BadSetting

LITTLE_MEMORY, NO_MEMORY = 2_000_000_000, 500_000_000
LITTLE_DISK, NO_DISK = 10_000_000_000, 1_000_000_000
# Instruction sets without which llama.cpp is much slower.
_FAST = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "asimddp", "i8mm")
_INSTRUCTIONS = {linux: INSTRUCTIONS[linux] for linux in _FAST}
_REBUILD = (
    f"pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python=={PACKAGE_VERSION}"
)
_WITHOUT_AMX = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"'
)


def unreadable(error: BadSetting) -> Finding:
    """The finding that settings cannot be read, in the place of all others."""
    return Finding("settings", FAIL, str(error), error.hint)


def examine(config: Config, observations: Observations) -> list[Finding]:
    """Every finding, in the order in which they matter to each other."""
    return [
        _memory(observations.hardware, observations.swap),
        _disk(config, observations.disk_free),
        _home(config, observations.home),
        *([Finding("store", FAIL, str(error), error.hint)] if (error := observations.store_error) else []),
        _processor(observations),
        *(
            Finding("machine", WARN, sentence, "lm goes on as if there were none")
            for sentence in observations.hardware.unknown
        ),
        *_llama(observations.llama, observations.instructions),
        _graphics(observations),
        _speed(observations.rates),
        _daemon(config, observations.address),
    ]


def _memory(hardware: Hardware, swap: bool) -> Finding:
    found = f"models may use {size_text(hardware.budget)} of {size_text(hardware.memory_total)}"
    if hardware.memory_limit < hardware.memory_total:
        found += f"; a control group allows {size_text(hardware.memory_limit)}"
    found += f"; {size_text(hardware.memory_available)} are free now"
    if swap:
        found += "; swap is not counted"
    if hardware.budget < NO_MEMORY:
        return Finding("memory", FAIL, found, "give the machine or the container more memory")
    if hardware.budget < LITTLE_MEMORY:
        return Finding("memory", WARN, found, "small models only: see `lm fit NAME`")
    return Finding("memory", OK, found)


def _disk(config: Config, free: int | None) -> Finding:
    hint = "make room, or set LM_HOME to a folder on a larger disk"
    if free is None:
        return Finding("disk", WARN, f"the disk of {config.store} does not say how much is free", hint)
    found = f"{size_text(free)} free for models in {config.store}"
    if free < NO_DISK:
        return Finding("disk", FAIL, found, hint)
    return Finding("disk", WARN, found, hint) if free < LITTLE_DISK else Finding("disk", OK, found)


def _home(config: Config, home: Home) -> Finding:
    if home.error:
        hint = "set LM_HOME to a folder of your own"
        return Finding("home", FAIL, f"{home.folder} cannot be written: {home.error}", hint)
    if home.writable_by_others:
        return Finding("home", WARN, f"others may write to {config.home}", f"chmod go-w {config.home}")
    return Finding("home", OK, str(config.home))


def _processor(observations: Observations) -> Finding:
    hardware = observations.hardware
    cores = f"{hardware.cpus} core{'s' if hardware.cpus > 1 else ''}"
    found = f"{observations.processor}: {cores} used of {observations.hardware_threads} processors"
    if hardware.cpus == 1 and observations.hardware_threads > 1:
        return Finding("processor", WARN, found, "affinity or a control group holds lm to one core")
    return Finding("processor", OK, f"{found}, memory reads {size_text(int(hardware.bandwidth))}/s")


def _llama(llama: Examined | Refused, instructions: frozenset[str] | None) -> list[Finding]:
    if isinstance(llama, Refused):
        return [Finding("llama.cpp", FAIL, llama.reason, _REBUILD)]
    version = f"llama-cpp-python {llama.package}, llama.cpp {llama.version}"
    return [Finding("llama.cpp", OK, version), _instructions(llama, instructions), _amx(llama)]


def _instructions(llama: Examined, present: frozenset[str] | None) -> Finding:
    built = {name for name in _INSTRUCTIONS.values() if llama.features.get(name) == "1"}
    missing = [name for linux, name in _INSTRUCTIONS.items() if linux in (present or ()) and name not in built]
    if missing:
        found = f"this processor has {', '.join(missing)}, and llama.cpp was built without"
        return Finding("instructions", WARN, found, f"compile it on this machine: {_REBUILD}")
    used = ", ".join(name for name in _INSTRUCTIONS.values() if name in built) or "none that matter"
    unknown = "; which this processor has cannot be found out" if present is None else ""
    return Finding("instructions", OK, used + unknown)


def _amx(llama: Examined) -> Finding:
    if llama.amx_is_broken:
        found = "llama.cpp's AMX kernels crash on this processor, so weights are not repacked: prompts are read slower"
        return Finding("AMX", WARN, found, f"build without them: {_WITHOUT_AMX} {_REBUILD}")
    return Finding("AMX", OK, "no kernels that crash")


def _graphics(observations: Observations) -> Finding:
    """The cards by the drivers' word against the cards that llama.cpp can use."""
    hardware, llama = observations.hardware, observations.llama if isinstance(observations.llama, Examined) else None
    cards = [
        f"{gpu.name} ({size_text(gpu.memory_free)} of {size_text(gpu.memory_total)} free)" for gpu in hardware.gpus
    ]
    cards += observations.amd_cards
    used = [
        f"{device.name} ({device.description}), {size_text(device.free)} of {size_text(device.total)} free"
        + (", in main memory" if device.shared else "")
        for device in (llama.devices if llama else ())
        if device.graphics
    ]
    if used:
        return Finding("graphics", OK, "; ".join(used))
    able = llama.gpu if llama else hardware.gpu_build
    if not cards:
        return Finding("graphics", OK, "no graphics card" + (", though llama.cpp could use one" if able else ""))
    if able:
        found = f"{', '.join(cards)}: there, and llama.cpp, though built for cards, finds none"
        return Finding("graphics", WARN, found, "is the driver as new as the build? For NVIDIA, `nvidia-smi` must work")
    flag = "-DGGML_CUDA=on" if hardware.gpus else "-DGGML_HIP=on"
    found = f"{', '.join(cards)}: there, and llama.cpp was built for the processor alone"
    return Finding("graphics", WARN, found, f'build it for the card: CMAKE_ARGS="{flag}" {_REBUILD}')


def _speed(probed: Probed | None) -> Finding:
    if probed is None:
        return Finding("speed", OK, "not measured yet: the first large model has it measured")
    rates = [
        f"{name} {size_text(int(probed.rates[name]))}/s" for name in ("Q8_0", "Q4_K", "Q2_K") if name in probed.rates
    ]
    busy = "" if probed.steady else "; measured while the machine was busy, to be redone"
    return Finding("speed", OK, f"weights are read at {', '.join(rates)}{busy}")


def _daemon(config: Config, address: Address) -> Finding:
    if address.daemon:
        return Finding("daemon", OK, address.daemon)
    if address.silent:
        found = f"{config.url} does not answer: {address.silent}"
        return Finding("daemon", WARN, found, "start it there with `lm serve`, or change LM_HOST")
    if not address.other:
        return Finding("daemon", OK, "does not run; any command starts it")
    found = f"{config.url} is taken by {address.other}"
    return Finding("daemon", FAIL, found, "end that program, or set LM_PORT to another port")
