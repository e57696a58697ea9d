"""Kernels against ggml: blocks read alike, written validly and closer to the source; any input, any threads."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import quant
from benchmarks import ggml
from quant.errors import BadValues, UnknownLevel, WrongShape
from quant.kernels import blocks, eight, formats
from quant.kernels.blocks import FAMILIES, PLAIN, pack, unpack
from quant.kernels.layouts.grids import grid_vectors
from quant.kernels.vectors import cache
from quant.kernels.vectors.compiler import Kernel
from quant.types import QuantType

ALL = [*PLAIN, *FAMILIES]
BLOCKS = list(FAMILIES)
# Types that give back what they once gave out.
EXACT_AGAIN = ("F32", "F16", "BF16", "Q8_0", "Q1_0", "TQ1_0", "TQ2_0")
# Bytes of any value are blocks that we write in the same way; TQ1_0 has several bytes for the same five trits.
PACKS_ANYTHING = [type for type in BLOCKS if type is not QuantType.TQ1_0]


def slow_tables(type: QuantType) -> list[pytest.MarkDecorator]:
    """ggml builds its tables for the larger grids for many seconds."""
    return [pytest.mark.slow] if type.name.startswith(("IQ1", "IQ2")) else []


def gaussian(rows: int = 24, columns: int = 512, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.02)


def heavy(rows: int = 24, columns: int = 512) -> np.ndarray:
    return (np.random.default_rng(2).standard_t(3, (rows, columns)) * 0.02).astype(np.float32)


def importance(columns: int = 512) -> np.ndarray:
    return np.exp(np.random.default_rng(3).standard_normal(columns)).astype(np.float32)


def brain(x: np.ndarray) -> np.ndarray:
    """The upper halves of float32, as BF16 in uint16."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def error(x: np.ndarray, blocks: np.ndarray, type: QuantType, weights: np.ndarray | float = 1.0) -> float:
    there = ggml.dequantize(blocks, type, x.shape[1]).astype(np.float64)
    return float((weights * (x - there) ** 2).sum())


@pytest.mark.parametrize("type", ALL, ids=lambda type: type.name)
def test_any_bytes_are_read_as_ggml_reads_them(type: QuantType) -> None:
    columns = 2 * max(type.block, 32)
    raw = np.random.default_rng(4).integers(0, 256, (40, type.row_bytes(columns)), np.uint8)
    ours, theirs = quant.dequantize(raw, type.name, columns), ggml.dequantize(raw, type, columns)
    nan = np.isnan(theirs)
    assert (np.isnan(ours) == nan).all()
    assert (ours.view(np.uint32) == theirs.view(np.uint32))[~nan].all()


@pytest.mark.parametrize("type", PACKS_ANYTHING, ids=lambda type: type.name)
def test_packing_is_the_inverse_of_unpacking(type: QuantType) -> None:
    raw = np.random.default_rng(5).integers(0, 256, (40, type.block_bytes), np.uint8)
    assert (pack(type, unpack(type, raw)) == raw).all()


@pytest.mark.parametrize(
    "type", [pytest.param(type, marks=slow_tables(type)) for type in BLOCKS], ids=lambda type: type.name
)
@pytest.mark.parametrize("source", [gaussian, heavy])
def test_closer_than_the_reference(type: QuantType, source: object) -> None:
    x = source()  # type: ignore[operator]
    for weights in (None, importance()):
        blocks = quant.quantize(x, type.name, weights)
        assert ggml.valid(blocks, type)
        if weights is None and type in ggml.NEED_IMPORTANCE:
            continue
        count = 1.0 if weights is None else weights
        assert error(x, blocks, type, count) <= error(x, ggml.quantize(x, type, weights), type, count) * 1.0001


@pytest.mark.slow
@pytest.mark.parametrize("type", sorted(ggml.NEED_IMPORTANCE, key=str), ids=lambda type: type.name)
def test_no_importance_is_no_obstacle(type: QuantType) -> None:
    x = gaussian()
    equal = ggml.quantize(x, type, np.ones(512, np.float32))
    assert error(x, quant.quantize(x, type.name), type) <= error(x, equal, type)


@pytest.mark.parametrize("name", EXACT_AGAIN)
def test_what_came_out_goes_in_unchanged(name: str) -> None:
    once = quant.dequantize(quant.quantize(gaussian(), name), name, 512)
    assert (quant.dequantize(quant.quantize(once, name), name, 512) == once).all()


@pytest.mark.parametrize("type", ALL, ids=lambda type: type.name)
def test_sources_of_16_bits(type: QuantType) -> None:
    x = gaussian(5)
    for narrow, wide in (
        (x.astype(np.float16), x.astype(np.float16).astype(np.float32)),
        (brain(x), (x.view(np.uint32) & 0xFFFF0000).view(np.float32)),
    ):
        assert (quant.quantize(narrow, type.name) == quant.quantize(wide, type.name)).all()


