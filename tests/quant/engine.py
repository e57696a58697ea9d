"""llama.cpp as an oracle: tokens and logits of a file, by the low-level bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")
from tests.quant.activation import ExactGelu  # noqa: E402 (it needs llama_cpp)

F32, F16 = 0, 1
RANK = 4
# In the order of `enum llama_model_kv_override_type`.
_FIELDS = {int: "val_i64", float: "val_f64", bool: "val_bool"}


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: int) -> None:
    """llama.cpp's log goes nowhere; the callback must outlive every call."""


class EngineRefuses(AssertionError):
    """The file cannot be loaded."""


class Engine:
    """A loaded GGUF file.

    - `vocabulary_only`: load no weights.
    - `instead`: numbers that replace entries of the file's metadata.
    - `exact`: compute GELU by its formula and not by llama.cpp's table (`activation.py`).
    - `served`: KV cache and attention in half precision, as in the daemon's workers; else in float32.
    """

    def __init__(
        self,
        path: Path,
        vocabulary_only: bool = False,
        instead: Mapping[str, float] | None = None,
        exact: bool = False,
        served: bool = False,
    ) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocabulary_only
        params.n_gpu_layers = 0
        # Repacked weights are rounded otherwise; and the AMX ones crash in some virtual machines.
        params.use_extra_bufts = False
        params.kv_overrides = _overrides(instead or {})
        self.served = served
        self.gelu = ExactGelu() if exact else None
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise EngineRefuses(f"llama.cpp refuses {path.name}")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self._adapters: list[tuple[Any, float]] = []

    def adapt(self, *adapters: tuple[Path, float]) -> None:
        """Let what is computed from now on be changed by these adapters, each with its scale."""
        self._adapters = []
        for path, scale in adapters:
            handle = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
            if not handle:
                raise EngineRefuses(f"llama.cpp refuses {path.name}")
            self._adapters.append((handle, scale))

    def _context(self, params: Any) -> Any:
        context = llama_cpp.llama_init_from_model(self.model, params)
        count = len(self._adapters)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*(handle for handle, _ in self._adapters))
        scales = (ctypes.c_float * count)(*(scale for _, scale in self._adapters))
        llama_cpp.llama_set_adapters_lora(context, handles, count, scales)
        return context

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text: str, first: bool = False, special: bool = False) -> list[int]:
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), first, special)
        assert count >= 0
        return room[:count]

    def ends(self, token: int) -> bool:
        return llama_cpp.llama_vocab_is_eog(self.vocabulary, token)

    def _exact(self, length: int) -> Any:
        """The settings of a context: as exact as can be (F32 cache, no flash attention), or as served."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = length
        params.type_k = params.type_v = F16 if self.served else F32
        params.flash_attn_type = int(self.served)
        params.n_threads = params.n_threads_batch = 1
        if self.gelu:
            params.cb_eval = self.gelu.callback
        return params

    def logits(self, ids: Sequence[int], batch: int = 512, context: int = 0) -> np.ndarray:
        """float32[len(ids), vocabulary], as exact as can be; `batch` at a time, in a context of `context`."""
        params = self._exact(context or len(ids))
        params.n_batch = params.n_ubatch = min(batch, len(ids))
        context = self._context(params)
        parts = [self._decode(context, ids, start, batch) for start in range(0, len(ids), batch)]
        llama_cpp.llama_free(context)
        return np.concatenate(parts)

    def generate(self, ids: Sequence[int], count: int) -> np.ndarray:
        """float32[count, vocabulary]: the logits behind a prompt and behind each likeliest token, read one by one."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = len(ids) + count
        params.n_threads = params.n_threads_batch = 1
        context = llama_cpp.llama_init_from_model(self.model, params)
        found = [self._decode(context, ids, 0, len(ids))[-1]]
        answer = list(ids)
        for _ in range(count - 1):
            answer.append(int(found[-1].argmax()))
            found.append(self._decode(context, answer, len(answer) - 1, 1)[-1])
        llama_cpp.llama_free(context)
        return np.stack(found)

    def _decode(self, context: object, ids: Sequence[int], start: int, count: int) -> np.ndarray:
        part = ids[start : start + count]
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for index, token in enumerate(part):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        shape = (len(part), llama_cpp.llama_vocab_n_tokens(self.vocabulary))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape).copy()
        llama_cpp.llama_batch_free(batch)
        return logits

    def vectors(self, ids: Sequence[int], pooling: int = 0) -> np.ndarray:
        """float32[len(ids), width]: a vector of each token; with a `pooling`, one of the text (`RANK`: its scores)."""
        params = self._exact(len(ids))
        params.n_batch = params.n_ubatch = len(ids)
        params.embeddings, params.pooling_type = True, pooling
        context = llama_cpp.llama_init_from_model(self.model, params)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        found = llama_cpp.llama_get_embeddings_seq(context, 0) if pooling else llama_cpp.llama_get_embeddings(context)
        width = llama_cpp.llama_model_n_cls_out if pooling == RANK else llama_cpp.llama_model_n_embd
        shape = (1 if pooling else len(ids), width(self.model))
        vectors = np.ctypeslib.as_array(found, shape).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return vectors

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other."""
        answer = list(ids)
        for _ in range(count):
            answer.append(int(self.logits(answer)[-1].argmax()))
        return answer[len(ids) :]


def _overrides(values: Mapping[str, float]) -> Any:
    """`values` as llama.cpp takes them: an array that ends with an empty key."""
    made = (llama_cpp.llama_model_kv_override * (len(values) + 1))()
    for each, (key, value) in zip(made, values.items(), strict=False):
        each.key = key.encode()
        field = next(field for kind, field in _FIELDS.items() if type(value) is kind)
        each.tag = list(_FIELDS.values()).index(field)
        setattr(each.value, field, value)
    return made


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence of the distributions that two sets of logits stand for, in nats."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
