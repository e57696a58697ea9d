"""The process that asks llama.cpp: `python -P -m runtime.machine.inspector`, one question, one answer.

How many bytes does a model take? Its header is loaded with `no_alloc`, and a context made on it as the engine would.
llama.cpp then reserves its graph without allocating anything, and logs the sizes. They come through the log because the
C++ call that returns them is not bound. The speed of types is measured by `runtime/machine/probe.py`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runtime.child import Parent
from runtime.confinement import cards_here, confine
from runtime.errors import EngineError, LoadFailed
from runtime.machine.inspection import (
    NO_DRAFTS,
    Answer,
    Device,
    DraftMeans,
    Examine,
    Examined,
    Probe,
    Question,
    Refused,
    Reserve,
    Reserved,
    Try,
)
from runtime.messages import CacheConfig

if TYPE_CHECKING:
    from runtime.llama.model import LlamaModel

# Reasons of llama.cpp that say nothing about the model.
_SHORT_OF_MEMORY = re.compile("alloc|insufficient memory|out of memory", re.IGNORECASE)
# Parts of them that name the step and say nothing of the cause.
_WHERE = re.compile(r"(error loading model( \w+)?|failed to initialize the context|check_tensor_dims|\w+_tensors): ")
# Its reason where the file has tensors that it did not look for.
_TOO_MANY = "wrong number of tensors"
# A cache that every model can have.
_PLAIN = CacheConfig(512, 1)
# `enum ggml_backend_dev_type` of ggml-backend.h.
_KINDS = dict(enumerate(("cpu", "gpu", "igpu", "accel", "meta")))


def main() -> int:
    """Answer one question."""
    parent = Parent.connect(sys.argv[1:], Question)
    question: Any = parent.receive()
    try:
        if isinstance(question, Reserve | Try):
            _answer_aborts(parent)
            # llama.cpp is loaded, and what comes next reads bytes that nobody has vouched for.
            confine([Path(question.path).parent, Path(question.path)], cards=cards_here())
        answer = answer_to(question)
    except EngineError as error:
        answer = Refused(str(error))
    parent.send(answer)
    return 0


def _answer_aborts(parent: Parent) -> None:
    """Send llama.cpp's reason where it aborts, and end the process."""
    from runtime.llama.library import on_abort

    def aborted(reason: str) -> NoReturn:
        parent.send(Refused(reason, unloadable=not _SHORT_OF_MEMORY.search(reason), crashed=True))
        os._exit(1)

    on_abort(aborted)


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
        case Try():
            from runtime.machine.trial import trial

            return trial(question)


def reserve(question: Reserve) -> Reserved | Refused:
    """The bytes of a context as the engine makes it; Refused where the model cannot be loaded, or has no such cache."""
    from runtime.llama.library import LOG
    from runtime.llama.model import LlamaModel

    wanted = question.cache_config
    try:
        model = LlamaModel(Path(question.path), empty=True, heads=question.drafts.heads)
    except LoadFailed:
        asked_for = sorted(LOG.asked_for) if _TOO_MANY in LOG.error else []
        return _refused(LOG.error, asked_for)
    model.vocabulary.check()
    try:
        return _context(model, wanted, question.drafts)
    except LoadFailed:
        reason = LOG.error
    try:
        _context(model, _PLAIN)
    except LoadFailed:
        return _refused(reason)
    return Refused(reason)  # the model will do, and the cache that was asked for will not


def _context(model: LlamaModel, wanted: CacheConfig, drafts: DraftMeans = NO_DRAFTS) -> Reserved | Refused:
    """The bytes that a context reserves, in which the graph is built; raises LoadFailed.

    Refused for a model that writes by diffusion: it reads the whole text anew, forwards and backwards.
    """
    from runtime.llama.context import Context, ContextParams, output_rows, sequence_count
    from runtime.llama.heads import HeadsContext
    from runtime.llama.library import LOG

    total = sequence_count(model, wanted.sequences)
    outputs = output_rows(model, wanted.sequences, rollback=drafts.rollback)
    params = ContextParams(wanted.context, total, outputs, 1, wanted.kv_type, rollback=drafts.rollback)
    context = Context(model, params)
    contexts = [context, HeadsContext(model, params, context)] if drafts.heads else [context]
    if not (context.remembers or model.encoder):
        return Refused("it does not write from left to right", unloadable=True)
    compute, output = (sum(each.buffers.get(kind, 0) for each in contexts) for kind in ("compute", "output"))
    return Reserved(wanted, LOG.cache_bytes, compute, output, _repacks(), drafts)


def _refused(reason: str, asked_for: Sequence[str] = ()) -> Refused:
    """The model cannot be loaded, unless llama.cpp gave no reason or was short of memory."""
    reason = _WHERE.sub("", reason)
    unloadable = bool(reason) and not _SHORT_OF_MEMORY.search(reason)
    return Refused(reason or "llama.cpp gave no reason", unloadable, list(asked_for))


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
    from runtime.llama.library import amx_is_broken, features, library

    low = library()
    return Examined(
        package=importlib.metadata.version("llama-cpp-python"),
        version=low.llama_version().decode(errors="replace"),
        features=features(low),
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
