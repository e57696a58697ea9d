"""Small decoders as ONNX Runtime GenAI's builder lays them out, written byte by byte: no package is needed for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tests.quant.packed_sources import RNG, Packer
from tests.quant.support import DEMO, Folder

WIDTH, INNER, VOCABULARY, LAYERS, HEADS, KEYS, HEAD = 64, 96, 4160, 2, 4, 2, 16
GRAPH, DATA = "model.onnx", "model.onnx.data"
# Operators of ONNX itself.
_PLAIN = ("MatMul", "Gather", "Add", "Mul", "Sigmoid", "Constant", "Greater", "If", "Loop")
# The types of tensors by numpy's names (`TensorProto.DataType`).
TYPES = {"f4": 1, "u1": 2, "i8": 7, "f2": 10, "u2": 16}


class Branch(bytes):
    """A graph as the value of an attribute."""


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + np.float32(value).tobytes()
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields: bytes) -> bytes:
    return b"".join(fields)


def attribute(name: str, value: int | float | str | bytes) -> bytes:
    number = {int: 3, float: 2, str: 4, bytes: 5, Branch: 6}[type(value)]
    return field(5, message(field(1, name), field(number, value)))


def node(operator: str, name: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> bytes:
    domain = (
        ""
        if operator in ("MatMul", "Gather", "Add", "Mul", "Sigmoid", "Constant", "Greater", "If", "Loop")
        else "com.microsoft"
    )
    return field(
        1,
        message(
            *(field(1, each) for each in inputs),
            *(field(2, each) for each in outputs),
            field(3, name),
            field(4, operator),
            *(attribute(key, value) for key, value in attributes.items()),
            field(7, domain),
        ),
    )


def tensor(name: str, array: np.ndarray, *place: bytes) -> bytes:
    """A tensor whose bytes are within it, or elsewhere as `place` says."""
    dims = [field(1, length) for length in array.shape]
    kind = field(2, TYPES[array.dtype.str[1:]])
    return message(*dims, kind, field(8, name), *(place or (field(9, array.tobytes()),)))


def outside(location: str, offset: int, length: int) -> tuple[bytes, ...]:
    """The place of a tensor in a file beside the graph."""
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    return (*(field(13, message(field(1, key), field(2, each))) for key, each in pairs.items()), field(14, 1))


class Decoder:
    """A Llama with fused queries, keys and values; `pack` stores a matrix: its node's inputs behind the first."""

    def __init__(
        self, bits: int = 4, block: int = 32, symmetric: bool = True, inside: bool = False, long: bool = False
    ) -> None:
        self.bits, self.block, self.symmetric, self.inside, self.long = bits, block, symmetric, inside, long
        self.packers: dict[str, Packer] = {}
        self.nodes: list[bytes] = []
        self.tensors: list[bytes] = []
        self.data = bytearray()
        self.place: Callable[[str, int, int], tuple[bytes, ...]] = outside
        self._make()

    def weight(self, name: str, array: np.ndarray) -> str:
        """A tensor of the graph, in the file beside it."""
        place = () if self.inside else self.place(DATA, len(self.data), array.nbytes)
        self.tensors.append(field(5, tensor(name, array, *place)))
        self.data += b"" if self.inside else array.tobytes()
        return name

    def product(self, path: str, rows: int, columns: int, source: str, out: str = "") -> str:
        """A matrix of codes, or of floats where there are 32 bits."""
        module, output = path[1:].replace("/", "."), out or f"{path}/MatMul/output_0"
        if self.bits == 32:
            matrix = RNG.standard_normal((rows, columns)).astype("<f4")
            self.packers[module] = matrix  # type: ignore[assignment]
            name = self.weight(f"{module}.MatMul.weight", np.ascontiguousarray(matrix.T))
            self.nodes.append(node("MatMul", f"{path}/MatMul", [source, name], [output]))
            return output
        groups = -(-columns // self.block)
        packer = Packer(rows, groups * self.block, self.bits, self.symmetric, groups)
        self.packers[module] = packer
        per = 8 // self.bits
        low = packer.codes.reshape(rows, -1, per) << (np.arange(per, dtype=np.uint8) * self.bits)
        names = [self.weight(f"{module}.MatMul.weight_Q", low.sum(-1, dtype=np.uint8).reshape(rows, groups, -1))]
        names.append(self.weight(f"{module}.MatMul.weight_scales", packer.scales.astype("<f4")))
        if not self.symmetric:
            zeros = np.zeros((rows, -(-groups // per) * per), np.uint8)
            zeros[:, :groups] = packer.zeros
            packed = (zeros.reshape(rows, -1, per) << (np.arange(per, dtype=np.uint8) * self.bits)).sum(-1)
            names.append(self.weight(f"{module}.MatMul.weight_zp", packed.astype(np.uint8)))
        numbers = {"K": columns, "N": rows, "bits": self.bits, "block_size": self.block}
        self.nodes.append(node("MatMulNBits", f"{path}/MatMul_Q", [source, *names], [output], **numbers))
        return output

    def norm(self, path: str, source: str) -> str:
        name = self.weight(f"{path[1:].replace('/', '.')}.weight", RNG.random(WIDTH).astype("<f4") + 1)
        operator = "SimplifiedLayerNormalization"
        self.nodes.append(node(operator, f"{path}/LayerNorm", [source, name], [f"{path}/output_0"], epsilon=1e-5))
        return f"{path}/output_0"

    def _tables(self, angles: np.ndarray) -> list[str]:
        """Cosines and sines; with `long`, chosen by a condition, from tables of half the angles beyond 32 tokens."""
        functions = {"cos_cache": np.cos, "sin_cache": np.sin}
        if not self.long:
            return [self.weight(name, each(angles).astype("<f4")) for name, each in functions.items()]
        branches = {}
        for branch, end, share in (("then_branch", "_large", 0.5), ("else_branch", "_small", 1.0)):
            constants = (
                node("Constant", f"/{name}", [], [name + end], value=tensor("", each(angles * share).astype("<f4")))
                for name, each in functions.items()
            )
            branches[branch] = Branch(message(*constants))
        self.nodes.append(node("Constant", "/limit", [], ["limit"], value=tensor("", np.array(32, "<i8"))))
        self.nodes.append(node("Greater", "/rope/Greater", ["input_ids", "limit"], ["is_long"]))
        self.nodes.append(node("If", "/rope/If", ["is_long"], list(functions), **branches))
        return list(functions)

    def _make(self) -> None:
        self.embedding = RNG.standard_normal((VOCABULARY, WIDTH)).astype("<f4")
        at = self.weight("model.embed_tokens.weight", self.embedding)
        angles = np.arange(64)[:, None] * 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))
        tables = self._tables(angles)
        self.nodes.append(node("Gather", "/model/embed_tokens/Gather", [at, "input_ids"], ["x"]))
        last = "x"
        for layer in range(LAYERS):
            path = f"/model/layers.{layer}"
            read = self.norm(f"{path}/input_layernorm", last)
            fused = self.product(f"{path}/attn/qkv_proj", (HEADS + 2 * KEYS) * HEAD, WIDTH, read)
            name = f"{path}/attn/GroupQueryAttention"
            inputs = [fused, "", "", f"past.{layer}.key", f"past.{layer}.value", "", "", *tables]
            numbers = {"num_heads": HEADS, "kv_num_heads": KEYS, "do_rotary": 1, "scale": HEAD**-0.5}
            self.nodes.append(node("GroupQueryAttention", name, inputs, [f"{name}/output_0"], **numbers))
            last = self.product(f"{path}/attn/o_proj", WIDTH, HEADS * HEAD, f"{name}/output_0")
            read = self.norm(f"{path}/post_attention_layernorm", last)
            gate = self.product(f"{path}/mlp/gate_proj", INNER, WIDTH, read)
            up = self.product(f"{path}/mlp/up_proj", INNER, WIDTH, read)
            act = f"{path}/mlp/act_fn"
            self.nodes.append(node("Sigmoid", f"{act}/Sigmoid", [gate], [f"{act}/s"]))
            self.nodes.append(node("Mul", f"{act}/Mul", [gate, f"{act}/s"], [f"{act}/m"]))
            self.nodes.append(node("Mul", f"{path}/mlp/Mul", [f"{act}/m", up], [f"{path}/mlp/o"]))
            last = self.product(f"{path}/mlp/down_proj", WIDTH, INNER, f"{path}/mlp/o")
        read = self.norm(f"/model/layers.{LAYERS}/final_norm_layernorm", last)
        self.product("/lm_head", VOCABULARY, WIDTH, read, "logits")

    def graph(self) -> bytes:
        pasts = [f"past.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
        inputs = [field(11, message(field(1, each))) for each in ("input_ids", *pasts)]
        return message(field(1, 10), field(7, message(*self.nodes, *self.tensors, *inputs)))

    def folder(self, graph: bytes | None = None, **model: Any) -> Folder:
        decoder = {
            "filename": GRAPH,
            "head_size": HEAD,
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KEYS,
        }
        told: Mapping[str, Any] = {
            "type": "llama", "vocab_size": VOCABULARY, "context_length": 64, "eos_token_id": 2, "bos_token_id": 1,
            "decoder": decoder, **model,
        }  # fmt: skip
        contents = {name: (DEMO / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
        contents |= {"genai_config.json": json.dumps({"model": told}).encode(), GRAPH: graph or self.graph()}
        contents |= {} if self.inside else {DATA: bytes(self.data)}
        return Folder(contents=contents)
