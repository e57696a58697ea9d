"""A model with a narrower feed-forward, of its whole weights: channels are chosen, and it is quantized anew."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from quant.cuts.steps import kept_of, width_of
from quant.cuts.wish import Cut
from quant.errors import QuantError
from registry.store.model import Model
from runtime.errors import BadRequest
from server.api.lm.sample import SampleText
from server.api.lm.whole import whole_copy
from server.creates.wish import CreateWish
from server.pulls.lines import note_line
from server.quality.learning import WINDOWS
from server.quality.narrowing import Narrowing
from server.quality.turn import taken, turn
from server.quality.wish import QualityWish
from server.services import Services

Line = dict[str, Any]
# A share of the width below which a model is hardly usable, and bits per weight above which a lower level is better.
_LEAST, _BITS = 2 / 3, 3.4


class WidthCut:
    """The model of `wish` with a `share` of its channels, at the wish's level; `lines` makes it."""

    def __init__(self, services: Services, wish: CreateWish, share: float, sample: SampleText) -> None:
        self._services, self._wish, self._share, self._sample = services, wish, share, sample

    async def lines(self) -> AsyncGenerator[Line]:
        """Choose channels, and make the model; lines for the client.

        Raises BadRequest, and as `Narrowing.lines` and `Creates.lines`.
        """
        services, model = self._services, self._wish.model
        assert model is not None
        keep = await self._keep(model)
        yield note_line(
            f"above about {_BITS} bits per weight a lower level of `{model.name}` of the same size is better: "
            "`lm quality` measures both"
        )
        if self._share < _LEAST:
            yield note_line("with less than two thirds of its width a model is hardly usable")
        copy = await whole_copy(services, model)
        wish = QualityWish(copy or model, services.config.hub, text=self._sample.text, windows=WINDOWS)
        if taken():
            yield note_line("another measurement goes on; this one waits for its end")
        async with turn():
            narrowing = Narrowing(services.config, services.library, wish, keep, copy)
            try:
                async with aclosing(narrowing.lines()) as lines:
                    async for line in lines:
                        yield line
                cut = Cut(width=str(narrowing.folder), read=self._sample.words)
                made = replace(self._wish, model=copy or model, path=narrowing.weights, cut=cut)
                async with aclosing(services.creates.lines(made)) as lines:
                    async for line in lines:
                        yield line
            finally:
                await narrowing.remove()

    async def _keep(self, model: Model) -> int:
        """How many channels stay in each layer. Raises BadRequest."""
        try:
            return kept_of(width_of((await self._services.library.facts(model)).plan), self._share)
        except QuantError as error:
            raise BadRequest(f"`{model.name}`: {error}", error.hint, "width") from None