@pytest.mark.parametrize("type", ALL, ids=lambda type: type.name)
def test_rows_are_independent(type: QuantType) -> None:
    """Whatever the number of rows, of threads, of experts, and however the rows lie in memory."""
    x, weights = gaussian(301), importance()
    whole = quant.quantize(x, type.name, weights, threads=1)
    assert (quant.quantize(x, type.name, weights, threads=3) == whole).all()
    assert (quant.quantize(x[7:8], type.name, weights) == whole[7:8]).all()
    assert (quant.quantize(x[::5], type.name, weights) == whole[::5]).all()
    assert (quant.quantize(x[:42].reshape(3, 14, 512), type.name, weights) == whole[:42].reshape(3, 14, -1)).all()


def test_experts_with_an_importance_each() -> None:
    x, weights = gaussian(12).reshape(2, 6, 512), np.stack([importance(), importance()[::-1]])
    blocks = quant.quantize(x, "Q4_K", weights)
    for expert in (0, 1):
        assert (blocks[expert] == quant.quantize(x[expert], "Q4_K", weights[expert])).all()


def test_the_scale_of_importance_does_not_matter() -> None:
    x, weights = gaussian(), importance()
    assert (quant.quantize(x, "Q4_K", weights) == quant.quantize(x, "Q4_K", weights * 2.0**40)).all()
    assert (quant.quantize(x, "Q4_K", np.zeros(512)) == quant.quantize(x, "Q4_K", np.ones(512))).all()


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
def test_extreme_blocks(type: QuantType) -> None:
    """Zeros, constants, denormals, one huge element, the largest float32: valid blocks, and as near as can be."""
    x = np.zeros((10, 512), np.float32)
    x[1:3] = [[0.5], [-0.5]]
    x[3] = 1e-42
    x[4] = gaussian(1)
    x[4, 100] = 1e4
    x[5] = 3.4e38
    x[6, 7] = -3.4e38
    x[7] = 3e-8
    x[8, ::2], x[8, 1::2] = 1e-3, -1e-3
    x[9] = np.where(np.arange(512) % 32 == 5, 6e4, 1e-7)
    with np.errstate(over="ignore"):
        for weights in (None, np.where(np.arange(512) % 3 == 0, 0, 1)):
            blocks = quant.quantize(x, type.name, weights)
            assert ggml.valid(blocks, type)
            there = ggml.dequantize(blocks, type, 512)
            assert np.isfinite(there).all()
            assert np.abs(there[[0, 3]]).max() < 1e-7
    blocks = quant.quantize(x, type.name)
    there = ggml.dequantize(blocks, type, 512)
    assert np.abs(there[1] - 0.5).max() < 0.05
    assert np.abs(there[2] + 0.5).max() < 0.05
    if type not in (QuantType.Q1_0, QuantType.NVFP4):  # one bit says nothing of size; and scales that end at 448
        assert abs(there[4, 100] / 1e4 - 1) < (0.25 if type.bits_per_weight > 3 else 0.6)


@pytest.mark.parametrize("name", [type.name for type in ALL])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name: str, bad: float) -> None:
    x = gaussian(200)
    x[150, 33] = bad
    for source in (x, x.astype(np.float16), brain(x)):
        with pytest.raises(BadValues, match=r"row 150, column 33 is (nan|inf|-inf)"):
            quant.quantize(source, name)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(WrongShape, match=r"500.*256"):
        quant.quantize(gaussian(2, 500), "Q4_K")
    with pytest.raises(WrongShape, match="matrix"):
        quant.quantize(gaussian()[0], "Q4_K")
    with pytest.raises(WrongShape, match="importance"):
        quant.quantize(gaussian(), "Q4_K", importance(256))
    with pytest.raises(WrongShape, match="288 bytes, not the 34"):
        quant.dequantize(np.zeros((1, 34), np.uint8), "Q4_K", 512)
    with pytest.raises(UnknownLevel):
        quant.quantize(gaussian(), "Q4_X")
    with pytest.raises(UnknownLevel, match="kernel"):
        quant.quantize(gaussian(), "I32")
    with pytest.raises(BadValues, match="importance"):
        quant.quantize(gaussian(), "Q4_K", -importance())
    with pytest.raises(BadValues, match="int32"):
        quant.quantize(gaussian().astype(np.int32), "Q4_K")


def test_sources_that_may_not_be_written_or_start_anywhere() -> None:
    x = gaussian(3)
    raw = b"x" + x.tobytes()
    assert (
        quant.quantize(np.frombuffer(raw[1:], np.float32).reshape(3, 512), "Q4_K") == quant.quantize(x, "Q4_K")
    ).all()
    odd = np.frombuffer(raw, np.uint8)[1:].view(np.float32).reshape(3, 512)
    assert (quant.quantize(odd, "F16") == quant.quantize(x, "F16")).all()


def test_no_rows_are_no_blocks() -> None:
    assert quant.quantize(gaussian()[:0], "Q4_K").shape == (0, 288)
    assert quant.dequantize(np.empty((0, 288), np.uint8), "Q4_K", 512).shape == (0, 512)


COUNT = """
import sys, pathlib
from quant.kernels import blocks
from quant.kernels.vectors import cache, compiler
blocks.configure(pathlib.Path(sys.argv[1]))
blocks.warm(["F32"])
print(compiler.compilations(), cache.folder())
"""


