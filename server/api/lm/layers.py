"""The layers of a model that go, because it writes nearly the same without them, by a survey of the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from quant.cuts.layers import without_layers
from quant.cuts.wish import NO_CUT, Cut
from quant.errors import QuantError
from registry.store.model import Model
from runtime.errors import BadRequest
from server.api.lm.sample import SampleText
from server.pulls.lines import note_line
from server.quality.survey import ModelSurvey
from server.quality.wish import QualityWish
from server.services import Services

Line = dict[str, Any]
# Windows of text that every trial reads.
_WINDOWS = 4
# The share of layers that may be chosen to go; a model is hardly usable without more.
_MOST = 0.15
# The first layers, and the last one, which always stay.
_FIRST, _LAST = 2, 1


class LayerChoice:
    """`count` layers of `model` that go; `lines` chooses them, and `cut` has them then."""

    def __init__(self, services: Services, model: Model, count: int, sample: SampleText) -> None:
        self._services, self._model, self._count, self._sample = services, model, count, sample
        self.cut = NO_CUT

    async def lines(self) -> AsyncGenerator[Line]:
        """Try layers, and choose; lines for the client. Raises BadRequest, and as `ModelSurvey.lines`."""
        await self._check()
        services = self._services
        wish = QualityWish(self._model, services.config.hub, text=self._sample.text, windows=_WINDOWS)
        survey = ModelSurvey(services.config, services.library, wish, "layers", self._count)
        async with aclosing(survey.lines()) as lines:
            async for line in lines:
                yield line
        gone: list[dict[str, Any]] = survey.found["gone"]
        for trial in gone:
            yield note_line(self._sentence(trial))
        self.cut = Cut(layers=tuple(sorted(trial["layer"] for trial in gone)))

    async def _check(self) -> None:
        """Raise BadRequest where that is too many layers, or none of such a model are dropped."""
        plan, name = (await self._services.library.facts(self._model)).plan, self._model.name
        try:
            without_layers(plan, [_FIRST])
        except QuantError as error:
            raise BadRequest(f"`{name}`: {error}", error.hint, "fewer_layers") from None
        layers = int(plan.metadata[f"{plan.architecture}.block_count"])
        most = min(max(1, int(_MOST * layers)), layers - _FIRST - _LAST)
        if self._count > most:
            raise BadRequest(
                f"`{name}` has {layers} layers, and at most {max(0, most)} of them are chosen to go",
                "without more a model is hardly usable; name them to drop them all the same, `--layers 2,5`",
                "fewer_layers",
            )

    def _sentence(self, trial: dict[str, Any]) -> str:
        costs = sorted(zip(trial["divergences"], trial["layers"], strict=True))
        others = ", ".join(f"{layer} {cost:.3g}" for cost, layer in costs[1:])
        more = f" (others: {others})" if others else ""
        return f"without layer {trial['layer']} the divergence is {costs[0][0]:.3g} on {self._sample.words}{more}"
