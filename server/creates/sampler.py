"""The process that asks llama.cpp for the tokens of texts: `python -P -m server.creates.sampler`.

Before a vocabulary is cut to a text it says which tokens the text needs, in chats too: in the model's own template, in
which words stand that a text may not have. Afterwards it compares the tokens of both files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quant.cuts.scripts import Scripts
from server.children.child_side import exit_now, run_task
from server.children.frames import ErrorReport
from server.errors import CheckFailed

if TYPE_CHECKING:
    from runtime.llama.model import LlamaModel

Parts = list[tuple[str, bool]]


class SampleTask(msgspec.Struct, tag="sample"):
    """Daemon to sampler, the only frame: which tokens has the `text` in the model at `path`, and in chats?

    With `scripts` the text is lm's own, as far as it is written in these. With `cut`, the path of another file, the
    tokens of both must be the same.
    """

    path: str
    text: str = ""
    scripts: tuple[str, ...] = ()
    cut: str = ""


class Sampled(msgspec.Struct, tag="sampled"):
    """Sampler to daemon, the last frame: the ids of all tokens, each once, and how many tokens the text has."""

    ids: list[int]
    count: int


FromSampler = Sampled | ErrorReport


def main(argv: list[str]) -> int:
    """Do one task; the exit status is 1 when it failed."""
    return run_task(argv, SampleTask, lambda task, parent: sample(task))


def sample(task: SampleTask) -> Sampled:
    """Tokenize the texts. Raises CheckFailed where two files disagree, LoadFailed."""
    from runtime.confinement import cards_here, confine
    from runtime.llama.model import LlamaModel

    paths = [Path(path) for path in (task.path, task.cut) if path]
    models = [LlamaModel(path, empty=True) for path in paths]
    confine(paths, cards=cards_here())
    parts = [_parts(model, task) for model in models]
    ids = [_tokens(model, each) for model, each in zip(models, parts, strict=True)]
    texts = [[model.vocabulary.text(id) for id in found] for model, found in zip(models, ids, strict=True)]
    if texts[0] != texts[-1]:
        place = next((n for n, (one, two) in enumerate(zip(*texts, strict=False)) if one != two), 0)
        raise CheckFailed(
            f"with fewer tokens the text is cut otherwise, at its token {place}: {texts[0][place : place + 3]!a}",
            "nothing was kept; report it, with the name of the model",
        )
    return Sampled(sorted(set(ids[0])), len(_tokens(models[0], parts[0][:1])))


def _tokens(model: LlamaModel, parts: Parts) -> list[int]:
    return [id for part in parts for id in model.vocabulary.tokenize_parts([part])]


def _parts(model: LlamaModel, task: SampleTask) -> Parts:
    """The text, and behind it chats in the model's template."""
    from runtime.meter import passages

    own = passages.own("calibration")
    if not task.scripts:
        return passages.Passage("", task.text, own.chats).parts(model)
    scripts = Scripts(task.scripts)
    text = "\n".join(line for line in own.text.splitlines() if scripts.has(line))
    chats: list[list[dict[str, Any]]] = [
        chat for chat in own.chats if scripts.has(json.dumps(chat, ensure_ascii=False))
    ]
    return passages.Passage("", text, chats).parts(model)


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
