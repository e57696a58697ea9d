"""The context of a model's own heads: the block that predicts further tokens, with a KV cache of its own.

A row is a token and the model's last hidden state of the token before it. From both the block predicts the token after
this one, and a hidden state that takes the place of the model's in the next row.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

from runtime.llama.context import POOLING_NONE, Context, ContextParams
from runtime.llama.library import heads_library, library
from runtime.llama.model import LlamaModel

# `LLAMA_CONTEXT_TYPE_MTP`.
_HEADS = 1


class HeadsContext(Context):
    """Rows are put as into the model's own context; `decode` gets a hidden state for each."""

    def __init__(self, model: LlamaModel, params: ContextParams, large: Context) -> None:
        """`params` are the context's of the model, `large`. Raises BadRequest, LoadFailed."""
        self._large = large
        super().__init__(model, replace(params, rollback=0, outputs=params.sequences))

    def _native(self, params: ContextParams) -> Any:
        native = super()._native(params)
        native.ctx_type = _HEADS
        native.ctx_other = self._large.handle
        native.pooling_type = POOLING_NONE
        return native

    def _show_hidden(self) -> None:
        heads_library().llama_set_embeddings_nextn(self.handle, True, True)
        self.buffers["output"] = self.buffers.get("output", 0) + 4 * self.outputs * self._model.n_embd

    def decode(self, rows: int, vectors: Any = None) -> int:
        """Compute the first `rows` rows with these hidden states, float32 `(rows, n_embd)`; as `Context.decode`."""
        self._batch.n_tokens = rows
        self._batch.embd = vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        try:
            return int(library().llama_decode(self.handle, self._batch))
        finally:
            self._batch.embd = None

    def state_after(self, row: int) -> Any:
        """The hidden state that a row of logits gives, float32 `(n_embd,)`, valid until the next `decode`."""
        return self._view(heads_library().llama_get_embeddings_nextn_ith(self.handle, row), self._model.n_embd)
