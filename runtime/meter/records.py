"""Records of windows in a folder, one file each: written whole or not at all, so that a measurement can go on later.

text.json           the text, unless it is lm's own
reference-0007.npz  a `KeptWindow`: what the reference thinks
DIGEST-0007.npz     a `Compared`: the model with this digest beside it
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.small_files import replace_file

REFERENCE = "reference"
# A NamedTuple of arrays.
Record = TypeVar("Record", bound=tuple[Any, ...])


def path_of(folder: Path, whose: str, number: int) -> Path:
    """The file of a window."""
    return folder / f"{whose}-{number:05}.npz"


def save(folder: Path, whose: str, number: int, record: Any) -> None:
    """Write the record of a window. Raises OSError."""
    data = io.BytesIO()
    np.savez(data, **record._asdict())
    replace_file(path_of(folder, whose, number), data.getvalue())


def load(folder: Path, whose: str, number: int, kind: type[Record]) -> Record | None:
    """The record of a window; None where there is none that can be read."""
    try:
        data = io.BytesIO(path_of(folder, whose, number).read_bytes())
        with np.load(data, allow_pickle=False) as file:
            make: Any = kind
            found: Record = make(*(file[name] for name in make._fields))
            return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
