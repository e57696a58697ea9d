"""Does a finished file load, and does it compute? A short text is read with it, by `runtime/machine/inspector.py`.

A model that writes must have a finite first-token distribution that prefers something; a model that embeds or ranks, a
finite vector that is not zero, or a finite score. The file's bytes are read as a worker would read them.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import QuantError
from quant.gguf.header import read_file
from runtime.errors import EngineError
from runtime.machine.fit import ModelSize, memory
from runtime.machine.inspection import Refused, Tried, Try
from runtime.messages import CacheConfig
from runtime.text.template import ChatTemplate
from runtime.units import size_text

if TYPE_CHECKING:
    from runtime.llama.context import Context
    from runtime.llama.model import LlamaModel

TEXT = "The quick brown fox jumps over the lazy dog."
# Tokens of the text that are read at most, and of the cache for them.
_MOST, _CONTEXT = 32, 256
# A distribution whose logits differ by less than this prefers nothing.
_LEAST_SPREAD = 1e-6


def trial(question: Try) -> Tried | Refused:
    """Read the text with the model. Refused where there is not enough memory; raises LoadFailed."""
    from runtime.llama.context import POOLING_RANK, Context, ContextParams, sequence_count
    from runtime.llama.library import usable_threads
    from runtime.llama.model import LlamaModel

    if short := _shortage(question):
        return Refused(short)
    model = LlamaModel(Path(question.path), gpu_layers=0)
    threads = min(question.threads, usable_threads())
    context = Context(model, ContextParams(_CONTEXT, sequence_count(model, 1), 1, threads))
    if not model.embeds:
        return _written(model, context)
    vector = _pooled(model, context)
    if isinstance(vector, Refused):
        return vector
    if context.pooling == POOLING_RANK:
        return Tried("" if _finite(vector[:1]) else "the score of a short text is not finite")
    if not _finite(vector):
        return Tried("the vector of a short text is not finite")
    return Tried("" if vector.any() else "the vector of a short text is zero")


def _shortage(question: Try) -> str:
    """Why the file cannot be tried now; "" where there is memory for it."""
    path = Path(question.path)
    try:
        header = read_file(path)
    except QuantError as error:
        raise EngineError(str(error)) from None
    need = memory(ModelSize.of(header.metadata), path.stat().st_size, CacheConfig(_CONTEXT, 1)).total
    if need <= question.memory:
        return ""
    return f"it needs {size_text(need)} of memory, and {size_text(max(0, question.memory))} are free at the moment"


def _written(model: LlamaModel, context: Context) -> Tried | Refused:
    """Read the text, then the likeliest next token, as an answer would."""
    if not context.remembers:
        return Refused("it does not write from left to right", unloadable=True)
    ids = _ids(model)
    context.put_prompt(0, memoryview(ids), 0, 0, 1)
    rows = len(ids)
    for position in (len(ids), len(ids) + 1):
        if status := context.decode(rows):
            return _undecoded(status)
        logits = context.logits(rows - 1)
        if not _finite(logits):
            return Tried("the probabilities of the first token after a short text are not finite")
        if float(logits.max() - logits.min()) < _LEAST_SPREAD:
            return Tried("all tokens are equally likely after a short text")
        context.put_token(0, int(logits.argmax()), position, 0)
        rows = 1
    return Tried("", ChatTemplate(model.chat_template, control=model.vocabulary.control_texts()).remark)


def _pooled(model: LlamaModel, context: Context) -> Any:
    """The vector of the text, float32 `(n_embd,)`, or its scores; Refused where llama.cpp does not compute it."""
    from runtime.llama.context import POOLING_LAST, POOLING_RANK

    ids = _ids(model)
    last = not model.encoder and context.pooling in (POOLING_LAST, POOLING_RANK)
    context.put_prompt(0, memoryview(ids), 0, 0, 1 if last else len(ids))
    context.embed_mode(True)
    status = context.decode(len(ids))
    return _undecoded(status) if status else context.pooled(0)


def _ids(model: LlamaModel) -> array[int]:
    """The text as tokens: no more than the model has positions for, one beside the next token."""
    ids = model.vocabulary.tokenize(TEXT, special=False, add=True) or array("i", [0])
    return ids[: max(1, min(_MOST, model.n_ctx_train - 2))]


def _undecoded(status: int) -> Refused:
    return Refused(f"llama.cpp cannot read a short text with it (status {status})", unloadable=True)


def _finite(values: Any) -> bool:
    import numpy as np  # only trials look at numbers here

    return bool(np.isfinite(values).all())
