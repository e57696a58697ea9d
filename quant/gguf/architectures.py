"""Architectures as data: the names that llama.cpp knows, and the tensors that a file of some of them must hold."""

from __future__ import annotations

_PARTS = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down"
_NAMES = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dflash
    dots1 dots3note dream eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma
    gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj
    gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe
    hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2 lfm2moe
    llada llada-moe llama llama-embed llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01
    minimax-m2 minimax-m3 mistral3 mistral4 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe
    neo-bert nomic-bert nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo
    plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3tts qwen3vl
    qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder
    starcoder2 step35 t5 t5encoder talkie wavtokenizer-dec xverse
"""
# The names in llama-cpp-python 0.3.36 (`LLM_ARCH_NAMES` in llama-arch.cpp).
KNOWN = frozenset(_NAMES.split())
# The tensors without which an architecture cannot run; `{}` is the number of a block.
REQUIRED = {
    "llama": (
        "token_embd.weight",
        "output_norm.weight",
        *(f"blk.{{}}.{part}.weight" for part in _PARTS.split()),
    ),
}
# The architectures that need an output matrix of their own, even where it is the embedding (`models/*.cpp`).
_WITH_OUTPUT = """
    apertus arwkv7 baichuan bailingmoe bailingmoe2 codeshell dbrx deepseek4 dots1 exaone-moe glm5-next gpt-oss gptneox
    hy_v4 internlm2 jais kimi-k3 kimi-linear llada-moe maple mellum mimo2 minimax-m2 muse-glimmer nemotron olmo2 olmoe
    orion phi2 phimoe plamo qwen qwen2moe rwkv6 rwkv6qwen2 rwkv7 stablelm talkie xverse
"""
OUTPUT_NEEDED = frozenset(_WITH_OUTPUT.split())
# The architectures whose output is always the embedding.
WITHOUT_OUTPUT = frozenset(["cohere2", "command-r", "gemma", "gemma2"])
# The architectures whose heads must make up the width of the model.
_AS_WIDE = """
    arctic baichuan bert bloom chatglm codeshell cohere2 command-r dbrx deepseek exaone4 falcon gpt2 gptneox jais jamba
    jina-bert-v2 lfm2 lfm2moe modern-bert mpt neo-bert nemotron nomic-bert olmo olmo2 olmoe orion phi2 phi3 plamo qwen
    qwen2 qwen2moe stablelm starcoder starcoder2 xverse
