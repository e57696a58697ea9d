"""The experts of a mixture that stay, because they add most to a text, by a survey of the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from quant.cuts.experts import Experts
from quant.cuts.wish import NO_CUT, Cut
from quant.errors import QuantError
from registry.store.model import Model
from runtime.errors import BadRequest
from server.api.lm.sample import SampleText
from server.pulls.lines import note_line
from server.quality.learning import WINDOWS
from server.quality.survey import ModelSurvey
from server.quality.wish import QualityWish
from server.services import Services

Line = dict[str, Any]
Numbers = Mapping[int, Sequence[int]]
# Layers, and experts of a layer, that a sentence names.
_LAYERS, _EXPERTS = 4, 12


class ExpertChoice:
    """The experts of `model` that stay; `lines` chooses them, and `cut` has them then."""

    def __init__(self, services: Services, model: Model, share: float | None, sample: SampleText) -> None:
        """`share` of the experts stays, or with None all that have work."""
        self._services, self._model, self._share = services, model, share
        self._sample = sample
        self.cut = NO_CUT

    async def lines(self) -> AsyncGenerator[Line]:
        """Read the text, and choose; lines for the client. Raises BadRequest, and as `ModelSurvey.lines`."""
        services, model = self._services, self._model
        try:
            experts = Experts((await services.library.facts(model)).plan)
            if self._share is not None:
                experts.kept_of(self._share)
        except QuantError as error:
            raise BadRequest(f"`{model.name}`: {error}", error.hint, "experts") from None
        wish = QualityWish(model, services.config.hub, text=self._sample.text, windows=WINDOWS)
        survey = ModelSurvey(services.config, services.library, wish, "experts")
        async with aclosing(survey.lines()) as lines:
            async for line in lines:
                yield line
        layers: list[int] = survey.found["layers"]
        counts = dict(zip(layers, survey.found["counts"], strict=True))
        scores = dict(zip(layers, survey.found["scores"], strict=True))
        try:
            kept = experts.kept_of(self._share) if self._share is not None else experts.count - experts.idle(counts)
            chosen = experts.chosen(kept, scores, counts)
        except QuantError as error:
            raise BadRequest(f"`{model.name}`: {error}", error.hint, "experts") from None
        for sentence in self._remarks(experts, kept, counts, steady=survey.found["steady"]):
            yield note_line(sentence)
        if kept == experts.count:
            raise BadRequest(
                f"in some layer of `{model.name}` every expert has work on {self._sample.words}",
                "say how many may go: `--experts 0.75` keeps three of four",
                "experts",
            )
        self.cut = Cut(experts=chosen, read=self._sample.words)

    def _remarks(self, experts: Experts, kept: int, counts: Numbers, *, steady: bool) -> list[str]:
        """Sentences on experts without work, and on what the choice costs."""
        idle = {layer: [each for each, count in enumerate(counts[layer]) if not count] for layer in experts.layers}
        sentences = [_idle(idle, experts.count)]
        beyond = sum(max(0, experts.count - kept - len(each)) for each in idle.values())
        if beyond:
            sentences.append(f"{beyond} of the experts that go had work: `lm quality` measures what that costs")
        if not steady:
            sentences.append(
                "the router of this model does not renormalise its weights: experts that stay weigh more without others"
            )
        if not self._sample.text:
            sentences.append(
                "experts for what lm's text lacks may go: name a text that the model is for, `--text FILE`"
            )
        return sentences


def _idle(idle: Numbers, count: int) -> str:
    """A sentence that names the experts to which no token was routed."""
    total = sum(map(len, idle.values()))
    if not total:
        return "every expert has work"
    named = [(layer, numbers) for layer, numbers in idle.items() if numbers]
    shown = "; ".join(f"in layer {layer} {_listed(numbers)}" for layer, numbers in named[:_LAYERS])
    more = f"; and in {len(named) - _LAYERS} more layers" if len(named) > _LAYERS else ""
    return f"no token was routed to {total} of {count * len(idle):,} experts: {shown}{more}"


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _EXPERTS} more" if len(numbers) > _EXPERTS else ""
    return ", ".join(map(str, numbers[:_EXPERTS])) + more
