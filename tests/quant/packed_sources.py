"""Small models whose layers are packed by a function that a test gives, and what the pass makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quant.convert.planning import plan_model
from quant.plan import ModelPlan
from quant.types import QuantType
from tests.converting import write
from tests.quant.support import DEMO, Folder, bf16, llama_shapes, safetensors

WIDTH, INNER, VOCABULARY, GROUP = 256, 512, 4160, 32
RNG = np.random.default_rng(21)
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
# The name of a matrix in the GGUF file, by its name in a layer of the source.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def raw(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    names = {"i4": "I32", "u4": "U32", "f2": "F16", "f4": "F32", "i1": "I8", "u1": "U8", "u2": "BF16", "i8": "I64"}
    return names[array.dtype.str[1:]], array.shape, np.ascontiguousarray(array).tobytes()


def dense(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8[rows, n] → int32[rows, n * bits / 32], one code behind the other, lowest bits first."""
    flat = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(len(codes), -1)
    return np.packbits(flat, axis=1, bitorder="little").view("<i4")


class Packer:
    """Packs one matrix: its tensors, and the numbers that it stands for."""

    def __init__(self, rows: int, columns: int, bits: int, symmetric: bool, groups: int | None = None) -> None:
        self.rows, self.columns, self.bits = rows, columns, bits
        self.groups = groups or columns // GROUP
        middle = 1 << (bits - 1)
        self.codes = RNG.integers(0, 1 << bits, (rows, columns), np.uint8)
        shape = (rows, self.groups)
        self.zeros = np.full(shape, middle) if symmetric else RNG.integers(1, (1 << bits) - 1, shape)
        self.scales = (RNG.random(shape) / 64 + 1 / 256).astype(np.float16)
        self.bias = (RNG.standard_normal(shape) / 16).astype(np.float16)

    @property
    def values(self) -> np.ndarray:
        each = self.columns // self.groups
        zeros, scales = np.repeat(self.zeros, each, 1), np.repeat(self.scales, each, 1).astype(np.float32)
        return (self.codes - zeros.astype(np.float32)) * scales

    @property
    def affine(self) -> np.ndarray:
        each = self.columns // self.groups
        scales, bias = (np.repeat(some, each, 1).astype(np.float32) for some in (self.scales, self.bias))
        return self.codes * scales + bias


class Source:
    """A small Llama whose layers are packed by `pack`; `packers` by the name of the matrix in the GGUF file."""

    def __init__(self, config: dict[str, Any], pack: Callable[[Packer], Tensors], **how: Any) -> None:
        self.packers: dict[str, Packer] = {}
        self.tensors: Tensors = {}
        for name, shape in llama_shapes(2, WIDTH, INNER, 4, 2, VOCABULARY).items():
            if "layers" not in name or len(shape) < 2:
                self.tensors[name] = "BF16", shape, bf16(RNG.standard_normal(shape) / 8).tobytes()
                continue
            base, layer = name.removesuffix("weight"), name.split(".")[2]
            packer = Packer(*shape, **how)
            self.tensors |= {base + part: tensor for part, tensor in pack(packer).items()}
            known = next(gguf_name for part, gguf_name in NAMES.items() if part in name)
            self.packers[f"blk.{layer}.{known}.weight"] = packer
        self.config = config

    def folder(self, tensors: Tensors | None = None, **more: Any) -> Folder:
        config = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            **self.config,
            **more,
        }
        contents = {name: (DEMO / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
        # Sorted by type as safetensors' own writers do: all scales lie behind all codes.
        width = {"I64": 0, "F32": 1, "I32": 1, "U32": 1, "F16": 2, "BF16": 2, "I8": 3, "U8": 3, "F8_E4M3": 3}
        ordered = dict(sorted((tensors or self.tensors).items(), key=lambda item: (width[item[1][0]], item[0])))
        contents |= {"model.safetensors": safetensors(ordered), "config.json": json.dumps(config).encode()}
        return Folder(contents=contents)


def written(source: Folder, level: str, path: Path) -> tuple[ModelPlan, dict[str, tuple[QuantType, np.ndarray]]]:
    """The plan, and each tensor's type and blocks, as gguf reads them."""
    plan = plan_model(source)
    write(plan, level, source.stream, path)
    found = {
        tensor.name: (QuantType.by_id(int(tensor.tensor_type)), np.array(tensor.data))
        for tensor in gguf.GGUFReader(path).tensors
    }
    return plan, found


def turned(name: str, matrix: np.ndarray) -> np.ndarray:
    """The matrix with its rows as GGUF has them: those of queries and keys are in pairs."""
    if "attn_q" in name or "attn_k" in name:
        heads = 4 if "attn_q" in name else 2
        return matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
    return matrix
