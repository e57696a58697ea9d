"""Relatives of DeepSeek's attention: V3.2 and GLM 5 with an indexer; MiniCPM 3, whose cache holds whole keys.

An indexer picks the tokens that a layer attends to (sparse attention): it has keys of its own in the cache, and the
`index_topk` tokens with the best ones are seen. Sources: `modeling_deepseek_v32.py`, `modeling_glm_moe_dsa.py` and
`modeling_minicpm3.py` of transformers, `deepseek32.cpp`, `glm-dsa.cpp` and `minicpm3.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, deepseek, moe, rotary
from quant.convert.families.decoder import linear, norm
from quant.convert.families.deepseek import LatentSizes
from quant.errors import UnsupportedModel

# llama.cpp turns the values of an indexer's heads by an orthogonal (Hadamard) matrix, which has at least these rows.
_SMALLEST_ROTATION = 64


@dataclass(frozen=True, kw_only=True)
class _IndexedSizes(LatentSizes):
    """The layers `indexing` have an indexer of `index_heads` heads of `index_head` values; others take its choice."""

    index_head: int
    index_heads: int
    indexing: Layers

    @property
    def index_queries(self) -> int:
        """The values of all heads of an indexer."""
        return self.index_heads * self.index_head


def _read_indexed_sizes(config: ModelConfig) -> _IndexedSizes:
    sizes = deepseek.read_sizes(config, straight=())
    kinds = config.get("indexer_types") or ["full"] * sizes.layers
    known = isinstance(kinds, list) and len(kinds) == sizes.layers and all(kind in ("full", "shared") for kind in kinds)
    if not known or kinds[0] != "full":
        raise config.wrong("indexer_types", f"a list that says of {sizes.layers} layers whether they have an indexer")
    head = config.count("index_head_dim")
    if head < _SMALLEST_ROTATION or head & (head - 1):
        raise UnsupportedModel(f"its indexers have heads of {head} values, and llama.cpp turns powers of 2 from 64 on")
    return _IndexedSizes(
        **vars(sizes),
        index_head=head,
        index_heads=config.count("index_n_heads"),
        indexing=frozenset(number for number, kind in enumerate(kinds) if kind == "full"),
    )


def _describe_indexed(config: ModelConfig, sizes: _IndexedSizes) -> dict[str, Any]:
    config.without_effect("layer_types")
    return {
        **deepseek.describe_v3(config, sizes),
        "attention.indexer.head_count": sizes.index_heads,
        "attention.indexer.key_length": sizes.index_head,
        "attention.indexer.top_k": config.count("index_topk"),
    }


DEEPSEEK32 = Family(
    classes=("DeepseekV32ForCausalLM",),
    architecture="deepseek32",
    tensors=(
        *deepseek.TENSORS,
        *moe.PREFERENCE,
        *in_layers(
            "indexing",
            *linear("self_attn.indexer.wq_b", "indexer.attn_q_b", "index_queries", "query_rank", bias=False),
            *linear("self_attn.indexer.wk", "indexer.attn_k", "index_head", "width", bias=False),
            *linear("self_attn.indexer.weights_proj", "indexer.proj", "index_heads", "width", bias=False),
            *norm("self_attn.indexer.k_norm", "indexer.k_norm", "index_head", bias=True),
        ),
    ),
    sizes=_IndexedSizes,
    read_sizes=_read_indexed_sizes,
    describe=_describe_indexed,
)


def _describe_glm(config: ModelConfig, sizes: _IndexedSizes) -> dict[str, Any]:
    types = [number in sizes.indexing for number in range(sizes.layers)]
    return {**_describe_indexed(config, sizes), "attention.indexer.types": types}


GLM_DSA = replace(DEEPSEEK32, classes=("GlmMoeDsaForCausalLM",), architecture="glm-dsa", describe=_describe_glm)


def _whole(config: ModelConfig) -> ModelConfig:
    """The settings for caches that hold the keys of every head."""
    heads = config.count("num_attention_heads")
    value = config.get("v_head_dim") or config.count("hidden_size") // heads
    return deepseek.without_experts(config.changed({"v_head_dim": value}))


def _describe_whole(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    ranked = {"attention.q_lora_rank": sizes.query_rank} if sizes.ranked else {}
    return {
        **decoder.describe(config, sizes),
        **ranked,
        "attention.kv_lora_rank": sizes.rank,
        "attention.head_count_kv": sizes.heads,
        "attention.key_length": sizes.plain + sizes.rotated,
        "attention.value_length": sizes.value,
    }


_WHOLE = (
    decoder.EMBEDDING,
    *decoder.final_norm(),
    *decoder.NORMS,
    *linear("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", "compressed", "width", bias=False),
    *norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", "rank"),
    *linear("self_attn.kv_b_proj", "attn_kv_b", "expanded", "rank", bias=False),
    *linear("self_attn.o_proj", "attn_output", "width", "values", bias=False),
)
# The class adds 1e-6 in the norms of its latents, llama.cpp what the other norms add: up to here no logit shows it.
_LARGEST_EPSILON = 1e-4
# llama.cpp has these built in for MiniCPM 3.
_SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


def _describe_minicpm(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    other = [key for key, value in _SCALES.items() if config.get(key, value) != value]
    if config.number("rms_norm_eps", 1e-6) > _LARGEST_EPSILON:
        raise UnsupportedModel("its norms add `rms_norm_eps`, which llama.cpp adds in the latent norms as well")
    if other or not sizes.ranked:
        raise UnsupportedModel(f"it scales otherwise than llama.cpp's `minicpm3` does (`{[*other, 'q_lora_rank'][0]}`)")
    return _describe_whole(config, sizes)


MINICPM3 = Family(
    classes=("MiniCPM3ForCausalLM",),
    architecture="minicpm3",
    tensors=(*_WHOLE, decoder.OUTPUT, *in_layers("ranked", *deepseek.RANKED), *decoder.GATED),
    sizes=LatentSizes,
    # Halves of heads are rotated, in llama.cpp as well.
    read_sizes=lambda config: deepseek.read_sizes(_whole(config.changed({"rope_interleave": True})), straight=()),
    describe=_describe_minicpm,
    computed=rotary.tables,
    tied=True,
)


FAMILIES = (DEEPSEEK32, GLM_DSA, MINICPM3)
