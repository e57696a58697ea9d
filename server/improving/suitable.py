"""Which models better weights can be made of, from which source, and the reason where none can be."""

from __future__ import annotations

from registry.names import Reference
from registry.store.model import Model
from server.errors import Unsupported
from server.library import capabilities
from server.policy.rules import PolicyRules
from server.pulls.frames import Effort
from server.pulls.origin import source_at

_WHOLE = ("F32", "F16", "BF16", "Q8_0")
EFFORT: Effort = "best"


def source_for(model: Model, rules: PolicyRules) -> Reference:
    """The source that a model's better weights are made of, at the model's own level.

    Raises Unsupported with the reason where there are none to be made, and PolicyRefused.
    """
    own, name = model.own, model.name
    if model.failure is not None:
        raise model.failure
    if model.is_adapter or "completion" not in capabilities(model):
        raise Unsupported(f"`{name}` writes no text, so nothing can be measured of it", "name a model that does")
    level = str(own.get("level") or "")
    source = source_at(model, level) if level else None
    if source is None or own.get("cut"):
        raise Unsupported(
            f"nobody knows the weights that `{name}` was made of",
            "pull the model from its source: what was quantized by somebody else stays as it is",
        )
    if model.config.get("file_type") in _WHOLE:
        raise Unsupported(f"`{name}` is at {level}, where errors are too small to be made up for", "nothing is better")
    if own.get("effort") == EFFORT:
        raise Unsupported(f"`{name}` was made with the effort `{EFFORT}` already", "`lm quality` measures it")
    if not own.get("content"):
        raise Unsupported(f"`{name}` does not say which weights it was made of", f"`lm pull {source.text}` does")
    rules.check_source(source.origin)
    rules.check_signature(name, [])  # nobody has signed what is made here
    return source
