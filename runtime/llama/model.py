"""The few functions of llama.cpp that we call, checked at start, and the model with its vocabulary.

Bindings: the low-level ctypes module of llama-cpp-python, pinned, because both projects change structures every few
weeks. `library()` therefore compares versions and struct defaults before anything else is called. ctypes lets go of the
interpreter lock during every call; the tiny ones that are called per token keep it (`quick`), which is five times
cheaper.

llama.cpp reports through a log callback. We keep what a load says about memory and the first complaint, and pass
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
from array import array
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from runtime.errors import LoadFailed
from runtime.text.notes import Noted
from runtime.text.tokenizer import Note, Tokenizer

PACKAGE_VERSION = "0.3.36"
LLAMA_VERSION = b"0.5.0-dev"
SETTINGS = {
    # An abort would start a debugger, if one is installed, and wait for it.
    b"GGML_NO_BACKTRACE": b"1",
    # OpenMP's threads spin where they wait for one another. Where other programs want the processors too, that starves
    # the thread they wait for; threads that sleep wake late. Tokens/s of 2 threads on 2 processors, one model and two
    # at once: spinning without end 33 and 15, 2000 times 31 and 25, 700 times 31 and 29, never 23 and 39.
    b"GOMP_SPINCOUNT": b"1300",
    # Where there are more threads than processors OpenMP spins 100 times only, which costs a third. We have more for a
    # second context (`runtime/engine/prefill.py`), but only one of both computes; "active" makes that 1000 times.
    b"OMP_WAIT_POLICY": b"active",
}
# Defaults that would read differently if a field had been added, moved or resized.
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
ATTR_UNKNOWN, ATTR_CONTROL, ATTR_USER, ATTR_LSTRIP, ATTR_RSTRIP = 1 << 0, 1 << 3, 1 << 4, 1 << 7, 1 << 8
LOAD_MODE_NONE = 0
# What a model remembers by: cells of a cache, which can be cut anywhere, one state that is overwritten, or both.
Memory = Literal["cells", "recurrent", "hybrid"]
LOG_WARN, LOG_ERROR, LOG_CONTINUED = 3, 4, 5
_BUFFER = re.compile(r"(\S+)\s+(KV|RS|output|compute|model|state) buffer size = *([\d.]+) MiB")
_FUNCTION = re.compile(r"^\w+: ")
_MIB = 1 << 20


@cache
def library() -> Any:
    """The low-level bindings, with llama.cpp initialised; raises LoadFailed when library and bindings do not match."""
    for name, value in SETTINGS.items():
        ctypes.CDLL(None).setenv(name, value, 0)  # read by the libraries when they are loaded; the user's own stay
    low = _low_level()
    found = importlib.metadata.version("llama-cpp-python")
    if found != PACKAGE_VERSION or low.llama_version() != LLAMA_VERSION:
        message = f"this needs llama-cpp-python {PACKAGE_VERSION} with llama.cpp {LLAMA_VERSION.decode()}"
        raise LoadFailed(
            f"{message}, and found {found} with {low.llama_version().decode()}", "install it again with pip"
        )
    _compare(low.llama_context_default_params(), CONTEXT_DEFAULTS)
    _compare(low.llama_model_default_params(), MODEL_DEFAULTS)
    low.llama_log_set(LOG.callback, None)
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
        del sys.modules["llama_cpp"]  # who imports the package later gets the whole of it


def _compare(params: ctypes.Structure, expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if getattr(params, field) != value:
            message = f"the structures of llama.cpp have changed: `{field}` is {getattr(params, field)}, not {value}"
            raise LoadFailed(message, f"install llama-cpp-python {PACKAGE_VERSION} again")


@cache
def amx_is_broken(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether weights would go to the AMX kernels of this version, which crash on batches (llama.cpp#20824, #26954).

    Their tile configuration is built on the stack, and compilers drop most of it. There is no switch for AMX alone, so
    on these processors weights are not repacked at all: slower with prompts, but alive.

    What repacking changes where it works (median milliseconds of a step, 1.1 B at Q4_K_M, AVX-512, repacked and not): 1
    row 28 and 34, 4 rows 79 and 101, 8 rows 152 both, 16 rows 183 and 157, 512 rows 4,400 and 2,890.
    """
    if not hasattr(library()._lib, "_Z28ggml_backend_amx_buffer_typev"):
        return False
    try:
        return "amx_int8" in cpuinfo.read_text()
    except OSError:
        return False


