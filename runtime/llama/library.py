"""The few functions of llama.cpp that lm calls, checked when the library is loaded, and what it logs.

The bindings are the low-level ctypes module of llama-cpp-python, pinned, because both projects change structures every
few weeks. `library()` therefore compares versions and struct defaults before anything else is called. ctypes releases
the interpreter lock (GIL) during every call. The tiny functions that are called per token keep it (`quick_library`),
which is five times cheaper.

llama.cpp reports through a log callback. `Log` keeps the buffer sizes of a load and the first error, and passes
warnings to stderr, which the worker's parent has sent to the log. Nothing here prints.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from runtime.errors import LoadFailed
from runtime.processor import instruction_sets, lacking

PACKAGE_VERSION = "0.3.36"
LLAMA_VERSION = b"0.5.0-dev"
# Environment variables that the libraries read when they are loaded.
SETTINGS = {
    # An abort would start a debugger, if one is installed, and wait for it.
    b"GGML_NO_BACKTRACE": b"1",
    # While OpenMP's threads wait for one another, they spin N times and then sleep. Spinning starves the thread they
    # wait for when other programs want the processors too; threads that sleep wake late. Tokens/s with 2 threads on 2
    # processors, of one model and of two models at once: 33 and 15 without a bound. N = 2000 gives 31 and 25, N = 700
    # gives 31 and 29, N = 0 gives 23 and 39. The value below lies between the two that cost one model little.
    b"GOMP_SPINCOUNT": b"1300",
    # OpenMP spins only 100 times when there are more threads than processors, which costs a third. There are, because
    # of the second context (`runtime/engine/prefill.py`), but only one of both computes. "active" makes it 1000 times.
    b"OMP_WAIT_POLICY": b"active",
}
# Defaults of two structs. They would read differently if a field had been added, moved or resized.
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "main_gpu": 0, "use_extra_bufts": True}
LOG_WARN, LOG_ERROR, LOG_CONTINUED = 3, 4, 5
# The size of one buffer (`CPU KV buffer size =  256.00 MiB`), or of a whole KV cache or all recurrent states
# (`llama_kv_cache: size =  256.00 MiB`). The second is logged even where nothing is allocated.
_SIZE = re.compile(
    r"(?:(KV|RS|output|compute|model|state) buffer|llama_(?:kv_cache|memory_recurrent)\w*:) size = *([\d.]+) MiB"
)
_FUNCTION = re.compile(r"^\w+: ")
_FOLDER = re.compile(r"^\S*/")
_ASKED_FOR = re.compile(r"create_tensor: loading tensor (\S+)")
_MIB = 1 << 20
# Callbacks whose bare pointers llama.cpp keeps.
_KEPT: list[Any] = []


@cache
def library() -> Any:
    """The low-level bindings, with llama.cpp initialised; raises LoadFailed when library and bindings do not match."""
    for name, value in SETTINGS.items():
        ctypes.CDLL(None).setenv(name, value, 0)  # the user's own values stay
    low = _low_level()
    installed = importlib.metadata.version("llama-cpp-python")
    if installed != PACKAGE_VERSION or low.llama_version() != LLAMA_VERSION:
        message = f"this needs llama-cpp-python {PACKAGE_VERSION} with llama.cpp {LLAMA_VERSION.decode()}"
        raise LoadFailed(
            f"{message}, and found {installed} with {low.llama_version().decode()}", "install it again with pip"
        )
    low.llama_log_set(LOG.callback, None)
    _load_backends(low._lib)
    if missing := lacking(features(low), instruction_sets()):
        raise LoadFailed(
            f"this processor lacks {', '.join(missing)}, and llama.cpp was compiled for it",
            "compile it on this machine, or install a portable build of it",
        )
    _compare(low.llama_context_default_params(), CONTEXT_DEFAULTS)
    _compare(low.llama_model_default_params(), MODEL_DEFAULTS)
    low.llama_backend_init()
    return low


def _low_level() -> Any:
    """Import `llama_cpp.llama_cpp` without the package's own start, which loads numpy, chat formats and a logger."""
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise LoadFailed("llama-cpp-python is not installed", "install it with pip")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        del sys.modules["llama_cpp"]  # a later import of the package runs its start after all


def _load_backends(lib: ctypes.CDLL) -> None:
    """Load backends that are files of their own (GGML_BACKEND_DL): of the CPU's variants the best for this one.

    llama.cpp by itself looks for them beside the program, and in the current folder, whose files nobody vouches for.
    """
    folder = Path(lib._name).parent
    if any(folder.glob("*ggml-cpu-*")):
        lib.ggml_backend_load_all_from_path.restype = None
        lib.ggml_backend_load_all_from_path(ctypes.c_char_p(os.fsencode(folder)))


