"""Formats and arithmetic of GGUF models: blocks, files, conversion, recipes, the streaming pass.

Covers everything between the bytes of a published model and a GGUF file. Knows nothing of networks, of the store, or of
the engine that runs the result; imports none of the other packages. `quantize` and `dequantize` load Numba, which takes
a while, on their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.kernels.blocks import dequantize, quantize

__all__ = ["dequantize", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module `quant` has no attribute `{name}`")
    import quant.kernels.blocks

    return getattr(quant.kernels.blocks, name)
