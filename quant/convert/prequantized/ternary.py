"""BitNet b1.58: bytes with four rows each, and `weight_scale`."""

from __future__ import annotations

from typing import Any

from quant.convert.prequantized.pairing import WEIGHTS, Found, companion, do_not_fit, packed
from quant.errors import UnsupportedModel
from quant.plan import Files
from quant.stream.packed.ternary import PackedTernary
from quant.types import QuantType

_SCALES = ("F16", "BF16", "F32")


def read_bitnet(config: dict[str, Any], found: Found, files: Files) -> Found:
    """A matrix keeps its name, and gets four times the rows. Raises UnsupportedModel where layers have own norms."""
    kind, normed = config.get("linear_class", "bitlinear"), config.get("use_rms_norm")
    if kind not in ("bitlinear", "autobitlinear") or normed:
        told = "`use_rms_norm`" if normed else f"`linear_class` {ascii(kind)[:40]}"
        raise UnsupportedModel(f"the model is already quantized, by BitNet with {told}", WEIGHTS)
    for entry in [entry for entry in found.values() if entry.dtype == "U8" and entry.name.endswith(".weight")]:
        if len(entry.shape) != 2:
            raise do_not_fit(entry, entry.name + "_scale")
        scale = companion(found, entry, entry.name + "_scale", _SCALES, (), (1,))
        rows, columns = entry.shape[0] * 4, entry.shape[1]
        exact = None if columns % QuantType.TQ2_0.block else QuantType.TQ2_0
        packing = PackedTernary(rows, columns, scale.dtype, kind == "bitlinear", exact)
        packed(found, [entry.name, scale.name], entry.name, (rows, columns), packing)
    return found
