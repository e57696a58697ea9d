"""Whole weights of a model that are here: a level that is not quantized."""

from __future__ import annotations

from registry.store.model import Model
from server.services import Services

WHOLE = ("F32", "BF16", "F16")


async def whole_copy(services: Services, model: Model) -> Model | None:
    """A copy of a model's whole weights that is here: the model itself, or another level of it."""
    bare = model.key.tagged(None)
    here = [each for each in await services.library.models() if each.key.tagged(None).same(bare)]
    whole = [each for each in here if each.config.get("file_type") in WHOLE and not each.problem]
    return next((each for each in whole if each.digest == model.digest), next(iter(whole), None))
