"""GPT-2, GPT-NeoX (Pythia), StarCoder 2 and StableLM: layer norms, most of them with biases."""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder
from quant.convert.families.decoder import linear, norm
from quant.convert.transforms import Transpose, Ungroup
from quant.errors import UnsupportedModel
from quant.plan import Transform

_NORMS = (
    *norm("input_layernorm", "attn_norm", bias=True),
    *norm("post_attention_layernorm", "ffn_norm", bias=True),
)
STARCODER2 = Family(
    classes=("Starcoder2ForCausalLM",),
    architecture="starcoder2",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(bias=True), decoder.OUTPUT, *_NORMS, *decoder.ATTENTION),
        *linear("mlp.c_fc", "ffn_up", "feed_forward", "width", bias=True),
        *linear("mlp.c_proj", "ffn_down", "width", "feed_forward", bias=True),
    ),
    read_sizes=decoder.read_sizes,
    describe=lambda config, sizes: decoder.bounded_by_window(config, decoder.describe(config, sizes)),
    activations=("gelu_pytorch_tanh",),
    tied=True,
)


def _head_norms(kind: str, count: str) -> Known:
    source, target = f"self_attn.{kind}_layernorm.norms.[].weight", f"attn_{kind}_norm.weight"
    return decoder.layer(source, target, "head", required=False)._replace(each=count)


STABLELM = Family(
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    architecture="stablelm",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(bias=True), decoder.OUTPUT, *decoder.ATTENTION, *decoder.GATED),
        *(known._replace(required="ffn" not in known.target) for known in _NORMS),
        # One norm for each head, stacked; only the larger models have them.
        _head_norms("q", "heads"),
        _head_norms("k", "shared"),
    ),
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)


def _describe_neox(config: Config, sizes: Sizes) -> dict[str, Any]:
    parallel = config.flag("use_parallel_residual", True)
    return {**decoder.describe(config, sizes), "use_parallel_residual": parallel}


def _regroup(sizes: Sizes) -> dict[str, Transform]:
    return {"ungroup": Ungroup(sizes["heads"], sizes["head"])}


GPT_NEOX = Family(
    classes=("GPTNeoXForCausalLM",),
    architecture="gptneox",
    tensors=(
        Known("embed_in.weight", "token_embd.weight", ("vocabulary", "width")),
        Known("embed_out.weight", "output.weight", ("vocabulary", "width")),
        *(*decoder.final_norm("final_layer_norm", bias=True), *_NORMS),
        *(
            known._replace(transform="ungroup")
            for known in linear("attention.query_key_value", "attn_qkv", "attention", "width", bias=True)
        ),
        *linear("attention.dense", "attn_output", "width", "queries", bias=True),
        *linear("mlp.dense_h_to_4h", "ffn_up", "feed_forward", "width", bias=True),
        *linear("mlp.dense_4h_to_h", "ffn_down", "width", "feed_forward", bias=True),
    ),
    read_sizes=decoder.read_sizes,
    describe=_describe_neox,
    transforms=_regroup,
    prefix=r"(gpt_neox\.)?",
    unused=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    activations=("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
)


def _transposed(source: str, target: str, rows: str, columns: str) -> tuple[Known, ...]:
    """A matrix of GPT-2, stored as (inputs, outputs), and its bias."""
    return (
        Known(
            f"h.{{}}.{source}.weight",
            f"blk.{{}}.{target}.weight",
            (columns, rows),
            transform=f"transpose_{target}",
            result=(rows, columns),
        ),
        Known(f"h.{{}}.{source}.bias", f"blk.{{}}.{target}.bias", (rows,)),
    )


def _read_gpt2_sizes(config: Config) -> dict[str, int]:
    width, heads = config.count("n_embd"), config.count("n_head")
    if config.flag("scale_attn_by_inverse_layer_idx") or not config.flag("scale_attn_weights", True):
        raise UnsupportedModel("it scales attention in a way that llama.cpp does not know")
    return {
        "vocabulary": config.count("vocab_size"),
        "width": width,
        "layers": config.count("n_layer"),
        "heads": heads,
        "attention": 3 * width,
        "feed_forward": config.count("n_inner", 4 * width),
        "positions": config.count("n_positions"),
    }


def _describe_gpt2(config: Config, sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes["vocabulary"],
        "context_length": sizes["positions"],
        "embedding_length": sizes["width"],
        "block_count": sizes["layers"],
        "feed_forward_length": sizes["feed_forward"],
        "attention.head_count": sizes["heads"],
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
    }


_GPT2_MATRICES = {
    "attn.c_attn": ("attn_qkv", "attention", "width"),
    "attn.c_proj": ("attn_output", "width", "width"),
    "mlp.c_fc": ("ffn_up", "feed_forward", "width"),
    "mlp.c_proj": ("ffn_down", "width", "feed_forward"),
}


def _transpositions(sizes: Sizes) -> dict[str, Transform]:
    return {
        f"transpose_{target}": Transpose(sizes[rows], sizes[columns])
        for target, rows, columns in _GPT2_MATRICES.values()
    }


GPT2 = Family(
    classes=("GPT2LMHeadModel",),
    architecture="gpt2",
    tensors=(
        Known("wte.weight", "token_embd.weight", ("vocabulary", "width")),
        Known("wpe.weight", "position_embd.weight", ("positions", "width")),
        decoder.OUTPUT,
        *decoder.final_norm("ln_f", bias=True),
        *(
            Known(f"h.{{}}.{source}.{part}", f"blk.{{}}.{target}.{part}", ("width",))
            for source, target in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm"))
            for part in ("weight", "bias")
        ),
        *(known for source, entry in _GPT2_MATRICES.items() for known in _transposed(source, *entry)),
    ),
    read_sizes=_read_gpt2_sizes,
    describe=_describe_gpt2,
    transforms=_transpositions,
    prefix=r"(transformer\.)?",
    unused=r"h\.\d+\.attn\.(bias|masked_bias)",
    activations=("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh"),
    tied=True,
)
FAMILIES = (GPT2, GPT_NEOX, STARCODER2, STABLELM)