def run(code: str, *args: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.strip()


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, folder = run(COUNT, str(tmp_path / "cache")).split()
    assert int(first) > 0
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert run(COUNT, str(tmp_path / "cache")).split() == ["0", folder]


@pytest.mark.slow
def test_compiled_code_outlives_a_new_installation_unless_the_kernel_itself_has_changed(tmp_path: Path) -> None:
    installed = tmp_path / "elsewhere"
    shutil.copytree(Path(quant.__file__).parent, installed / "quant")
    here = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    first, folder = run(COUNT, str(tmp_path / "cache")).split()
    with (installed / "quant" / "kernels" / "shifted.py").open("a") as other:  # a kernel of other types
        other.write("# changed")
    assert int(first) > 0
    assert run(COUNT, str(tmp_path / "cache"), **here).split() == ["0", folder]
    with (installed / "quant" / "kernels" / "vectors" / "half.py").open("a") as part:
        part.write("# changed")
    assert run(COUNT, str(tmp_path / "cache"), **here).split() == [first, folder]


def test_the_code_of_a_few_older_versions_of_a_kernel_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_folder", [tmp_path])
    function = eight._search._function
    names = [f"eight._search-{cache.stamp(Path(eight.__file__))}", *(f"eight._search-{n:016x}" for n in range(6))]
    for age, name in enumerate(names):
        for end in ("nbi", "1.nbc"):
            (tmp_path / f"{name}.py311.{end}").touch()
        os.utime(tmp_path / f"{name}.py311.nbi", (1e9 - age, 1e9 - age))
    cache.tidy(function)
    left = {path.name.split(".py")[0] for path in tmp_path.iterdir()}
    assert left == set(names[: 1 + cache.SPARE])


def test_a_folder_that_cannot_be_trusted_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cache.private(tmp_path / "file" / "cache").name.startswith("lm-kernels-")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert cache.private(tmp_path / "link").name.startswith("lm-kernels-")


HOLD = """
import sys, pathlib
from quant.kernels.vectors import cache
print(cache.private(pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_folders_of_other_versions_go_unless_they_are_in_use(tmp_path: Path) -> None:
    """The few used last stay, and what is not ours."""
    mine, *folders = (tmp_path / f"{number:016x}" for number in range(cache.SPARE + 4))
    for age, folder in enumerate((mine, *folders)):
        (folder / "simd").mkdir(parents=True)
        (folder / "simd" / "code.nbc").write_text("")
        (folder / ".used").touch()
        os.utime(folder / ".used", (1e9 - age, 1e9 - age))
    used = folders[-1]
    strange = {tmp_path / "notes", tmp_path / ("f" * 16)}
    (tmp_path / "notes").mkdir()
    (tmp_path / ("f" * 16)).symlink_to(tmp_path / "notes")
    (tmp_path / f"{'e' * 16}.gone").mkdir()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(used)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout and holder.stdout.readline().strip() == str(used)
        os.utime(used / ".used", (0, 0))
        cache.prune(tmp_path, mine)
        assert set(tmp_path.iterdir()) == {mine, *folders[: cache.SPARE], used, *strange}
        assert (used / "simd" / "code.nbc").exists()
        holder.communicate()
    cache.prune(tmp_path, mine)
    assert set(tmp_path.iterdir()) == {mine, *folders[: cache.SPARE], *strange}


def test_kernels_that_have_to_be_compiled_are_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks.warm(["Q8_0"])
    assert blocks.cold(["F32", "Q8_0"]) == []
    fresh = Kernel(eight._search._function, eight._search._signature)
    assert fresh.is_compiled  # by the file in the cache, as another process finds it
    monkeypatch.setitem(formats._formats, "Q8_0", formats._formats["Q8_0"]._replace(kernels=(fresh,)))
    monkeypatch.setattr(cache, "_folder", [tmp_path])
    assert blocks.cold(["F32", "Q8_0"]) == ["Q8_0"]


EVERYTHING = """
import sys, hashlib, pathlib
import numpy as np
import quant
from quant.kernels import blocks
blocks.configure(pathlib.Path(sys.argv[1]))
x = np.random.default_rng(9).standard_normal((40, 1024)).astype(np.float32)
for name in sys.argv[2].split(","):
    for importance in (None, np.abs(x[7])):
        print(name, hashlib.sha256(quant.quantize(x, name, importance)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other CPU of this test is an x86 one")
def test_every_cpu_writes_the_same_bytes(tmp_path: Path) -> None:
    names = ",".join(type.name for type in ALL)
    here = run(EVERYTHING, str(tmp_path / "here"), names)
    old = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,-avx512f"}
    assert run(EVERYTHING, str(tmp_path / "there"), names, **old) == here


@pytest.mark.parametrize("type", [type for type in BLOCKS if type.name.startswith(("IQ1", "IQ2", "IQ3"))])
def test_grids_are_those_of_the_gguf_package(type: QuantType) -> None:
    table = getattr(gguf.quants, "IQ1_S" if type is QuantType.IQ1_M else type.name)
    table.init_grid()
    np.testing.assert_array_equal(grid_vectors(type), table.grid.reshape(table.grid.shape[-2:]))
