"""`POST /lm/cut`: a model without some of its tokens, layers or experts, beside the model that it is made of."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from quant.cuts.scripts import SCRIPTS, script_of
from quant.cuts.wish import Cut
from quant.levels.budget import is_budget
from quant.levels.recipes import level_of
from registry.names import Name
from registry.store.model import Model
from registry.words import canonical_level, word_of
from runtime.errors import BadRequest
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.lm.experts import ExpertChoice
from server.api.lm.layers import LayerChoice
from server.api.lm.sample import SampleText
from server.api.lm.width import WidthCut
from server.api.naming import new_name
from server.api.request import LOG_NOTE, find_model, read
from server.api.streaming import stream_lines
from server.creates.wish import CreateWish
from server.errors import BadBody
from server.pulls.lines import note_line
from server.services import SERVICES, Services

_LONGEST_LABEL = 24
Choice = ExpertChoice | LayerChoice


class CutBody(msgspec.Struct):
    """The body of `/lm/cut`: what is left out of `model`; `name` is the new one's, "" for the old name and a label.

    `vocabulary` names languages or scripts (`en`, `latin`) whose texts keep their tokens. `text` in its place keeps the
    tokens that it needs, and `text_name` is what people call it. `layers` are numbers of layers to drop, from 0.
    With `fewer_layers` in their place, N layers go without which the model's probabilities change least.
    `experts` is the share of a mixture's experts that stay, such as 0.5, or `idle`: only those go to which no token was
    routed. `width` is the share of the channels of each feed-forward that stay, such as 0.8: it takes whole weights, of
    which the `level` is made anew, "" for the model's own. All of these are judged on lm's calibration text, or on the
    text `sample`, which people call `sample_name`.
    """

    model: str = ""
    name: str = ""
    vocabulary: list[str] = msgspec.field(default_factory=list)
    text: str = ""
    text_name: str = "text"
    layers: list[int] = msgspec.field(default_factory=list)
    fewer_layers: int = 0
    experts: float | str | None = None
    width: float = 0.0
    level: str = ""
    sample: str = ""
    sample_name: str = "the text"


async def cut(request: web.Request) -> web.StreamResponse:
    """`POST /lm/cut`: make the model; lines as a create's."""
    body = await read(request, CutBody, KnownFields())
    request[LOG_NOTE] = body.model
    services = request.app[SERVICES]
    model = await find_model(request, body.model)
    wish = _wish(body, model)
    caller_of(request).require_listed(wish.name.display, await services.library.meant(wish.name.display))
    if body.width:
        made = WidthCut(services, wish, _width(body.width), _sample(body)).lines()
    else:
        made = _lines(services, wish, _choice(body, services, model))
    async with aclosing(made) as lines:
        return await stream_lines(request, lines)


async def _lines(services: Services, wish: CreateWish, choice: Choice | None) -> AsyncGenerator[dict[str, Any]]:
    if choice is not None:
        async with aclosing(choice.lines()) as lines:
            async for line in lines:
                yield line
        wish = replace(wish, cut=choice.cut)
    assert wish.model is not None
    for warning in _warnings(wish.model, wish.cut.layers):
        yield note_line(warning)
    async with aclosing(services.creates.lines(wish)) as lines:
        async for line in lines:
            yield line


def _wish(body: CutBody, model: Model) -> CreateWish:
    """The wish in a body. Raises BadBody, BadRequest, BadName."""
    if body.text and body.vocabulary:
        raise BadBody("`text` and `vocabulary` both say which tokens stay", "send one of them", "text")
    if body.text and not body.text.strip():
        raise BadBody("the text is empty", "send some pages of the text that the model is for", "text")
    plain = bool(body.text or body.vocabulary or body.layers)
    cuts = [plain, body.fewer_layers != 0, body.experts is not None, body.width != 0]
    if not any(cuts):
        hint = "send `vocabulary`, `text`, `layers`, `experts` or `width`"
        raise BadBody("the body says nothing to cut", hint, "vocabulary")
    if sum(cuts) > 1:
        raise BadBody(
            "what is chosen by reading a text goes alone, because it is judged anew after each cut",
            "cut twice: the second time the model that the first one made",
        )
    if model.adapters or model.is_adapter:
        raise BadRequest(
            f"`{model.name}` has an adapter, which is for the whole model",
            "cut the model that the adapter was added to",
        )
    words = ", ".join(body.vocabulary) or body.text_name
    level = _level(body, model)
    wish = Cut(scripts=_scripts(body.vocabulary), words=words, layers=tuple(sorted(set(body.layers))))
    return CreateWish(_name(body, model, level), model, level=level, cut=wish, sample=body.text)


