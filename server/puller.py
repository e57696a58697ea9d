"""The process that brings a model in: `python -P -m server.puller`, spawned by `server/jobs.py` with low priority.

The one place where `registry` (bytes from a source) and `quant` (bytes into a GGUF) meet: plan, then write; the commit
is the daemon's. It gets one `Task` and answers with `Progress` and `Planned`, then `Done` or `Failure`. Numba is
imported and the kernels are compiled in a thread while the source is still being asked about its files.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quant import recipes
from quant.convert import plan_model
from quant.gguf_writer import Written
from quant.pipeline import write
from quant.plan import ModelPlan
from registry.names import AUTO, Reference, parse
from registry.sources import Source, open_source
from runtime.advise import Candidate, Choice, Wish, choose
from runtime.child import Parent
from runtime.fit import Shape
from runtime.hardware import Hardware, detect
from server.config import VERSION
from server.messages import Done, Failure, Planned, Progress, Task
from server.problems import TOLD, Problem

TELL_SECONDS = 0.1
KV_TYPE = "F16"
# Below this level a model loses too much unless it is known which of its weights matter.
COARSEST = "Q3_K_M"
# What the header may take beside the tensors, for the check of the disk; the tokenizer is nearly all of it.
HEADER_BYTES = 32 << 20


def main(argv: list[str]) -> int:
    """Do one task; the exit status is 1 when it failed."""
    parent = Parent.connect(argv, Task)
    task = parent.receive()
    if not isinstance(task, Task):
        return 1
    parent.listen(lambda _: None)  # ends this process with the daemon
    try:
        parent.send(_pull(task, parent))
    except Exception as error:
        problem = Problem.of(error)
        if not isinstance(error, TOLD):
            traceback.print_exc()
        parent.send(Failure(problem.code, problem.message, problem.hint))
        return 1
    return 0


def _pull(task: Task, parent: Parent) -> Done:
    reference = parse(task.source)
    loading = _in_background(_load_kernels, Path(task.cache))
    source = open_source(reference, endpoint=task.endpoint, token=task.token, proxy=task.proxy)
    try:
        parent.send(Progress("planning"))
        plan = plan_model(source)
        hardware = detect()
        choice = _choose(task, reference, plan, hardware)
        _in_background(_warm, loading, {type.name for type in recipes.assign(plan, choice.level).values()})
        parent.send(_planned(plan, choice, source))
        return _done(task, reference, plan, choice, source, _write(task, plan, choice, source, hardware, parent))
    finally:
        source.close()


def _in_background(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Start a thread that nobody waits for: an error is told at once, though Numba is still being imported."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _load_kernels(cache: Path) -> None:
    from quant import kernels

    kernels.configure(cache / "kernels")


def _warm(loading: threading.Thread, types: set[str]) -> None:
    from quant import kernels

    loading.join()
    kernels.warm(types)


def _choose(task: Task, reference: Reference, plan: ModelPlan, hardware: Hardware) -> Choice:
    """The level for this machine, or the one that was asked for; raises DoesNotFit, UnknownLevel."""
    forced = None if reference.level in (None, AUTO) else recipes.level_of(reference.level or "").name
    least = recipes.level_of(COARSEST).bits
    candidates = [
        Candidate(name, recipes.sizes(plan, name), worthwhile=level.bits >= least)
        for name, level in recipes.LEVELS.items()
        if name in recipes.LADDER or name == forced
    ]
    wish = Wish(context=task.context, sequences=task.sequences, kv_type=KV_TYPE, forced=forced)
    return choose(candidates, Shape.of(plan.metadata), hardware, wish, max(0, task.disk_free - HEADER_BYTES))


def _planned(plan: ModelPlan, choice: Choice, source: Source) -> Planned:
    size = recipes.sizes(plan, choice.level)
    return Planned(choice.level, choice.reason, source.title, plan.source_bytes, size)


def _write(task: Task, plan: ModelPlan, choice: Choice, source: Source, hardware: Hardware, parent: Parent) -> Written:
    told = 0.0

    def progress(completed: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TELL_SECONDS or completed == total:
            told = now
            parent.send(Progress("writing", completed, total))

    metadata = {"lm.version": VERSION, "lm.level": choice.level, "lm.source": source.url}
    if source.revision:
        metadata["lm.source_revision"] = source.revision
    return write(
        plan,
        choice.level,
        source.stream,
        Path(task.out),
        metadata=metadata,
        threads=hardware.cpus,
        progress=progress,
    )


def _done(task: Task, reference: Reference, plan: ModelPlan, choice: Choice, source: Source, written: Written) -> Done:
    """What the manifest says of the model: Ollama's fields, and ours under `lm`."""
    facts = plan.metadata
    config = {
        "model_format": "gguf",
        "model_family": plan.architecture,
        "model_families": [plan.architecture],
        "model_type": count_text(plan.parameters),
        "file_type": choice.level,
        "architecture": "amd64",
        "os": "linux",
        "capabilities": list(plan.capabilities),
        "context_length": facts.get(f"{plan.architecture}.context_length", 0),
        "embedding_length": facts.get(f"{plan.architecture}.embedding_length", 0),
        "lm": {
            "source": reference.location if reference.kind != "hub" else f"hf.co/{reference.location}",
            "revision": source.revision or "",
            "level": choice.level,
            "reason": choice.reason,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": VERSION,
            "parameters": plan.parameters,
        },
    }
    return Done(written.sha256, written.size, choice.level, config, dict(plan.defaults))


def count_text(count: int) -> str:
    """A number of parameters as people write it: 5.8M, 8.0B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # threads may still be compiling, and an orderly exit would wait for them
