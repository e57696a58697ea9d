"""The process that asks llama.cpp: `python -P -m runtime.machine.inspector`, one question, one answer.

How many bytes does a model take? Its header is loaded with `no_alloc`, and a context made on it as the engine would.
llama.cpp then reserves its graph without allocating anything, and logs the sizes. They come through the log because the
C++ call that returns them is not bound. The speed of types is measured by `runtime/machine/probe.py`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from runtime.child import Parent
from runtime.errors import EngineError
from runtime.machine.inspection import Answer, Device, Examine, Examined, Probe, Question, Refused, Reserve, Reserved

# `enum ggml_backend_dev_type` of ggml-backend.h.
_KINDS = dict(enumerate(("cpu", "gpu", "igpu", "accel", "meta")))


def main() -> int:
    """Answer one question."""
    parent = Parent.connect(sys.argv[1:], Question)
    question: Any = parent.receive()
    try:
        answer = answer_to(question)
    except EngineError as error:
        answer = Refused(str(error))
    parent.send(answer)
    return 0


def answer_to(question: Question) -> Answer:
    """Answer in this process; raises LoadFailed, BadRequest."""
    match question:
        case Reserve():
            return reserve(question)
        case Probe():
            from runtime.machine.probe import probe

            return probe(question)
        case Examine():
            return examine()


def reserve(question: Reserve) -> Reserved:
    """The bytes of a context as the engine makes it."""
    from runtime.llama.context import Context, ContextParams, sequence_count
    from runtime.llama.library import LOG
    from runtime.llama.model import LlamaModel

    model = LlamaModel(Path(question.path), empty=True)
    wanted = question.cache_config
    total = sequence_count(model, wanted.sequences)
    context = Context(model, ContextParams(wanted.context, total, wanted.sequences, 1, wanted.kv_type))
    compute, output = (context.buffers.get(kind, 0) for kind in ("compute", "output"))
    return Reserved(wanted, LOG.cache_bytes, compute, output, _repacks())


def _repacks() -> tuple[str, ...]:
    """Types that are repacked when they are loaded (`repack.cpp` of ggml), by the instructions of the build."""
    from runtime.llama.library import amx_is_broken

    features = examine().features
    if amx_is_broken() or features.get("REPACK") != "1":
        return ()
    types: tuple[str, ...] = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4") if features.get("AVX2") == "1" else ()
    types += ("Q2_K",) if features.get("AVX512") == "1" else ()
    return types + (("Q4_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0") if features.get("DOTPROD") == "1" else ())


def examine() -> Examined:
    """llama.cpp's own description of itself."""
    from runtime.llama.library import amx_is_broken, library

    low = library()
    info = low.llama_print_system_info().decode(errors="replace")
    pairs = (part.rpartition(":")[2].split("=") for part in info.split("|") if "=" in part)
    features = {key.strip(): value.strip() for key, value in pairs}
    return Examined(
        package=importlib.metadata.version("llama-cpp-python"),
        version=low.llama_version().decode(errors="replace"),
        features=features,
        gpu=bool(low.llama_supports_gpu_offload()),
        devices=_devices(low),
        amx_is_broken=amx_is_broken(),
    )


def _devices(low: Any) -> list[Device]:
    lib = low._lib
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes, lib.ggml_backend_dev_get.restype = (ctypes.c_size_t,), ctypes.c_void_p
    lib.ggml_backend_dev_type.argtypes, lib.ggml_backend_dev_type.restype = (ctypes.c_void_p,), ctypes.c_int
    sizes = ctypes.POINTER(ctypes.c_size_t)
    lib.ggml_backend_dev_memory.argtypes, lib.ggml_backend_dev_memory.restype = (ctypes.c_void_p, sizes, sizes), None
    for name in ("name", "description"):
        function = getattr(lib, f"ggml_backend_dev_{name}")
        function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_char_p
    devices = []
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        name, description = (
            (text or b"").decode(errors="replace").strip()
            for text in (lib.ggml_backend_dev_name(device), lib.ggml_backend_dev_description(device))
        )
        kind = _KINDS.get(lib.ggml_backend_dev_type(device), "other")
        devices.append(Device(name, description, kind, free.value, total.value))
    return devices


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # without waiting for llama.cpp to free a model that was never allocated
