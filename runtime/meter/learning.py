"""Statistics of a model's inputs on a text, window by window: what is collected outlives the process.

importance.gguf  all windows are read: a file of importance, as `llama-imatrix` writes it
grams.gguf       the Gram matrices of inputs, where they are wanted (`quant/feedback/stored.py`)
so-far.npz       the sums of the first windows, written now and then
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quant.feedback.stored import stored_bytes, write_grams
from quant.gguf.header import read_file
from quant.importance import Importance
from runtime.meter.collecting import SquareCollector, Sums
from runtime.meter.inputs import InputGrams
from runtime.meter.nodes import InputsNotFinite
from runtime.meter.passages import Passage
from runtime.meter.sizes import GRAMS
from runtime.meter.windows import WindowReader
from runtime.small_files import replace_file

DONE, GRAMS_FILE, _SO_FAR = "importance.gguf", "grams.gguf", "so-far.npz"
_EVERY_SECONDS = 10.0


def learn(
    path: Path,
    passage: Passage,
    folder: Path,
    *,
    windows: int,
    window: int,
    threads: int,
    tell: Callable[[int, int], None],
) -> Importance:
    """Read at most `windows` windows of a text with the model at `path`, and write `DONE` into `folder`.

    Goes on with the windows that an earlier process left; `tell` gets how many of how many are read. Raises BadRequest
    (a text too short, a model that writes no text), InputsNotFinite, LoadFailed, OSError.
    """
    collector = SquareCollector(read_file(path).tensors)
    reader = WindowReader(path, window, threads, collector)
    texts = list(reader.windows(passage, windows).values())
    done, saved = 0, time.monotonic()
    if before := _load(folder / _SO_FAR):
        done = before.windows if before.windows <= len(texts) and collector.restore(before) else 0
    for number in range(done, len(texts)):
        tell(number, len(texts))
        reader.collect(texts[number])
        collector.settle()
        if time.monotonic() - saved > _EVERY_SECONDS:
            _save(folder / _SO_FAR, collector.sums(number + 1))
            saved = time.monotonic()
    tell(len(texts), len(texts))
    found = collector.importance(passage.name, len(texts), window)
    part = folder / f"{DONE}.part"
    found.write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(folder / DONE)
    (folder / _SO_FAR).unlink(missing_ok=True)
    return found


def learn_grams(
    path: Path,
    passage: Passage,
    folder: Path,
    *,
    windows: int,
    window: int,
    threads: int,
    tell: Callable[[int, int], None],
) -> None:
    """Collect the Gram matrices of the model's inputs on a text, and write `GRAMS_FILE` into `folder`.

    `tell` gets how many matrices of how many are written. Raises as `learn`, and OSError with ENOSPC where the disk has
    no room for them.
    """
    names = [tensor.name for tensor in read_file(path).tensors]
    grams = InputGrams(path, passage, names, window, windows, threads, GRAMS)
    owners = grams.owners()
    columns = {name: grams.columns(name) for name, owner in owners.items() if name == owner}
    need, free = sum(map(stored_bytes, columns.values())), shutil.disk_usage(folder).free
    if need > free:
        raise OSError(errno.ENOSPC, f"Gram matrices take {need:,} bytes, and {free:,} are free", str(folder))
    asked = itertools.count()

    def gram(name: str) -> np.ndarray:
        tell(next(asked), len(columns))
        found = grams.gram(name)
        assert found is not None
        if not np.isfinite(found.diagonal()).all():
            raise InputsNotFinite(name)
        return found

    part = folder / f"{GRAMS_FILE}.part"
    write_grams(part, grams.mark, columns, owners, gram)
    part.replace(folder / GRAMS_FILE)
    tell(len(columns), len(columns))


def _save(path: Path, sums: Sums) -> None:
    data = io.BytesIO()
    np.savez(data, **sums._asdict())
    replace_file(path, data.getvalue())


def _load(path: Path) -> Sums | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = Sums(*(file[name] for name in Sums._fields))
            return found._replace(windows=int(found.windows))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
