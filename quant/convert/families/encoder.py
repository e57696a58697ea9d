"""Encoders for embeddings: BERT, XLM-RoBERTa (BGE-M3), DistilBERT, Nomic BERT, ModernBERT, EuroBERT.

Sources: `modeling_bert.py` and its relatives of transformers, `models/*bert.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import HEAD, Family, Known, Layers, Length, Sizes, Times, count_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes
from quant.errors import UnsupportedModel

_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True)
class EncoderSizes(Sizes):
    """The sizes of an encoder.

    Its table of positions has `positions` rows, of which the first `skipped` stay behind; a text may have `context`
    tokens. `normed` are the layers with a norm in front of attention, where not all of them have one.
    """

    heads: int
    feed_forward: int
    positions: int
    context: int
    skipped: int = 0
    normed: Layers


def both(source: str, target: str, rows: Length, *columns: Length) -> tuple[Known, ...]:
    """A weight and its bias."""
    return (
        tensor(f"{source}.weight", f"{target}.weight", rows, *columns),
        tensor(f"{source}.bias", f"{target}.bias", rows),
    )


def _read_sizes(config: ModelConfig) -> EncoderSizes:
    layers, positions = count_layers(config), config.count("max_position_embeddings")
    return EncoderSizes(
        vocabulary=config.count("vocab_size"),
        width=config.count("hidden_size"),
        layers=layers,
        token_types=config.count("type_vocab_size", 2),
        heads=config.count("num_attention_heads"),
        feed_forward=config.count("intermediate_size"),
        positions=positions,
        context=positions,
        normed=frozenset(range(1, layers)),
    )


def _describe(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "context_length": sizes.context,
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": sizes.heads,
        "attention.layer_norm_epsilon": config.number("layer_norm_eps", 1e-12),
        "attention.causal": False,
    }


def _describe_bert(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise UnsupportedModel("it has positions that are not absolute, which llama.cpp does not know for BERT")
    return _describe(config, sizes)


_LAYER, _BLOCK = "encoder.layer.{}.", "blk.{}."
_BERT_TENSORS = (
    tensor("embeddings.word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
    replace(
        tensor("embeddings.position_embeddings.weight", "position_embd.weight", "positions", "width"), skip="skipped"
    ),
    tensor("embeddings.token_type_embeddings.weight", "token_types.weight", "token_types", "width"),
    *both("embeddings.LayerNorm", "token_embd_norm", "width"),
    *both(_LAYER + "attention.self.query", _BLOCK + "attn_q", "width", "width"),
    *both(_LAYER + "attention.self.key", _BLOCK + "attn_k", "width", "width"),
    *both(_LAYER + "attention.self.value", _BLOCK + "attn_v", "width", "width"),
    *both(_LAYER + "attention.output.dense", _BLOCK + "attn_output", "width", "width"),
    *both(_LAYER + "attention.output.LayerNorm", _BLOCK + "attn_output_norm", "width"),
    *both(_LAYER + "intermediate.dense", _BLOCK + "ffn_up", "feed_forward", "width"),
    *both(_LAYER + "output.dense", _BLOCK + "ffn_down", "width", "feed_forward"),
    *both(_LAYER + "output.LayerNorm", _BLOCK + "layer_output_norm", "width"),
)
_DISTILLED = "transformer.layer.{}."
_DISTILBERT_TENSORS = (
    tensor("embeddings.word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
    tensor("embeddings.position_embeddings.weight", "position_embd.weight", "positions", "width"),
    *both("embeddings.LayerNorm", "token_embd_norm", "width"),
    *both(_DISTILLED + "attention.q_lin", _BLOCK + "attn_q", "width", "width"),
    *both(_DISTILLED + "attention.k_lin", _BLOCK + "attn_k", "width", "width"),
    *both(_DISTILLED + "attention.v_lin", _BLOCK + "attn_v", "width", "width"),
    *both(_DISTILLED + "attention.out_lin", _BLOCK + "attn_output", "width", "width"),
    *both(_DISTILLED + "sa_layer_norm", _BLOCK + "attn_output_norm", "width"),
    *both(_DISTILLED + "ffn.lin1", _BLOCK + "ffn_up", "feed_forward", "width"),
    *both(_DISTILLED + "ffn.lin2", _BLOCK + "ffn_down", "width", "feed_forward"),
    *both(_DISTILLED + "output_layer_norm", _BLOCK + "layer_output_norm", "width"),
)
_BERT_UNUSED = r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|(cls|lm_head)\..*"
BERT = Family(
    classes=("BertModel", "BertForMaskedLM"),
    architecture="bert",
    tensors=_BERT_TENSORS,
    sizes=EncoderSizes,
    read_sizes=_read_sizes,
    describe=_describe_bert,
    prefix=r"(bert\.)?",
    unused=_BERT_UNUSED,
    activations=_GELU,
    encoder=True,
)


def _read_roberta_sizes(config: ModelConfig) -> EncoderSizes:
    """RoBERTa counts positions from behind the number of the padding token."""
    sizes = _read_sizes(config)
    first = config.get("pad_token_id") == 0 and config.get("pad_token_id") is not False
    padding = 0 if first else config.count("pad_token_id", 1)
    if config.get("bos_token_id", 0) == padding:
        raise UnsupportedModel("its texts begin with its padding token, whose position llama.cpp does not know")
    skipped = padding + 1
    return replace(sizes, skipped=skipped, context=sizes.positions - skipped)


ROBERTA = Family(
    classes=("XLMRobertaModel", "XLMRobertaForMaskedLM", "RobertaModel", "RobertaForMaskedLM", "CamembertModel"),
    architecture="bert",
    tensors=_BERT_TENSORS,
    sizes=EncoderSizes,
    read_sizes=_read_roberta_sizes,
    describe=_describe_bert,
    prefix=r"(roberta\.)?",
    unused=_BERT_UNUSED,
    activations=_GELU,
    encoder=True,
)


def _distilled(config: ModelConfig) -> ModelConfig:
    """DistilBERT's settings by the usual names; it has one kind of tokens, and an epsilon that no setting changes."""
    names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    found = {usual: config.get(name) for usual, name in {**names, "intermediate_size": "hidden_dim"}.items()}
    config.without_effect("sinusoidal_pos_embds")
    return config.changed({usual: value for usual, value in found.items() if value is not None})


