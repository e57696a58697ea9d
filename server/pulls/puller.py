"""The process that brings a model in, with low priority: `python -P -m server.pulls.puller`.

The one place where `registry` (bytes from a source) and `quant` (bytes into a GGUF) meet: plan, then write; the commit
is the daemon's. It gets one `PullTask` and answers with `Progress`, `Planned` and `Note`, then `Done` or `ErrorReport`.
Numba is imported and the kernels are compiled in a thread while the source is still being asked about its files.

It may be killed at any moment. The next puller goes on from the journal in the folder (`registry/store/partial.py`), at
the same revision and level, unless the source no longer has them or this program is another version.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from quant.convert.planning import plan_model
from quant.cuts.cut import cut
from quant.errors import UnsupportedModel
from quant.plan import ModelPlan
from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion, bytes_before
from quant.stream.streams import Mark
from registry.errors import DigestMismatch, ModelNotFound
from registry.names import parse
from registry.net.network import Limiter, Network
from registry.sources.opening import Source, open_source
from registry.sources.unpacking import Unpacking
from registry.store.partial import DATA, Checkpoint, Partial, PullFacts
from registry.words import AUTO
from runtime.child import Parent
from runtime.machine.choosing import Chooser, canonical, this_machine
from runtime.machine.rule import DISK_MARGIN, Wish
from server.children.child_side import exit_now, run_task
from server.pulls.adapting import TAG, AdapterPull, adapter_config, adapter_of, check_values
from server.pulls.beside import check_beside, fetch_beside, fetch_draft, say_what_lies_beside, texts_beside
from server.pulls.compiling import warm
from server.pulls.frames import Done, Note, Planned, Progress, PullTask
from server.pulls.learned import PullStatistics
from server.pulls.provenance import (
    digests,
    fingerprint,
    gguf_entries,
    manifest_config,
    model_digest,
    settings,
    take_template,
)
from server.pulls.selection import Selection, file_asked_for, select
from server.pulls.signed import check_signatures
from server.pulls.taking import adopt, begin, is_shareable
from server.pulls.throughput import Throughput

NETWORK = Network()
# Attempts at a source that sends other bytes than it declares.
TRIES = 4

Send = Callable[[msgspec.Struct], None]


def main(argv: list[str]) -> int:
    """Do one task; the exit status is 1 when it failed."""
    return run_task(argv, PullTask, _work)


def _work(task: PullTask, parent: Parent) -> Done:
    def send(frame: msgspec.Struct) -> None:
        parent.send(frame)
        if isinstance(frame, Planned):  # bulk work begins
            _yield_to_all_others()

    return pull(task, send)


def _yield_to_all_others() -> None:
    """Let this thread, and the threads that it starts from now on, compute only while nobody else wants to.

    Beside `nice` alone, a chat on two cores keeps 82 % of its speed while a model is quantized; with this, 98 %.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def pull(task: PullTask, send: Send, network: Network = NETWORK) -> Done:
    """Bring the model of `task` into its folder, going on where an earlier pull ended; `send` gets the frames.

    A source file with another digest than declared is fetched again, `TRIES` times in all. Raises errors of `registry`,
    `quant` and `runtime`; the folder then keeps the part that was made.
    """
    loading = _in_background(_load_kernels, Path(task.model.cache_folder))
    limiter = Limiter(task.limit_rate) if task.limit_rate else None
    network = replace(network, limiter=limiter, notice=lambda text: send(Note(text))).with_hub(task.model.hub)
    partial = Partial(Path(task.folder))
    try:
        for tries in range(1, TRIES + 1):
            try:
                return _Attempt(task, network, partial, send).run(loading)
            except DigestMismatch as error:
                partial.rewind()
                if tries == TRIES:
                    raise
                send(Note(f"{error}: what was made of it is thrown away, and it is fetched again"))
        raise AssertionError("not reached")
    finally:
        partial.close()


class _Decision(NamedTuple):
    """The work of a pull: the plan, the level, the reason for it, the conversion."""

    plan: ModelPlan
    level: str
    reason: str
    conversion: Conversion | FileCopy


