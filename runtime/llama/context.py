"""A llama.cpp context with one unified cache for many sequences, and the batch that feeds it.

One thread owns it; `abort` alone may be called from others. Sequences are small integers below `sequences`; in a
unified cache copying a prefix from one to another is a matter of marking cells, no data moves.

Sliding windows are kept whole (`swa_full`, the default). A unified cache of windows has room for one of each sequence
and a batch: Gemma 3 4B with 16 sequences 16,896 cells, more than the whole pool of 8,192, so that nothing is saved up
to there; of 32,768 tokens it would take 2.7 GB instead of 4.6. In return any prefix can be shared and cut, where
windows need a checkpoint for each place to go back to, 122 MB each. `runtime/machine/fit.py` counts the same.

The batch is built once over flat arrays and filled through memoryviews: a prompt's chunk is four copies of memory.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from typing import Any

from runtime.errors import BadRequest, LoadFailed
from runtime.llama.model import LOG, Model, library

KV_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}
POOLING_NONE, POOLING_MEAN, POOLING_LAST, POOLING_RANK = 0, 1, 3, 4
OK, NO_ROOM, ABORTED = 0, 1, 2
BATCH = 512
# Sequences beyond the running ones, for prefixes to wait in; those of an embedding model, to read many texts at once.
PARKED, TEXTS = 8, 64
_CONTEXT_STEP = 256


@dataclass(frozen=True)
class Shape:
    """What a context is made with: `tokens` in the pool, `sequences` at most, `outputs` rows sampled in one `batch`."""

    tokens: int
    sequences: int
    outputs: int
    threads: int
    kv_type: str = "F16"
    batch: int = BATCH


def sequences(model: Model, running: int) -> int:
    """How many a context is made with, so that `running` answers can be written at once."""
    if model.recurrent:
        return running  # each costs a state
    return max(TEXTS, running) if model.embeds else running + PARKED


class Context:
    """A cache and its graph. `batch` rows are put with `put_token` and `put_prompt`, then `decode` runs them."""

    def __init__(self, model: Model, shape: Shape) -> None:
        """Raises BadRequest for an unknown cache type, LoadFailed when llama.cpp cannot make the context."""
        if shape.kv_type.upper() not in KV_TYPES:
            raise BadRequest(f"there is no cache type `{shape.kv_type}`", f"known are {', '.join(KV_TYPES)}")
        low = library()
        self._model = model
        self._abort_flag = ctypes.create_string_buffer(b"0")
        params = self._params(shape)
        self.batch_size: int = params.n_batch
        self.outputs: int = params.n_outputs_max
        LOG.error = ""
        self.handle = low.llama_init_from_model(model.handle, params)
        if not self.handle:
            reason = f": {LOG.error}" if LOG.error else ""
            raise LoadFailed(
                f"llama.cpp cannot make a context of {shape.tokens} tokens{reason}", "ask for a smaller one"
            )
        self.buffers = LOG.take_buffers()
        self.tokens: int = low.llama_n_ctx(self.handle)
        self._memory = low.llama_get_memory(self.handle)
        self.pooling: int = low.llama_pooling_type(self.handle)
        self._decode = low._lib.llama_decode
        self._make_batch(params.n_batch, shape.sequences)

    def _params(self, shape: Shape) -> Any:
        low = library()
        params = low.llama_context_default_params()
        params.n_ctx = -(-shape.tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        # An encoder reads a text in one piece, forwards and backwards.
        params.n_batch = params.n_ubatch = params.n_ctx if self._model.encoder else min(shape.batch, params.n_ctx)
        params.n_seq_max = shape.sequences
        # Rows of logits are wide: 512 of them would be 300 MB for a large vocabulary.
        params.n_outputs_max = max(shape.outputs, shape.sequences)
        params.n_threads = params.n_threads_batch = shape.threads
        params.type_k = params.type_v = KV_TYPES[shape.kv_type.upper()]
        params.kv_unified = True
        params.embeddings = self._model.encoder
        said = self._model.metadata("pooling_type")
        if said in (None, str(POOLING_NONE)):
            # Without a word from the model: a causal one has read all of a text at its end.
            params.pooling_type = POOLING_MEAN if self._model.encoder else POOLING_LAST
        if self._model.encoder or said not in (None, str(POOLING_NONE), str(POOLING_LAST)):
            params.n_outputs_max = params.n_batch  # every row has its part in a text's vector
        # Called by the compute threads at every graph node, so it must be C: `atoi` reads our flag as a number.
        params.abort_callback = ctypes.cast(ctypes.CDLL(None).atoi, low.ggml_abort_callback)
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        return params

    def _make_batch(self, size: int, sequences: int) -> None:
        low = library()
        self._arrays = (
            (ctypes.c_int32 * size)(),
            (ctypes.c_int32 * size)(),
            (ctypes.c_int32 * size)(*[1] * size),
            (ctypes.c_uint64 * size)(),
            (ctypes.c_int8 * size)(),
        )
        token, pos, count, seq, logits = self._arrays
        self._token, self._pos = (memoryview(x).cast("B").cast("i") for x in (token, pos))
        self._seq, self._logits = memoryview(seq).cast("B").cast("Q"), memoryview(logits).cast("B")
        self._names = (ctypes.c_int32 * sequences)(*range(sequences))
        start = ctypes.addressof(self._names)
        self._pointers = [start + 4 * sequence for sequence in range(sequences)]
        self._counting = memoryview(array("i", range(self.tokens + size)))
        self._batch = low.llama_batch()
        for field, values in (("token", token), ("pos", pos), ("n_seq_id", count), ("seq_id", seq), ("logits", logits)):
            kind = dict(low.llama_batch._fields_)[field]
            setattr(self._batch, field, ctypes.cast(values, kind))
        self._batch.embd = None

    def put_token(self, row: int, token: int, position: int, sequence: int) -> None:
        """One token of a running answer, whose logits are wanted."""
        self._token[row] = token
        self._pos[row] = position
        self._seq[row] = self._pointers[sequence]
        self._logits[row] = 1

    def put_prompt(self, row: int, tokens: memoryview[int], position: int, sequence: int, wanted: int) -> None:
        """A stretch of a prompt from `position` on; the logits of its last `wanted` rows are wanted."""
        size = len(tokens)
        end = row + size
        self._token[row:end] = tokens
        self._pos[row:end] = self._counting[position : position + size]
        self._seq[row:end] = memoryview(array("Q", (self._pointers[sequence],)) * size)
        self._logits[row:end] = bytes(size - wanted) + b"\x01" * wanted

    def decode(self, rows: int, vectors: Any = None) -> int:
        """Run the first `rows` rows: `OK`, `NO_ROOM` (nothing changed), `ABORTED`, or a negative number (an error).

        `vectors`, float32 `(rows, n_embd)`, stand in the place of the tokens.
        """
        self._batch.n_tokens = rows
        if vectors is None:
            return int(self._decode(self.handle, self._batch))
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

    def ask(self, question: Any) -> None:
        """Have `question` (C, or `ggml_abort_callback` of a Python function) asked after every operation of a graph,
        by the thread that decodes: whether to give up. The caller keeps a reference. `abort` is not heard any more."""
        library().llama_set_abort_callback(self.handle, question, None)

    def free(self) -> None:
        """Give back its memory; nothing else may be called after this."""
        library().llama_free(self.handle)

    def copy(self, source: int, target: int, end: int, start: int = 0) -> None:
        """Let `target` hold the positions of `source` from `start` to `end` too."""
        library().llama_memory_seq_cp(self._memory, source, target, start, end)

    def cut(self, sequence: int, start: int) -> bool:
        """Drop what `sequence` holds from position `start` on; False (and nothing done) where the model cannot."""
        return self._memory is None or bool(library().llama_memory_seq_rm(self._memory, sequence, start, -1))

    def shift(self, sequence: int, keep: int, gone: int) -> bool:
        """Drop `gone` positions after the first `keep` and move the rest up; False, and nothing done, if it cannot be.

        No other sequence may share these cells.
        """
        low = library()
        if not low.llama_memory_can_shift(self._memory):
            return False
        low.llama_memory_seq_rm(self._memory, sequence, keep, keep + gone)
        low.llama_memory_seq_add(self._memory, sequence, keep + gone, -1, -gone)
        return True

    def state_bytes(self, sequence: int, partial: bool = False) -> int:
        """How large a copy of what `sequence` holds would be; `partial` is the recurrent part of it alone."""
        return int(library().llama_state_seq_get_size_ext(self.handle, sequence, int(partial)))

    def save(self, sequence: int, partial: bool = False) -> bytearray:
        """A copy of what `sequence` holds, for `restore` of this very context."""
        copy = bytearray(self.state_bytes(sequence, partial))
        buffer = (ctypes.c_uint8 * len(copy)).from_buffer(copy)
        library().llama_state_seq_get_data_ext(self.handle, buffer, len(copy), sequence, int(partial))
        return copy

    def restore(self, sequence: int, state: bytearray, partial: bool = False) -> bool:
        """Fill the empty `sequence` from a copy; False (and it is empty) when there is no room.

        A `partial` copy takes the place of that part in a sequence which holds at least as many positions; what it has
        beyond the copy's is to be cut next.
        """
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        if library().llama_state_seq_set_data_ext(self.handle, buffer, len(state), sequence, int(partial)):
            return True
        self.cut(sequence, 0)
        return False

    def logits(self, row: int) -> Any:
        """The raw logits of a row, float32 `(n_vocab,)`, valid until the next `decode`."""
        return self._view(library().llama_get_logits_ith(self.handle, row), self._model.n_vocab)

    def pooled(self, sequence: int) -> Any:
        """The pooled embedding of `sequence`, float32 `(n_embd,)`, or its scores; valid until the next `decode`."""
        low = library()
        size = low.llama_model_n_cls_out(self._model.handle) if self.pooling == POOLING_RANK else self._model.n_embd
        return self._view(low.llama_get_embeddings_seq(self.handle, sequence), size)

    @staticmethod
    def _view(pointer: Any, size: int) -> Any:
        import numpy as np  # only logprobs and embeddings look at numbers; a worker starts faster without

        return np.ctypeslib.as_array(pointer, shape=(size,))

    def embed_mode(self, on: bool) -> None:
        """Compute embeddings with the next batches (a causal model does so only when asked)."""
        library().llama_set_embeddings(self.handle, on)
