"""A file of a new model, made by a puller of files that are here: taken as it is, converted, quantized, or an adapter.

The puller reads a folder of this machine. Uploaded files are blobs of the store; they get names in such a folder, by
hard links.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from quant.convert.gguf.naming import GgufName
from quant.cuts.wish import NO_CUT, Cut
from quant.gguf.header import MAGIC
from registry.errors import BadName, ModelNotFound
from registry.names import Name, Reference, parse
from registry.sources.layers import is_weights
from registry.store import fsops
from registry.store.fsops import plainly
from registry.store.ingest import Ingest
from registry.store.model import Model
from registry.store.store import Store
from registry.words import word_of
from runtime.messages import CacheConfig
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.policy.rules import PolicyRules
from server.pulls.checking import check_file
from server.pulls.frames import Done, FromPuller, ModelRequest, Planned, PullTask, Statistics
from server.pulls.lines import frame_line, note_line, phase_line
from server.pulls.pull import NICE

MOST_FILES = 2000
_LONGEST_NAME = 200
_FOLDER = "files"


class MakingMeans(NamedTuple):
    """How a file is made: `base` is the source of the model for which an adapter is, `cut` the parts that a GGUF file
    loses; errors are weighed by `statistics`.
    """

    base: str = ""
    cut: Cut = NO_CUT
    statistics: Statistics | None = None


PLAINLY = MakingMeans()


class Making:
    """One file in the making. `lines`, then `done` and `ingest`; whoever calls it abandons the ingest."""

    def __init__(self, config: Config, store: Store, title: str, *, check: bool, rules: PolicyRules) -> None:
        """`title` is unique among what is made at a time. With `check`, llama.cpp tries the finished model, which
        has to keep the `rules`.
        """
        self._config, self._store, self._title, self._check = config, store, title, check
        self._rules = rules
        self.ingest: Ingest | None = None
        self.done: Done | None = None

    async def lines(
        self, source: str | Mapping[str, str], level: str | None, means: MakingMeans = PLAINLY
    ) -> AsyncGenerator[dict[str, Any]]:
        """Make the file of `source`: a path, or names and digests of blobs. Lines for the client as it goes on.

        Without a `level` weights in a GGUF file stay as they are. Raises as the puller, BadName, ModelNotFound,
        DiskFull, StoreFailed.
        """
        self.ingest = ingest = await asyncio.to_thread(self._store.begin, self._title, new=True)
        if not isinstance(source, str):
            path, sharing = await asyncio.to_thread(self._named, ingest, source), True
        else:
            path, sharing = source, False
        task = await self._task(parse(path if level is None else f"{path}:{level}"), level, means, sharing)
        purpose, log = f"made `{self._title}`", log_file(self._config.logs, "puller")
        process = task_process("server.pulls.puller", task, frames=FromPuller, log=log, purpose=purpose, nice=NICE)
        async with process as puller:
            while self.done is None:
                match await puller.receive():
                    case Done() as done:
                        self.done = done
                    case Planned() as planned:
                        yield frame_line(planned) | {"status": planned.reason or "planned"}
                    case frame:
                        yield frame_line(frame)
        if self._check and not self.done.adapter:
            yield phase_line("checking")
            remarks: list[str] = []
            inspector = log_file(self._config.logs, "inspector")
            await check_file(ingest.data, str(self.done.config["file_type"]), inspector, remarks.append)
            for remark in remarks:
                yield note_line(remark)

    async def _task(self, reference: Reference, level: str | None, means: MakingMeans, sharing: bool) -> PullTask:
        """The puller's task; with `sharing` it may link the files."""
        assert self.ingest is not None
        return PullTask(
            model=ModelRequest(
                source=reference.text,
                hub=self._config.hub,
                cache_folder=str(self._config.cache),
                disk_free=await asyncio.to_thread(self._store.free_bytes),
                cache_config=CacheConfig.wanted(self._config.context, self._config.sequences),
            ),
            folder=str(self.ingest.folder),
            base=means.base,
            sharing="link" if sharing else "reflink",
            as_it_is=level is None,
            cut=means.cut,
            statistics=means.statistics,
            rules=self._rules,
        )

    def as_model(self, name: Name, kind: str = "") -> Model:
        """The file that was made as a model, which messages call `name` and `kind`."""
        assert self.ingest is not None and self.done is not None
        done, shown = self.done, f"{name.display}{kind}"
        never, digest = datetime.fromtimestamp(0, UTC), f"sha256:{done.sha256}"  # it is in no list yet
        return Model(shown, name, "", done.size, never, done.config, done.params, self.ingest.data, digest)

    def _named(self, ingest: Ingest, files: Mapping[str, str]) -> str:
        """The path of a folder with these files, or of the only GGUF file in it. Links files.

        A file alone is GGUF by its first bytes: in a store of Ollama's it has a digest for a name.
        """
        if len(files) > MOST_FILES:
            raise BadName(f"{len(files):,} files, and {MOST_FILES:,} are allowed", "name those of one model")
        folder = ingest.folder / _FOLDER
        with plainly(self._store.root):
            fsops.mkdir(folder)
            for name, digest in files.items():
                place = folder / _safe(name)
                blob = self._store.blob(digest)
                if blob is None:
                    raise ModelNotFound(f"the file `{name}` was not uploaded", f"send it: POST /api/blobs/{digest}")
                if len(files) == 1:
                    place = _alone(place, blob)
                fsops.make_folders(folder, place.parent)
                fsops.link_path(blob, place)
        return str(place if len(files) == 1 and _is_gguf(place) else folder)


def _alone(place: Path, blob: Path) -> Path:
    """The path of the only file, whose ending says what it is. Raises BadName for one that holds no weights."""
    if not _is_gguf(place):
        with blob.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return place.with_name(f"{place.name}.gguf")
    if not is_weights(place.name):
        raise BadName(
            f"`{place.name}` holds no weights that can be read", "name a GGUF file, or a folder of safetensors"
        )
    return place


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _safe(name: str) -> Path:
    """The path of an uploaded file below the folder: at most one folder deep, of plain words. Raises BadName."""
    *folders, last = name.replace("\\", "/").split("/")
    words = [word_of(word) for word in (*folders[-1:], last)]
    if not all(words) or len(folders) > 1 or len(name) > _LONGEST_NAME or not name.isprintable():
        raise BadName(
            f"`{ascii(name[:80])[1:-1]}` is no name of a model's file", "send it as `NAME.gguf`, or as the hub has it"
        )
    if last.lower().endswith(".gguf") and GgufName.of(words[-1]) is None:
        raise BadName(f"`{ascii(name[:80])[1:-1]}` is no name of a GGUF file", "send it as `NAME.gguf`")
    return Path(*words)
