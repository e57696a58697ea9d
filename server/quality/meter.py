"""The process that reads windows of text with a model: `python -P -m server.quality.meter`.

It holds one model: a reference's probabilities go to files (`runtime/meter/records.py`), and another process compares a
model with them. So two models are never in memory together. Asked for statistics, it sums the squares of a model's
inputs (`runtime/meter/learning.py`); asked for harms, it tries types (`runtime/meter/sensitivity.py`); asked for a
survey, it says what the model's parts do (`runtime/meter/surveying.py`). It gets one `MeterTask`, and answers with
frames `ReadSoFar`, then `ReadThrough` or `ErrorReport`. It may be killed at any moment; the next one goes on with the
windows that are left.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quant.errors import QuantError
from quant.gguf.header import read_file
from runtime.errors import BadRequest, EngineError
from server.children.child_side import exit_now, run_task
from server.errors import CheckFailed
from server.quality.frames import MeterTask, ReadSoFar, ReadThrough

if TYPE_CHECKING:
    from runtime.meter.kept import Compared
    from runtime.meter.passages import Passage
    from runtime.meter.windows import WindowReader

Send = Callable[[msgspec.Struct], None]
VOCABULARY = "vocabulary"
_LEARNING, _SURVEYS = ("statistics", "grams", "harms"), ("experts", "layers", "width")


def main(argv: list[str]) -> int:
    """Do one task; the exit status is 1 when it failed."""
    return run_task(argv, MeterTask, lambda task, parent: measure(task, parent.send))


def measure(task: MeterTask, send: Send) -> ReadThrough:
    """Read the windows of `task` that are not read yet.

    Raises BadRequest (a text too short, another vocabulary, a model that does not write), CheckFailed (values that are
    not finite), LoadFailed.
    """
    from runtime.llama.model import LlamaModel
    from runtime.meter import passages
    from runtime.meter.figures import figures, gain
    from runtime.meter.windows import windows_of

    passage = passages.own("calibration" if task.step in _LEARNING + _SURVEYS else "held")
    if task.text:
        passage = passages.Passage("a text of the user's", Path(task.text).read_text("utf-8", "replace"))
    if task.step in _LEARNING + _SURVEYS:
        return (_learn if task.step in _LEARNING else _survey)(task, passage, send)
    if task.step != "reference" and passage.shares(task.learned):
        raise BadRequest(
            f"`{task.name}` was quantized with statistics of this very text, so figures on it would flatter it",
            "measure it on a text of its own; without `--text` lm reads its held-out text",
        )
    if task.step == "text":
        windows_of(LlamaModel(Path(task.path), empty=True), task.window, passage)
        return ReadThrough({}, passage.name, passage.digest)
    same_vocabulary(task)
    found = _compare(task, passage, send)
    read = ReadThrough({}, passage.name, passage.digest)
    if task.step == "model":
        read.figures = dict(figures([*found.values()]))
        read.gain = dict(gain(_before(task, found), [*found.values()])) if task.before else {}
    return read


def _before(task: MeterTask, windows: Iterable[int]) -> list[Compared]:
    """The records of the model that read the same windows before. Raises BadRequest."""
    from runtime.meter.kept import Compared
    from runtime.meter.records import load

    found = [load(Path(task.folder), task.before, place, Compared) for place in windows]
    if any(each is None for each in found):
        raise BadRequest("a window that the older file had read is gone", "measure again")
    return [each for each in found if each is not None]


def _compare(task: MeterTask, passage: Passage, send: Send) -> dict[int, Compared]:
    """Read the windows with a reference, for which nothing comes back, or with a model: its records by window.

    Raises as `measure`.
    """
    from runtime.meter.kept import Compared, KeptWindow, NotFinite, compare, record
    from runtime.meter.records import REFERENCE, load, save

    reader, folder = reader_of(task), Path(task.folder)
    windows = reader.windows(passage, task.windows)
    found: dict[int, Compared] = {}
    for number, (place, tokens) in enumerate(windows.items()):
        send(ReadSoFar(number, len(windows)))
        try:
            window = load(folder, REFERENCE, place, KeptWindow)
            if task.step == "reference":
                if window is None:
                    save(folder, REFERENCE, place, record(tokens, reader.logits(tokens)))
                continue
            if window is None:
                raise BadRequest("a window that the reference had read is gone", "measure again")
            compared = load(folder, task.digest, place, Compared)
            if compared is None:
                compared = compare(window, reader.logits(window.tokens))
                save(folder, task.digest, place, compared)
            found[place] = compared
        except NotFinite:
            raise CheckFailed(
                f"`{task.name}` computes values that are not finite, in window {place + 1} of the text",
                "its file is broken, or its level is too low for it: bring it in again, or at another level",
            ) from None
    send(ReadSoFar(len(windows), len(windows)))
    return found


def _learn(task: MeterTask, passage: Passage, send: Send) -> ReadThrough:
    """Sum the squares of a model's inputs, or their products; or try types. Raises as `measure`."""
    from quant.kernels.blocks import configure
    from runtime.meter.learning import learn, learn_grams
    from runtime.meter.sensitivity import learn_harms

    path, folder, reading = Path(task.path), Path(task.folder), _reading(task, send)
    with _finite(task):
        if task.step == "harms":
            configure(Path(task.kernels))
            del reading["windows"]  # it reads as many as it takes
            learn_harms(path, passage, folder, fed=task.fed, **reading)
        else:
            (learn_grams if task.step == "grams" else learn)(path, passage, folder, **reading)
    return ReadThrough({}, passage.name, passage.digest, passage.marks)


