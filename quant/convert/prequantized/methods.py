"""The methods by which weights are quantized, by the configuration: which there are, and who reads their tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from quant.convert.config import ModelConfig
from quant.convert.prequantized import floats, rows, table, ternary, transposed, unpacked
from quant.convert.prequantized.mlx import fits
from quant.convert.prequantized.pairing import WEIGHTS, Reader
from quant.errors import UnsupportedModel
from quant.plan import Files, TensorPlan
from quant.safetensors import Entry
from quant.stream.packed.floats import SQUARE

_READERS: dict[str, Reader] = {
    "mxfp4": floats.read_floats,
    "fp8": floats.read_floats,
    "gptq": transposed.read_gptq,
    "awq": transposed.read_awq,
    "compressed-tensors": rows.read_compressed,
    "mlx": rows.read_mlx,
    "modelopt": floats.read_modelopt,
    "auto-round": transposed.read_auto_round,
    "intel/auto-round": transposed.read_auto_round,
    "bitsandbytes": table.read_bitsandbytes,
    "hqq": unpacked.read_hqq,
    "torchao": unpacked.read_torchao,
    "bitnet": ternary.read_bitnet,
}


class Method(NamedTuple):
    """A method by its name, "" where the weights are as they were trained, and its configuration."""

    name: str
    config: dict[str, Any]

    def pair(self, entries: Iterable[Entry], files: Files) -> list[Entry]:
        """The tensors; a packed one has its matrix's own name and shape, its `packing` and its companions.

        The companions stay in the list, too, so that it names all files of the source. Raises MalformedFile where they
        do not fit, UnsupportedModel for a layout that is not known.
        """
        found = {entry.name: entry for entry in entries}
        reader = _READERS.get(self.name)
        return list((reader(self.config, found, files) if reader else found).values())


def method_of(config: ModelConfig) -> Method:
    """The method by which the weights are quantized; UnsupportedModel for one that we cannot read."""
    quantized: Any = config.get("quantization_config") or config.get("compression_config")
    affine: Any = config.get("quantization")
    if isinstance(affine, dict) and "group_size" in affine and not (quantized and "quant_method" in quantized):
        return Method("mlx", affine)
    if not quantized:
        return Method("", {})
    name = quantized.get("quant_method") if isinstance(quantized, dict) else None
    known = isinstance(name, str) and name in _READERS and name != "mlx"
    if not known or (name == "fp8" and quantized.get("weight_block_size") not in (None, [SQUARE, SQUARE])):
        raise UnsupportedModel(f"the model is already quantized ({ascii(name)[:40]})", WEIGHTS)
    return Method(str(name), quantized)


def check_untouched(method: Method, tensors: Iterable[TensorPlan]) -> None:
    """Raise UnsupportedModel for weights that MLX may change on the way in, as we do: they would be changed twice."""
    if method.name != "mlx":
        return
    weights = (tensor for tensor in tensors if not tensor.name.endswith(".scale"))
    changed = [tensor.source for tensor in weights if not fits(tensor.transform)]
    if changed:
        raise UnsupportedModel(f"MLX stores some weights in a way of its own, such as `{changed[0]}`", WEIGHTS)
