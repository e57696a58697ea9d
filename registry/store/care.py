"""Care of a store: its blobs hashed again, and what its models take of the disk, alone and together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from registry.errors import RegistryError
from registry.store import garbage, reading
from registry.store.catalog import Model
from registry.store.sharing import freed_bytes
from registry.store.store import Store

_STEP = 4 << 20
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Checked:
    """The outcome of a check: what is wrong with each model, "" where nothing is; blobs and bytes that were read."""

    problems: dict[str, str]
    blobs: int
    read_bytes: int

    @property
    def hurt(self) -> list[str]:
        """The names of the models with a problem."""
        return [name for name, problem in self.problems.items() if problem]


def check(store: Store, models: Sequence[Model], progress: Progress, stopped: Callable[[], bool]) -> Checked:
    """Hash each blob of these models once, and compare it with its name.

    `progress` hears of digest, bytes read and bytes in all. Raises InterruptedError once `stopped` says so.
    """
    known: dict[str, str] = {}
    problems: dict[str, str] = {}
    count = 0
    for model in models:
        problems[model.name] = model.problem
        try:
            layers = store.manifest(model)[1].blobs
        except RegistryError as error:
            problems[model.name] = str(error)
            continue
        for layer in layers:
            if layer.digest not in known:
                known[layer.digest], size = _problem(store, layer.digest, layer.size, progress, stopped)
                count += size
            problems[model.name] = problems[model.name] or known[layer.digest]
    return Checked(problems, len(known), count)


def _problem(store: Store, digest: str, size: int, progress: Progress, stopped: Callable[[], bool]) -> tuple[str, int]:
    """The fault of a blob, "" for none; and the bytes that were read."""
    found, count = hashlib.sha256(), 0
    try:
        with store.blob_path(digest).open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(_STEP))
            while part := file.readinto(buffer):
                if stopped():
                    raise InterruptedError
                found.update(buffer[:part])
                count += part
                progress(digest, count, max(count, size))
    except FileNotFoundError:
        return store.lack(digest), count
    except OSError as error:
        if isinstance(error, InterruptedError):
            raise
        return f"its blob `{digest[:19]}` cannot be read: {error.strerror}", count
    if count != size:
        return f"its blob `{digest[:19]}` has {count:,} bytes instead of {size:,}", count
    same = f"sha256:{found.hexdigest()}" == digest
    return "" if same else f"its blob `{digest[:19]}` does not hash to its name", count


@dataclass(frozen=True)
class DiskUsage:
    """Bytes of the disk that one model takes: in all, and of these alone, which its removal would free.

    `elsewhere` are bytes that it has besides, in files that are read where another program keeps them.
    """

    model: Model
    size: int
    alone: int
    elsewhere: int


@dataclass(frozen=True)
class Room:
    """The bytes that the store takes of the disk: for each model, and in all; `elsewhere` as in `DiskUsage`.

    `older` are blobs to which improved models can go back.
    """

    models: list[DiskUsage]
    blobs: int
    elsewhere: int
    unlisted: dict[str, int] = field(default_factory=dict)
    older: dict[str, int] = field(default_factory=dict)
    partials: dict[str, int] = field(default_factory=dict)


def room(store: Store, in_use: Sequence[str]) -> Room:
    """The bytes that the store takes of the disk; each blob counts once. Raises StoreDamaged, StoreFailed."""
    digests = {}
    sizes: dict[str, int] = {}
    models = store.models([])
    for model in models:
        try:
            layers = store.manifest(model)[1].blobs
        except RegistryError:
            continue  # a model that cannot be read takes nobody knows what; `lm list` says so
        digests[model.name] = {layer.digest for layer in layers}
        sizes |= {layer.digest: layer.size for layer in layers}
    users = Counter(digest for each in digests.values() for digest in each)
    away = {each: size for each, size in sizes.items() if store.shared.elsewhere(each, store.blob_path(each))}
    here = {each: size for each, size in sizes.items() if each not in away}
    freed = {each: freed_bytes(found) for each in here if (found := reading.status(store.blob_path(each)))}
    rows = [
        DiskUsage(
            model,
            sum(here.get(each, 0) for each in mine),
            sum(freed.get(each, 0) for each in mine if users[each] == 1),
            sum(away.get(each, 0) for each in mine),
        )
        for model in models
        if (mine := digests.get(model.name)) is not None
    ]
    ingests = [*store.partials(), *store.partials(beside=True)]
    partials = {str(each.folder): each.journal.latest.size for each in ingests if each.journal}
    older = garbage.kept_for_older(store)
    return Room(rows, sum(here.values()), sum(away.values()), store.unlisted(in_use), older, partials)
