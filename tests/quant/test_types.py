from __future__ import annotations

import ctypes

import pytest

from quant.errors import UnknownLevel, WrongShape
from quant.types import QuantType, Tensor

llama_cpp = pytest.importorskip("llama_cpp")
LIB = llama_cpp.llama_cpp._lib


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_blocks_are_those_of_ggml(type: QuantType) -> None:
    block, size, name = LIB["ggml_blck_size"], LIB["ggml_type_size"], LIB["ggml_type_name"]
    block.restype, size.restype, name.restype = ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p
    assert (block(type.id), size(type.id)) == (type.block, type.block_bytes)
    assert name(type.id).decode().upper() == type.name


def test_rows_are_counted_in_whole_blocks() -> None:
    assert QuantType.Q4_K.row_bytes(512) == 288
    assert QuantType.F32.row_bytes(3) == 12
    assert QuantType.Q6_K.bits_per_weight == 6.5625
    with pytest.raises(WrongShape, match=r"300 values .* 256 .* Q4_K"):
        QuantType.Q4_K.row_bytes(300)


def test_a_tensor_knows_its_bytes_and_says_its_place() -> None:
    down = Tensor("blk.12.ffn_down_exps.weight", (512, 10, 8), QuantType.Q4_K)
    assert (down.columns, down.rows, down.nbytes) == (512, 80, 80 * 288)
    assert (down.layer, down.role) == (12, "ffn_down")
    norm = Tensor("output_norm.bias", (64,), QuantType.F32)
    assert (norm.rows, norm.nbytes, norm.layer, norm.role) == (1, 256, None, "")
    with pytest.raises(WrongShape):
        _ = Tensor("x", (100, 2), QuantType.Q4_K).nbytes


def test_lookup_by_name_and_number() -> None:
    assert QuantType.by_name("q4_k") is QuantType.by_id(12) is QuantType.Q4_K
    for lookup in (lambda: QuantType.by_name("Q9"), lambda: QuantType.by_id(4)):
        with pytest.raises(UnknownLevel) as caught:
            lookup()
        assert "Q8_0" in caught.value.hint
    with pytest.raises(UnknownLevel, match=r"type number 36, which bitnet\.cpp alone calls I2_S"):
        QuantType.by_id(36)
