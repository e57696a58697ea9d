"""A folder, on disk or in memory, as a source (`quant.plan.Files`), and the parts of small models."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quant.plan import ModelPlan, TensorPlan

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "registry" / "demo"
TALE = ROOT.parent / "shared" / "models" / "tale"


class Folder:
    """A folder on disk, or one that is only a dictionary, as a source."""

    title = "a folder"

    def __init__(self, path: Path | None = None, contents: Mapping[str, bytes] | None = None) -> None:
        found = sorted(file for file in path.rglob("*") if file.is_file()) if path else []
        self.contents = {str(file.relative_to(path)): file.read_bytes() for file in found if path}
        self.contents.update(contents or {})

    def names(self) -> list[str]:
        return list(self.contents)

    def size(self, name: str) -> int:
        return len(self.contents[name])

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self.contents[name][offset : offset + size]

    def stream(self, name: str, piece: int = 1 << 20) -> Iterator[bytes]:
        whole = self.contents[name]
        for start in range(0, len(whole), piece):
            yield whole[start : start + piece]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads(self.contents[name])

    def change(self, name: str, **values: Any) -> Folder:
        """The same folder with entries of a JSON file set; None removes one."""
        merged = {**(self.json(name) if name in self.contents else {}), **values}
        entries = {key: value for key, value in merged.items() if value is not None}
        return self.with_file(name, json.dumps(entries).encode())

    def with_file(self, name: str, data: bytes | None) -> Folder:
        other = Folder(contents=self.contents)
        if data is None:
            del other.contents[name]
        else:
            other.contents[name] = data
        return other


def safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], extra: Mapping[str, Any] | None = None
) -> bytes:
    """A file of tensors (type, shape, bytes), in the order given."""
    header: dict[str, Any] = dict(extra or {})
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(data for _, _, data in tensors.values())


def llama_shapes(
    layers: int, width: int, feed_forward: int, heads: int, shared: int, vocabulary: int, head: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama model by their names in the source, untied."""
    head = head or width // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (width,),
            at + "self_attn.q_proj.weight": (heads * head, width),
            at + "self_attn.k_proj.weight": (shared * head, width),
            at + "self_attn.v_proj.weight": (shared * head, width),
            at + "self_attn.o_proj.weight": (width, heads * head),
            at + "post_attention_layernorm.weight": (width,),
            at + "mlp.gate_proj.weight": (feed_forward, width),
            at + "mlp.up_proj.weight": (feed_forward, width),
            at + "mlp.down_proj.weight": (width, feed_forward),
        }
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def bare_plan(shapes: Mapping[str, tuple[int, ...]], **facts: int) -> ModelPlan:
    """A plan without values or vocabulary: `shapes` by GGUF names, `facts` are `llama.*` entries (`__` for a dot)."""
    metadata = {f"llama.{key.replace('__', '.')}": value for key, value in facts.items()}
    tensors = tuple(TensorPlan(name, shape, "BF16", name, "x") for name, shape in shapes.items())
    return ModelPlan("llama", metadata, tensors, ("x",))


def bf16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the bit patterns of BF16, half to even."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
