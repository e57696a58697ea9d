"""GGUF files in Ollama's dialect: names are translated, and the copy is what llama.cpp's own names would have made."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from quant.convert.gguf.dialect import REMARK
from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from quant.stream.copying import FileCopy
from tests.converting import Out, Pieces, write
from tests.quant.support import Folder
from tests.quant.test_scaled import folder

RENAMED = {
    "attn_output.": "attn_out.",
    "attn_sinks.weight": "attn_sinks",
    "post_attention_norm.": "ffn_norm.",
}


def in_dialect(path: Path, target: Path) -> Path:
    """A gpt-oss file again, by the names that Ollama's converter gives, without the width of its experts."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "gptoss")
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "gpt-oss.expert_feed_forward_length"):
            continue
        inner = entry.types[1] if len(entry.types) > 1 else None
        writer.add_key_value(key.replace("gpt-oss.", "gptoss."), entry.contents(), entry.types[0], inner)
    for tensor in reader.tensors:
        name = str(tensor.name)
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_gpt_oss_in_ollamas_names_becomes_the_file_in_llama_cpps(tmp_path: Path) -> None:
    source = folder()
    write(plan_model(source), "Q8_0", source.stream, tmp_path / "ours.gguf")
    theirs = in_dialect(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert any(tensor.name == "blk.0.attn_sinks" for tensor in read_file(theirs).tensors)
    files = Folder(contents={"model.gguf": theirs.read_bytes()})
    plan = plan_model(files)
    assert plan.architecture == "gpt-oss" and REMARK in plan.remarks
    copy = FileCopy(plan, theirs.stat().st_size)
    with (tmp_path / "copy.gguf").open("wb") as file:
        copy.write(lambda shard, offset, state: Pieces(shard, files.stream(shard), offset), Out(file))
    made, ours = read_file(tmp_path / "copy.gguf"), read_file(tmp_path / "ours.gguf")
    assert (tmp_path / "copy.gguf").stat().st_size == copy.size
    assert made.metadata == ours.metadata and made.kinds == ours.kinds
    assert {each.name: each.tensor_type for each in gguf.GGUFReader(tmp_path / "copy.gguf").tensors} == {
        each.name: each.tensor_type for each in gguf.GGUFReader(tmp_path / "ours.gguf").tensors
    }
    one, other = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("copy.gguf", "ours.gguf")
    )
    assert one == other


def test_a_file_in_llama_cpps_names_stays_as_it_is(tmp_path: Path) -> None:
    source = folder()
    write(plan_model(source), "Q8_0", source.stream, tmp_path / "ours.gguf")
    plan = plan_model(Folder(contents={"model.gguf": (tmp_path / "ours.gguf").read_bytes()}))
    assert not plan.translated and REMARK not in plan.remarks
