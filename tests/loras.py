"""GGUF adapters with random matrices, for tests and measurements that need one and not PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quant.gguf.header import read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.types import QuantType, Tensor, role_of

ROLES = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")


class _File:
    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)


def write_adapter(
    base: Path,
    path: Path,
    seed: int,
    *,
    rank: int = 4,
    strength: float = 0.5,
    roles: tuple[str, ...] = ROLES,
    **more: Any,
) -> Path:
    """An adapter at `path` for the GGUF file `base`, which changes its matrices of these roles; `more` are entries."""
    header, random = read_file(base), np.random.RandomState(seed)
    tensors: list[Tensor] = []
    for tensor in header.tensors:
        if tensor.layer is not None and role_of(tensor.name) in roles and len(tensor.shape) == 2:
            inputs, outputs = tensor.shape
            tensors.append(Tensor(f"{tensor.name}.lora_a", (inputs, rank), QuantType.F32))
            tensors.append(Tensor(f"{tensor.name}.lora_b", (rank, outputs), QuantType.F32))
    entries = {
        "general.architecture": header.metadata["general.architecture"],
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    placed = layout(tensors)
    out = _File(path)
    out.write(encode_header({key: value for key, value in entries.items() if value is not None}, placed))
    writer = Writer(out, placed)
    for tensor in tensors:
        values = random.standard_normal(tensor.rows * tensor.columns) * strength / tensor.columns**0.5
        writer.append(memoryview(values.astype("<f4")).cast("B"))
    writer.finish()
    out.file.close()
    return path
