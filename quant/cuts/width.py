"""A model with a narrower feed-forward: rows of its gate and up projections go, and the down projection is refitted.

Which channels stay in a layer, and how the others' work is shared, lies in a folder of files (`save`), because the
factors of a large model take gigabytes. The plan's transforms read them as the pass comes to a layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.cuts.channels import Channels
from quant.cuts.steps import DOWN, ROWS, width_of
from quant.errors import UnsupportedModel
from quant.plan import ModelPlan, TensorPlan

_PLAIN = ("F32", "F16", "BF16")


def save(folder: Path, layer: int, channels: Channels) -> None:
    """Write the channels of a layer. Raises OSError."""
    np.save(folder / f"kept-{layer}.npy", channels.kept)
    np.save(folder / f"refit-{layer}.npy", channels.refit)


@dataclass(frozen=True, slots=True)
class KeepChannels:
    """The rows of a matrix that belong to the channels in the file at `path`; of a vector, values.

    `total` is how many rows the matrix has, a multiple of `width`: twice that in a fused gate and up projection. `mark`
    is the file's digest.
    """

    path: str
    mark: str
    width: int
    total: int

    @property
    def rows(self) -> int:
        """A tensor is never cut."""
        return 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """[1, values] of any dtype, as [rows that stay, columns]."""
        kept = np.load(self.path, allow_pickle=False)
        matrix = x.reshape(self.total, -1)
        return np.concatenate([matrix[kept + first] for first in range(0, self.total, self.width)])


@dataclass(frozen=True, slots=True)
class RefitColumns:
    """The columns of a down projection that stay, with what the others did: W_S + W_R·A, A in the file at `refit`."""

    path: str
    refit: str
    mark: str
    width: int

    @property
    def rows(self) -> int:
        """A tensor is never cut."""
        return 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """[1, values] of F32, F16, or BF16 as uint16, to float32[rows, columns that stay]."""
        kept = np.load(self.path, allow_pickle=False)
        matrix = (x.astype("<u4") << 16).view("<f4") if x.dtype == np.uint16 else x.astype("<f4", copy=False)
        matrix = matrix.reshape(-1, self.width)
        gone = np.setdiff1d(np.arange(self.width), kept)
        found: NDArray[np.float32] = matrix[:, kept] + matrix[:, gone] @ np.load(self.refit, allow_pickle=False)
        return found


def narrowed(plan: ModelPlan, folder: Path) -> ModelPlan:
    """The plan with the channels alone that `save` wrote into `folder` for every layer.

    Raises UnsupportedModel for weights that are no numbers as they are, and where a layer's file is missing.
    """
    width = width_of(plan)
    sizes: set[int] = set()
    tensors = []
    for tensor in plan.tensors:
        if ROWS.fullmatch(tensor.name) or DOWN.fullmatch(tensor.name):
            tensor, kept = _narrow(tensor, folder, width)
            sizes.add(kept)
        tensors.append(tensor)
    if len(sizes) != 1:
        raise UnsupportedModel("layers would keep different numbers of channels")
    key = f"{plan.architecture}.feed_forward_length"
    kept = sizes.pop()
    length: Any = [kept] * len(before) if isinstance(before := plan.metadata[key], list) else kept
    return replace(plan, tensors=tuple(tensors), metadata={**plan.metadata, key: length})


def _narrow(tensor: TensorPlan, folder: Path, width: int) -> tuple[TensorPlan, int]:
    """A tensor of a layer without the channels that go, and how many channels stay."""
    path, refit = (folder / f"{name}-{tensor.layer}.npy" for name in ("kept", "refit"))
    if tensor.dtype not in _PLAIN or tensor.transform or tensor.parts or tensor.packing or not path.is_file():
        raise UnsupportedModel(
            f"`{tensor.name}` cannot be made narrower as it is", "bring the model in at F16, BF16 or F32"
        )
    data = path.read_bytes()
    mark, kept = hashlib.sha256(data).hexdigest()[:16], len(np.load(path, allow_pickle=False))
    if DOWN.fullmatch(tensor.name):
        down = RefitColumns(str(path), str(refit), mark, width)
        return replace(tensor, shape=(tensor.shape[0], kept), transform=down), kept
    total = tensor.shape[0]
    taken = KeepChannels(str(path), mark, width, total)
    return replace(tensor, shape=(total // width * kept, *tensor.shape[1:]), transform=taken), kept
