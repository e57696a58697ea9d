"""GGUF files as sources: whole weights become any level, the same as from the original; quantized ones are refused."""

from __future__ import annotations

import io
from pathlib import Path

import gguf
import numpy as np
import pytest

from quant.convert import plan_model, sketch_model
from quant.convert.gguf_source import plan_gguf
from quant.copying import Copy
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf import read_file
from registry.sources.local import Folder as Local
from tests.converting import Out, Pieces, write
from tests.quant.support import DEMO, Folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in BF16, which loses nothing."""
    path = tmp_path_factory.mktemp("gguf") / "demo-bf16.gguf"
    write(plan_model(Folder(DEMO)), "BF16", Folder(DEMO).stream, path)
    return path


def weights(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_a_level_of_a_gguf_is_that_of_its_original(tmp_path: Path, whole: Path) -> None:
    source = Folder(contents={"x.gguf": whole.read_bytes()})
    plan, original = plan_model(source), plan_model(Folder(DEMO))
    assert sketch_model(source) == plan
    assert (plan.parameters, plan.stops, plan.capabilities) == (original.parameters, original.stops, ("completion",))
    write(plan, "Q4_K_M", source.stream, tmp_path / "a.gguf")
    write(original, "Q4_K_M", Folder(DEMO).stream, tmp_path / "b.gguf")
    assert weights(tmp_path / "a.gguf") == weights(tmp_path / "b.gguf")
    assert read_file(tmp_path / "a.gguf").metadata == read_file(tmp_path / "b.gguf").metadata


def test_parts_are_one_model_again(tmp_path: Path, whole: Path) -> None:
    reader = gguf.GGUFReader(whole)
    names = [tensor.name for tensor in reader.tensors]
    contents = {}
    for number, part in enumerate((reader.tensors[:20], reader.tensors[20:])):
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(names))
        writer.add_uint32("llama.block_count", 6)
        for tensor in part:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        contents[path.name] = path.read_bytes()
    plan = plan_model(Folder(contents=contents))
    assert [tensor.name for tensor in plan.tensors] == names
    assert not [key for key in plan.metadata if key.startswith("split.")]
    write(plan, "BF16", Folder(contents=contents).stream, tmp_path / "one.gguf")
    assert weights(tmp_path / "one.gguf") == weights(whole)
    assert Local(tmp_path / "m-00002-of-00002.gguf", "m").names() == sorted(contents)
    with pytest.raises(MalformedFile, match="2 parts"):
        plan_model(Folder(contents={"m-00001-of-00002.gguf": contents["m-00001-of-00002.gguf"]}))


def test_a_quantized_file_has_its_level(tmp_path: Path) -> None:
    write(plan_model(Folder(DEMO)), "Q4_K_M", Folder(DEMO).stream, tmp_path / "q.gguf")
    source = Local(tmp_path / "q.gguf", "q")
    assert plan_model(source).level == sketch_model(source).level == "Q4_K_M"
    source.close()
    with pytest.raises(UnsupportedModel, match="already quantized"):
        plan_gguf(Folder(contents={"q.gguf": (tmp_path / "q.gguf").read_bytes()}))


def test_a_quantized_file_is_copied_to_the_byte_and_goes_on_from_every_mark(tmp_path: Path) -> None:
    write(plan_model(Folder(DEMO)), "Q4_K_M", Folder(DEMO).stream, tmp_path / "q.gguf")
    data = (tmp_path / "q.gguf").read_bytes()
    source = Folder(contents={"q.gguf": data})
    copy = Copy(plan_model(source), len(data))
    out = Out(io.BytesIO())
    copy.write(lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), out)
    assert isinstance(out.file, io.BytesIO) and out.file.getvalue() == data
    assert [mark.offset for mark, _ in out.marks] == [0, len(data)] or len(out.marks) > 2
    for mark, length in out.marks:
        rest = Out(io.BytesIO(data[:length]))
        rest.file.seek(0, io.SEEK_END)
        copy.write(lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), rest, start=mark)
        assert isinstance(rest.file, io.BytesIO) and rest.file.getvalue() == data


def test_several_models_in_a_folder_must_be_named(whole: Path) -> None:
    data = whole.read_bytes()
    with pytest.raises(UnsupportedModel, match="several"):
        plan_model(Folder(contents={"a.gguf": data, "b.gguf": data}))
    assert plan_model(Folder(contents={"a.gguf": data, "mmproj-a.gguf": data})).shards == ("a.gguf",)


def test_a_broken_file_is_refused(whole: Path) -> None:
    for data in (b"", b"GGUF", whole.read_bytes()[:5000], b"\0" * 100):
        with pytest.raises(MalformedFile):
            plan_model(Folder(contents={"a.gguf": data}))
