"""Writes GGUF headers by hand, right or wrong, and remembers where each number lies."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Sketch:
    """Bytes so far, and (offset, width) of every whole number among them."""

    data: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def raw(self, data: bytes) -> Sketch:
        self.data += data
        return self

    def u32(self, *values: int) -> Sketch:
        for value in values:
            self.numbers.append((len(self.data), 4))
            self.data += struct.pack("<I", value & 0xFFFFFFFF)
        return self

    def u64(self, *values: int) -> Sketch:
        for value in values:
            self.numbers.append((len(self.data), 8))
            self.data += struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)
        return self

    def string(self, text: str | bytes, length: int | None = None) -> Sketch:
        raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        return self.u64(len(raw) if length is None else length).raw(raw)

    def start(self, tensors: int, entries: int, version: int = 3, magic: bytes = b"GGUF") -> Sketch:
        return self.raw(magic).u32(version).u64(tensors, entries)

    def number(self, key: str, value: int, kind: int = 4) -> Sketch:
        self.string(key).u32(kind)
        return self.u32(value) if kind in (4, 5) else self.u64(value)

    def text(self, key: str, value: str) -> Sketch:
        return self.string(key).u32(8).string(value)

    def texts(self, key: str, values: list[str]) -> Sketch:
        self.string(key).u32(9, 8).u64(len(values))
        for value in values:
            self.string(value)
        return self

    def integers(self, key: str, values: list[int]) -> Sketch:
        return self.string(key).u32(9, 5).u64(len(values)).raw(struct.pack(f"<{len(values)}i", *values))

    def tensor(self, name: str | bytes, shape: tuple[int, ...], offset: int = 0, type: int = 0) -> Sketch:
        return self.string(name).u32(len(shape)).u64(*shape).u32(type).u64(offset)

    def body(self, size: int, alignment: int = 32) -> bytes:
        return bytes(self.data) + bytes(-len(self.data) % alignment) + bytes(size)


def small_model() -> Sketch:
    """A header of every kind of entry and a few tensors, that is right; its data takes 608 bytes."""
    sketch = Sketch().start(tensors=4, entries=7)
    sketch.text("general.architecture", "llama").number("general.alignment", 32)
    sketch.number("llama.block_count", 1).number("llama.embedding_length", 8)
    sketch.texts("tokenizer.ggml.tokens", ["a", "b", "ab", "<s>"]).integers("tokenizer.ggml.token_type", [1, 1, 1, 3])
    sketch.text("tokenizer.ggml.model", "gpt2")
    sketch.tensor("token_embd.weight", (8, 4), 0).tensor("output_norm.weight", (8,), 128)
    return sketch.tensor("blk.0.ffn_up.weight", (256, 2), 160, type=12).tensor("blk.0.x", (5, 2, 3), 448, type=1)