@cache
def quick() -> ctypes.PyDLL:
    """The same library, for calls so short that letting go of the interpreter lock would cost more than they do."""
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


class Log:
    """What llama.cpp says: bytes per kind of buffer, the first error, and warnings on to stderr."""

    def __init__(self) -> None:
        self.buffers: dict[str, float] = {}
        self.error = ""
        self._passing = False
        # llama.cpp keeps the bare pointer: without this reference it would call freed memory.
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._take)

    def take_buffers(self) -> dict[str, int]:
        """Bytes of the buffers named since the last call: `model`, `KV`, `RS`, `compute`, `output`."""
        taken = {kind: int(size * _MIB) for kind, size in self.buffers.items()}
        self.buffers.clear()
        return taken

    def _take(self, level: int, text: bytes | None, _: Any) -> None:
        line = (text or b"").decode(errors="replace")
        if found := _BUFFER.search(line):
            kind = found[2]
            self.buffers[kind] = self.buffers.get(kind, 0.0) + float(found[3])
        if level != LOG_CONTINUED:
            self._passing = level in (LOG_WARN, LOG_ERROR)
        if level == LOG_ERROR and not self.error:  # the first says what is wrong, later ones what it led to
            self.error = _FUNCTION.sub("", line.strip().rstrip("."))
        if self._passing:
            sys.stderr.write(line)
            sys.stderr.flush()


LOG = Log()


