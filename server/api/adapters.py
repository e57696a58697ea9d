"""Adapters of a request: the field of both dialects, and the model and files that it means."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Adapter
from runtime.options import MAX_ADAPTER_SCALE, MAX_ADAPTERS
from server.api.request import find_model, visible_model
from server.services import SERVICES


class AdapterField(msgspec.Struct, forbid_unknown_fields=True):
    """An adapter in `adapters`: its name in the store, and the scale of its change (1 is as it was trained)."""

    name: str
    scale: float = 1.0


AdapterFields = list[str | AdapterField] | None
"""The field `adapters` of both dialects: names, or objects of name and scale."""


async def resolve_adapted(
    request: web.Request, name: str | None, fields: AdapterFields, able: str = "completion"
) -> tuple[Model, list[Adapter]]:
    """The model to be asked, and the adapters that change it: its own, then the field's.

    The name of an adapter means the model that it is for, changed by it. Without a name it is the only model that
    may be meant: one that is `able` where there are several. Raises BadBody where several may be meant, BadRequest for
    a scale out of range, an adapter named twice and adapters of another model, ModelNotFound, BadName, StoreDamaged.
    """
    library = request.app[SERVICES].library
    model = await find_model(request, name, able)
    wanted = _wanted(fields)
    changing = [(model, 1.0)] if model.adapters else []
    if model.is_adapter:
        model = await library.base(model)
        changing = [*([(model, 1.0)] if model.adapters else []), *changing]
    for each in wanted:
        adapter = await visible_model(request, each.name)
        if not adapter.is_adapter:
            raise BadRequest(f"`{adapter.name}` is a model, and no adapter", "name an adapter", "adapters")
        changing.append((adapter, each.scale))
    found = []
    for adapter, scale in changing:
        for blob in adapter.adapters:
            await library.check_fit(blob, adapter.name, model)
            found.append(Adapter(str(blob.path), scale, blob.size, adapter.name))
    if len(found) > MAX_ADAPTERS:
        raise BadRequest(f"{len(found)} adapters would change `{model.name}`", f"send {MAX_ADAPTERS} at most")
    names = [adapter.name for adapter, _ in changing]
    if len(set(names)) < len(names):  # two scales could take each other back
        raise BadRequest("an adapter changes this answer twice", "name each once, with one scale", "adapters")
    return model, found


def _wanted(fields: AdapterFields) -> Sequence[AdapterField]:
    wanted = [AdapterField(field) if isinstance(field, str) else field for field in fields or []]
    for each in wanted:
        if not -MAX_ADAPTER_SCALE <= each.scale <= MAX_ADAPTER_SCALE:
            hint = f"it is a number from -{MAX_ADAPTER_SCALE} to {MAX_ADAPTER_SCALE}; 1 is as it was trained"
            raise BadRequest(f"the scale of `{each.name[:80]}` is {each.scale:g}", hint, "adapters")
    return wanted
