"""Makes a Hugging Face folder of random weights in any shape, to measure speed and memory with.

    python -m benchmarks.synthetic OUT
    python -m benchmarks.synthetic OUT --layers 32 --width 4096 --feed-forward 14336 --shards 4

The default is the 1.1 B model of TinyLlama's shape. Weights are BF16 from a normal distribution, scaled so that a
forward pass stays finite; they say nothing about quality. The tokenizer is the demo's, padded to the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

DEMO = Path(__file__).parent.parent / "registry" / "demo"
# Weights are drawn from a table of this many, at random places: as fast as memory, and as good for the purpose.
TABLE = 1 << 22


class Tensor(NamedTuple):
    """Name, shape and the deviation of the weights; none means ones, for norms."""

    name: str
    shape: tuple[int, ...]
    deviation: float | None

    @property
    def size(self) -> int:
        """Bytes in BF16."""
        return 2 * math.prod(self.shape)


def llama_tensors(options: argparse.Namespace) -> Iterator[Tensor]:
    """The tensors of a Llama model in the order in which Hugging Face saves them."""
    width, head = options.width, options.width // options.heads
    keys, deviation = options.kv_heads * head, 1 / math.sqrt(options.width)
    yield Tensor("model.embed_tokens.weight", (options.vocabulary, width), 1.0)
    for layer in range(options.layers):
        at = f"model.layers.{layer}."
        yield Tensor(at + "input_layernorm.weight", (width,), None)
        yield Tensor(at + "mlp.down_proj.weight", (width, options.feed_forward), 1 / math.sqrt(options.feed_forward))
        yield Tensor(at + "mlp.gate_proj.weight", (options.feed_forward, width), deviation)
        yield Tensor(at + "mlp.up_proj.weight", (options.feed_forward, width), deviation)
        yield Tensor(at + "post_attention_layernorm.weight", (width,), None)
        yield Tensor(at + "self_attn.k_proj.weight", (keys, width), deviation)
        yield Tensor(at + "self_attn.o_proj.weight", (width, width), deviation)
        yield Tensor(at + "self_attn.q_proj.weight", (width, width), deviation)
        yield Tensor(at + "self_attn.v_proj.weight", (keys, width), deviation)
    yield Tensor("model.norm.weight", (width,), None)
    if not options.tied:
        yield Tensor("lm_head.weight", (options.vocabulary, width), deviation)


def split(tensors: list[Tensor], count: int) -> list[list[Tensor]]:
    """Consecutive parts of about the same size."""
    target = sum(tensor.size for tensor in tensors) / count
    parts: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if filled >= target * len(parts) and len(parts) < count:
            parts.append([])
        parts[-1].append(tensor)
        filled += tensor.size
    return parts


def write_shard(path: Path, tensors: list[Tensor], rng: np.random.Generator, sparse: bool) -> None:
    """One safetensors file; a `sparse` one ends with its header."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    normal = rng.standard_normal(TABLE, np.float32)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in [] if sparse else tensors:
            if tensor.deviation is None:
                file.write(np.full(math.prod(tensor.shape), 0x3F80, "<u2"))
                continue
            table = to_bf16(normal * np.float32(tensor.deviation))
            left = math.prod(tensor.shape)
            while left:
                start = int(rng.integers(TABLE - 1))
                left -= file.write(table[start : start + left]) // 2


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded half away from zero."""
    return ((values.view("<u4") + 0x8000) >> 16).astype("<u2")


def make(out: Path, options: argparse.Namespace, sparse: bool = False) -> int:
    """Write the folder, for `benchmarks.hub` without weights if it is `sparse`; returns the number of parameters."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = list(llama_tensors(options))
    parts = split(tensors, options.shards)
    rng = np.random.default_rng(options.seed)
    if len(parts) == 1:
        write_shard(out / "model.safetensors", tensors, rng, sparse)
    else:
        where = {}
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05}-of-{len(parts):05}.safetensors"
            write_shard(out / name, part, rng, sparse)
            where |= {tensor.name: name for tensor in part}
        index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((DEMO / "config.json").read_text()) | {
        "hidden_size": options.width,
        "intermediate_size": options.feed_forward,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.width // options.heads,
        "vocab_size": options.vocabulary,
        "tie_word_embeddings": options.tied,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((DEMO / name).read_bytes())
    return sum(tensor.size for tensor in tensors) // 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path, help="folder to write")
    sizes = {"layers": 22, "width": 2048, "feed-forward": 5632, "heads": 32, "kv-heads": 4, "vocabulary": 32_000}
    for name, default in {**sizes, "shards": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--tied", action="store_true", help="share the embedding with the output")
    return parser


if __name__ == "__main__":
    chosen = parser().parse_args()
    print(f"{make(chosen.out, chosen) / 1e9:.2f} billion parameters in {chosen.out}")