class Model:
    """A GGUF file in memory, and its vocabulary. The vocabulary's functions may be called from any thread."""

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int = -1,
        progress: Callable[[float], None] | None = None,
        mapped: bool = True,
        empty: bool = False,
    ) -> None:
        """Load `path`; `progress` hears fractions. An `empty` one reads the header alone, to be measured and not run.

        Raises LoadFailed, or ends the process where llama.cpp aborts.
        """
        low = library()
        self.path = path
        params = low.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = not amx_is_broken()
        params.no_alloc = empty
        if empty or not mapped:
            params.load_mode = LOAD_MODE_NONE
        if progress:
            params.progress_callback = low.llama_progress_callback(lambda fraction, _: progress(fraction) or True)
        noted = Noted.read(path)
        if noted.tokenizer and noted.tokenizer.space:
            overrides = (low.llama_model_kv_override * 2)()  # the second ends the list
            overrides[0].tag, overrides[0].key = low.LLAMA_KV_OVERRIDE_TYPE_BOOL, b"tokenizer.ggml.add_space_prefix"
            params.kv_overrides = overrides
        LOG.error = ""
        LOG.take_buffers()
        self.handle = low.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            reason = f": {LOG.error}" if LOG.error else ""
            raise LoadFailed(f"llama.cpp cannot load `{path.name}`{reason}", "pull the model again")
        self.buffers = LOG.take_buffers()
        self.vocab = low.llama_model_get_vocab(self.handle)
        self.n_vocab: int = low.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = low.llama_model_n_ctx_train(self.handle)
        self.n_embd: int = low.llama_model_n_embd_out(self.handle)
        self.size: int = low.llama_model_size(self.handle)
        hybrid = low.llama_model_is_hybrid(self.handle)
        self.recurrent: bool = hybrid or low.llama_model_is_recurrent(self.handle)
        self.memory: Memory = "hybrid" if hybrid else "recurrent" if self.recurrent else "cells"
        self.window: int = low.llama_model_n_swa(self.handle)
        self.encoder: bool = self.metadata("attention.causal") == "false"
        self.embeds: bool = self.encoder or self.metadata("pooling_type") not in (None, "0")
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._ends = dict.fromkeys(noted.stops, True)
        self._tokenizer = Tokenizer(noted.tokenizer, self.n_vocab, self._llama) if noted.tokenizer else None
        self._buffer = ctypes.create_string_buffer(1024)

    def metadata(self, key: str) -> str | None:
        """The value of a scalar of the file's metadata, as text; `key` may leave out the architecture's name."""
        low = library()
        buffer = ctypes.create_string_buffer(1024)
        names = [key]
        if low.llama_model_meta_val_str(self.handle, b"general.architecture", buffer, 1024) >= 0:
            names.append(f"{buffer.value.decode(errors='replace')}.{key}")
        for name in names:
            size = low.llama_model_meta_val_str(self.handle, name.encode(), buffer, len(buffer))
            if size >= len(buffer):
                buffer = ctypes.create_string_buffer(size + 1)
                low.llama_model_meta_val_str(self.handle, name.encode(), buffer, len(buffer))
            if size >= 0:
                return buffer.value.decode(errors="replace")
        return None

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that the file carries."""
        source = library().llama_model_chat_template(self.handle, None)
        return source.decode(errors="replace") if source else None

    def special_text(self, which: str) -> str:
        """The text of the special token `which` ("bos", "eos"), empty when the model has none."""
        token = getattr(library(), f"llama_vocab_{which}")(self.vocab)
        return self._text(token) if token >= 0 else ""

    @property
    def adds_eos(self) -> bool:
        """Whether the tokenizer ends a text with the end-of-sequence token."""
        return bool(library().llama_vocab_get_add_eos(self.vocab))

    def control_texts(self) -> list[str]:
        """How the vocabulary spells the tokens that only a template may write."""
        return [text for _, text, flags in self._added if "s" in flags]

    @cached_property
    def _added(self) -> list[tuple[int, str, str]]:
        """The tokens that are looked for in a text before it is cut, as a note has them."""
        attribute, looked_for = quick().llama_vocab_get_attr, ATTR_CONTROL | ATTR_UNKNOWN | ATTR_USER
        letters = {ATTR_LSTRIP: "l", ATTR_RSTRIP: "r"}
        found = []
        for token in range(self.n_vocab):
            kind = attribute(self.vocab, token)
            if kind & looked_for and (text := self._text(token)):
                flags = "".join(letter for bit, letter in letters.items() if kind & bit)
                found.append((token, text, flags if kind & looked_for == ATTR_USER else flags + "s"))
        return found

    @cached_property
    def _unnoted(self) -> Tokenizer:
        """Reads prompts in which a user spells control tokens; llama.cpp looks for all of these or for none."""
        return Tokenizer(Note(added=self._added), self.n_vocab, self._llama)

    def _text(self, token: int) -> str:
        if self._tokenizer and token in self._tokenizer.hidden:
            return self._tokenizer.hidden[token]
        return (quick().llama_vocab_get_text(self.vocab, token) or b"").decode(errors="replace")

    def tokenize(self, text: str, *, special: bool, add: bool) -> array[int]:
        """The ids of `text`; `special` parses control tokens in it, `add` puts the model's first and last tokens."""
        ids = self.read([(text, special)])
        return self.frame[0] + ids + self.frame[1] if add else ids

    def read(self, pieces: Sequence[tuple[str, bool]]) -> array[int]:
        """The ids of texts that follow each other; control tokens are parsed where the second value says so."""
        mixed = len({special for _, special in pieces}) > 1
        tokenizer = self._unnoted if mixed and not self._tokenizer else self._tokenizer
        if tokenizer and (ids := tokenizer.read(pieces)) is not None:
            return ids
        ids = array("i")
        for text, special in pieces:
            ids.extend(self._llama(text, special=special))
        return ids

    @cached_property
    def frame(self) -> tuple[array[int], array[int]]:
        """The tokens that the model puts before and after a text."""
        bare, framed = self._llama("a"), self._llama("a", add=True)
        places = (n for n in range(len(framed) + 1) if framed[n : n + len(bare)] == bare)
        start = next(places) if bare else int(library().llama_vocab_get_add_bos(self.vocab))
        return framed[:start], framed[start + len(bare) :]

    def _llama(self, text: str, *, special: bool = False, add: bool = False) -> array[int]:
        """The ids of `text` as llama.cpp reads it."""
        low = library()
        data = text.encode(errors="replace")
        room = len(data) + 8
        out = (ctypes.c_int32 * room)()
        count = low.llama_tokenize(self.vocab, data, len(data), out, room, add, special)
        if count < 0:
            out = (ctypes.c_int32 * -count)()
            count = low.llama_tokenize(self.vocab, data, len(data), out, -count, add, special)
        ids = array("i")
        ids.frombytes(memoryview(out).cast("B")[: 4 * count])
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to a text; none for control tokens."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        buffer = self._buffer
        size = quick().llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = quick().llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size and self._tokenizer and token in self._tokenizer.hidden:
            return self._text(token).encode()
        return buffer.raw[:size]

    def ends(self, token: int) -> bool:
        """Whether `token` ends a turn: llama.cpp knows it by its text, or the converter has noted it."""
        end = self._ends.get(token)
        if end is None:
            end = self._ends[token] = bool(quick().llama_vocab_is_eog(self.vocab, token))
        return end
