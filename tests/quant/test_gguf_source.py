"""GGUF files as sources: whole weights become any level, the same as from the original; quantized ones are refused."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import gguf
import pytest

from benchmarks import synthetic
from quant.convert.gguf.level import Recogniser, label_in
from quant.convert.gguf.source import plan_gguf
from quant.convert.gguf.variants import gather, recognise_all
from quant.convert.planning import plan_model, sketch_model
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import read_file
from quant.levels.budget import types_of
from quant.plan import ModelPlan
from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion
from registry.sources.local import Folder as Local
from tests.converting import Out, Pieces, write
from tests.publishing import make, rewrite, split
from tests.quant.support import DEMO, Folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in BF16, which loses nothing."""
    path = tmp_path_factory.mktemp("gguf") / "demo-bf16.gguf"
    write(plan_model(Folder(DEMO)), "BF16", Folder(DEMO).stream, path)
    return path


def entries(path: Path) -> dict[str, tuple[object, object]]:
    """All that a file says, with the kinds of GGUF."""
    return {key: (field.types, field.contents()) for key, field in gguf.GGUFReader(path).fields.items()}


@cache
def sketched() -> ModelPlan:
    return sketch_model(Folder(DEMO))


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


@pytest.mark.parametrize("level", ["BF16", "Q4_K_M"])
def test_parts_are_one_model_again(tmp_path: Path, whole: Path, level: str) -> None:
    """Split by the `gguf` package; whole weights are converted, quantized ones joined, entries and all."""
    path = whole if level == "BF16" else make(tmp_path / "q.gguf", level)
    parts = split(path, tmp_path / "parts" / "m.gguf", 20)
    assert Local(parts[1], "m").names() == [part.name for part in parts] and len(parts) == 3
    source = Folder(parts[0].parent)
    plan = plan_model(source)
    assert not [key for key in plan.metadata if key.startswith("split.")]
    out = Out(io.BytesIO())
    if level == "BF16":
        write(plan, level, source.stream, tmp_path / "one.gguf")
    else:
        assert plan.level == level
        copy = FileCopy(plan, sum(map(source.size, plan.shards)))
        copy.write(lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), out)
        assert isinstance(out.file, io.BytesIO)
        (tmp_path / "one.gguf").write_bytes(out.file.getvalue())
        assert len(out.file.getvalue()) == copy.size
        assert entries(tmp_path / "one.gguf") == entries(path)
        for mark, length in out.marks[:: len(out.marks) // 8]:
            rest = Out(io.BytesIO(out.file.getvalue()[:length]))
            rest.file.seek(0, io.SEEK_END)
            copy.write(lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), rest, start=mark)
            assert isinstance(rest.file, io.BytesIO) and rest.file.getvalue() == out.file.getvalue()
    assert weights(tmp_path / "one.gguf") == weights(path)


@pytest.mark.parametrize("level", ["BF16", "Q4_K_M"])
def test_a_part_without_tensors_is_verified_too(tmp_path: Path, whole: Path, level: str) -> None:
    path = whole if level == "BF16" else make(tmp_path / "q.gguf", level)
    parts = split(path, tmp_path / "parts" / "m.gguf", 30, small_first=True)
    source = Folder(parts[0].parent)
    plan = plan_model(source)
    assert not read_file(parts[0]).tensors and len(parts) == 3
    opened: list[str] = []

    def open_file(shard: str, offset: int, state: bytes) -> Pieces:
        opened.append(shard)
        return Pieces(shard, source.stream(shard), offset)

    made = FileCopy(plan, 0) if plan.level else Conversion(plan, level)
    out = Out(io.BytesIO())
    made.write(open_file, out)
    assert sorted(opened) == [part.name for part in parts]
    assert isinstance(out.file, io.BytesIO) and len(out.file.getvalue()) == made.size
    (tmp_path / "one.gguf").write_bytes(out.file.getvalue())
    assert weights(tmp_path / "one.gguf") == weights(path)


def test_names_in_upper_case_are_names_as_any_other(tmp_path: Path, whole: Path) -> None:
    parts = [part.read_bytes() for part in split(whole, tmp_path / "m.gguf", 20)]
    names = [f"M-F16-{number:05}-of-00003.GGUF" for number in (1, 2, 3)]
    contents = dict(zip(names, parts, strict=True))
    assert plan_model(Folder(contents=contents)).shards == tuple(names)
    (variant,) = gather(Folder(contents={"Mmproj-M.GGUF": b"", "M.Q8_0.GGUF.md": b"", **contents}))
    assert (variant.label, variant.stem) == ("F16", "m")
    del contents[names[1]]
    with pytest.raises(MalformedFile, match=f"`{names[1]}` is missing"):
        plan_model(Folder(contents=contents))


