"""Adapters and a draft that a registry keeps beside a model's weights: judged, and fetched into a pull."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from quant.convert.gguf.source import read_part
from quant.errors import QuantError, UnsupportedModel
from quant.gguf.adapter import check_adapter, check_base
from quant.gguf.check import check_model
from quant.gguf.drafts import check_draft
from quant.gguf.header import read_file
from quant.gguf.values import readable
from quant.plan import ModelPlan
from registry.sources.opening import Source
from registry.store.fsops import plainly
from registry.store.partial import DATA
from runtime.options import MAX_ADAPTERS
from runtime.units import size_text
from server.pulls.adapting import check_values
from server.pulls.frames import FileBeside, adapter_path, draft_path
from server.pulls.provenance import settings

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


def fetch_beside(source: Source, folder: Path, tell: Callable[[int, int], None]) -> list[FileBeside]:
    """Write the adapters of a source into a pull's folder; `tell` gets the bytes that are there, and how many
    there will be.

    A file that an earlier pull left whole is not fetched again. Raises as `Source.open`, and BadValues, DiskFull,
    StoreFailed.
    """
    found, before, names = [], 0, source.companions.adapters
    total = sum(map(source.size, names))
    for number, name in enumerate(names):
        path = adapter_path(folder, number)
        found.append(_bring(source, name, path, partial(_tell_behind, tell, before, total)))
        check_values(path)
        before += source.size(name)
        tell(before, total)
    return found


def fetch_draft(
    source: Source, folder: Path, tell: Callable[[int, int], None], note: Callable[[str], None]
) -> FileBeside | None:
    """Write the draft model of a source into a pull's folder, and compare it with the model that is there.

    None where there is none, or where it cannot draft for the model, which `note` hears. Raises as `fetch_beside`.
    """
    name, path = source.companions.draft, draft_path(folder)
    if not name:
        return None
    try:
        check_model(read_part(source, name))
        size = source.size(name)
        found = _bring(source, name, path, lambda done: tell(done, size))
        check_draft(read_file(path), read_file(folder / DATA), name, source.title)
    except QuantError as error:
        note(f"left out is its draft model: {error}")
        return None
    return found


def texts_beside(source: Source) -> dict[str, Any]:
    """The fields of `Done` for texts, quality card and signatures that a registry keeps beside a model's weights."""
    beside = source.companions
    return {
        "system": beside.system,
        "template": beside.template,
        "licenses": list(beside.licenses),
        "messages": [dict(each) for each in beside.messages],
        "card": dict(beside.card),
        "signatures": list(beside.signatures),
    }


def say_what_lies_beside(source: Source, plan: ModelPlan, note: Callable[[str], None]) -> None:
    """Say which parts of a registry's model are left out, under which licence it is, and what has no effect."""
    beside, dropped = source.companions, settings(source.companions.params, plan)[1]
    if beside.left_out:
        parts = ", ".join(f"{name} ({size_text(size)})" for name, size in beside.left_out)
        note(f"text only: left out is {parts}")
    for text in beside.licenses:
        title = next((line.strip() for line in text.splitlines() if line.strip()), "")
        note(f"licence: {readable(title)[:100]}; `lm show` has its text")
    if dropped:
        note(f"settings of the registry that have no effect here: {', '.join(dropped)}")


def _bring(source: Source, name: str, path: Path, tell: Callable[[int], None]) -> FileBeside:
    """The file of this name at `path`; fetched unless an earlier pull left it whole."""
    size, declared = source.size(name), source.digest(name)
    with plainly(path.parents[2]):
        here = _digest(path)
    if here is None or here != declared:
        here = _fetch(source, name, path, tell)
    return FileBeside(here.removeprefix("sha256:"), size)


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