class _Attempt:
    """One attempt, from the plan to the last byte."""

    def __init__(self, task: PullTask, network: Network, partial: Partial, send: Send) -> None:
        self.task, self.model, self.partial, self.send = task, task.model, partial, send
        self.reference = parse(self.model.source)
        self.machine = this_machine(Path(self.model.cache_folder), lambda text: send(Note(text)))
        self.network = network
        self.progress = Progress("writing")  # the latest
        self.learned = PullStatistics.of(task)
        self.compiling = ""  # what is compiled, while it is
        room = self.model.disk_free - DISK_MARGIN
        self.unpacking = Unpacking(Path(task.folder) / "unpacked", room, self._teller("unpacking"))
        self.source = self._open(network)

    def run(self, loading: threading.Thread) -> Done:
        """Plan, check that the model fits, and write it."""
        try:
            self.send(Progress("planning"))
            if adapter := self._adapter():
                return self._run_adapter(adapter)
            self._leave_room()
            plan, level, reason, conversion = self._decide()
            check_beside(self.source, plan)
            licenses = self.source.companions.licenses
            self.task.rules.check_file(self.source.title, conversion.size, plan.metadata, licenses)
            check_signatures(self.task.rules, self.source, conversion)
            loading.join()
            _in_background(self._warm, sorted({type.name for type in conversion.types.values()}))
            place = self._begin(conversion, level, reason)
            self.learned.keep()
            for sentence in self.learned.remarks():
                self._note(sentence)
            resumed, made_of = place.size if place else 0, self._digests(plan, level, conversion)
            self.send(Planned(level, reason, self.source.title, plan.source_bytes, conversion.size, resumed, **made_of))
            say_what_lies_beside(self.source, plan, self._note)
            adapters = fetch_beside(self.source, Path(self.task.folder), self._teller("adapters"))
            state = "" if place else adopt(self.task.sharing, self.source, self.partial, conversion, self._note)
            self._write(conversion, place)
            sha256, size = self.partial.finish()
            draft = fetch_draft(self.source, Path(self.task.folder), self._teller("draft"), self._note)
            own: dict[str, Any] = {"reason": reason} | made_of | ({"pre": self.task.pre} if self.task.pre else {})
            own |= self.learned.note
            own |= {"automatic_bytes": Chooser(plan, self.machine).automatic_bytes(self._wish(None))}
            config = manifest_config(self.reference.origin, self.source.revision or "", plan, level, own)
            tag = self.reference.name.tag or level
            self._take_template(config, plan)
            params, _ = settings(self.source.companions.params, plan)
            return Done(
                *(sha256, size, tag, config, params),
                adapters=adapters,
                draft=draft,
                shared=state,
                **texts_beside(self.source),
            )
        finally:
            self.source.close()

    def _adapter(self) -> AdapterPull | None:
        return adapter_of(self.source, self.reference, self.task.base, self.model.hub.endpoint, self.network)

    def _run_adapter(self, pulled: AdapterPull) -> Done:
        """Write the file of an adapter, which has no levels."""
        conversion = pulled.conversion
        check_signatures(self.task.rules, self.source, conversion)
        place = self._begin(conversion, TAG, pulled.reason)
        made_of = f"{model_digest(self.source, conversion)} {pulled.base}"  # another base is worth another pull
        resumed, total = place.size if place else 0, conversion.plan.source_bytes
        self.send(Planned(TAG, pulled.reason, self.source.title, total, conversion.size, resumed, made_of))
        self._write(conversion, place)
        sha256, size = self.partial.finish()
        file = Path(self.task.folder) / DATA
        check_values(file)
        config = adapter_config(self.reference, self.source, pulled, file, made_of)
        tag = self.reference.name.tag if self.source.companions.as_published else None
        return Done(sha256, size, tag or TAG, config, {}, adapter=True, signatures=[*self.source.companions.signatures])

    def _leave_room(self) -> None:
        """Leave room on the disk for the files that come beside the weights, and for tars that were unpacked."""
        companions = self.source.companions
        beside = sum(map(self.source.size, filter(None, (*companions.adapters, companions.draft))))
        free = self.unpacking.room + DISK_MARGIN - beside
        self.model = msgspec.structs.replace(self.model, disk_free=free)

    def _note(self, text: str) -> None:
        self.send(Note(text))

    def _take_template(self, config: dict[str, Any], plan: ModelPlan) -> None:
        """Note a registry's template, and say so where it cannot be used."""
        if fault := take_template(config, self.source.companions.template, plan):
            self.send(Note(f"the registry's chat template is not rendered: {fault}"))

    def _open(self, network: Network) -> Source:
        """The source at the revision in the journal, or at its present one where that revision is gone."""
        journal, endpoint = self.partial.journal, self.model.hub.endpoint
        if journal is not None and journal.facts.revision:
            try:
                return open_source(self.reference, endpoint, network, journal.facts.revision, self.unpacking)
            except ModelNotFound as error:
                source = open_source(self.reference, endpoint, network, unpacking=self.unpacking)
                self.send(Note(f"{error}: the pull begins anew"))
                return source
        return open_source(self.reference, endpoint, network, unpacking=self.unpacking)

    def _decide(self) -> _Decision:
        """The level and its conversion: the best one where the disk holds it or the store has it already.

        Else the best one that the disk holds. Raises DoesNotFit, UnknownLevel, UnsupportedModel, MalformedFile.
        """
        best = self._best(None)
        in_place = self.task.sharing == "place" and is_shareable("place", self.source, best.conversion)
        if in_place or best.conversion.size + DISK_MARGIN <= self.model.disk_free:
            return best
        return (
            best if model_digest(self.source, best.conversion) in self.task.here else self._best(self.model.disk_free)
        )

    def _best(self, room: int | None) -> _Decision:
        """The best level with `room` bytes of disk, None for any number."""
        selection = self._select(room)
        plan = plan_model(selection.files, self.task.pre or None, self.task.accept_unknown_keys)
        plan, what = cut(self._as_published(plan), self.task.cut)
        level, reason = self._level(plan, selection, room)
        conversion = self._conversion(plan, level)
        if isinstance(conversion, Conversion) and conversion.reason not in reason:
            reason = f"{reason}; {conversion.reason}"
        return _Decision(plan, level, what or reason, conversion)

    def _as_published(self, plan: ModelPlan) -> ModelPlan:
        """The plan; with a level where its whole weights are to be taken as they are, because the tag names them."""
        only_file = not plan.level and len(plan.shards) == 1 and plan.shards[0].lower().endswith(".gguf")
        if not (only_file and (self.source.companions.as_published or self.task.as_it_is)):
            return plan
        types = Counter(tensor.dtype for tensor in plan.tensors for _ in range(tensor.layer is not None))
        return replace(plan, level=max(types, key=lambda name: (types[name], name), default="F32"))

    def _conversion(self, plan: ModelPlan, level: str) -> Conversion | FileCopy:
        if plan.level:
            if self.learned.importance is not None:
                raise UnsupportedModel(
                    f"`{plan.shards[0]}` is quantized already, at {plan.level}", "errors are weighed while quantizing"
                )
            return FileCopy(plan, sum(map(self.source.size, plan.shards)))
        return Conversion(plan, level, gguf_entries(self.source, plan, level), *self.learned.all)

    def _digests(self, plan: ModelPlan, level: str, conversion: Conversion | FileCopy) -> dict[str, str]:
        """As `digests`; with statistics also `plain`, the digest of the model that would be made without them."""
        found = digests(self.source, conversion)
        if isinstance(conversion, FileCopy) or conversion.importance is None:
            return found
        plain = Conversion(plan, level, gguf_entries(self.source, plan, level))
        return found | {"plain": model_digest(self.source, plain)}

    def _select(self, room: int | None) -> Selection:
        """The files, with the level where it is settled: by the journal, by the name, by the published files.

        Raises UnknownLevel, DoesNotFit, UnsupportedModel, MalformedFile.
        """
        journal, level = self.partial.journal, self.reference.level
        level = None if level == AUTO else level
        if journal is None or journal.facts.revision != self.source.revision:
            return self._select_at(level, room)
        unfinished = level if level and file_asked_for(self.source, level) else journal.facts.level
        selection = self._select_at(unfinished, room)
        return replace(selection, level=selection.level or journal.facts.level, reason=journal.facts.reason)

    def _select_at(self, level: str | None, room: int | None) -> Selection:
        return select(self.source, self.machine, self._wish(level), room)

    def _wish(self, level: str | None) -> Wish:
        return Wish(self.model.cache_config, forced=level)

    def _level(self, plan: ModelPlan, selection: Selection, room: int | None) -> tuple[str, str]:
        """The level and the reason for it: from the journal, from the name, or the best that this machine holds.

        Raises DoesNotFit, UnknownLevel, UnsupportedModel.
        """
        wanted = selection.level if plan.level else canonical(selection.level)
        if plan.level and wanted not in (None, plan.level):
            hint = f"leave the level out to take it as it is, or make {wanted} of the original weights"
            raise UnsupportedModel(f"`{plan.shards[0]}` is quantized already, at {plan.level}", hint=hint)
        if selection.reason:
            return plan.level or str(wanted), selection.reason
        chooser = Chooser(plan, self.machine)
        wish = self._wish(wanted)
        choice = chooser.advise(wish, room).choice if plan.level else chooser.choose(wish, room)
        return choice.level, choice.reason

    def _begin(self, conversion: Conversion | FileCopy, level: str, reason: str) -> Checkpoint | None:
        """The place in the partial file to go on from, None for its beginning."""
        facts = PullFacts(
            self.model.source,
            self.source.url,
            self.source.revision,
            level,
            reason,
            fingerprint(self.source, conversion),
            conversion.size,
            self.task.pre,
        )
        return begin(self.partial, facts, self._note)

    def _write(self, conversion: Conversion | FileCopy, place: Checkpoint | None) -> None:
        start = Mark(place.tensor, place.row, place.shard, place.offset, place.state) if place else None
        if isinstance(conversion, Conversion):
            self._progress(Progress("writing", bytes_before(conversion.plan, start), conversion.plan.source_bytes))
        more = {"peek": self.source.read} if isinstance(conversion, Conversion) else {}
        conversion.write(
            self.source.open,
            self.partial,
            start=start,
            threads=self.machine.hardware.cpus,
            progress=self._teller("copying" if conversion.plan.level else "writing"),
            **more,
        )

    def _teller(self, phase: str) -> Callable[[int, int], None]:
        """A function that tells how many bytes of how many are done, a few times a second."""
        throughput = Throughput()

        def tell(completed: int, total: int) -> None:
            rate = throughput.rate(completed, completed == total)
            if rate is not None:
                self._progress(Progress(phase, completed, total, rate))

        return tell

    def _progress(self, progress: Progress) -> None:
        self.progress = progress
        if self.compiling:
            progress = msgspec.structs.replace(progress, phase="compiling", doing=self.compiling)
        self.send(progress)

    def _warm(self, types: list[str]) -> None:
        """Compile the kernels of these types where the cache lacks them, and say so beside the figures of the pull."""
        from quant.kernels import blocks as kernels

        shown = [name for name in types if name != "F32"] or types  # its kernel is one of each type's
        names = ", ".join(kernels.cold(shown))

        def told(done: int, total: int) -> None:
            if not done:
                self.send(Note(f"compiling for this CPU, once and for some seconds: the quantization to {names}"))
            doing = f"compiling kernels for {names} ({done} of {total})" if done < total else ""
            if doing != self.compiling:
                self.compiling = doing
                if self.progress.total:
                    self._progress(self.progress)

        warm(types, self.machine.hardware.cpus, told)


def _in_background(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Start a thread that nobody waits for, so that an error is reported while Numba is still being imported."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _load_kernels(cache: Path) -> None:
    from quant.kernels import blocks as kernels

    kernels.configure(cache / "kernels")


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
