"""The ways in which a model can be made smaller beside a lower level: what each takes out, and how many bytes go."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from cli import console
from cli.client import Client
from cli.cutting import parts_of
from cli.errors import Failure
from cli.tuning import CutWay

# Techniques beside `quantize`, the plain ladder of levels, which is always tried.
TECHNIQUES = ("vocabulary", "experts", "layers", "width")
# Shares of experts and of channels that stay, and the largest share of layers that goes: more is hardly ever worth it.
_EXPERTS, _WIDTHS, _LAYERS = (0.75, 0.5), (0.85, 0.7), 0.15
_OF_EXPERTS = "_exps."
_WIDE = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.weight")
# The least share of bytes for which tokens are cut.
_LEAST = 0.01


def ways(
    client: Client, name: str, shown: Mapping[str, Any], wanted: Iterable[str], purpose: str | None
) -> dict[str, CutWay]:
    """The ways to cut a model, by what goes; `shown` is its answer of `/api/show`. Raises Failure.

    `purpose` names the languages or the file of text that the model is for, None for every purpose.
    """
    found: dict[str, CutWay] = {}
    wanted = set(wanted)
    text = purpose if purpose and Path(purpose).is_file() else None
    if "vocabulary" in wanted and purpose:
        parts = parts_of(vocabulary=purpose, layers=None, experts=None, text=None)
        label = f"tokens but of {Path(purpose).stem if text else purpose}"
        try:
            share = _share(client, shown, name, parts)
            if share >= _LEAST:
                found[label] = CutWay(parts, share, exact=True)
            else:
                console.note(f"the vocabulary stays: other tokens take {share:.1%} of the bytes")
        except Failure as error:
            if error.code not in ("unsupported_model", "bad_request"):
                raise
            console.note(f"the vocabulary stays: {error}")
    sizes = {row["name"]: math.prod(row["shape"]) for row in shown["tensors"]}
    every = sum(sizes.values())
    info = shown["model_info"]
    architecture = info["general.architecture"]
    if "experts" in wanted and (count := info.get(f"{architecture}.expert_count")):
        share = sum(size for each, size in sizes.items() if _OF_EXPERTS in each) / every
        used = info.get(f"{architecture}.expert_used_count") or 1
        for kept in _EXPERTS:
            if kept * count >= max(2, used):
                parts = parts_of(vocabulary=None, layers=None, experts=str(kept), text=text)
                found[f"{1 - kept:.0%} of the experts"] = CutWay(parts, share * (1 - kept))
    blocks = int(info.get(f"{architecture}.block_count") or 0)
    if "layers" in wanted and (most := int(_LAYERS * blocks)):
        share = sum(size for each, size in sizes.items() if each.startswith("blk.")) / every / blocks
        for count in sorted({1, most}):
            parts = parts_of(vocabulary=None, layers=f"auto:{count}", experts=None, text=text)
            found["a layer" if count == 1 else f"{count} layers"] = CutWay(parts, share * count)
    if "width" in wanted and (share := sum(size for each, size in sizes.items() if _WIDE.fullmatch(each)) / every):
        for kept in _widths(info.get(f"{architecture}.feed_forward_length")):
            parts = parts_of(vocabulary=None, layers=None, experts=None, width=kept, text=text)
            found[f"{1 - kept:.0%} of the width"] = CutWay(parts, share * (1 - kept), anew=True)
    return found


def _widths(channels: object) -> list[float]:
    """The shares of N channels that can stay, in the steps of `lm prune`."""
    if not isinstance(channels, int):
        return []
    size = 256 if channels % 256 == 0 else 32
    steps = {round(share * channels / size) for share in _WIDTHS}
    return [step * size / channels for step in sorted(steps, reverse=True) if 0 < step * size < channels]


def techniques(text: str | None) -> tuple[str, ...]:
    """The techniques that `--try` names, all of them for None. Raises Failure."""
    if text is None:
        return TECHNIQUES
    words = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    known = ("quantize", *TECHNIQUES)
    if unknown := [word for word in words if word not in known]:
        raise Failure(f"`{unknown[0][:40]}` is no technique", f"known are {', '.join(known)}", "usage")
    return tuple(word for word in words if word != "quantize")


def _share(client: Client, shown: Mapping[str, Any], name: str, parts: Mapping[str, Any]) -> float:
    """The share of a model's bytes that a cut takes out, by its plan alone. Raises Failure."""
    with closing(client.stream("/lm/cut", {"model": name, **parts})) as lines:
        for line in lines:
            if line["phase"] == "planned":
                return max(0.0, 1 - int(line["output_bytes"]) / int(shown["size"]))
    return 0.0
