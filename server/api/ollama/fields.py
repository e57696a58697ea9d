"""The fields that Ollama's clients send and that no route, or only another one, honours."""

from __future__ import annotations

from server.api.fields import GRAMMARS, KnownFields

_OPTION = "put `{}` into `options`"
_LENGTH = "put `num_predict` into `options`"

OLLAMA = KnownFields(
    binding=GRAMMARS
    | {name: _OPTION.format(name) for name in ("stop", "num_predict", "logit_bias")}
    | {"max_tokens": _LENGTH, "max_completion_tokens": _LENGTH, "n_predict": _LENGTH}
    | dict.fromkeys(("format", "images", "response_format", "suffix", "template", "tools", "tool_choice"), ""),
    noted=dict.fromkeys(
        (
            "context",
            "dimensions",
            "height",
            "input",
            "insecure",
            "logprobs",
            "keep_alive",
            "messages",
            "options",
            "password",
            "prompt",
            "raw",
            "reasoning_effort",
            "shift",
            "steps",
            "stream",
            "system",
            "think",
            "top_logprobs",
            "truncate",
            "username",
            "verbose",
            "width",
        )
    ),
    idle=frozenset({"messages[].tool_calls[].type", "messages[].tool_calls[].function.index"}),
)
