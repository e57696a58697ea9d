"""The process that brings a model in, with low priority: `python -P -m server.pulls.puller`.

The one place where `registry` (bytes from a source) and `quant` (bytes into a GGUF) meet: plan, then write; the commit
is the daemon's. It gets one `PullTask` and answers with `Progress`, `Planned` and `Note`, then `Done` or `ErrorReport`.
Numba is imported and the kernels are compiled in a thread while the source is still being asked about its files.

It may be killed at any moment: the next one goes on from the journal in the folder (`registry/store/partial.py`), at
the same revision and level, unless these are no longer to be had or this program is another version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from quant.convert.planning import plan_model
from quant.errors import UnsupportedModel
from quant.plan import ModelPlan
from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion
from quant.stream.streams import Mark
from registry.errors import DigestMismatch, ModelNotFound
from registry.names import AUTO, Reference, parse
from registry.net.network import Limiter, Network
from registry.sources.opening import Source, open_source
from registry.store.partial import Facts, Partial, Place
from runtime.child import Parent
from runtime.machine.choosing import Chooser, canonical, this_machine
from runtime.machine.rule import Wish
from server.children.child_side import exit_now, run_task
from server.config import VERSION
from server.pulls.frames import Done, Note, Planned, Progress, PullTask
from server.pulls.picking import Picked, asked, pick
from server.pulls.throughput import Pace

NETWORK = Network()
# So often a pull is begun whose source sends other bytes than it declares.
TRIES = 4

Tell = Callable[[msgspec.Struct], None]


def main(argv: list[str]) -> int:
    """Do one task; the exit status is 1 when it failed."""
    return run_task(argv, PullTask, lambda task, parent: pull(task, _Told(parent)))


class _Told:
    """Sends frames to the daemon; once the plan stands and bulk work begins, this process yields to all others.

    Beside nice alone a chat on two cores keeps 82 % of its speed while a model is quantized, with this 98 %.
    """

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    def __call__(self, frame: msgspec.Struct) -> None:
        self._parent.send(frame)
        if isinstance(frame, Planned) and sys.platform == "linux":
            with contextlib.suppress(OSError):
                # For this thread, and for those that it starts from now on.
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def pull(task: PullTask, tell: Tell, network: Network = NETWORK) -> Done:
    """Bring the model of `task` into its folder, going on where an earlier pull ended; `tell` hears how it goes.

    A source file that is not what was declared is fetched again, a few times. Raises errors of `registry`, `quant` and
    `runtime`; what was made by then stays in the folder.
    """
    loading = _in_background(_load_kernels, Path(task.model.cache_folder))
    limiter = Limiter(task.limit_rate) if task.limit_rate else None
    network = replace(network, limiter=limiter, notice=lambda text: tell(Note(text))).with_hub(task.model.hub)
    partial = Partial(Path(task.folder))
    try:
        for tries in range(1, TRIES + 1):
            try:
                return _Pull(task, network, partial, tell).run(loading)
            except DigestMismatch as error:
                partial.rewind()
                if tries == TRIES:
                    raise
                tell(Note(f"{error}: what was made of it is thrown away, and it is fetched again"))
        raise AssertionError("not reached")
    finally:
        partial.close()


class _Pull:
    """One attempt, from the plan to the last byte."""

    def __init__(self, task: PullTask, network: Network, partial: Partial, tell: Tell) -> None:
        self.task, self.partial, self.tell = task, partial, tell
        self.reference = parse(task.model.source)
        self.machine = this_machine(Path(task.model.cache_folder), lambda text: tell(Note(text)))
        self.source = self._open(network)

    def run(self, loading: threading.Thread) -> Done:
        """Plan, check that it fits, and write."""
        try:
            self.tell(Progress("planning"))
            picked = self._pick()
            plan = plan_model(picked.files, self.task.pre or None)
            level, reason = self._level(plan, picked)
            conversion = self._conversion(plan, level)
            _in_background(_warm, loading, {type.name for type in conversion.types.values()})
            place = self._begin(conversion, level, reason)
            resumed = place.size if place else 0
            made_of = self._made_of(conversion)
            self.tell(Planned(level, reason, self.source.title, plan.source_bytes, conversion.size, resumed, made_of))
            self._write(conversion, place)
            sha256, size = self.partial.finish()
            config = _config(self.reference, plan, self.source)
            if plan.level:
                config["lm"]["published"] = plan.shards[0]
            named = {"pre": self.task.pre} if self.task.pre else {}
            config |= {
                "file_type": level,
                "lm": config["lm"] | {"level": level, "reason": reason, "made_of": made_of} | named,
            }
            return Done(sha256, size, self.reference.name.tag or level, config, dict(plan.defaults))
        finally:
            self.source.close()

    def _open(self, network: Network) -> Source:
        """The source at the revision that was begun with, or at its present one where that is gone."""
        journal = self.partial.journal
        if journal is not None and journal.facts.revision:
            try:
                return open_source(self.reference, self.task.model.hub.endpoint, network, journal.facts.revision)
            except ModelNotFound as error:
                source = open_source(self.reference, self.task.model.hub.endpoint, network)
                self.tell(Note(f"{error}: the pull begins anew"))
                return source
        return open_source(self.reference, self.task.model.hub.endpoint, network)

    def _conversion(self, plan: ModelPlan, level: str) -> Conversion | FileCopy:
        if plan.level:
            return FileCopy(plan, sum(map(self.source.size, plan.shards)))
        return Conversion(plan, level, self._metadata(plan, level))

    def _pick(self) -> Picked:
        """The files, and the level where that is settled: by an earlier pull, by the name, by what is published.

        Raises UnknownLevel, DoesNotFit, UnsupportedModel, MalformedFile.
        """
        journal, level = self.partial.journal, self.reference.level
        level = None if level == AUTO else level
        if journal is not None and journal.facts.revision == self.source.revision:
            begun = level if level and asked(self.source, level) else journal.facts.level
            picked = self._choice(begun)
            return replace(picked, level=picked.level or journal.facts.level, reason=journal.facts.reason)
        return self._choice(level)

    def _choice(self, level: str | None) -> Picked:
        return pick(self.source, self.machine, self._wish(level), self.task.model.disk_free)

    def _wish(self, level: str | None) -> Wish:
        return Wish(self.task.model.cache_config, forced=level)

    def _level(self, plan: ModelPlan, picked: Picked) -> tuple[str, str]:
        """Level and reason: what was begun with, what was asked for, or what this machine holds.

        Raises DoesNotFit, UnknownLevel, UnsupportedModel.
        """
        wanted = picked.level if plan.level else canonical(picked.level)
        if plan.level and wanted not in (None, plan.level):
            hint = f"leave the level out to take it as it is, or make {wanted} of the original weights"
            raise UnsupportedModel(f"`{plan.shards[0]}` is quantized already, at {plan.level}", hint=hint)
        if picked.reason:
            return plan.level or str(wanted), picked.reason
        chooser = Chooser(plan, self.machine)
        wish, room = self._wish(wanted), self.task.model.disk_free
        choice = chooser.advise(wish, room).choice if plan.level else chooser.choose(wish, room)
        return choice.level, choice.reason

    def _metadata(self, plan: ModelPlan, level: str) -> dict[str, Any]:
        """GGUF entries that say where the file comes from and how it was made."""
        source = self.source
        entries: dict[str, Any] = {"lm.version": VERSION, "lm.level": level, "lm.source": source.url}
        if source.revision:
            owner = source.title.partition("/")[0]
            entries |= {"general.author": owner, "general.organization": owner}
            entries |= {"lm.source_revision": source.revision, "general.source.repo_url": source.url}
            entries["lm.source_digests"] = [f"{shard} {source.digest(shard)}" for shard in plan.shards]
        return entries

    def _fingerprint(self, conversion: Conversion | FileCopy) -> str:
        """What stands for all that decides the file."""
        stamps = "".join(self.source.stamp(shard) for shard in conversion.plan.shards)
        return f"{conversion.fingerprint} {stamps}"

    def _made_of(self, conversion: Conversion | FileCopy) -> str:
        """What stands for all that decides the model: the file, and what its makers recommend."""
        recommended = json.dumps(dict(conversion.plan.defaults), sort_keys=True)
        return hashlib.sha256(f"{self._fingerprint(conversion)} {recommended}".encode()).hexdigest()[:32]

    def _begin(self, conversion: Conversion | FileCopy, level: str, reason: str) -> Place | None:
        fingerprint = self._fingerprint(conversion)
        before = self.partial.journal
        source, revision, size = self.source.url, self.source.revision, conversion.size
        facts = Facts(self.task.model.source, source, revision, level, reason, fingerprint, size, self.task.pre)
        place = self.partial.begin(facts)
        if before is not None and place is None:
            self.tell(Note("what an earlier pull left is of another source, recipe or version: it begins anew"))
        return place

    def _write(self, conversion: Conversion | FileCopy, place: Place | None) -> None:
        pace = Pace()

        def progress(completed: int, total: int) -> None:
            rate = pace.rate(completed, completed == total)
            if rate is not None:
                self.tell(Progress("copying" if conversion.plan.level else "writing", completed, total, rate))

        conversion.write(
            self.source.open,
            self.partial,
            start=Mark(place.tensor, place.row, place.shard, place.offset, place.state) if place else None,
            threads=self.machine.hardware.cpus,
            progress=progress,
        )


def _in_background(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Start a thread that nobody waits for: an error is told at once, though Numba is still being imported."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _load_kernels(cache: Path) -> None:
    from quant.kernels import blocks as kernels

    kernels.configure(cache / "kernels")


def _warm(loading: threading.Thread, types: set[str]) -> None:
    from quant.kernels import blocks as kernels

    loading.join()
    kernels.warm(types)


def _config(reference: Reference, plan: ModelPlan, source: Source) -> dict[str, Any]:
    """What the manifest says of the model: Ollama's fields, and ours under `lm`."""
    facts = plan.metadata
    return {
        "model_format": "gguf",
        "model_family": plan.architecture,
        "model_families": [plan.architecture],
        "model_type": count_text(plan.parameters),
        "architecture": "amd64",
        "os": "linux",
        "capabilities": list(plan.capabilities),
        "context_length": facts.get(f"{plan.architecture}.context_length", 0),
        "embedding_length": facts.get(f"{plan.architecture}.embedding_length", 0),
        "lm": {
            "source": reference.location if reference.kind != "hub" else f"hf.co/{reference.location}",
            "revision": source.revision or "",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": VERSION,
            "parameters": plan.parameters,
        },
    }


def count_text(count: int) -> str:
    """A number of parameters as people write it: 5.8M, 8.0B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
