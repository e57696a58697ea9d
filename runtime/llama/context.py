"""A llama.cpp context: one unified KV cache for many sequences, and the batch that feeds it.

One thread owns a context; `abort` alone may be called from others. A sequence is named by a number below `sequences`.
In a unified cache, copying a prefix from one sequence to another marks cells and moves no data.

Layers with a sliding window cache all tokens (`swa_full`, llama.cpp's default), so that any prefix can be shared and
cut. A cache of windows would need a checkpoint for every position to go back to, 122 MB each with Gemma 3 4B. It does
not always save memory either, because it has a window for each sequence and room for a batch. With 16 sequences of
Gemma 3 4B these are 16,896 cells, more than all tokens of a context of 8,192. A context of 32,768 would take 2.7 GB
instead of 4.6. `runtime/machine/fit.py` counts all tokens too.

The batch is built once over flat arrays and filled through memoryviews: a chunk of a prompt takes four copies of
memory, and no loop over its tokens.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quant.types import QuantType
from runtime.defaults import BATCH, CACHE_TYPE, CACHE_TYPES, CONTEXT_STEP, DRAFT_ROWS
from runtime.errors import BadRequest, LoadFailed
from runtime.llama.library import LOG, heads_library, library
from runtime.llama.model import LlamaModel
from runtime.llama.snapshots import Snapshots

# `llama_pooling_type`.
POOLING_NONE, POOLING_MEAN, POOLING_LAST, POOLING_RANK = 0, 1, 3, 4
# Results of `decode`.
OK, NO_ROOM, ABORTED = 0, 1, 2
# Sequences for prefixes that wait to be continued, beside the sequences of running answers.
PARKED_SEQUENCES = 8
# The least number of sequences of an embedding model, which reads many texts at once.
TEXT_SEQUENCES = 64


@dataclass(frozen=True)
class ContextParams:
    """The size of a context: `tokens` of KV cache, at most `sequences`, `outputs` rows of logits, `batch` rows a step.

    `kv_type` is one of `CACHE_TYPES`. `watch` is the callback of a `Watch` (`runtime/llama/watching.py`), or a compiled
    one (`runtime/meter/collecting.py`), which gets `watch_data`, an address. `rollback` is how many of the last tokens
    a recurrent state can go back, where llama.cpp can do that for the model: it then keeps as many more states of each
    sequence.
    """

    tokens: int
    sequences: int
    outputs: int
    threads: int
    kv_type: str = CACHE_TYPE
    batch: int = BATCH
    watch: Any = None
    rollback: int = 0
    watch_data: int = 0


def sequence_count(model: LlamaModel, running: int) -> int:
    """How many sequences a context of `model` gets, so that `running` answers can be written at once."""
    if model.recurrent:
        return running  # each further one would take the memory of a state
    return max(TEXT_SEQUENCES, running) if model.embeds else running + PARKED_SEQUENCES


def output_rows(model: LlamaModel, running: int, *, drafts: bool = True, rollback: int = 0) -> int:
    """How many rows of logits a step of `model` may give: one for each answer, and one for each drafted token.

    A model with a state has drafts as long as its `rollback`.
    """
    if not drafts or model.embeds:
        return running
    return running + (DRAFT_ROWS if model.memory == "cells" else min(DRAFT_ROWS, rollback * running))


class Context:
    """A KV cache and its compute graph. Rows are put with `put_token` and `put_prompt`, then `decode` computes them.

    `tokens` is the number of cells that llama.cpp made, `batch_size` the rows of a batch, `outputs` the most rows of
    logits of a step. It `remembers` what it has read, unless its model reads every text whole. `pooling` is llama.cpp's
    pooling type. `buffers` has bytes by kind: `KV`, `RS`, `compute`, `output`. `rollback` is how many tokens of a step
    can be cut from a sequence although the model has a state; 0 where it has none, or cannot go back.
    """

    def __init__(self, model: LlamaModel, params: ContextParams) -> None:
        """Raises BadRequest for an unknown cache type, LoadFailed when llama.cpp cannot make the context."""
        if params.kv_type not in CACHE_TYPES:
            raise BadRequest(f"there is no cache type `{params.kv_type}`", f"known are {', '.join(CACHE_TYPES)}")
        low = library()
        self._model = model
        self._abort_flag = ctypes.create_string_buffer(b"0")
        native = self._native(params)
        self.batch_size: int = native.n_batch
        self.outputs: int = native.n_outputs_max
        LOG.error = ""  # an earlier error must not explain a failure of this call
        self.handle = low.llama_init_from_model(model.handle, native)
        if not self.handle:
            reason = f": {LOG.error}" if LOG.error else ""
            raise LoadFailed(
                f"llama.cpp cannot make a context of {params.tokens} tokens{reason}", "ask for a smaller one"
            )
        self.buffers = LOG.take_buffers()
        self.tokens: int = low.llama_n_ctx(self.handle)
        self._memory = low.llama_get_memory(self.handle)
        self.remembers: bool = self._memory is not None
        self.pooling: int = low.llama_pooling_type(self.handle)
        self.rollback: int = low.llama_n_rs_seq(self.handle)
        self._snapshots = Snapshots(self.rollback)
        self._decode = low.llama_decode
        self._make_batch(native.n_batch, params.sequences)
        if model.predicts:
            self._show_hidden()

    def _native(self, params: ContextParams) -> Any:
        """llama.cpp's `llama_context_params`."""
        low, model = library(), self._model
        native = low.llama_context_default_params()
        native.n_ctx = -(-params.tokens // CONTEXT_STEP) * CONTEXT_STEP
        # An encoder reads a text in one piece, forwards and backwards.
        native.n_batch = native.n_ubatch = native.n_ctx if model.encoder else min(params.batch, native.n_ctx)
        native.n_seq_max = params.sequences
        # Rows of logits are wide: 512 of them would be 300 MB for a large vocabulary.
        native.n_outputs_max = max(params.outputs, params.sequences)
        native.n_threads = native.n_threads_batch = params.threads
        native.type_k = native.type_v = QuantType.by_name(params.kv_type).id
        native.kv_unified = True
        native.embeddings = model.encoder
        native.n_rs_seq = params.rollback
        pooling = model.metadata("pooling_type")
        if pooling in (None, str(POOLING_NONE)):
            # The file names no pooling. The last token of a causal model has read the whole text.
            native.pooling_type = POOLING_MEAN if model.encoder else POOLING_LAST
        if model.predicts:
            native.pooling_type = POOLING_NONE  # with another type, llama.cpp does not give hidden states
        if model.encoder or pooling not in (None, str(POOLING_NONE), str(POOLING_LAST)):
            native.n_outputs_max = native.n_batch  # a text's vector is pooled from the vectors of all its rows
        # The compute threads call this after every graph node. A Python function would make them wait for the
        # interpreter lock. `atoi` is C, and reads the flag "0" or "1" as the number that says whether to abort.
        native.abort_callback = ctypes.cast(ctypes.CDLL(None).atoi, low.ggml_abort_callback)
        native.abort_callback_data = ctypes.addressof(self._abort_flag)
        if params.watch is not None:
            native.cb_eval, native.cb_eval_user_data = params.watch, params.watch_data or None
            if not params.watch_data:
                native.flash_attn_type = 0  # it rounds queries to half precision
        return native

    def _make_batch(self, size: int, sequences: int) -> None:
        """Build the one `llama_batch`: its five pointers point at arrays of ours, `size` rows each, for good.

        For every row llama.cpp reads `n_seq_id` sequence numbers at the address `seq_id`. Our rows belong to one
        sequence each, so `n_seq_id` is 1 throughout, and `seq_id` is the address of that number in `_numbers`
        (0, 1, 2, …): `_pointers[s]` is the address of the number s.
        """
        low = library()
        token, position = (ctypes.c_int32 * size)(), (ctypes.c_int32 * size)()
        count, sequence = (ctypes.c_int32 * size)(*[1] * size), (ctypes.c_uint64 * size)()
        logits = (ctypes.c_int8 * size)()
        # The batch has bare pointers; this keeps the arrays alive.
        self._arrays: list[Any] = [token, position, count, sequence, logits]
        # A ctypes array assigns item by item. A memoryview copies a slice at once, but only from a buffer of the same
        # format. A cast to bytes and back replaces ctypes' format ("<i") by the format of `array("i")`.
        self._token, self._position = (memoryview(x).cast("B").cast("i") for x in (token, position))
        self._sequence, self._logits = memoryview(sequence).cast("B").cast("Q"), memoryview(logits).cast("B")
        self._last_row = [0] * sequences
        self._numbers = (ctypes.c_int32 * sequences)(*range(sequences))
        start = ctypes.addressof(self._numbers)
        self._pointers = [start + 4 * number for number in range(sequences)]
        # Consecutive positions are a slice of this.
        self._counting = memoryview(array("i", range(self.tokens + size)))
        self._batch = low.llama_batch()
        types = dict(low.llama_batch._fields_)
        for field, values in zip(("token", "pos", "n_seq_id", "seq_id", "logits"), self._arrays, strict=True):
            setattr(self._batch, field, ctypes.cast(values, types[field]))
        self._batch.embd = None

    def put_token(self, row: int, token: int, position: int, sequence: int) -> None:
        """Put one token of a running answer, whose logits are wanted."""
        self._token[row] = token
        self._position[row] = position
        self._sequence[row] = self._pointers[sequence]
        self._logits[row] = 1
        self._snapshots.put(sequence, 1)

    def put_prompt(self, row: int, tokens: memoryview[int], position: int, sequence: int, wanted: int) -> None:
        """Put consecutive tokens from `position` on; the logits of the last `wanted` rows are wanted."""
        size = len(tokens)
        end = row + size
        self._token[row:end] = tokens
        self._position[row:end] = self._counting[position : position + size]
        self._sequence[row:end] = memoryview(array("Q", (self._pointers[sequence],)) * size)
        self._logits[row:end] = bytes(size - wanted) + b"\x01" * wanted
        self._snapshots.put(sequence, size)
        self._last_row[sequence] = end - 1

    def decode(self, rows: int, vectors: Any = None) -> int:
        """Compute the first `rows` rows: `OK`, `NO_ROOM` (nothing changed), `ABORTED`, or a negative number (an error).

        `vectors`, float32 `(rows, n_embd)`, replace the tokens' own embeddings.
        """
        self._batch.n_tokens = rows
        if vectors is None:
            status = int(self._decode(self.handle, self._batch))
            self._snapshots.computed(status == OK)
            return status
        tokens = ctypes.cast(self._arrays[0], type(self._batch.token))
        self._batch.token, self._batch.embd = None, vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        try:
            return int(self._decode(self.handle, self._batch))
        finally:
            self._batch.token, self._batch.embd = tokens, None

    def abort(self) -> None:
        """Make a running `decode` end at its next graph node, from any thread; stays set until `clear_abort`."""
        self._abort_flag[0] = b"1"

    def clear_abort(self) -> None:
        """Let `decode` run again."""
        self._abort_flag[0] = b"0"

    def set_abort_callback(self, callback: Any) -> None:
        """Replace `abort` by `callback`: a `ggml_abort_callback`, called after every graph node by the decoding thread.

        It returns whether to give up. The caller keeps a reference to it.
        """
        library().llama_set_abort_callback(self.handle, callback, None)

    def free(self) -> None:
        """Free the context's memory; nothing else may be called after this."""
        library().llama_free(self.handle)

    def adapt(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Let these adapters, each with its scale, change what is computed from now on; none of them is the model."""
        low, count = library(), len(adapters)
        handles = (low.llama_adapter_lora_p_ctypes * count)(*(handle for handle, _ in adapters))
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
        low.llama_set_adapters_lora(self.handle, handles, count, scales)

    def copy(self, source: int, target: int, end: int, start: int = 0) -> None:
        """Let `target` hold the positions `start` to `end` of `source` too."""
        library().llama_memory_seq_cp(self._memory, source, target, start, end)
        self._snapshots.forget(target)
        if self._snapshots.went_back(source):
            # llama.cpp would give the copy the state that `source` went back from.
            self.restore(target, self.save(source, True), True)

    def cut(self, sequence: int, start: int) -> bool:
        """Drop the positions of `sequence` from `start` on; False (and nothing done) where the model cannot."""
        low = library()
        if self._memory is None:
            return True
        if self.rollback and start:
            back = low.llama_memory_seq_pos_max(self._memory, sequence) + 1 - start
            if not self._snapshots.go_back(sequence, back):
                return False
        elif self.rollback:
            self._snapshots.forget(sequence)
        return bool(low.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def shift(self, sequence: int, keep: int, count: int) -> bool:
        """Drop `count` positions after the first `keep`, and move the rest up; False (nothing done) where impossible.

        No other sequence may share these cells.
        """
        low = library()
        if not low.llama_memory_can_shift(self._memory):
            return False
        low.llama_memory_seq_rm(self._memory, sequence, keep, keep + count)
        low.llama_memory_seq_add(self._memory, sequence, keep + count, -1, -count)
        return True

    def state_bytes(self, sequence: int, partial: bool = False) -> int:
        """The size of a copy of `sequence`; of its recurrent state alone when `partial`."""
        return int(library().llama_state_seq_get_size_ext(self.handle, sequence, int(partial)))

    def save(self, sequence: int, partial: bool = False) -> bytearray:
        """A copy of `sequence`, in llama.cpp's own format, for `restore` of a context of the same model."""
        copy = bytearray(self.state_bytes(sequence, partial))
        buffer = (ctypes.c_uint8 * len(copy)).from_buffer(copy)
        library().llama_state_seq_get_data_ext(self.handle, buffer, len(copy), sequence, int(partial))
        return copy

    def restore(self, sequence: int, state: bytearray, partial: bool = False) -> bool:
        """Fill the empty `sequence` from a copy; False (and it is empty) when there is no room.

        A `partial` copy replaces the recurrent state of a sequence that holds at least as many positions as the copy
        had read. The caller then cuts the positions beyond the copy's.
        """
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        self._snapshots.forget(sequence)
        if library().llama_state_seq_set_data_ext(self.handle, buffer, len(state), sequence, int(partial)):
            return True
        self.cut(sequence, 0)
        return False

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens that its model knows."""
        return self._model.vocabulary.size

    def logits(self, row: int) -> Any:
        """The raw logits of a row, float32 `(vocabulary,)`, valid until the next `decode`."""
        return self._view(library().llama_get_logits_ith(self.handle, row), self._model.vocabulary.size)

    def pooled(self, sequence: int) -> Any:
        """The pooled embedding of `sequence`, float32 `(n_embd,)`, or its scores; valid until the next `decode`."""
        low = library()
        if self._model.predicts:
            return self._view(low.llama_get_embeddings_ith(self.handle, self._last_row[sequence]), self._model.n_embd)
        size = low.llama_model_n_cls_out(self._model.handle) if self.pooling == POOLING_RANK else self._model.n_embd
        return self._view(low.llama_get_embeddings_seq(self.handle, sequence), size)

    @staticmethod
    def _view(pointer: Any, size: int) -> Any:
        import numpy as np  # only logprobs and embeddings look at numbers; a worker starts faster without

        return np.ctypeslib.as_array(pointer, shape=(size,))

    def _show_hidden(self) -> None:
        """Keep the last hidden state of every row, for the block that predicts further tokens."""
        heads_library().llama_set_embeddings_nextn(self.handle, True, False)
        self.pooling = POOLING_LAST  # as `pooled` does it
        # The buffer for them is made with the first step.
        self.buffers["output"] = self.buffers.get("output", 0) + 4 * self.batch_size * self._model.n_embd

    def hidden(self, rows: int) -> Any:
        """The last hidden states of the first `rows` rows, float32 `(rows, n_embd)`, valid until the next `decode`."""
        width = self._model.n_embd
        return self._view(heads_library().llama_get_embeddings_nextn(self.handle), rows * width).reshape(rows, width)

    def embed_mode(self, on: bool) -> None:
        """Compute embeddings with the next batches (a causal model does so only when asked)."""
        library().llama_set_embeddings(self.handle, on)