def test_wrong_parts_are_named(tmp_path: Path, whole: Path) -> None:
    parts = [part.read_bytes() for part in split(whole, tmp_path / "m.gguf", 20)]
    names = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    good = dict(zip(names, parts, strict=True))
    other = tmp_path / "other"
    sizes = {"layers": 6, "width": 128, "feed-forward": 256, "heads": 4, "vocabulary": 4224}
    options = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    synthetic.make(other, synthetic.parser().parse_args([str(other), *options]))
    plan = plan_model(Folder(other))
    write(plan, "BF16", Folder(other).stream, tmp_path / "other.gguf")
    alien = split(tmp_path / "other.gguf", tmp_path / "alien" / "m.gguf", 20)[1].read_bytes()
    for change, wrong, said in (
        ({names[1]: None}, names[1], "is missing"),
        ({names[1]: parts[2]}, names[1], "part 3 of 3"),
        ({names[1]: parts[1][:-40]}, names[1], "its tensors need"),
        ({names[1]: alien}, names[1], "another model"),
        ({names[1]: parts[0]}, names[1], "part 1 of 3"),
    ):
        contents = {name: data for name, data in (good | change).items() if data is not None}
        with pytest.raises(MalformedFile, match=f"`{wrong}`.*{said}"):
            plan_model(Folder(contents=contents))
    renamed = {f"m-{number:05}-of-00002.gguf": parts[number - 1] for number in (1, 2)}
    with pytest.raises(MalformedFile, match="part 1 of 3, and it is named 1 of 2"):
        plan_model(Folder(contents=renamed))


@pytest.mark.parametrize(
    ("level", "name", "told"),
    [
        ("Q4_K_M", "a.UD-Q4_K_XL.gguf", ("Q4_K_M", "UD-Q4_K_XL")),
        ("Q4_K_M", "a-i1-q4_k_m.gguf", ("Q4_K_M", "Q4_K_M")),
        ("Q8_0", "a-Q4_K_M.gguf", ("Q8_0", "Q8_0")),
        ("IQ3_M", "a.gguf", ("IQ3_M", "IQ3_M")),
        ("Q6_K", "a_Q6_K_L.gguf", ("Q6_K", "Q6_K_L")),
        ("Q4_K_S", "f16-merge.gguf", ("Q4_K_S", "Q4_K_S")),
        ("F16", "a-fp16.gguf", ("F16", "F16")),
        ("BF16", "a-F16.gguf", ("BF16", "BF16")),
    ],
)
def test_the_tensors_say_the_level_and_the_name_as_far_as_they_agree(
    tmp_path: Path, level: str, name: str, told: tuple[str, str]
) -> None:
    """With `general.file_type` taken away: only the types are left to tell it."""
    plan = sketched()
    types = types_of(plan, level)
    assert Recogniser(plan).recognise(types, label_in(name)) == told


def test_the_other_files_are_told_by_the_list_of_their_tensors(tmp_path: Path, whole: Path) -> None:
    """In any order, behind entries that the one that was read does not have; a damaged one by name and size."""
    path = make(tmp_path / "a-Q4_K_M.gguf", "Q4_K_M")
    rewrite(path, tmp_path / "a-Q8_0.gguf", backwards=True, quantize__imatrix__file="x" * 500)
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.3.attn_q.weight")
    data[at + 10 : at + 16] = b"xxxx_x"
    (tmp_path / "a-Q5_K_M.gguf").write_bytes(data)
    (tmp_path / "a-BF16.gguf").write_bytes(whole.read_bytes())
    source, header = Folder(tmp_path), read_file(whole)
    variants = gather(source)
    told = {each.files[0]: each for each in recognise_all(source, variants, variants[0], header, ModelPlan.of(header))}
    assert [(name, each.tag, each.important, bool(each.types)) for name, each in told.items()] == [
        ("a-BF16.gguf", "BF16", False, True),
        ("a-Q8_0.gguf", "Q4_K_M", True, True),
        ("a-Q4_K_M.gguf", "Q4_K_M", False, True),
        ("a-Q5_K_M.gguf", "Q5_K_M", False, False),
    ]


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
    copy = FileCopy(plan_model(source), len(data))
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