def features(low: Any) -> dict[str, str]:
    """Instruction sets and parts that the library was compiled with, by llama.cpp's names; the value of each is `1`."""
    info = low.llama_print_system_info().decode(errors="replace")
    pairs = (part.rpartition(":")[2].split("=") for part in info.split("|") if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def _compare(params: ctypes.Structure, expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if getattr(params, field) != value:
            message = f"the structures of llama.cpp have changed: `{field}` is {getattr(params, field)}, not {value}"
            raise LoadFailed(message, f"install llama-cpp-python {PACKAGE_VERSION} again")


@cache
def amx_is_broken() -> bool:
    """Whether weights would go to the AMX kernels of this version, which crash on batches (llama.cpp#20824, #26954).

    Their tile configuration is built on the stack, and compilers drop most of it. There is no switch for AMX alone, so
    on these processors weights are not repacked at all: slower with prompts, but alive.

    Median milliseconds of a step with AVX-512 and 1.1 B parameters at Q4_K_M:

    | rows | 1 | 4 | 8 | 16 | 512 |
    |---|---|---|---|---|---|
    | repacked | 28 | 79 | 152 | 183 | 4,400 |
    | not repacked | 34 | 101 | 152 | 157 | 2,890 |
    """
    low = library()
    # A variant of the CPU's backend (`_load_backends`) keeps its symbols to itself.
    if not (hasattr(low._lib, "_Z28ggml_backend_amx_buffer_typev") or features(low).get("AMX_INT8") == "1"):
        return False
    instructions = instruction_sets()
    return instructions is None or "amx_int8" in instructions  # slower is better than a crash where nobody can tell


def on_abort(handle: Callable[[str], NoReturn]) -> None:
    """Call `handle`, which ends the process, with llama.cpp's reason where a check of its own fails (`ggml_abort`)."""

    def aborted(message: bytes) -> None:
        handle(_FOLDER.sub("", message.decode(errors="replace")))

    _KEPT.append(callback := ctypes.CFUNCTYPE(None, ctypes.c_char_p)(aborted))
    lib = library()._lib
    lib.ggml_set_abort_callback.restype = ctypes.c_void_p
    lib.ggml_set_abort_callback(callback)


@cache
def quick_library() -> ctypes.PyDLL:
    """The same library, for calls so short that releasing the interpreter lock would cost more than they do.

    `ctypes.PyDLL` keeps the lock; the bindings' `CDLL` releases it.
    """
    lib = library()._lib
    dll = ctypes.PyDLL(lib._name, handle=lib._handle)
    for name, arguments, result in (
        ("llama_vocab_get_attr", (ctypes.c_void_p, ctypes.c_int32), ctypes.c_int),
        ("llama_vocab_get_text", (ctypes.c_void_p, ctypes.c_int32), ctypes.c_char_p),
        ("llama_vocab_is_eog", (ctypes.c_void_p, ctypes.c_int32), ctypes.c_bool),
        ("llama_sampler_accept", (ctypes.c_void_p, ctypes.c_int32), None),
        (
            "llama_token_to_piece",
            (ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
            ctypes.c_int32,
        ),
    ):
        function = getattr(dll, name)
        function.argtypes, function.restype = arguments, result
    return dll


@cache
def heads_library() -> Any:
    """llama.cpp's functions for blocks that predict further tokens, which are not in its public header (`llama-ext.h`).

    Raises LoadFailed where the library has none.
    """
    lib = library()._lib
    found = SimpleNamespace()
    context, floats = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
    for name, mangled, arguments, result in (
        ("set_embeddings_nextn", "P13llama_contextbb", (context, ctypes.c_bool, ctypes.c_bool), None),
        ("get_embeddings_nextn", "P13llama_context", (context,), floats),
        ("get_embeddings_nextn_ith", "P13llama_contexti", (context, ctypes.c_int32), floats),
    ):
        name = f"llama_{name}"
        names = (name, f"_Z{len(name)}{name}{mangled}")
        function = next((getattr(lib, each) for each in names if hasattr(lib, each)), None)
        if function is None:
            raise LoadFailed(f"this build of llama.cpp has no `{name}`", "install llama-cpp-python from the index")
        function.argtypes, function.restype = arguments, result
        setattr(found, name, function)
    return found


def usable_threads() -> int:
    """Processors that this process may run on; llama.cpp hangs with more threads than that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Log:
    """llama.cpp's log: sizes of buffers by kind, the first error; warnings and errors are passed on to stderr."""

    def __init__(self) -> None:
        self.buffers: dict[str, float] = {}  # in MiB
        self.cache_bytes = 0  # of all contexts so far
        self.error = ""
        self.asked_for: set[str] = set()  # names of the tensors that were looked for
        self._passing = False
        # llama.cpp keeps the bare pointer: without this reference it would call freed memory.
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._on_text)

    def take_buffers(self) -> dict[str, int]:
        """Bytes of the buffers logged since the last call, by kind: `model`, `KV`, `RS`, `compute`, `output`."""
        sizes = {kind: int(size * _MIB) for kind, size in self.buffers.items()}
        self.buffers.clear()
        return sizes

    def _on_text(self, level: int, text: bytes | None, _: Any) -> None:
        line = (text or b"").decode(errors="replace")
        if match := _SIZE.search(line):
            kind, size = match[1], float(match[2])
            if kind:
                self.buffers[kind] = self.buffers.get(kind, 0.0) + size
            else:
                self.cache_bytes += round(size * _MIB)
        elif asked := _ASKED_FOR.search(line):
            self.asked_for.add(asked[1])
        if level != LOG_CONTINUED:
            self._passing = level in (LOG_WARN, LOG_ERROR)
        if level == LOG_ERROR and not self.error:  # the first is the cause, later ones are consequences
            self.error = _FUNCTION.sub("", line.strip().rstrip("."))
        if self._passing:
            sys.stderr.write(line)
            sys.stderr.flush()


LOG = Log()
