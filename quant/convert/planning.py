"""Hugging Face folders to GGUF: everything that can be known about a model before its weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from quant.convert import chat, heads, keys, wrappers
from quant.convert.base import Family, Sizes, headless
from quant.convert.config import ModelConfig
from quant.convert.families import qwen, ranking, rotary
from quant.convert.families.table import FAMILIES
from quant.convert.gguf.source import plan_gguf
from quant.convert.gguf.variants import is_gguf
from quant.convert.onnx.below import folder_of
from quant.convert.onnx.folder import ExportedModel, is_onnx, read_export
from quant.convert.placing import files_of, plan_tensors
from quant.convert.pooling import DENSE, RANK, capabilities_of, read_dense, read_pooling
from quant.convert.prequantized import mlx
from quant.convert.prequantized.methods import check_untouched, method_of
from quant.convert.tokenizer import specials
from quant.convert.tokenizer.reading import read_vocabulary
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import HEADS_AS_WIDE, reason_not_to_convert
from quant.notes import IGNORED, STOPS
from quant.plan import NEXT_TOKEN_LAYERS, Files, ModelPlan, TensorPlan
from quant.safetensors import Entry, read_model

# Other names of activations that `ACT2FN` of transformers computes by one formula.
SAME_ACTIVATIONS = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
# Keys of `config.json` that may have the name of the activation function.
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")


def plan_model(files: Files, pre: str | None = None, accept_unknown_keys: bool = False) -> ModelPlan:
    """Plan the conversion of the model in `files`; only headers and small files are read.

    `pre` is the name of llama.cpp's pre-tokenizer where the user gives it; else the tokenizer's rules decide.
    `accept_unknown_keys`: where transformers does not know the model's class, keys of its configuration that this
    program does not know either are left out, and noted in the file. Raises MalformedFile where a file breaks its
    format or contradicts another, UnsupportedModel for a model that cannot be converted. Their messages are for the
    user.
    """
    if is_gguf(files):
        return plan_gguf(files, finished=True)
    files = folder_of(files)
    export = _export(files)
    config, sketch, size = _sketch(files, accept_unknown_keys, export)
    vocabulary = read_vocabulary(files, size, pre)
    tokenizer_config = ModelConfig.read(files, "tokenizer_config.json")
    generation = ModelConfig.read(files, "generation_config.json")
    if export and not generation.values:
        generation = export.generation
    templates = chat.read_templates(files, tokenizer_config)
    pooling = sketch.metadata.get(f"{sketch.architecture}.pooling_type")
    special_entries, stops = specials.describe(config, generation, tokenizer_config, vocabulary, pooling is not None)
    size = len(vocabulary.entries["tokenizer.ggml.tokens"])
    remarks = (*sketch.remarks, *vocabulary.remarks, *specials.remarks(config, generation, size))
    if pooling == RANK:
        has_prompt = sketch.architecture == ranking.QWEN3.architecture
        templates = {"rerank": ranking.TEMPLATE} if has_prompt else {}
        special_entries |= {} if has_prompt else ranking.describe_pair(files, stops[0])
    metadata = {
        **{key: value for key, value in sketch.metadata.items() if key.startswith("general.")},
        **chat.read_card(files),
        **{key: value for key, value in sketch.metadata.items() if not key.startswith("general.")},
        **vocabulary.entries,
        **special_entries,
        **chat.describe_templates(templates),
        # GGUF's own entries can name three; llama.cpp finds more by the texts of tokens, which misses unusual ones.
        STOPS: list(stops),
    }
    return replace(
        sketch,
        metadata=metadata,
        stops=stops,
        remarks=remarks,
        defaults=chat.read_defaults(generation),
        capabilities=capabilities_of(pooling) or chat.capabilities(templates, vocabulary.ids),
    )


def sketch_model(files: Files) -> ModelPlan:
    """As `plan_model`, without tokenizer, chat template and model card: enough to tell the model's size in memory."""
    if is_gguf(files):
        return plan_gguf(files, finished=True)
    files = folder_of(files)
    return _sketch(files, True, _export(files))[1]


def read_shape(files: Files) -> tuple[ModelConfig, Family[Any], Sizes]:
    """The configuration of the language model, its family and its sizes, by small files alone.

    The weights may be quantized in any way. Raises as `plan_model`.
    """
    files = folder_of(files)
    export = _export(files)
    return shape_of(export.config if export else _read_config(files), files)


def shape_of(given: ModelConfig, files: Files) -> tuple[ModelConfig, Family[Any], Sizes]:
    """The same by settings that are read already; `files` tell a ranker."""
    config, name, wrapped = wrappers.unwrap(given)
    config, family = _choose_family(files, config, name)
    if wrapped:
        family = replace(family, prefix=wrappers.PREFIX + family.prefix)
    return config, family, family.read_sizes(config)


def _choose_family(files: Files, given: ModelConfig, name: str) -> tuple[ModelConfig, Family[Any]]:
    """The settings with what their class adds, and the family."""
    family = _family(name)
    config = keys.filled(given, name)
    family = family.instead(config) or family
    if family is qwen.QWEN3 and ranking.is_reranker(files):
        family = ranking.QWEN3
    if not rotary.rotates(config, family.architecture):
        config = rotary.unscaled(config)
    return config, family


def _export(files: Files) -> ExportedModel | None:
    return read_export(files) if is_onnx(files) else None


