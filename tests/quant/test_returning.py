"""From GGUF back to safetensors: of every family the tensors of the source come back, name by name and bit by bit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.convert.reordering import TileRates
from quant.convert.returning.plan import Return, plan_return
from quant.convert.returning.shards import Shard, index_of, shards_of
from quant.convert.returning.values import Read, values
from quant.convert.transforms import AddOne, Exponential, NegativeExponential, Scale, ScaleBlocks
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.gguf.header import Header, read_file
from quant.safetensors import INDEX, Entry, read_model
from tests.converting import write
from tests.quant.support import Folder
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.own_code import SKETCHES
from tests.quant.zoo.reference import reference
from tests.quant.zoo.sketched import PREDICTING
from tests.quant.zoo.sketched import make as sketch

# Changes of values, which are rounded both ways: within this of numbers up to 1, and as a share of larger ones.
FUNCTIONS = (AddOne, Exponential, NegativeExponential, Scale, ScaleBlocks, TileRates)
ROUNDED = 3e-7
# Families that are not taken back, and why.
REFUSED = {"qwen3, ranking": "two rows of its output"}
# What a file of the language model has no place for: parts that see, and layers behind the text's vectors.
LEFT = re.compile(
    r"(.*\.)?(visual|vision_\w+|embed_vision|multi_modal_projector|connector|pooler)\..*|.*(position_ids|(?<!time)_decay|slope_rate)"
)
LEFT_OF_RANKERS = re.compile(r".*position_ids")
AROUND = re.compile(r"^(model\.)?(language_model|text_model)\.")
# Its output divides by the lengths of its rows, which are therefore 1 in the file, and no longer those of the source.
LOST = ("baichuan, 2",)
# Quick ones, which every run of the tests tries.
QUICK = ("qwen35, heads", "deepseek2, heads")
IDS = np.random.default_rng(1).integers(3, 4096, 60).tolist()


@contextmanager
def returned(folder: Folder, path: Path, level: str = "F32") -> Iterator[tuple[Return, Header, Read]]:
    """The model converted to a file, and taken back from there."""
    write(plan_model(folder), level, folder.stream, path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = read_file(path)
        yield plan_return(folder, header), header, lambda at, count: os.pread(descriptor, count, at)
    finally:
        os.close(descriptor)


def bare(name: str) -> str:
    """The name as the language model by itself has it."""
    inside = AROUND.sub("", name)
    return inside if inside == name or inside.startswith(("model.", "lm_head.")) else f"model.{inside}"


def of_source(folder: Folder, entry: Entry) -> np.ndarray:
    return np.frombuffer(folder.read(entry.shard, entry.offset, entry.size), "<f4")


def check_equal(folder: Folder, path: Path) -> None:
    entries = read_model(folder)
    ranks = any(entry.name.startswith("classifier.") for entry in entries)  # by a pooler, which other models leave out
    source = {
        bare(entry.name): entry for entry in entries if not (LEFT_OF_RANKERS if ranks else LEFT).fullmatch(entry.name)
    }
    with returned(folder, path) as (back, header, read):
        found = {tensor.name: tensor for tensor in back.tensors}
        assert found.keys() == source.keys()
        for name, entry in source.items():
            wanted, tensor = of_source(folder, entry), found[name]
            assert tensor.shape == entry.shape, name
            got = np.concatenate(list(values(tensor, header, read)))
            skipped = tensor.blank * (tensor.elements // tensor.shape[0]) if tensor.blank else 0
            assert not got[:skipped].any()
            got, wanted = got[skipped:], wanted[skipped:]
            if any(isinstance(piece.transform, FUNCTIONS) for piece in tensor.pieces):
                assert (np.abs(got - wanted) <= ROUNDED * np.maximum(1, np.abs(wanted))).all(), name
            else:
                np.testing.assert_array_equal(got, wanted, name)


@pytest.mark.parametrize("name", QUICK)
def test_the_tensors_of_a_table_come_back(name: str, tmp_path: Path) -> None:
    check_equal(Folder(sketch((SKETCHES | PREDICTING)[name], tmp_path / "model")), tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted((SKETCHES | PREDICTING).keys() - {*QUICK, *LOST}))
def test_the_tensors_of_every_other_table_come_back(name: str, tmp_path: Path) -> None:
    check_equal(Folder(sketch((SKETCHES | PREDICTING)[name], tmp_path / "model")), tmp_path / "m.gguf")


# Rows that transformers saves by other names than their makers do.
RENAMED = ("kimi-linear",)


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ZOO)
def test_the_tensors_of_transformers_come_back(name: str, tmp_path: Path) -> None:
    folder = Folder(make(ZOO[name], tmp_path / "model"))
    if name in REFUSED:
        with pytest.raises(UnsupportedModel, match=REFUSED[name]), returned(folder, tmp_path / "m.gguf"):
            pass
        return
    if name in RENAMED:
        pytest.skip("it comes back by its published names, which transformers reads as well")
    check_equal(folder, tmp_path / "m.gguf")


def folder_of(shards: list[Shard], back: Return, header: Header, read: Read, dtype: str) -> dict[str, bytes]:
    files = {shard.name: b"".join(shard.pieces(header, read)) for shard in shards} | index_of(shards)
    return files | {"config.json": json.dumps(back.settings(dtype)).encode()}


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "qwen3moe", "gemma3, sees", "llama, llava", "qwen2, vl", "gpt2", "bert, xlm-roberta", "mamba2"),
        *RENAMED,
    ],
)
def test_transformers_loads_the_folder_and_computes_the_same(name: str, tmp_path: Path) -> None:
    """A model that also sees comes back as its language model, which is of another class."""
    row = ZOO[name]
    path = make(row, tmp_path / "model")
    wanted, folder = reference(path, row, IDS), Folder(path)
    with returned(folder, tmp_path / "m.gguf") as (back, header, read):
        files = folder_of(shards_of(back, "F32", header, read, longest=1 << 20), back, header, read, "F32")
    assert INDEX in files
    (tmp_path / "back").mkdir()
    for file, data in files.items():
        (tmp_path / "back" / file).write_bytes(data)
    (kind,) = json.loads(files["config.json"])["architectures"]
    own = next(task for task in ("ForCausalLM", "LMHeadModel", "Model") if kind.endswith(task))
    again = row._replace(kind=kind.removesuffix(own), task=own)
    np.testing.assert_allclose(reference(tmp_path / "back", again, IDS), wanted, atol=1e-4 * wanted.std())


def test_weights_are_rounded_to_the_type_and_vectors_only_where_it_holds_them(tmp_path: Path) -> None:
    folder = Folder(sketch(SKETCHES["orion"], tmp_path / "model"))
    with returned(folder, tmp_path / "m.gguf") as (back, header, read):
        (shard,) = shards_of(back, "BF16", header, read)
        files = {shard.name: b"".join(shard.pieces(header, read))}
        kinds = {entry.name: entry for entry in read_model(Folder(contents=files))}
        matrix, norm = kinds["model.layers.0.self_attn.q_proj.weight"], kinds["model.norm.weight"]
        assert (matrix.dtype, norm.dtype) == ("BF16", "F32")
        bits = np.frombuffer(files[shard.name], "<u2", matrix.size // 2, matrix.offset)
        source = next(entry for entry in read_model(folder) if entry.name == matrix.name)
        exact = of_source(folder, source)
        assert np.abs((bits.astype("<u4") << 16).view("<f4") - exact).max() <= 2.0**-8 * np.abs(exact).max()
        many = shards_of(back, "BF16", header, read, longest=1 << 20)
        places = json.loads(index_of(many)[INDEX])["weight_map"]
        assert places.keys() == kinds.keys() and len(many) > 2
        assert all(shard.size < (1 << 20) + (1 << 14) or len(shard.tensors) == 1 for shard in many)


def test_a_quantized_file_comes_back_as_the_numbers_that_it_stands_for(tmp_path: Path) -> None:
    folder = Folder(sketch(SKETCHES["xverse"], tmp_path / "model"))
    with returned(folder, tmp_path / "m.gguf", "Q8_0") as (back, header, read):
        source = {entry.name: of_source(folder, entry) for entry in read_model(folder)}
        for tensor in back.tensors:
            got, wanted = np.concatenate(list(values(tensor, header, read))), source[tensor.name]
            assert np.abs(got - wanted).max() <= np.abs(wanted).max() / 127, tensor.name


def test_another_models_configuration_is_refused(tmp_path: Path) -> None:
    folder = Folder(sketch(SKETCHES["orion"], tmp_path / "model"))
    with returned(folder, tmp_path / "m.gguf") as (_, header, _):
        with pytest.raises(MalformedFile, match=r"`token_embd\.weight` is \[4160, 128\]"):
            plan_return(folder.change("config.json", vocab_size=4096), header)
        with pytest.raises(UnsupportedModel, match=r"blk\.2\..* no place for it"):
            plan_return(folder.change("config.json", num_hidden_layers=2), header)
        with pytest.raises(MalformedFile, match="of a `llama`, and the file of a `orion`"):
            plan_return(folder.change("config.json", architectures=["LlamaForCausalLM"]), header)


def test_numbers_that_a_type_does_not_hold_are_refused(tmp_path: Path) -> None:
    folder = Folder(sketch(SKETCHES["orion"], tmp_path / "model"))
    with returned(folder, tmp_path / "m.gguf") as (back, header, read):
        first = replace(back, tensors=back.tensors[:1])

        def large(at: int, count: int) -> bytes:
            return (np.frombuffer(read(at, count), "<f4") * np.float32(1e6)).tobytes()

        (shard,) = shards_of(first, "F16", header, large)
        with pytest.raises(BadValues, match="F16 ends at 65504"):
            list(shard.pieces(header, large))

        def broken(at: int, count: int) -> bytes:
            return b"\xff" * count

        with pytest.raises(BadValues, match="NaN or infinity"):
            list(shard.pieces(header, broken))


def test_settings_say_what_the_weights_are_now(tmp_path: Path) -> None:
    folder = Folder(sketch(SKETCHES["orion"], tmp_path / "model"))
    given = folder.change("config.json", dtype="float16", quantization_config={"quant_method": "gptq", "bits": 4})
    write(plan_model(folder), "F32", folder.stream, tmp_path / "m.gguf")
    back = plan_return(given, read_file(tmp_path / "m.gguf"))
    assert back.dtype == "F16"
    assert back.settings("BF16")["dtype"] == back.settings("BF16")["torch_dtype"] == "bfloat16"
    assert "quantization_config" not in back.settings("F16")
