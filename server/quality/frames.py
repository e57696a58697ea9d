"""The frames that the daemon and a meter exchange."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from server.children.frames import ErrorReport

Step = Literal["text", "reference", "model", "statistics", "grams", "harms", "experts", "layers", "width"]


class MeterTask(msgspec.Struct, tag="meter"):
    """Daemon to meter, the only frame: let the model in the file `path` read windows of text.

    `step`: say whether the `text` is long enough, keep what a `reference` thinks of each next token in `folder`, or
    have a `model` read the same windows and compare. For `statistics` the squares of a model's inputs are summed up
    (`runtime/meter/learning.py`), in `folder`; for `grams` their products. For `harms` it is measured what each type
    of each matrix would do to the output, with errors `fed` back or not, by the statistics there; compiled kernels lie
    in the folder `kernels`. The others are surveys of the model's parts (`runtime/meter/surveying.py`), and only its
    `text` lies in the folder; `count` layers are chosen to go. For `width` it is `count` channels that stay, and what
    is chosen lies in the folder. `digest` names the model's records. `text` is a file, ""
    for lm's held-out text, or its calibration text. `windows` is the most windows, `window` the tokens of each. `name`
    and `reference` are for messages. `learned` marks the text that the model's quantizer saw
    (`runtime.meter.passages.Passage.marks`). `before` is the `digest` of a model that has read the same windows, "" for
    none.
    """

    step: Step
    path: str
    folder: str
    digest: str
    name: str
    reference: str
    text: str
    windows: int
    window: int
    learned: list[str] = []
    before: str = ""
    fed: bool = False
    kernels: str = ""
    count: int = 0


class ReadSoFar(msgspec.Struct, tag="reading"):
    """Meter to daemon: `completed` windows of `total` are read."""

    completed: int
    total: int


class ReadThrough(msgspec.Struct, tag="read"):
    """Meter to daemon, the last frame: all windows are read.

    `figures` are a comparison's or a survey's, empty for a reference. `gain` is how much less the model diverges than
    the one `before` it, {} without that. `text_name` and `text_digest` say which text it was, `marks` by which it is
    known again after statistics.
    """

    figures: dict[str, Any]
    text_name: str
    text_digest: str
    marks: list[str] = []
    gain: dict[str, Any] = {}


FromMeter = ReadSoFar | ReadThrough | ErrorReport
