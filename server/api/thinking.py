"""The wish to think, how hard and how long, in the spellings that clients of both dialects have."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Submit
from runtime.options import MAX_INT
from server.api.options import Range, Whole
from server.api.request import pass_over
from server.library import capabilities
from server.services import SERVICES

Body = TypeVar("Body", bound=msgspec.Struct)
# OpenAI's efforts, and the nearest that models know.
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
# The most tokens of thinking, as Qwen's clients, llama-server's, and vLLM's spell it.
_BUDGETS = ("thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens", "thinking_token_budget")
_TOKENS = Range(-1, MAX_INT, whole=True)
# Variables by which templates know levels of effort.
_LEVELS = ("reasoning_effort", "thinking_effort")


def with_budgets(shape: type[Body]) -> type[Body]:
    """The body `shape` with one more field for each spelling of a budget; all may be left out."""
    fields = [(name, Whole | None, None) for name in _BUDGETS]
    return cast(type[Body], msgspec.defstruct(shape.__name__, fields, bases=(shape,), kw_only=True))


def budgets_of(body: msgspec.Struct) -> dict[str, Any]:
    """The budgets of a body whose type `with_budgets` made, by the names of their fields."""
    return {name: getattr(body, name) for name in _BUDGETS}


def effort(value: Any, field: str) -> bool | str | None:
    """A wish to think, from a switch or the name of an effort; None for no wish. Raises BadRequest."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _EFFORTS:
        return _EFFORTS[value]
    raise BadRequest(f"`{field}` is `{str(value)[:40]}`", f"known are true, false, {', '.join(_EFFORTS)}", field)


async def add_thinking(
    request: web.Request, model: Model, submit: Submit, wish: tuple[str, bool | str | None], budgets: dict[str, Any]
) -> None:
    """Take over the wish, with the field that it came by, and the budget.

    Both are named in the warning where the model does not think, but for the wish that it does not; as an effort is
    where its template knows none. Apps send them to every model. Raises BadRequest.
    """
    field, submit.think = wish
    budget, tokens = next(((name, value) for name, value in budgets.items() if value is not None), ("", None))
    if tokens is not None:
        submit.think_tokens = int(_TOKENS.check(budget, tokens))
    if "thinking" not in capabilities(model):
        wishes = {field: submit.think, budget: tokens}
        pass_over(request, [f"`{name}`" for name, wished in wishes.items() if name and wished])
        submit.think, submit.think_tokens = None, -1
    elif isinstance(submit.think, str):
        facts = await request.app[SERVICES].library.facts(model)
        template = str(facts.plan.metadata.get("tokenizer.chat_template", ""))
        if template and not any(name in template for name in _LEVELS):
            pass_over(request, [f"the level of `{field}` (the model's template knows no levels)"])