def _survey(task: MeterTask, passage: Passage, send: Send) -> ReadThrough:
    """Look at what a model's parts do. Raises as `measure`."""
    from runtime.meter.narrowing import NarrowTarget, narrow_layers
    from runtime.meter.surveying import survey_experts, survey_layers

    path, reading = Path(task.path), _reading(task, send)
    figures: dict[str, Any]
    with _finite(task):
        if task.step == "experts":
            figures = survey_experts(path, passage, **reading)._asdict()
        elif task.step == "width":
            layers = narrow_layers(path, passage, NarrowTarget(Path(task.folder), task.count), **reading)
            figures = {"layers": [each._asdict() for each in layers]}
        else:
            gone = survey_layers(path, passage, count=task.count, **reading)
            figures = {"gone": [each._asdict() for each in gone]}
    return ReadThrough(figures, passage.name, passage.digest)


def _reading(task: MeterTask, send: Send) -> Any:
    """The arguments of all who read windows."""
    from runtime.llama.library import usable_threads

    return {
        "windows": task.windows,
        "window": task.window,
        "threads": usable_threads(),
        "tell": lambda done, total: send(ReadSoFar(done, total)),
    }


@contextmanager
def _finite(task: MeterTask) -> Iterator[None]:
    """Say of values that are not finite whose they are. Raises CheckFailed."""
    from runtime.meter.kept import NotFinite
    from runtime.meter.nodes import InputsNotFinite

    try:
        yield
    except (InputsNotFinite, NotFinite) as error:
        what = f"the inputs of `{error}`" if isinstance(error, InputsNotFinite) else str(error)
        raise CheckFailed(
            f"`{task.name}` computes values that are not finite: {what}",
            "its file is broken, or its level is too low for it: bring it in again, or at another level",
        ) from None


def reader_of(task: MeterTask) -> WindowReader:
    """The model of `task`, ready to read."""
    from runtime.llama.library import usable_threads
    from runtime.meter.windows import WindowReader

    return WindowReader(Path(task.path), task.window, usable_threads())


def same_vocabulary(task: MeterTask) -> None:
    """Note a reference's vocabulary, or compare the model's with it. Raises BadRequest where they differ."""
    try:
        tokens = read_file(Path(task.path)).metadata.get("tokenizer.ggml.tokens")
    except (OSError, QuantError) as error:
        raise EngineError(f"the file of `{task.name}` cannot be read: {error}", "`lm verify` checks it") from None
    digest, note = _digest(tokens), Path(task.folder) / VOCABULARY
    if task.step == "reference":
        note.write_text(digest)
    elif note.read_text() != digest:
        raise BadRequest(
            f"`{task.name}` and `{task.reference}` have different vocabularies, so their probabilities do not compare",
            "measure it against a file of the same model",
        )


def _digest(tokens: object) -> str:
    texts = tokens if isinstance(tokens, list) else []
    return hashlib.sha256(msgspec.msgpack.encode(texts)).hexdigest()


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
