"""Cutting a model that is here: which tokens a text needs, before; and whether it still has them, afterwards."""

from __future__ import annotations

from pathlib import Path

import msgspec

from quant.cuts.wish import Cut
from runtime.errors import BadRequest
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.creates.sampler import FromSampler, Sampled, SampleTask
from server.creates.wish import CreateWish
from server.pulls.pull import NICE

# Tokens of a text below which the smaller model could hardly write a sentence, and below which users are warned.
_LEAST, _PLENTY = 1_000, 100_000


async def completed(config: Config, wish: CreateWish, path: Path) -> Cut:
    """The cut of a wish, with the tokens that its sample needs in the model's file at `path`.

    Raises BadRequest for a text that is too short, and as `sample`.
    """
    if not wish.sample:
        return wish.cut
    found = await _ask(config, SampleTask(str(path), wish.sample))
    if found.count < _LEAST:
        raise BadRequest(
            f"the text has {found.count:,} tokens, and at least {_LEAST:,} are needed",
            f"name a text of the kind that the model is for; {_PLENTY:,} tokens are plenty",
            "text",
        )
    return msgspec.structs.replace(wish.cut, tokens=found.ids)


def remark(count: int) -> str:
    """A sentence on a text of `count` tokens, "" for one that is long enough."""
    if count >= _PLENTY:
        return ""
    return f"the text has {count:,} tokens: words that it lacks are hard to write for the smaller model, so take more"


async def check(config: Config, wish: CreateWish, before: Path, after: Path) -> int:
    """Raise CheckFailed where a text has other tokens in the file that was made; the number of tokens compared."""
    if not (wish.cut.scripts or wish.sample):
        return 0
    return (await _ask(config, SampleTask(str(before), wish.sample, wish.cut.scripts, str(after)))).count


async def _ask(config: Config, task: SampleTask) -> Sampled:
    log = log_file(config.logs, "inspector")
    process = task_process(
        "server.creates.sampler", task, frames=FromSampler, log=log, purpose="read the text", nice=NICE
    )
    async with process as sampler:
        found: Sampled = await sampler.receive()
        return found
