"""The settings of an exported model: `config.json`'s, read from `genai_config.json` and from the graph.

The builder leaves `config.json` out. The graph tells most of it, because it computes with it: norms have their
epsilon, attention its scale, windows and caps, the tables of angles their base. A setting that neither file tells is an
error that names it; nothing is filled in from what a class of models usually has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from quant.convert.config import ModelConfig
from quant.convert.onnx.modules import NORMS, NodeWeights
from quant.convert.onnx.rotation import Rotation, settings
from quant.errors import MalformedFile, UnsupportedModel
from quant.onnx.graph import Graph, Node
from quant.plan import Files
from quant.safetensors import Entry

CONFIG = "genai_config.json"
# The classes of models whose exports are known, by `type` in `genai_config.json`: a class's name as far as `For`.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
}
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention")
_LAYER = re.compile(r"model\.layers\.(\d+)\.attn(?:\..*)?")
_RESIDUAL = "model.layers.0.residual_mul"
# Activations by the operators behind the gate.
_ACTIVATIONS = {"Sigmoid": "silu", "Gelu": "gelu_pytorch_tanh", "FastGelu": "gelu_pytorch_tanh"}


def class_of(config: ModelConfig) -> str:
    """The name of the class in Hugging Face's terms. Raises UnsupportedModel for one whose export is not known."""
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UnsupportedModel(
            f"`{config.name}` names the type `{ascii(kind)[1:-1][:40]}`, whose ONNX export cannot be converted yet",
            "a repository with the original weights may work",
        )
    return CLASSES[kind]