def _check_distilled(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    activation = config.get("activation", "gelu")
    if activation not in _GELU:
        raise UnsupportedModel(f"the activation `{ascii(activation)[:40]}` is none that models of this kind have")
    return {**_describe(config.changed({"layer_norm_eps": 1e-12}), sizes)}


DISTILBERT = replace(
    BERT,
    classes=("DistilBertModel", "DistilBertForMaskedLM"),
    tensors=_DISTILBERT_TENSORS,
    read_sizes=lambda config: replace(_read_sizes(_distilled(config)), token_types=1),
    describe=_check_distilled,
    prefix=r"(distilbert\.)?",
    unused=r"vocab_(transform|layer_norm|projector)\..*",
)
EUROBERT = Family(
    classes=("EuroBertModel", "JinaEmbeddingsV5Model"),
    architecture="eurobert",
    tensors=tuple(known for known in decoder.STANDARD if known.target != HEAD),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=lambda config, sizes: {
        **decoder.describe(config, sizes),
        "rope.scaling.type": "none",
        "attention.causal": False,
    },
    encoder=True,
)


def _describe_modern(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    local = rotary.parameters(config, "sliding_attention").number("rope_theta", config.number("local_rope_theta", 1e4))
    every = config.count("global_attn_every_n_layers", 3)
    config.without_effect("classifier_activation", "classifier_bias", "classifier_pooling")
    types = config.get("layer_types") or [_attention(number, every) for number in range(sizes.layers)]
    pattern = decoder.window_pattern(config.changed({"layer_types": types}), sizes)
    return {
        **_describe(config, sizes),
        "attention.layer_norm_epsilon": config.number("norm_eps", 1e-5),
        # Half of it in each direction.
        "attention.sliding_window": decoder.window(config, "local_attention") or 2 * sizes.context,
        **decoder.check_encoder_windows(config, pattern, "local_attention"),
        "rope.freq_base": rotary.base(config, default=config.number("global_rope_theta", 160_000.0)),
        "rope.freq_base_swa": local,
        "rope.scaling.type": "none",
    }


def _attention(layer: int, every: int) -> str:
    return "sliding_attention" if layer % every else "full_attention"


MODERN_BERT = Family(
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    architecture="modern-bert",
    tensors=(
        tensor("embeddings.tok_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("embeddings.norm.weight", "token_embd_norm.weight", "width"),
        tensor("final_norm.weight", "output_norm.weight", "width"),
        tensor("layers.{}.attn_norm.weight", "blk.{}.attn_norm.weight", "width", layers="normed"),
        tensor("layers.{}.attn.Wqkv.weight", "blk.{}.attn_qkv.weight", Times(3, "width"), "width"),
        tensor("layers.{}.attn.Wo.weight", "blk.{}.attn_output.weight", "width", "width"),
        tensor("layers.{}.mlp_norm.weight", "blk.{}.ffn_norm.weight", "width"),
        tensor("layers.{}.mlp.Wi.weight", "blk.{}.ffn_up.weight", Times(2, "feed_forward"), "width"),
        tensor("layers.{}.mlp.Wo.weight", "blk.{}.ffn_down.weight", "width", "feed_forward"),
    ),
    sizes=EncoderSizes,
    read_sizes=_read_sizes,
    describe=_describe_modern,
    unused=r"(head|decoder)\..*",
    activations=("gelu",),
    encoder=True,
)
# Nomic's own code has GPT-2's names for the settings.
_NOMIC_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}


def _nomic(config: ModelConfig) -> ModelConfig:
    ours = {name: config.get(theirs) for name, theirs in _NOMIC_NAMES.items() if config.get(theirs) is not None}
    return config.changed(ours)


def _read_nomic_sizes(config: ModelConfig) -> EncoderSizes:
    odd = {"prenorm": False, "rotary_emb_interleaved": False, "rotary_emb_fraction": 1.0, "causal": False}
    other = [key for key, value in odd.items() if config.get(key, value) != value]
    if other or config.get("moe_every_n_layers"):
        raise UnsupportedModel(f"it is a variant of Nomic BERT that cannot be converted yet ({(*other, 'experts')[0]})")
    sizes = _read_sizes(_nomic(config))
    if config.count("head_dim", sizes.width // sizes.heads) * sizes.heads != sizes.width:
        raise UnsupportedModel("its heads do not make up its width (`head_dim`), which llama.cpp needs")
    return replace(sizes, context=min(sizes.positions, config.count("max_trained_positions", 2048)))


def _describe_nomic(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    config = _nomic(config)
    return {**_describe(config, sizes), "rope.freq_base": rotary.base(config)}


_LAYERS = "encoder.layers.{}."
NOMIC_BERT = Family(
    classes=("NomicBertModel",),
    architecture="nomic-bert",
    tensors=(
        tensor("embeddings.word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("embeddings.token_type_embeddings.weight", "token_types.weight", "token_types", "width"),
        *both("emb_ln", "token_embd_norm", "width"),
        tensor(_LAYERS + "attn.Wqkv.weight", _BLOCK + "attn_qkv.weight", Times(3, "width"), "width"),
        tensor(_LAYERS + "attn.out_proj.weight", _BLOCK + "attn_output.weight", "width", "width"),
        *both(_LAYERS + "norm1", _BLOCK + "attn_output_norm", "width"),
        tensor(_LAYERS + "mlp.fc11.weight", _BLOCK + "ffn_up.weight", "feed_forward", "width"),
        tensor(_LAYERS + "mlp.fc12.weight", _BLOCK + "ffn_gate.weight", "feed_forward", "width"),
        tensor(_LAYERS + "mlp.fc2.weight", _BLOCK + "ffn_down.weight", "width", "feed_forward"),
        *both(_LAYERS + "norm2", _BLOCK + "layer_output_norm", "width"),
    ),
    sizes=EncoderSizes,
    read_sizes=_read_nomic_sizes,
    describe=_describe_nomic,
    unused=_BERT_UNUSED,
    activations=("silu", "swiglu"),
    encoder=True,
)


def _describe_jina(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    """llama.cpp has the slope of its bias by distance built in."""
    for key, value in (("position_embedding_type", "alibi"), ("feed_forward_type", "geglu")):
        if config.get(key, value) != value:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `jina-bert-v2` does (`{key}`)")
    config.without_effect("attn_implementation", "emb_pooler", "hidden_act", "with_flash")
    return _describe(config, sizes)


_GATED_LAYER = _LAYER + "mlp."
JINA = replace(
    BERT,
    classes=("JinaBertModel", "JinaBertForMaskedLM"),
    architecture="jina-bert-v2",
    tensors=(
        *(row for row in _BERT_TENSORS if not re.search("position_emb|intermediate|layer.{}.output", row.source)),
        tensor(_GATED_LAYER + "gated_layers.weight", _BLOCK + "ffn_up.weight", Times(2, "feed_forward"), "width"),
        *both(_GATED_LAYER + "wo", _BLOCK + "ffn_down", "width", "feed_forward"),
        *both(_GATED_LAYER + "layernorm", _BLOCK + "layer_output_norm", "width"),
    ),
    describe=_describe_jina,
)
FAMILIES = (BERT, ROBERTA, MODERN_BERT, NOMIC_BERT, DISTILBERT, EUROBERT, JINA)
