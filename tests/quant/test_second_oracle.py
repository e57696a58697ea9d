"""Every row of the zoo against llama.cpp's own converter: the same entries and tensors, or a known difference.

`LLAMA_CPP` names the folder of llama.cpp's source; without it these tests are skipped (`llama_converter.py`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.engine import Engine
from tests.quant.llama_converter import FOLDER, UNKNOWN, Converter, Difference, File, differences
from tests.quant.support import Folder
from tests.quant.test_broken import check_configs
from tests.quant.test_zoo import answer
from tests.quant.zoo import ZOO, sketched
from tests.quant.zoo.making import make
from tests.quant.zoo.own_code import SKETCHES
from tests.quant.zoo.sketched import PREDICTING
from tests.quant.zoo.wrapped import WRAPPED

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not (FOLDER / "conversion").is_dir(), reason="LLAMA_CPP does not name llama.cpp's source"),
]


class Known(NamedTuple):
    """A difference that is right: `who` has the entry (`ours`, `theirs`, or `both` with other values), where, why."""

    who: str
    name: str
    rows: str
    why: str


# Rows that they write for an architecture of their own, which reads places of pictures.
_SEEING = "hunyuan-dense, vl|llama, paddleocr|qwen3, asr|qwen3moe, (vl|omni)|qwen2, (omni|vl.*)"
# Names without the architecture in front. "As the logits show" means those of transformers, in `test_zoo.py`.
KNOWN = (
    Known("ours", r"lm\..*", ".*", "an entry of lm's own"),
    Known("ours", r"vocab_size", ".*", "for programs that do not count the tokens"),
    Known("ours", r"tokenizer\.ggml\.(add_eos_token|token_type_count)", ".*", "said rather than left to a default"),
    Known("theirs", r"tokenizer\.ggml\.(bos|padding|seperator)_token_id", ".*", "numbers no token of the tokenizer"),
    Known("both", r"tokenizer\.ggml\.seperator_token_id", "modern-bert.*", "they take the default of the class"),
    Known("both", r"tokenizer\.ggml\.bos_token_id", ".*, ranking.*", "the token that the tokenizer puts in front"),
    Known("ours", r"tokenizer\.ggml\.seperator_token_id", "bert, ranking", "between the two texts"),
    Known("both", r"tokenizer\.ggml\.(tokens|token_type)", "bert, ranking", "they write a pad where no token is"),
    Known("ours", r"attention\.(key|value)_length", ".*", "what llama.cpp computes where it is missing"),
    Known("ours", r"rope\.dimension_count", ".*", "what llama.cpp computes where it is missing"),
    Known("ours", r"rope\.scaling\.yarn_beta_(fast|slow)", ".*", "what llama.cpp takes where they are missing"),
    Known("ours", r"expert_gating_func", ".*", "what llama.cpp takes for the architecture where it is missing"),
    Known("ours", r"expert_weights_norm", "deepseek2.*", "false, which is llama.cpp's default"),
    Known("ours", r"attention\.causal", ".*", "said rather than left to the architecture"),
    Known("ours", r"pooling_type", ".*", "said rather than left to who asks for a vector"),
    Known("ours", r"attention\.sliding_window_pattern", ".*", "they know it of the published sizes alone"),
    Known("ours", r"rope\.freq_base", "gemma.*|phi2|stablelm.*", "they leave it out, and llama.cpp takes 10,000"),
    Known("ours", r"rope\.scaling\.type", "phi3, long rope", "they leave it to the name of the architecture"),
    Known("theirs", r"expert_group_(used_)?count", ".*", "one group is none"),
    Known("theirs", r"nextn_predict_layers", "exaone-moe", "there are none, or they stay behind"),
    Known("ours", r"expert_shared_count|leading_dense_block_count", ".*", "said, where the tensors say it as well"),
    Known("ours", r"expert_weights_norm", "afmoe", "they look for it under another name than the class has"),
    Known("both", r"rope\.dimension_count", "glm4moe, solar", "they turn half of a head, as GLM does"),
    Known("theirs", r"expert_shared_count", "ernie4_5-moe", "not read: the width of all together is"),
    Known("theirs", r"rope\.freq_base(_swa)?", "(bert|mellum|olmo2).*", "not read, or the same as without"),
    Known("theirs", r"rope\.(dimension_count|freq_base|scaling\.finetuned)", "nemotron_h_moe.*", "nothing is rotated"),
    Known("both", r"rope\.scaling\.finetuned", "granitehybrid.*", "this is how the graph knows that it rotates"),
    Known(
        "theirs", r"rope\.scaling\.(type|yarn_attn_factor)", "nemotron|olmo2, windows|exaone-moe", "the same as without"
    ),
    Known("theirs", r"rope\.scaling\.original_context_length", "phi3.*", "there is no scaling"),
    Known("theirs", r"attention\.layer_norm_rms_epsilon", "nemotron|modern-bert.*", "the norms are others"),
    Known("ours", r"attention\.layer_norm_epsilon", "modern-bert.*", "the norms that it has"),
    Known("theirs", r"attention\.sliding_window", "phi3.*", "the context ends with the window, in which all is right"),
    Known("both", r"context_length", "phi3", "the context ends with the window, in which all is right"),
    Known("both", r"context_length", "chatglm|granitehybrid.*|nemotron_h_moe.*", "they do not read the model's"),
    Known("both", r"attention\.layer_norm_rms_epsilon", "chatglm|olmoe", "they do not read the model's"),
    Known("both", r"rope\.freq_base", "chatglm", "they do not read the model's"),
    Known("both", r"feed_forward_length", "phi2", "they take four times the width, whatever the model has"),
    Known("both", r"leading_dense_block_count", "deepseek2, glm.*", "they do not read `mlp_layer_types`"),
    Known("theirs", r"use_parallel_residual", "stablelm.*", "not read: the tensors say so"),
    Known("theirs", r"hidden_activation", "modern-bert.*", "not read in this version"),
    Known("theirs", r"classifier\.(output_labels|pooling_type)", ".*", "a score has no labels, and a model no head"),
    Known("both", r"token_embd\.weight", "gemma.*", "they cut rows for which the demo's tokenizer has no tokens"),
    Known("ours", r"blk\.\d+\.ffn_(gate|up)_exps\.weight", "gemma4, experts", "llama.cpp takes either form"),
    Known("theirs", r"blk\.\d+\.ffn_gate_up_exps\.weight", "gemma4, experts", "llama.cpp takes either form"),
    Known("both", r"blk\.\d+\.(ffn_gate_inp_shexp\.weight|exp_probs_b\.bias)", ".*", "one row is a vector"),
    Known("ours", r"cls\.(weight|bias)", "bert, ranking", "they leave out the layer before the score"),
    Known("theirs", r"expert_.*", "granitehybrid, no.*", "without experts, the part that all share is the only one"),
    Known("both", r"feed_forward_length", "granitehybrid, no.*", "the width of this part"),
    Known("both", r"general\.architecture", f"qwen., .*vl|{_SEEING}", "a text needs none of the sections for pictures"),
    Known(
        "theirs", r"rope\.dimension_sections|n_deepstack_layers", f"qwen., .*vl|{_SEEING}", "a text needs none of them"
    ),
    Known("both", r"rope\.freq_base", "hunyuan-dense, vl", "they leave the stretching of the base to the graph"),
    Known("theirs", r"rope\.scaling\..*", "hunyuan-dense, vl", "the base is stretched already"),
    Known("both", r"blk\.\d+\.attn_(q|k)\.weight", "llama, paddleocr", "rows in Llama's order, as the logits show"),
    Known("both", r"context_length|position_embd\.weight", "bert, camembert", "places count from behind the padding"),
    Known("theirs", r"expert_(used_)?count", "jamba, dense", "one expert is none"),
    Known("both", r"tokenizer\.ggml\.(tokens|token_type)", "mamba, first names", "as many as the embedding has rows"),
    Known("both", r"rope\.dimension_count", "deepseek2-ocr", "not read, and 0 there"),
    Known("ours", r"rope\.freq_base|expert_weights_scale", "deepseek2-ocr", "llama.cpp's defaults"),
    Known("theirs", r"tensor_data_layout", ".*", "not read"),
    Known("ours", r"attention\.recurrent_layers", "minimax.*", "they leave it to every eighth layer, which it is here"),
    Known("ours", r"rope\.freq_base", "falcon.*|minicpm3|orion", "they leave it out, and llama.cpp takes 10,000"),
    Known("both", r"context_length", "falcon.*|bloom", "they do not read the model's"),
    Known("both", r"feed_forward_length", "starcoder", "they take four times the width, whatever the model has"),
    Known("theirs", r"attention\.layer_norm_epsilon", "exaone|qwen", "llama.cpp reads it by the other name"),
    Known("ours", r"attention\.layer_norm_rms_epsilon", "exaone|qwen", "the name by which llama.cpp reads it"),
    Known("ours", r"attention\.head_count_kv", "qwen|mpt|bloom|jais", "as many as heads, which is llama.cpp's default"),
    Known("ours", r"expert_weights_norm", "deepseek", "false, which is llama.cpp's default"),
    Known("theirs", r"rope\.scaling\.type", "deepseek", "the same as without"),
    Known("both", r"attention\.head_count_kv", "granitehybrid.*", "they do not know its layers as they are named now"),
    Known("both", r"blk\.\d+\.attn_(q|k)\.weight", "granitehybrid.*|nemotron_h_moe.*", "as the logits show"),
    Known(
        "ours", r"attention\.rope_pattern", "granite_swa.*", "they do not read `layer_rope_theta`, as the logits show"
    ),
    Known("both", r"rope\.dimension_count", "granitehybrid, bamba", "they turn whole heads, as the logits show"),
    Known("theirs", r"attention\.sliding_window|rope\.(freq_base|dimension_count)_swa", "laguna, per.*", "no window"),
    Known("theirs", r"rescale_every_n_layers", "rwkv6", "for half precision, in which llama.cpp does not compute"),
    Known("both", r"blk\.\d+\.(time_mix_output|channel_mix_value)\.weight", "rwkv6", "divided for the same reason"),
    Known("both", r"blk\.0\.time_mix_v[012]\.weight", "rwkv7", "not read in the first layer"),
    Known("both", r"activation_sparsity_scale", "gemma3n.*", "not read: llama.cpp has the number, which they round"),
    Known("both", r"attention\.value_length", "kimi-linear.*", "they take `head_dim`, which the class does not read"),
    Known("ours", r"expert_weights_norm", "kimi-linear.*", "true, which the graph has built in"),
    Known("theirs", r"expert_gating_func", "mimo2.*", "not read: it is the sigmoid in every model"),
    Known("theirs", r"moe_every_n_layers", "step35.*", "not read: the tensors say which layers have experts"),
    Known("theirs", r"attention\.layer_norm_epsilon", "cohere2moe.*", "it norms by the other one where it has both"),
    Known("both", r"rope\.freq_base", "dbrx", "they read it where transformers no longer does, as the logits show"),
    Known("theirs", r"rope\.scaling\.(type|factor)", "codeshell", "a factor of 1 is none"),
    Known("both", r"blk\.\d+\.attn_qkv\.weight", "neo-bert", "its heads alternate, and they leave them so"),
    Known(
        "ours",
        r"attention\.head_count_kv",
        "talkie|neo-bert|hrm_text",
        "as many as heads, which is llama.cpp's default",
    ),
    Known("ours", r"feed_forward_length", "maple", "said, and not read"),
    Known("both", r"block_count", "deepseek2, heads", "they leave the block behind, with which the library drafts"),
    Known("ours", r"nextn_predict_layers|blk\.3\..*", "deepseek2, heads", "the same, as GLM 4.7 Flash's shows"),
)
# Rows that are another architecture here, with the reason.
ELSEWHERE = {
    "granitehybrid, attention alone": "without states it is no hybrid, and llama.cpp's fails to make a cache of none",
    "nemotron_h": "without experts it is no mixture; theirs takes the experts that the class has by default",
}
# Rows that their converter fails on, with what it says.
REFUSED = {
    "plamo": "AssertionError",  # it takes the published size for granted, in which there is no difference
    "baichuan": "RecursionError",
    "baichuan, 13b": "RecursionError",
    "baichuan, 2": "RecursionError",
    "kimi-linear": "Can not map",
    "gemma4, unified": "moe_intermediate_size",
    "mimo2": "swa_head_dim",
    "mistral3": "pre-tokenizer",
    "mistral3, sees": "pre-tokenizer",
    "cohere2": "rotary_pct",
    "gpt2": "n_ctx",
    "gptneox": "rotary_pct",
    "gptneox, serial": "rotary_pct",
    "hunyuan-dense": "assumptions",
    "stablelm, head norms": "norms",
    "hunyuan-moe": "moe_intermediate_size",
    "bert, xlm-roberta ranking": "Sequence",
    "falcon": "invalid for input",
    "eurobert": "classifier_pooling",
    "nomic-bert": "tokenizer",
}
# What the plain run of tests asks for; the others are `slow`.
_SAMPLE = ("llama, biases", "qwen35moe", "deepseek2, v3")


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter() as converter:
        yield converter


def unexplained(row: str, found: Difference, architecture: str) -> bool:
    who = "theirs" if found.ours is ... else "ours" if found.theirs is ... else "both"
    name = found.name.removeprefix(f"{architecture}.")
    return not any(
        known.who == who and re.fullmatch(known.name, name) and re.fullmatch(known.rows, row) for known in KNOWN
    )


def check(row: str, source: Path, converter: Converter, folder: Path) -> None:
    """Convert the model in `source` by both, and compare."""
    said = converter.convert(source, folder / "theirs.gguf")
    if said == UNKNOWN:
        pytest.skip("llama.cpp's converter does not know the class")
    if row in REFUSED:
        assert REFUSED[row] in said
        pytest.skip(f"llama.cpp's converter fails: {said[:100]}")
    assert not said
    model = Folder(source)
    write(plan_model(model), "F32", model.stream, folder / "ours.gguf")
    ours, theirs = (File.read(folder / f"{whose}.gguf") for whose in ("ours", "theirs"))
    names = (str(ours.entries["general.architecture"]), str(theirs.entries["general.architecture"]))
    if row in ELSEWHERE:
        assert names[0] != names[1]
        pytest.skip(ELSEWHERE[row])
    renamed = {re.sub(f"^{names[1]}\\.", f"{names[0]}.", name): value for name, value in theirs.entries.items()}
    theirs = theirs._replace(entries=renamed)
    assert [str(each) for each in differences(ours, theirs) if unexplained(row, each, names[0])] == []


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row in _SAMPLE else pytest.mark.slow, id=row) for row in ZOO]
)
def test_the_file_is_that_of_llama_cpps_converter(row: str, converter: Converter, tmp_path: Path) -> None:
    check(row, make(ZOO[row], tmp_path / "model"), converter, tmp_path)


@pytest.mark.parametrize("row", SKETCHES)
def test_a_class_that_transformers_lacks_converts_as_by_llama_cpps_converter_and_answers(
    row: str, converter: Converter, tmp_path: Path
) -> None:
    path = sketched.make(SKETCHES[row], tmp_path / "model")
    check(row, path, converter, tmp_path)
    with Engine(tmp_path / "ours.gguf") as engine:
        found = answer(engine, plan_model(Folder(path)), list(range(3, 60)))
    assert np.isfinite(found).all() and found.std() > 0.5
    check_configs(Folder(path), zlib.crc32(row.encode()), 20)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row == "qwen3moe, omni" else pytest.mark.slow, id=row) for row in WRAPPED]
)
def test_a_language_model_within_a_larger_one_is_that_of_llama_cpps_converter(
    row: str, converter: Converter, tmp_path: Path
) -> None:
    sketch = WRAPPED[row]
    path = sketched.make(sketch, tmp_path / "model")
    check(row, path, converter, tmp_path)
    plan = plan_model(Folder(path))
    assert sum(plan.left_out.values()) == 64 * len(sketch.beside)
    with Engine(tmp_path / "ours.gguf") as engine:
        found = answer(engine, plan, list(range(3, 60)))
    assert np.isfinite(found).all() and found.std() > 0.5
    check_configs(Folder(path), zlib.crc32(row.encode()), 20)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row == "qwen35, heads" else pytest.mark.slow, id=row) for row in PREDICTING]
)
def test_a_block_that_predicts_further_tokens_is_that_of_llama_cpps_converter(
    row: str, converter: Converter, tmp_path: Path
) -> None:
    check(row, sketched.make(PREDICTING[row], tmp_path / "model"), converter, tmp_path)
