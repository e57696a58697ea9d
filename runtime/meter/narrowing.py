"""Channels of feed-forwards chosen by what they add on a text, layer by layer, and written for a cut to read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.cuts.channels import choose
from quant.cuts.width import save
from quant.gguf.header import Header, TensorInfo, read_file
from runtime.errors import BadRequest
from runtime.meter.inputs import InputGrams
from runtime.meter.nodes import InputsNotFinite
from runtime.meter.passages import Passage
from runtime.meter.sizes import GRAMS

Tell = Callable[[int, int], None]
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class NarrowTarget(NamedTuple):
    """The folder into which channels are written, and how many of a layer stay."""

    folder: Path
    keep: int


class NarrowedLayer(NamedTuple):
    """One layer: how many channels are `dead`, the share of outputs' squares that is `lost`, and seconds of work."""

    layer: int
    dead: int
    lost: float
    seconds: float


def narrow_layers(
    path: Path, passage: Passage, target: NarrowTarget, *, windows: int, window: int, threads: int, tell: Tell
) -> list[NarrowedLayer]:
    """Choose channels in each layer of the model at `path`, and write them.

    The inputs come from at most `windows` windows of a text. `tell` gets how many layers of how many are done. Raises
    BadRequest (a text too short, inputs that are not seen), BadValues, InputsNotFinite, LoadFailed, OSError.
    """
    header = read_file(path)
    downs = {each.name: each for each in header.tensors if each.role == "ffn_down" and len(each.shape) == 2}
    grams = InputGrams(path, passage, list(downs), window, windows, threads, GRAMS)
    found = []
    for done, (name, tensor) in enumerate(downs.items()):
        tell(done, len(downs))
        gram = grams.gram(name)
        if gram is None:
            raise BadRequest(f"the inputs of `{name}` are not seen", "the model's feed-forward is computed otherwise")
        if not np.isfinite(gram.diagonal()).all():
            raise InputsNotFinite(name)
        begun = time.monotonic()
        channels = choose(gram, _weights(path, header, tensor), target.keep)
        layer = tensor.layer or 0
        save(target.folder, layer, channels)
        found.append(NarrowedLayer(layer, channels.dead, channels.lost, time.monotonic() - begun))
    tell(len(downs), len(downs))
    return found


def _weights(path: Path, header: Header, tensor: TensorInfo) -> NDArray[np.float32]:
    """float32[rows, columns] of a matrix in a file of whole weights. Raises BadRequest for any other."""
    if tensor.type.name not in _DTYPES:
        raise BadRequest(f"`{tensor.name}` is quantized, and channels are fitted to whole weights", "name F16 or BF16")
    dtype = np.dtype(_DTYPES[tensor.type.name])
    offset = header.data_offset + tensor.offset
    data = np.fromfile(path, dtype, tensor.rows * tensor.columns, offset=offset).reshape(tensor.rows, -1)
    if tensor.type.name == "BF16":  # the upper halves of float32
        return (data.astype("<u4") << 16).view("<f4")
    return data.astype("<f4", copy=False)
