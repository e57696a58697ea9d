"""Adapters that a registry keeps beside a model's weights: judged by their headers, then fetched into a pull."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from quant.convert.gguf.source import read_part
from quant.errors import QuantError, UnsupportedModel
from quant.gguf.adapter import check_adapter, check_base
from quant.plan import ModelPlan
from registry.sources.opening import Source
from registry.store.fsops import plainly
from runtime.options import MAX_ADAPTERS
from server.pulls.adapting import check_values
from server.pulls.frames import AdapterFile, adapter_path

_PIECE = 4 << 20


def check_beside(source: Source, plan: ModelPlan) -> None:
    """Raise UnsupportedModel unless all adapters beside the weights of `plan` are for them. Reads headers only."""
    names = source.companions.adapters
    if len(names) > MAX_ADAPTERS:
        raise UnsupportedModel(f"`{source.title}` holds {len(names):,} adapters, more than {MAX_ADAPTERS}")
    shapes = {tensor.name: tensor.shape[::-1] for tensor in plan.tensors}
    for name in names:
        try:
            check_base(check_adapter(read_part(source, name)), plan.architecture, shapes, source.title)
        except QuantError as error:
            raise UnsupportedModel(
                f"the adapter in `{source.title}` cannot be used: {error}", "ask its publisher, or pull its base alone"
            ) from None


def fetch_beside(source: Source, folder: Path, tell: Callable[[int, int], None]) -> list[AdapterFile]:
    """Write the adapters of a source into a pull's folder; `tell` gets the bytes that are there, and how many
    there will be.

    A file that an earlier pull left whole is not fetched again. Raises as `Source.open`, and BadValues, DiskFull,
    StoreFailed.
    """
    found, before, names = [], 0, source.companions.adapters
    total = sum(map(source.size, names))
    for number, name in enumerate(names):
        path, size, declared = adapter_path(folder, number), source.size(name), source.digest(name)
        with plainly(folder.parents[1]):
            here = _digest(path)
        if here is None or here != declared:
            here = _fetch(source, name, path, partial(_tell_behind, tell, before, total))
        check_values(path)
        found.append(AdapterFile(here.removeprefix("sha256:"), size))
        before += size
        tell(before, total)
    return found


def _tell_behind(tell: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    tell(before + done, total)


def _fetch(source: Source, name: str, path: Path, tell: Callable[[int], None]) -> str:
    """Write one file, and return its digest."""
    left, hashed, buffer = source.size(name), hashlib.sha256(), memoryview(bytearray(_PIECE))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with plainly(path.parents[2]):
        file = os.open(path, flags, 0o600)
    try:
        with closing(source.open(name)) as reader:
            while left:
                piece = buffer[: min(left, _PIECE)]
                reader.readinto(piece)
                hashed.update(piece)
                left -= len(piece)
                with plainly(path.parents[2]):
                    while piece:
                        piece = piece[os.write(file, piece) :]
                tell(source.size(name) - left)
            reader.finish()
    finally:
        os.close(file)
    return f"sha256:{hashed.hexdigest()}"


def _digest(path: Path) -> str | None:
    """The digest of a file, None where there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except FileNotFoundError:
        return None
