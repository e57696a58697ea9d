"""The fields that Anthropic's clients send and that no route of its dialect honours."""

from __future__ import annotations

from server.api.fields import GRAMMARS, KnownFields

_STOP = "use `stop_sequences`"
_LENGTH = "use `max_tokens`"
_FORM = "use `output_config.format`"

ANTHROPIC = KnownFields(
    binding=GRAMMARS
    | {
        "stop": _STOP,
        "max_completion_tokens": _LENGTH,
        "max_output_tokens": _LENGTH,
        "max_tokens_to_sample": _LENGTH,
        "n_predict": _LENGTH,
        "num_predict": _LENGTH,
        "response_format": _FORM,
        "format": _FORM,
        "images": "",
    },
    noted={
        # The hosted service alone runs or keeps these.
        "compaction": None,
        "container": None,
        "context_management": None,
        "fallbacks": None,
        "mcp_servers": None,
        "thread": None,
        # Other dialects' fields.
        "chat_template_kwargs": None,
        "keep_alive": None,
        "n": 1,
        "num_ctx": None,
        "options": None,
        "reasoning_effort": None,
    },
    # Whom a request is for, where it is computed, and how it is paid for.
    idle=frozenset(
        {
            "betas",
            "billing_policy",
            "diagnostics",
            "fallback_credit_token",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
            "user",
            "user_profile_id",
            "workspace_id",
            # An answer as clients send it back.
            "messages[].content[].caller",
            "messages[].content[].citations",
            # All tools are told to the model at once.
            "tools[].defer_loading",
        }
    ),
    misplaced={"prompt": "send `messages`", "input": "send the question as `messages`"},
)