def _choice(body: CutBody, services: Services, model: Model) -> Choice | None:
    """The choice by a text that a body asks for, None for none. Raises BadBody."""
    sample = _sample(body)
    if body.fewer_layers:
        if body.fewer_layers < 0:
            raise BadBody(f"{body.fewer_layers} is no number of layers to drop", "send 1 or more", "fewer_layers")
        return LayerChoice(services, model, body.fewer_layers, sample)
    if body.experts is not None:
        return ExpertChoice(services, model, _share(body.experts), sample)
    if body.sample:
        raise BadBody("a `sample` judges experts or layers, and none are to be chosen", "leave it out", "sample")
    return None


def _sample(body: CutBody) -> SampleText:
    if body.sample and not body.sample.strip():
        raise BadBody("the sample is empty", "send some pages of the text that the model is for", "sample")
    return SampleText(body.sample, body.sample_name)


def _width(share: float) -> float:
    if not 0 < share < 1:
        raise BadBody(f"{share:g} is no share of the width", "send a number between 0 and 1, such as 0.8", "width")
    return share


def _level(body: CutBody, model: Model) -> str | None:
    """The level that is made anew, None for none. Raises BadBody, UnknownLevel."""
    if not body.width:
        if body.level:
            raise BadBody("only another `width` is made at a level", "leave `level` out", "level")
        return None
    level = canonical_level(body.level) if body.level else str(model.config.get("file_type") or "")
    if not is_budget(level):
        level_of(level)
    return level


def _share(experts: float | str) -> float | None:
    """The share of experts that stays; None for all that have work. Raises BadBody."""
    if experts == "idle":
        return None
    if isinstance(experts, str) or not 0 < experts < 1:
        raise BadBody(
            f"`{ascii(str(experts)[:40])[1:-1]}` is no share of the experts",
            "send a number between 0 and 1, such as 0.5, or `idle`",
            "experts",
        )
    return experts


def _scripts(names: list[str]) -> tuple[str, ...]:
    scripts: dict[str, None] = {}
    for name in names:
        script = script_of(name)
        if script is None:
            known = ", ".join(SCRIPTS)
            raise BadBody(f"`{ascii(name[:40])[1:-1]}` is no language or script that is known", f"scripts are {known}")
        scripts[script] = None
    return tuple(scripts)


def _name(body: CutBody, model: Model, level: str | None) -> Name:
    """The name of the new model. Raises BadRequest where it is the old one's."""
    if body.name:
        name = new_name(body.name)
    else:
        words = [*body.vocabulary] or ([body.text_name] if body.text else [])
        words += [] if body.experts is None else [f"experts-{body.experts}"]
        words += [f"width-{body.width:g}"] if body.width else []
        words += [f"less-{body.fewer_layers}"] if body.fewer_layers else []
        label = "-".join([*words, *_dropped(body.layers)])
        short = word_of(label)[:_LONGEST_LABEL].strip("-.")
        name = model.key.tagged(f"{level or model.key.tag}-{short or 'cut'}")
    if name.same(model.key):
        raise BadRequest(f"`{model.name}` is the model itself, which stays as it is", "give another name", "name")
    return name


def _dropped(layers: list[int]) -> list[str]:
    return [f"without-{'-'.join(map(str, sorted(set(layers))))}"] if layers else []


def _warnings(model: Model, layers: tuple[int, ...]) -> list[str]:
    """Sentences on layers that cost much quality."""
    if not layers:
        return []
    warnings = [f"a lower level of `{model.name}` of the same size is nearly always better: `lm quality` measures both"]
    if {0, 1} & set(layers):
        warnings.append("the first two layers do work that no other does: without them a model is hardly usable")
    return warnings