"""
HEADS_AS_WIDE = frozenset(_AS_WIDE.split())
# The architectures with a place for the bias of a matrix (`load_arch_tensors` in `models/*.cpp`), by the matrix. Biases
# of queries, keys and values have one everywhere.
_WITH_GATE_BIAS = frozenset(["falcon-h1", "granite", "granitehybrid", "granitemoe", "llama", "mistral3"])
_WITH_BIASES = _WITH_GATE_BIAS | frozenset(
    [
        "bert",
        "bloom",
        "codeshell",
        "gpt2",
        "gptneox",
        "jais2",
        "nemotron",
        "nemotron_h",
        "nomic-bert",
        "phi2",
        "starcoder",
        "starcoder2",
    ]
)
BIASED = {
    "attn_output": _WITH_BIASES | {"ernie4_5", "gpt-oss", "jais", "jina-bert-v2", "pangu-embedded"},
    "ffn_gate": _WITH_GATE_BIAS | {"jais"},
    "ffn_up": _WITH_BIASES | {"jais"},
    "ffn_down": _WITH_BIASES | {"jais", "jina-bert-v2"},
}
"""The architectures that take a bias of these matrices, by the role of the matrix."""
# The architectures that always turn heads by sections (`llama_model_rope_type`: MROPE, IMROPE).
SECTIONED = frozenset({"paddleocr", "qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3tts", "qwen4exp"})
# The architectures that are converted here and draft with a block for further tokens (`graph_mtp` in `models/*.cpp`).
PREDICTING = frozenset({"deepseek2", "glm4moe", "hy_v3", "qwen35", "qwen35moe", "qwen3next"})
# The architectures whose states llama.cpp takes back behind drafts (`llm_arch_supports_rs_rollback`).
GOING_BACK = frozenset({"lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe"})
# Matrices with which the graph of an architecture multiplies by itself, and not by `build_lora_mm`: an adapter's change
# of them would be passed over without a word (`ggml_mul_mat` in `models/*.cpp`). By the roles of their tensors.
_LATENT = frozenset({"attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b"})
UNADAPTED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("deepseek2", "deepseek32", "glm-dsa", "hy_v4", "dots3note"), _LATENT | {"output"}),
    **dict.fromkeys(("minicpm3", "plm"), _LATENT),
    "gemma4": frozenset({"per_layer_model_proj"}),
    **dict.fromkeys(
        ("rwkv6", "rwkv7"),
        frozenset(
            [
                *(f"time_mix_{letter}{number}" for letter in "wvag" for number in "12"),
                *("time_mix_decay_w1", "time_mix_decay_w2"),
            ]
        ),
    ),
    "gemma3n": frozenset({"per_layer_model_proj", "altup_proj", "altup_unembd_proj", "altup_router"}),
    "kimi-linear": _LATENT | {"attn_output", "output", "ssm_f_a", "ssm_f_b", "ssm_beta", "ssm_g_a", "ssm_g_b"},
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), frozenset({"ffn_latent_down", "ffn_latent_up"})),
}
# Matrices whose product the graph multiplies by `….scale`, a number for each matrix, by the architecture: the arguments
# that end in `_s` in `models/*.cpp`. Gemma 4 has a tensor of its own by the name of `ffn_down_exps.scale`.
_SCALED_ATTENTION = frozenset(["attn_q", "attn_k", "attn_v", "attn_output"])
_SCALED_FEED_FORWARD = frozenset(["ffn_gate", "ffn_up", "ffn_down"])
_SCALED_EXPERTS = frozenset(["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"])
_SCALED_SHARED = frozenset(["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"])
_SCALED_LINEAR = frozenset(["attn_qkv", "attn_gate", "ssm_out"])
SCALED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral3"), _SCALED_ATTENTION | _SCALED_FEED_FORWARD | _SCALED_EXPERTS),
    **dict.fromkeys(("qwen3", "gemma4"), _SCALED_ATTENTION | _SCALED_FEED_FORWARD),
    "qwen3moe": _SCALED_ATTENTION | _SCALED_EXPERTS,
    "qwen3next": _SCALED_ATTENTION | _SCALED_EXPERTS | _SCALED_SHARED,
    "qwen35": _SCALED_ATTENTION | _SCALED_FEED_FORWARD | _SCALED_LINEAR,
    "qwen35moe": _SCALED_ATTENTION | _SCALED_EXPERTS | _SCALED_SHARED | _SCALED_LINEAR,
    **dict.fromkeys(
        ("nemotron_h", "nemotron_h_moe"),
        _SCALED_ATTENTION | _SCALED_FEED_FORWARD | _SCALED_EXPERTS | _SCALED_SHARED,
    ),
    "hy_v3": _SCALED_ATTENTION | _SCALED_FEED_FORWARD | _SCALED_EXPERTS | _SCALED_SHARED,
}
# Models that llama.cpp has a graph for and the engine cannot run: how the names of their classes begin, their names in
# GGUF, and the reason.
_TWO_PARTS = "an encoder reads the text and a decoder answers, and the engine runs models of one part"
_WHOLE_TEXTS = "it refines a whole text at once, and the engine writes one token after the other"
_SOUND = "it makes sound, and the engine text"
_GUESSING = "it only guesses tokens for another model, and says nothing by itself"
_NOT_RUN = (
    ("T5With T5For T5Encoder MT5 UMT5 Bart MBart Pegasus M2M100 Marian LED Switch", "t5 t5encoder", _TWO_PARTS),
    ("LLaDA Dream RND1", "llada llada-moe dream rnd1", _WHOLE_TEXTS),
    ("Qwen3TTS PocketTTS WavTokenizer", "qwen3tts pockettts wavtokenizer-dec", _SOUND),
    ("Eagle3 DFlash DSpark Qwen3DSpark", "eagle3 dflash", _GUESSING),
)
NOT_RUN = {name: reason for _, names, reason in _NOT_RUN for name in names.split()}
"""The reason why the engine does not run an architecture, by its name in GGUF."""


def reason_not_to_convert(name: str) -> str:
    """The reason why a class of this name is not converted, "" for one that might be."""
    return next((reason for starts, _, reason in _NOT_RUN if name.startswith(tuple(starts.split()))), "")
