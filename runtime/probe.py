"""How fast this machine reads weights of each family of types: a small model of each, run through llama.cpp itself.

Measured are whole steps of one token, as an answer takes them, so that rates hold what threads, repacking and
instructions do to them. The models are headers over a hole in a file: read without mapping, a hole becomes pages of
zeros that the kernels multiply like any other numbers. They are larger than most caches. Besides the rates: what a
layer costs whatever its size, and what attention costs for each token before.

Source of the model of time: a token's step is bound by reading the active weights, then by the barriers between the
operations of a layer, then by attention over the cache, which works through it once for every query head.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from quant.types import QuantType
from runtime.context import Context, Shape
from runtime.llama import Model, library
from runtime.measure import Probe, Probed, write_skeleton

_HEAD = 64
_VOCABULARY = 256
_STEPS = 8
_SECONDS = 0.5
# Larger than what a processor caches, as far as a probe of a few seconds allows.
_WEIGHTS_BYTES = 256 << 20
_FILLED = 2048


class Sizes(NamedTuple):
    """A Llama of this shape, without sharing of key heads."""

    layers: int
    width: int
    feed_forward: int

    def bytes(self, type: QuantType) -> int:
        """What the matrices of all layers take."""
        values = self.layers * self.width * (4 * self.width + 3 * self.feed_forward)
        return values * type.block_bytes // type.block


_BLOCK = Sizes(1, 2048, 8192)
# Many layers with next to no weights, and a few whose attention is all there is to them.
_THIN, _DEEP = Sizes(32, 64, 64), Sizes(8, 1024, 64)


def probe(question: Probe) -> Probed:
    """Measure the types asked for; raises LoadFailed."""
    threads = question.threads
    with tempfile.TemporaryDirectory(prefix="lm-probe-") as folder:
        path = Path(folder) / "probe.gguf"
        thin = _step(path, QuantType.Q8_0, _THIN, threads)
        layer = thin / _THIN.layers
        rates = {}
        for name in question.types:
            type = QuantType.by_name(name)
            sizes = _BLOCK._replace(layers=-(-_WEIGHTS_BYTES // _BLOCK.bytes(type)))
            # The layers' own cost is counted apart, so it must not be in the rates as well.
            seconds = _step(path, type, sizes, threads)
            rates[name] = sizes.bytes(type) / max(seconds / 2, seconds - sizes.layers * layer)
        empty = _step(path, QuantType.Q8_0, _DEEP, threads)
        filled = _step(path, QuantType.Q8_0, _DEEP, threads, before=_FILLED)
    values = _DEEP.layers * 2 * _DEEP.width * _FILLED
    return Probed(rates, layer, values / max(filled / 100, filled - empty))


def _step(path: Path, type: QuantType, sizes: Sizes, threads: int, before: int = 0) -> float:
    """Seconds of a step of one token with `before` tokens in the cache: the second best, which others disturb least."""
    write_skeleton(path, _metadata(sizes), _tensors(type, sizes))
    model = Model(path, mapped=False)
    context = Context(model, Shape(before + 256, 1, 1, threads))
    position = 0
    while position < before:
        tokens = memoryview(bytes(4 * context.batch_size)).cast("i")
        context.put_prompt(0, tokens, position, 0, 1)
        context.decode(context.batch_size)
        position += context.batch_size
    times = []
    for _ in range(_STEPS):
        context.put_token(0, 0, position, 0)
        start = time.perf_counter()
        context.decode(1)
        library().llama_synchronize(context.handle)
        times.append(time.perf_counter() - start)
        position += 1
        if len(times) > 2 and sum(times) > _SECONDS:
            break
    library().llama_free(context.handle)
    library().llama_model_free(model.handle)
    return sorted(times)[1]


def _metadata(sizes: Sizes) -> dict[str, object]:
    heads = sizes.width // _HEAD
    return {
        "general.architecture": "llama",
        "llama.vocab_size": _VOCABULARY,
        "llama.context_length": 1 << 17,
        "llama.embedding_length": sizes.width,
        "llama.block_count": sizes.layers,
        "llama.feed_forward_length": sizes.feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }


def _tensors(type: QuantType, sizes: Sizes) -> list[tuple[str, tuple[int, ...], QuantType]]:
    """Names and shapes (GGUF's order) of a Llama's tensors."""
    width, wide = sizes.width, sizes.feed_forward
    square = {f"attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    matrices = {**square, "ffn_gate": (width, wide), "ffn_up": (width, wide), "ffn_down": (wide, width)}
    tensors: list[tuple[str, tuple[int, ...], QuantType]] = [
        ("token_embd.weight", (width, _VOCABULARY), QuantType.F16),
        ("output_norm.weight", (width,), QuantType.F32),
    ]
    for layer in range(sizes.layers):
        at = f"blk.{layer}."
        tensors += [(f"{at}{name}.weight", shape, type) for name, shape in matrices.items()]
        tensors += [(f"{at}{name}.weight", (width,), QuantType.F32) for name in ("attn_norm", "ffn_norm")]
    return tensors
