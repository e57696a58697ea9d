"""The weights of a model in memory, and what its file says about it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Literal

from runtime.errors import LoadFailed
from runtime.llama.library import LOG, amx_is_broken, library
from runtime.llama.vocabulary import Vocabulary
from runtime.text.notes import Notes

# llama.cpp's `LLAMA_LOAD_MODE_NONE`: read the file instead of mapping it.
LOAD_MODE_NONE = 0
# How a model remembers the tokens it has read: KV cache cells, which can be cut at any position; one recurrent state,
# which every token overwrites; or both.
Memory = Literal["cells", "recurrent", "hybrid"]


class LlamaModel:
    """A loaded GGUF file. `handle` is llama.cpp's pointer; `buffers` has the bytes of its buffers by kind.

    `size` is the bytes of all weights, `n_embd` the width of its embeddings, `n_ctx_train` the context in tokens that
    it was trained for, `window` the sliding window in tokens (0: there is none). An `encoder` cannot write text; a
    model that `embeds` was made for embeddings. One that `predicts` has its block for further tokens in memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int = -1,
        mapped: bool = True,
        repacked: bool = True,
        empty: bool = False,
        heads: bool = False,
    ) -> None:
        """Load `path`, with its block that predicts further tokens where `heads` is True.

        Weights are read into memory instead of mapped where `mapped` is False, and lie there as in the file where
        `repacked` is False. An `empty` model has its header alone: a
        context on it shows how much memory would be taken.

        Raises LoadFailed, or ends the process where llama.cpp aborts.
        """
        low = library()
        self.path = path
        params = low.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = repacked and not amx_is_broken()
        params.no_alloc = empty
        params.load_mtp = heads
        if empty or not mapped:
            params.load_mode = LOAD_MODE_NONE
        notes = Notes.read(path)
        if notes.tokenizer and notes.tokenizer.space:
            params.kv_overrides = _without_space()
        LOG.error = ""  # neither an error nor a buffer of an earlier load may count
        LOG.take_buffers()
        self.handle = low.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            reason = f": {LOG.error}" if LOG.error else ""
            raise LoadFailed(f"llama.cpp cannot load `{path.name}`{reason}", "pull the model again")
        self.buffers = LOG.take_buffers()
        self.vocabulary = Vocabulary(self.handle, notes)
        self.n_ctx_train: int = low.llama_model_n_ctx_train(self.handle)
        self.n_embd: int = low.llama_model_n_embd_out(self.handle)
        self.size: int = low.llama_model_size(self.handle)
        hybrid = low.llama_model_is_hybrid(self.handle)
        self.recurrent: bool = hybrid or low.llama_model_is_recurrent(self.handle)
        self.memory: Memory = "hybrid" if hybrid else "recurrent" if self.recurrent else "cells"
        self.predicts = heads
        self.window: int = low.llama_model_n_swa(self.handle)
        self.encoder: bool = self.metadata("attention.causal") == "false"
        self.embeds: bool = self.encoder or self.metadata("pooling_type") not in (None, "0")

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
        """The Jinja source of the chat template in the file; None when it has none."""
        return self._template(None)

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools; None when the file has none of its own."""
        return self._template(b"tool_use")

    @property
    def rerank_template(self) -> str | None:
        """The prompt of a ranking model, with `{query}` and `{document}` in it; None when the file has none."""
        return self._template(b"rerank")

    def _template(self, name: bytes | None) -> str | None:
        source = library().llama_model_chat_template(self.handle, name)
        return source.decode(errors="replace") if source else None


def _without_space() -> Any:
    """The entry by which llama.cpp puts no space before a text: `runtime/text/tokenizer.py` puts it."""
    low = library()
    overrides = (low.llama_model_kv_override * 2)()  # the second, all zeros, ends the list
    overrides[0].tag, overrides[0].key = low.LLAMA_KV_OVERRIDE_TYPE_BOOL, b"tokenizer.ggml.add_space_prefix"
    return overrides
