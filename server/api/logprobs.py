"""Log probabilities of tokens in the form that OpenAI's chat route defined and Ollama's routes took over."""

from __future__ import annotations

from typing import Any

from runtime.messages import TokenLogprob


def logprob_rows(rows: list[TokenLogprob]) -> list[dict[str, Any]]:
    """One object for each token: its text, natural logarithm, UTF-8 bytes, and the best alternatives."""
    return [
        {
            "token": row.token,
            "logprob": row.logprob,
            "bytes": list(row.raw),
            "top_logprobs": [
                {"token": token, "logprob": value, "bytes": list(raw)} for token, _, value, raw in row.top
            ],
        }
        for row in rows
    ]