class Told:
    """The settings of one model, put together. `model` is the object `model` of `genai_config.json`."""

    def __init__(self, files: Files, model: ModelConfig, graph: Graph, found: NodeWeights) -> None:
        self._files, self._model, self._graph, self._found = files, model, graph, found
        self._decoder = model.part("decoder")
        self.layers = self._decoder.count("num_hidden_layers")
        self.head = self._decoder.count("head_size")
        self.heads = self._decoder.count("num_attention_heads")
        self.key_heads = self._decoder.count("num_key_value_heads")

    def rows(self, fused: str) -> tuple[int, ...]:
        """The rows of each part of a fused matrix."""
        if fused == "qkv_proj":
            return self.heads * self.head, self.key_heads * self.head, self.key_heads * self.head
        width = self._feed_forward()
        return width, width

    def config(self, name: str) -> ModelConfig:
        """The settings of a model of the class `name`. Raises MalformedFile, which names what is missing."""
        attention = self._attention()
        values: dict[str, Any] = {
            "architectures": [name],
            "hidden_size": self._decoder.count("hidden_size"),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "intermediate_size": self._feed_forward(),
            "vocab_size": self._model.count("vocab_size"),
            "max_position_embeddings": self._model.count("context_length"),
            "rms_norm_eps": self._epsilon(),
            "tie_word_embeddings": self._found.shared,
            **dict.fromkeys(("hidden_act", "hidden_activation"), self._activation()),
            **self._windows(attention),
            **self._scales(name, attention),
        }
        values |= {key: self._model.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        values |= self._rotation(name, attention)
        return ModelConfig(CONFIG, values)

    def _feed_forward(self) -> int:
        for part, share in (("gate_proj", 1), ("up_proj", 1), ("gate_up_proj", 2)):
            entry = self._found.weights.get(f"model.layers.0.mlp.{part}.weight")
            if entry:
                return entry.shape[0] // share
        raise self._missing("intermediate_size")

    def _attention(self) -> list[Node]:
        """The attention of each layer, in order."""
        by_layer: dict[int, Node] = {}
        for module, node in self._found.of(*_ATTENTION):
            place = _LAYER.fullmatch(module)
            if place:
                by_layer[int(place[1])] = node
        if sorted(by_layer) != list(range(self.layers)):
            raise UnsupportedModel(f"`{self._graph.shard}` has attention in {len(by_layer)} of {self.layers} layers")
        nodes = [by_layer[number] for number in range(self.layers)]
        for node in nodes:
            counts = node.number("num_heads", 0), node.number("kv_num_heads", self.key_heads)
            if counts != (self.heads, self.key_heads):
                raise MalformedFile(f"`{node.name[:80]}` has {counts[0]} and {counts[1]} heads, `{CONFIG}` has others")
            if node.number("rotary_interleaved", 0) or node.number("smooth_softmax", 0) or node.input(11):
                raise UnsupportedModel(f"the attention of `{node.name[:80]}` is of a kind that cannot be converted yet")
        return nodes

    def _epsilon(self) -> float:
        found = {node.real("epsilon", 1e-5) for _, node in self._found.of(*NORMS)}
        if len(found) != 1:
            raise self._missing("rms_norm_eps") if not found else UnsupportedModel("its norms have several epsilons")
        return float(np.format_float_positional(np.float32(found.pop()), unique=True))

    def _activation(self) -> str:
        found = {_ACTIVATIONS[node.operator] for _, node in self._found.of(*_ACTIVATIONS)}
        exact = [node for _, node in self._found.of("Gelu") if node.attributes.get("approximate", "none") != "tanh"]
        if len(found) != 1 or exact or any(self._found.of("QuickGelu", "Relu")):
            raise self._missing("hidden_act")
        return found.pop()

    def _windows(self, attention: list[Node]) -> dict[str, Any]:
        sizes = [node.number("local_window_size", -1) for node in attention]
        own = {size for size in sizes if size > 0}
        if not own:
            return {"sliding_window": None, "use_sliding_window": False}
        if len(own) > 1:
            raise UnsupportedModel("its layers have windows of several sizes")
        kinds = ["sliding_attention" if size > 0 else "full_attention" for size in sizes]
        return {"sliding_window": own.pop(), "use_sliding_window": True, "layer_types": kinds}

    def _scales(self, name: str, attention: list[Node]) -> dict[str, Any]:
        """Attention's scale and caps, and the factors of Granite."""
        scales = {node.real("scale", 0) or self.head**-0.5 for node in attention}
        caps = {node.real("softcap", 0) for node in attention}
        if len(scales) != 1 or len(caps) != 1:
            raise UnsupportedModel("its layers scale attention in several ways")
        scale, cap = scales.pop(), caps.pop()
        last = self._factor("lm_head.softcap", "Div")
        if name.startswith("Gemma"):
            return {
                "query_pre_attn_scalar": round(scale**-2, 3),
                "attn_logit_softcapping": cap or None,
                "final_logit_softcapping": last,
            }
        plain = abs(scale * self.head**0.5 - 1) < 1e-4
        if name.startswith("Granite") and not cap:
            output = self._factor("lm_head", "Mul")
            return {
                "attention_multiplier": scale,
                "embedding_multiplier": self._factor("model.embed_tokens", "Mul") or 1.0,
                "residual_multiplier": self._factor(_RESIDUAL, "Mul") or 1.0,
                "logits_scaling": 1 / output if output else self._factor("lm_head", "Div") or 1.0,
            }
        factors = [self._factor(part, "Mul") for part in ("lm_head", "model.embed_tokens", _RESIDUAL)]
        if cap or last or not plain or any(factors):
            raise UnsupportedModel(f"its values are scaled or capped as no `{name}` scales them")
        return {}

    def _factor(self, module: str, operator: str) -> float | None:
        """The number that a module multiplies or divides by."""
        for place, node in self._found.of(operator):
            if place == module:
                for name in node.inputs:
                    values = self._graph.values(self._files, name)
                    if values is not None and values.size == 1:
                        return float(values.reshape(-1)[0])
        return None

    def _rotation(self, name: str, attention: list[Node]) -> dict[str, Any]:
        """`rope_theta`, `rope_scaling` and the part of a head that is rotated."""
        tables = [self._tables(number, node) for number, node in enumerate(attention)]
        kinds = list(dict.fromkeys(tables))
        first, *others = (self._turned(*names) for names in kinds)
        found = settings(first[0], first[1], first[2])
        share = 2 * len(first[0].frequencies) / self.head
        if others:
            windowed = [node.number("local_window_size", -1) > 0 for node in attention]
            if len(others) > 1 or not name.startswith("Gemma3") or len({*zip(tables, windowed, strict=True)}) != 2:
                raise UnsupportedModel("its layers are rotated in several ways")
            own, other = settings(*first), settings(*others[0])
            local, found = (own, other) if windowed[0] else (other, own)
            if local["rope_scaling"]:
                raise UnsupportedModel("its layers with a window are rotated in a way that cannot be converted")
            found["rope_local_base_freq"] = local["rope_theta"]
        return found | ({"partial_rotary_factor": share} if share != 1 else {})

    def _tables(self, number: int, attention: Node) -> tuple[str, str]:
        """The names of the cosines and the sines of a layer."""
        if attention.number("do_rotary", 0):
            return attention.input(7), attention.input(8)
        found = {
            (node.input(2), node.input(3))
            for module, node in self._found.of("RotaryEmbedding")
            if module.startswith(f"model.layers.{number}.attn.") and not node.number("interleaved", 0)
        }
        if len(found) != 1:
            raise UnsupportedModel(f"`{attention.name[:80]}` is rotated in a way that cannot be converted")
        return found.pop()

    def _turned(self, cosines: str, sines: str) -> tuple[Rotation, Rotation | None, int]:
        """The rotation by two tables; by four where a condition on the length chooses between them."""
        chosen = next((node for node in self._graph.nodes if cosines in node.outputs and node.operator == "If"), None)
        if chosen is None:
            return Rotation(self._files, *(self._table(self._graph, each) for each in (cosines, sines))), None, 1
        far, near = (
            Rotation(self._files, *(self._branch(chosen, branch, word) for word in ("cos", "sin")))
            for branch in ("then_branch", "else_branch")
        )
        return near, far, self._first_length(chosen)

    def _branch(self, node: Node, branch: str, word: str) -> Entry:
        found = [entry for name, entry in node.branches.get(branch, Graph("")).tensors.items() if name.startswith(word)]
        if len(found) != 1:
            raise UnsupportedModel(f"`{node.name[:80]}` is a condition that cannot be converted")
        return found[0]

    def _first_length(self, chosen: Node) -> int:
        """The length up to which a condition takes the tables of short texts."""
        for node in self._graph.nodes:
            if node.operator == "Greater" and set(node.outputs) & set(chosen.inputs):
                values = self._graph.values(self._files, node.input(1))
                if values is not None and values.size == 1 and 0 < int(values.reshape(-1)[0]) < 1 << 31:
                    return int(values.reshape(-1)[0])
        raise self._missing("original_max_position_embeddings")

    def _table(self, graph: Graph, name: str) -> Entry:
        if name not in graph.tensors:
            raise self._missing("rope_theta")
        return graph.tensors[name]

    def _missing(self, key: str) -> MalformedFile:
        return MalformedFile(
            f"neither `{CONFIG}` nor the graph tells the model's `{key}`",
            "put the `config.json` of the original model into the folder",
        )


def generation(model: ModelConfig, search: ModelConfig) -> Mapping[str, Any]:
    """The settings of `generation_config.json` that `genai_config.json` has: tokens, and sampling where it samples."""
    keys: Iterable[str] = ("temperature", "top_k", "top_p", "repetition_penalty")
    sampling = {key: search.get(key) for key in keys if search.flag("do_sample") and search.get(key) is not None}
    ends = {key: model.get(key) for key in ("eos_token_id", "bos_token_id") if model.get(key) is not None}
    return {**ends, "do_sample": search.flag("do_sample"), **sampling}