def _sketch(
    files: Files, accept_unknown_keys: bool, export: ExportedModel | None
) -> tuple[ModelConfig, ModelPlan, int]:
    """The configuration of the language model, the plan of its weights, and the number of rows of its embedding."""
    config = export.config if export else _read_config(files)
    method = method_of(config)
    given, name, wrapped = wrappers.unwrap(config)
    config, family = _choose_family(files, given, name)
    _check_activation(family, config)
    rotary.check(config, family.architecture)
    pooling = RANK if family.ranks else read_pooling(files, dense=DENSE[0] in family.tensors)
    if pooling is None and family.encoder:
        pooling = family.pooling
    if pooling is not None:
        family = headless(family)
    dense = read_dense(files) if DENSE[0] in family.tensors else ()
    weights = export.fitting([row.source for row in family.tensors]) if export else read_model(files)
    source = mlx.restored(wrappers.plain(weights))
    entries = [*method.pair(source.entries, files), *dense]
    left_out: dict[str, int] = {}
    if wrapped:
        family, entries, left_out = wrappers.take_out(family, entries)
    sizes = family.read_sizes(config)
    if dense:
        sizes = replace(sizes, dense=dense[0].shape[0])
    sizes, entries, next_token_bytes = heads.keep(family, config, sizes, entries, files)
    left_out |= {NEXT_TOKEN_LAYERS: next_token_bytes} if next_token_bytes else {}
    _check_width(family, config, sizes)
    described = {f"{family.architecture}.{key}": value for key, value in family.describe(config, sizes).items()}
    described |= family.measured(files, entries, sizes)
    own = (*family.computed(config, sizes), *family.picked(files, entries, config))
    placed = plan_tensors(family, config, sizes, entries, files)
    tensors = (*own, *(mlx.unshifted(placed) if source.shifted or export else placed))
    check_untouched(method, tensors)
    metadata = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.size_label": _size_label(tensors),
        **described,
        **({} if pooling is None else {f"{family.architecture}.pooling_type": pooling}),
        **({"tokenizer.ggml.token_type_count": sizes.token_types} if sizes.token_types else {}),
    }
    ignored = keys.check(given, name, accept_unknown_keys)
    metadata |= {IGNORED: list(ignored)} if ignored else {}
    unknown = (f"`{key}` in `{config.name}` is not known, left out" for key in ignored)
    remarks = (*(export.remarks if export else ()), *rotary.remarks(config), *unknown)
    shards = _shards(entries, tensors, export.graphs if export else ())
    plan = ModelPlan(family.architecture, metadata, tensors, shards, left_out=left_out, remarks=remarks)
    return config, plan, sizes.vocabulary


def _shards(entries: Iterable[Entry], tensors: Iterable[TensorPlan], graphs: tuple[str, ...]) -> tuple[str, ...]:
    """The files that the pass reads, in their order: files of weights that are used, and then the graphs."""
    used = set()
    for tensor in tensors:
        used |= {tensor.shard, *(part.shard for part in (*tensor.parts, *chain.from_iterable(tensor.companions)))}
    return tuple(dict.fromkeys((*(shard for shard in files_of(entries) if shard in used), *graphs)))


def _read_config(files: Files) -> ModelConfig:
    if "config.json" not in files.names():
        if "adapter_config.json" in files.names():
            raise UnsupportedModel(f"`{files.title}` is an adapter, and no model", "`lm pull` brings it in as one")
        hint = "is this a model in Hugging Face's layout, or a part of one?"
        raise MalformedFile(f"there is no `config.json` in `{files.title}`, and no GGUF file", hint)
    return ModelConfig.read(files, "config.json")


def _family(name: str) -> Family[Any]:
    reason = reason_not_to_convert(name)
    if reason and name not in FAMILIES:
        hint = "take a model that continues a text by itself: `lm fit` with the name of one says what fits here"
        raise UnsupportedModel(f"`{ascii(name)[1:-1][:60]}` is not converted: {reason}", hint)
    if name not in FAMILIES:
        raise UnsupportedModel(
            f"the architecture `{ascii(name)[1:-1][:60]}` cannot be converted yet",
            hint="a repository with GGUF files of it may work: search the hub for its name and `GGUF`",
        )
    return FAMILIES[name]


def _check_activation(family: Family[Any], config: ModelConfig) -> None:
    found = next((config.get(key) for key in _ACTIVATIONS if config.get(key) is not None), family.activations[0])
    if not isinstance(found, str) or SAME_ACTIVATIONS.get(found, found) not in {
        SAME_ACTIVATIONS.get(each, each) for each in family.activations
    }:
        raise UnsupportedModel(
            f"the activation `{ascii(found)[:40]}` is none that models of the `{family.architecture}` family have"
        )


def _check_width(family: Family[Any], config: ModelConfig, sizes: Sizes) -> None:
    queries = getattr(sizes, "queries", sizes.width)
    if family.architecture in HEADS_AS_WIDE and queries != sizes.width:
        key = "head_dim" if config.values.get("head_dim") is not None else "num_attention_heads"
        raise UnsupportedModel(
            f"its heads make up {queries} values and it is {sizes.width} wide (`{key}`), which llama.cpp's "
            f"`{family.architecture}` does not know"
        )


def _size_label(tensors: tuple[TensorPlan, ...]) -> str:
    parameters = sum(tensor.elements for tensor in tensors if tensor.shard and not tensor.again)
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            return f"{parameters / scale:.1f}{unit}"
    return f"{parameters / 1e3:.0f}K"
