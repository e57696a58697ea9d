"""Gram matrices in a file: collected by one process, used by another one, which has no llama.cpp.

A GGUF file of the type `grams`, without an architecture. A matrix that has inputs of its own has a tensor `NAME.gram`:
the upper triangle of Σ x·xᵀ, row after row, float32 `(n (n + 1) / 2,)`. `lm.feedback` marks the text, and
`lm.feedback_owners` is a JSON object: the name of each matrix, and of the matrix whose inputs it shares.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadImportance, BadValues, MalformedFile
from quant.feedback.factor import GramFactor
from quant.gguf.header import read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.types import QuantType, Tensor

_KIND, _MARK, _OWNERS, _END = "grams", "lm.feedback", "lm.feedback_owners", ".gram"
# Factors that are kept: slabs of neighbours are quantized at a time.
_FACTORS = 2
Gram = Callable[[str], NDArray[np.float32]]


def stored_bytes(columns: int) -> int:
    """Bytes of the Gram matrix of N columns in a file."""
    return 4 * (columns * (columns + 1) // 2)


def write_grams(path: Path, mark: str, columns: Mapping[str, int], owners: Mapping[str, str], gram: Gram) -> None:
    """Write the Gram matrices of a model into a file at `path`, which is synced.

    columns: the matrices with inputs of their own, in the order in which `gram` is asked, float32 `(columns, columns)`.
    owners: each matrix, and the one in `columns` whose inputs it shares. Raises OSError.
    """
    placed = layout(
        Tensor(f"{name}{_END}", (stored_bytes(count) // 4,), QuantType.F32) for name, count in columns.items()
    )
    entries = {"general.type": _KIND, _MARK: mark, _OWNERS: json.dumps(dict(owners))}
    with path.open("wb") as file:
        file.write(encode_header(entries, placed))
        writer = Writer(file, placed)
        for name in columns:
            for number, row in enumerate(gram(name)):
                writer.append(np.ascontiguousarray(row[number:], "<f4").data.cast("B"))
        writer.finish()
        file.flush()
        os.fsync(file.fileno())


class StoredGrams:
    """The Gram matrices in a file: `quant`'s `Feedback`. Safe to call from any thread."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Read the header; the file may be removed meanwhile. Raises BadImportance for any other file, OSError."""
        try:
            header = read_file(path)
            if header.metadata.get("general.type") != _KIND:
                raise MalformedFile("its type is another one")
            self._mark, owners = str(header.metadata[_MARK]), json.loads(header.metadata[_OWNERS])
            self._owners = {str(name): str(owner) for name, owner in owners.items()}
        except (MalformedFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadImportance(f"`{path}` holds no Gram matrices: {error}", "`lm quantize` collects them") from None
        self._places = {
            tensor.name.removesuffix(_END): (header.data_offset + tensor.offset, tensor.columns)
            for tensor in header.tensors
        }
        self._bytes = np.memmap(path, np.uint8, "r")
        self._threads, self._lock = threads, threading.Lock()
        self._factors: dict[str, GramFactor] = {}

    @property
    def entries(self) -> dict[str, str]:
        """The entry that tells files by the text and the windows that their errors were weighed on."""
        return {_MARK: self._mark}

    def factor(self, name: str) -> GramFactor | None:
        """The factor for a matrix; None for a tensor whose inputs are not seen.

        Raises BadValues where inputs are not finite, or no input came; OSError.
        """
        with self._lock:
            owner = self._owners.get(name, "")
            if owner not in self._places:
                return None
            if owner not in self._factors:
                while len(self._factors) >= _FACTORS:
                    self._factors.pop(next(iter(self._factors)))
                try:
                    self._factors[owner] = GramFactor(self.gram(owner), threads=self._threads)
                except BadValues as error:
                    raise BadValues(f"the inputs of `{name}`: {error}", "read another text with the model") from None
            return self._factors[owner]

    def gram(self, owner: str) -> NDArray[np.float32]:
        """Σ x·xᵀ of a matrix that has inputs of its own, float32 `(columns, columns)`. Raises OSError."""
        offset, count = self._places[owner]
        columns = (math.isqrt(8 * count + 1) - 1) // 2
        values = self._bytes[offset : offset + 4 * count].view("<f4")
        found, at = np.empty((columns, columns), np.float32), 0
        for number in range(columns):
            row = values[at : at + columns - number]
            found[number, number:], found[number:, number] = row, row
            at += columns - number
        return found
