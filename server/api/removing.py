"""Removing models, for every dialect that can ask for it."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from registry.errors import SeveralLevels
from registry.store.catalog import Model
from server.access.callers import caller_of
from server.services import SERVICES


class Removed(NamedTuple):
    """The names of models and pulls that are gone, and sentences about adapters that lost their base."""

    names: list[str]
    notes: list[str]


async def remove(request: web.Request, name: str, *, everything: bool = False) -> Removed:
    """Forget a model, and end its pull; it is unloaded, after the answers that are under way.

    A bare name of which several levels are here names none of them, unless `everything` is meant. Raises SeveralLevels,
    ModelNotFound, BadName, StoreFailed.
    """
    services, caller = request.app[SERVICES], caller_of(request)
    caller.require_listed(name, await services.library.meant(name))
    here = _meant(name, await services.library.meant(name), everything)
    gone = await services.jobs.remove(name, installed=bool(here) and not everything, may_touch=caller.may_touch)
    here = _meant(name, await services.library.meant(name), everything)  # a pull may have ended meanwhile
    if not (here or gone):
        if caller.limited:
            raise caller.not_found(name)  # the error itself names what comes close
        here = [await services.library.find(name)]  # raises ModelNotFound, with what comes close
    needed: list[Model] = []
    for model in here:
        needed += filter(caller.sees, await services.library.adapters_of(model))
        await services.library.delete(model, services.pool.open_blobs())
    await services.pool.retire()
    gone += [model.name for model in here if model.name not in gone]
    notes = [
        f"the adapter `{each.name}` is for a model that was removed: `lm pull {each.base}` brings it in again"
        for each in needed
        if each.name not in gone
    ]
    return Removed(gone, notes)


def _meant(name: str, here: list[Model], everything: bool) -> list[Model]:
    """The models to remove; raises SeveralLevels where a bare name does not say which."""
    if len(here) > 1 and not everything:
        levels = ", ".join(f"`{model.name}`" for model in here)
        raise SeveralLevels(f"`{name}` is here at {len(here)} levels", f"name one: {levels}; `--all` removes all")
    return here
