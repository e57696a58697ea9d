"""Gemma 3n (text): several streams of activations, an embedding for every layer, last layers that share keys.

The streams are predicted and corrected by each layer (AltUp); a matrix of low rank stands beside attention (Laurel).
llama.cpp has most of the numbers built in. Sources: `modeling_gemma3n.py` of transformers, `models/gemma3n.cpp` of
llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Known, Layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, gemma, rotary
from quant.convert.families.decoder import DecoderSizes, layer, linear, norm
from quant.errors import MalformedFile, UnsupportedModel

# Numbers that llama.cpp has built in: the streams, the stream that layers compute with, the rank beside attention, the
# values of a token in a layer's embedding, and the cap of logits.
_STREAMS, _ACTIVE, _RANK, _PER_LAYER, _CAP = 4, 0, 64, 256, 30.0
_BUILT_IN = {
    "altup_num_inputs": _STREAMS,
    "altup_active_idx": _ACTIVE,
    "altup_correct_scale": True,
    "laurel_rank": _RANK,
    "hidden_size_per_layer_input": _PER_LAYER,
    "final_logit_softcapping": _CAP,
}
# The first layers with keys of their own; the first layers that keep a twentieth of their activations, and how far in
# standard deviations these are above the mean.
_OWN, _SPARSE, _SPARSITY, _DEVIATIONS = 20, 10, 0.95, 1.6448533535003662
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class _Gemma3nSizes(DecoderSizes):
    """`embedded` tokens have an embedding, of which the first `vocabulary` ones have one in every layer as well.

    The layers `own` have keys and values of their own; the layers `sharing` take the keys and values of earlier ones.
    """

    embedded: int
    per_layer: int
    streams: int
    rank: int
    own: Layers
    sharing: Layers

    @property
    def all_layers(self) -> int:
        """The values of a token in the embeddings of all layers together."""
        return self.per_layer * self.layers

    @property
    def added(self) -> int:
        """The streams beside the first."""
        return self.streams - 1

    @property
    def crossed(self) -> int:
        """A number for each stream by each."""
        return self.streams * self.streams


def _flat(config: ModelConfig) -> ModelConfig:
    """The settings with one width of the feed-forward part, which files list for every layer."""
    wide = config.get("intermediate_size")
    if isinstance(wide, list) and wide:
        if len(set(map(str, wide))) > 1:
            raise UnsupportedModel(
                "its layers are of several widths (`intermediate_size`), which llama.cpp does not know"
            )
        wide = wide[0]
    return config.changed({"intermediate_size": wide})


def _read_sizes(config: ModelConfig) -> _Gemma3nSizes:
    for key, value in _BUILT_IN.items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"its `{key}` is not {value}, the only one that llama.cpp knows")
    sizes = decoder.read_sizes(_flat(config))
    small = config.count("vocab_size_per_layer_input", 262_144)
    if small > sizes.vocabulary:
        raise MalformedFile("the embedding of the layers has more tokens than that of the model")
    sharing = config.count("num_kv_shared_layers") if config.get("num_kv_shared_layers", 15) != 0 else 0
    if sizes.layers - sharing != _OWN if sharing else sizes.layers > _OWN:
        raise UnsupportedModel(
            f"{sizes.layers - sharing} of its layers have keys of their own, and llama.cpp wants {_OWN}"
        )
    # Used in training alone.
    config.without_effect("altup_coef_clip")
    own = frozenset(range(sizes.layers - sharing))
    return _Gemma3nSizes(
        **vars(replace(sizes, vocabulary=small)),
        embedded=sizes.vocabulary,
        per_layer=_PER_LAYER,
        streams=_STREAMS,
        rank=_RANK,
        own=own,
        sharing=frozenset(range(sizes.layers)) - own,
    )


def _sparsity(config: ModelConfig, layers: int) -> list[float]:
    """How far activations must be above the mean in every layer, in standard deviations; 0 in layers that keep all."""
    given = config.get("activation_sparsity_pattern")
    usual = [_SPARSITY] * _SPARSE + [0.0] * (layers - _SPARSE)
    if given is None:
        given = usual if layers > _SPARSE else [0.0] * layers
    if given != usual[:layers]:
        raise UnsupportedModel(
            "other layers than its first ten keep a part of activations (`activation_sparsity_pattern`)"
        )
    return [_DEVIATIONS if each else -float("inf") for each in given]


def _describe(config: ModelConfig, sizes: _Gemma3nSizes) -> dict[str, Any]:
    config = _flat(config)
    windows = decoder.windows(config.filled({"sliding_window_pattern": 5}), sizes)
    pattern = windows["attention.sliding_window_pattern"]
    # The layers that are shared from have to be the last ones that do not share.
    if sizes.sharing and pattern[_OWN - 2 : _OWN] != [True, False]:
        raise UnsupportedModel("its last layers share keys of other ones than llama.cpp has them share (`layer_types`)")
    return {
        **decoder.describe(config, sizes),
        "rope.freq_base": rotary.base(config, default=1e6),
        "rope.freq_base_swa": rotary.local_base(config),
        **windows,
        "attention.shared_kv_layers": len(sizes.sharing),
        "embedding_length_per_layer_input": sizes.per_layer,
        "final_logit_softcapping": _CAP,
        "altup.active_idx": _ACTIVE,
        "altup.num_inputs": sizes.streams,
        "activation_sparsity_scale": _sparsity(config, sizes.layers),
    }


_KEYS = (
    *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
    *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
    *norm("self_attn.k_norm", "attn_k_norm", "head"),
)


def _cut(known: Known) -> Known:
    """The embedding without its last rows, which stand for pictures and sound."""
    return replace(known, shape=("embedded", *known.shape[1:]), keep="vocabulary")


GEMMA3N = Family(
    classes=("Gemma3nForCausalLM",),
    architecture="gemma3n",
    tensors=(
        _cut(decoder.EMBEDDING),
        _cut(decoder.OUTPUT),
        *decoder.final_norm(),
        *gemma.FOUR_NORMS,
        *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
        *norm("self_attn.q_norm", "attn_q_norm", "head"),
        *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
        *in_layers("own", *_KEYS),
        # transformers saves none of these, and llama.cpp wants them, and reads them in no layer that shares.
        *in_layers("sharing", *(replace(known, zeros=True) for known in _KEYS)),
        *decoder.GATED,
        *linear("laurel.linear_left", "laurel_l", "rank", "width", bias=False),
        *linear("laurel.linear_right", "laurel_r", "width", "rank", bias=False),
        *norm("laurel.post_laurel_norm", "laurel_post_norm"),
        layer("altup.prediction_coefs.weight", "altup_predict_coef.weight", "crossed", "streams"),
        layer("altup.correction_coefs.weight", "altup_correct_coef.weight", "streams", "streams"),
        layer("altup.correct_output_scale", "altup_correct_scale.weight", "width"),
        layer("altup.modality_router.weight", "altup_router.weight", "streams", "width"),
        *norm("altup.router_norm", "altup_router_norm"),
        *linear("per_layer_input_gate", "inp_gate", "per_layer", "width", bias=False),
        *linear("per_layer_projection", "proj", "width", "per_layer", bias=False),
        *norm("post_per_layer_input_norm", "post_norm"),
        tensor("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "vocabulary", "all_layers"),
        tensor("per_layer_model_projection.weight", "per_layer_model_proj.weight", "all_layers", "width"),
        tensor("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", "per_layer"),
        replace(tensor("altup_projections.[].weight", "altup_proj.weight", "width", "width"), stack="added"),
        replace(
            tensor("altup_unembed_projections.[].weight", "altup_unembd_proj.weight", "width", "width"), stack="added"
        ),
    ),
    sizes=_Gemma3nSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    activations=gemma.GELU,
    tied=True,
)
FAMILIES = (GEMMA3N,)
