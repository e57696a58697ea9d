"""Every layout of packed weights in every family: the file holds the codes, or the numbers, or a sentence says why not.

The page `docs/quantized.md` shows the cells; `python -m tests.quant.matrix -k layouts` writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from quant.convert.planning import sketch_model
from quant.errors import UnsupportedModel
from quant.gguf.header import read_file
from quant.plan import ModelPlan
from quant.types import QuantType
from tests.converting import write
from tests.quant import layouts, matrix
from tests.quant.layouts import FAMILIES, Layout
from tests.quant.support import Folder

# Types that round a minimum to 16 bits; its share of the largest weight.
_WITH_MINIMUM, _ROUNDED = (QuantType.Q4_1, QuantType.Q5_1), 2**-10


def found(plan: ModelPlan, source: Folder, path: Path) -> dict[str, tuple[QuantType, np.ndarray]]:
    """The type and the numbers of each tensor, as gguf's decoders read them; those of a matrix with its scale."""
    write(plan, "F32", source.stream, path)
    header, data = read_file(path), np.memmap(path, np.uint8)
    read = {}
    for tensor in header.tensors:
        begin = header.data_offset + tensor.offset
        rows = data[begin : begin + tensor.nbytes].reshape(tensor.rows, -1)
        numbers = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(tensor.type.id))
        read[tensor.name] = tensor.type, numbers.reshape(tensor.shape[::-1])
    scales = {name.removesuffix("scale") + "weight" for name in read if name.endswith(".scale")}
    for name in scales:
        type, numbers = read[name]
        _, scale = read.pop(name.removesuffix("weight") + "scale")
        read[name] = type, numbers * scale.reshape(-1, *(1,) * (numbers.ndim - 1))
    return read


def cell(layout: Layout, family: str, path: Path) -> str:
    """What becomes of the packed matrices: the types that hold them, `values` for numbers, a letter for the reason."""
    packed, whole, names = layouts.models(layout, family)
    try:
        plan = sketch_model(packed)
    except UnsupportedModel as error:
        assert re.search(r"quantized|MLX stores", str(error)), error
        return "refused (e)"
    taken, wanted = found(plan, packed, path / "m.gguf"), found(sketch_model(whole), whole, path / "whole.gguf")
    assert taken.keys() == wanted.keys()
    cells: dict[str, None] = {}
    for tensor in plan.tensors:
        if tensor.name not in taken:
            continue  # a scale
        type, numbers = taken[tensor.name]
        if not tensor.packing:
            assert type is wanted[tensor.name][0], tensor.name
            np.testing.assert_array_equal(numbers, wanted[tensor.name][1], tensor.name)
            continue
        exact = type is not QuantType.F32
        assert type is (layout.type if exact else QuantType.F32), tensor.name
        most = np.abs(numbers).max() * _ROUNDED if type in _WITH_MINIMUM else 1e-6
        # What stands for int8 of bitsandbytes is told with scales that are rounded already.
        near = 1e-3 if layout.type else 1e-5
        np.testing.assert_allclose(numbers, wanted[tensor.name][1], near, most, err_msg=tensor.name)
        cells[type.name if exact else f"values ({layout.why or 'c'})"] = None
    assert names and cells
    return ", ".join(cells)


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: re.sub(r"\W+", "-", layout.title))
def test_a_packed_model_is_the_model_that_its_numbers_make(layout: Layout, tmp_path: Path) -> None:
    for family in FAMILIES:
        matrix.LAYOUTS.note(layout.title, family, cell(layout, family, tmp_path))
    here, there = matrix.LAYOUTS.found[layout.title], matrix.LAYOUTS.read().get(layout.title)
    assert here == there, "`python -m tests.quant.matrix -k layouts` writes the page"


def test_the_page_of_packed_models_has_every_layout_and_explains_its_letters() -> None:
    text = matrix.LAYOUTS.page.read_text()
    rows = matrix.LAYOUTS.read(text)
    assert list(rows) == [layout.title for layout in layouts.LAYOUTS]
    assert all(cells.keys() == FAMILIES.keys() for cells in rows.values())
    assert matrix.LAYOUTS.text(text, rows) == text
    letters = set(re.findall(r"\((\w)\)", " ".join(each for cells in rows.values() for each in cells.values())))
    assert letters == set(re.findall(r"^- \*\*(\w)\*\*:", text, re.MULTILINE))
