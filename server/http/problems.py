"""One table from an exception's code to HTTP status, and the bodies that each dialect gives an error.

Everything that a client can be told goes through `Problem`: exceptions of the four `errors.py` trees and failures that
a child process reports by code. Any other exception becomes `internal`: the log gets the traceback, the client an id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from server.errors import INTERNAL, PUBLIC_ERRORS

Dialect = Literal["ollama", "openai", "anthropic"]

STATUS = {
    # server/errors.py
    "server_failed": 500,
    "bad_body": 400,
    "body_too_large": 413,
    "forbidden": 403,
    "unauthorized": 401,
    "no_such_route": 404,
    "wrong_method": 405,
    "unsupported": 400,
    "worker_unstable": 503,
    "stopping": 503,
    "start_failed": 500,
    "bad_setting": 500,
    "internal": 500,
    # runtime/errors.py
    "engine_failed": 500,
    "does_not_fit": 507,
    "bad_request": 400,
    "prompt_too_long": 400,
    "queue_full": 503,
    "load_failed": 500,
    "worker_died": 500,
    "timeout": 504,
    # registry/errors.py
    "registry_failed": 500,
    "bad_name": 400,
    "model_not_found": 404,
    "access_denied": 403,
    "source_unavailable": 502,
    "digest_mismatch": 502,
    "disk_full": 507,
    "store_locked": 503,
    "store_damaged": 500,
    "store_failed": 500,
    # quant/errors.py
    "conversion_failed": 500,
    "malformed_file": 400,
    "unsupported_model": 400,
    "unknown_level": 400,
    "wrong_shape": 400,
    "bad_values": 400,
}
RETRY_SECONDS = {"queue_full": 2.0, "stopping": 5.0}
_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Problem:
    """An error as every client sees it. `retry_after` in seconds, 0 where trying again is of no use."""

    code: str
    message: str
    hint: str = ""
    retry_after: float = 0.0

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """The problem of an exception; one outside the trees is `internal` and says nothing of its inside."""
        if not isinstance(error, PUBLIC_ERRORS):
            return cls(*INTERNAL)
        code = error.code if error.code in STATUS else "internal"
        retry_after = getattr(error, "retry_after", RETRY_SECONDS.get(code, 0.0))
        return cls(code, str(error), error.hint, retry_after)

    def status(self, dialect: Dialect) -> int:
        """HTTP status; OpenAI's and Anthropic's clients know a full queue as 429."""
        return 429 if dialect != "ollama" and self.code == "queue_full" else STATUS[self.code]

    def headers(self) -> dict[str, str]:
        """`Retry-After` where it helps."""
        return {"Retry-After": str(math.ceil(self.retry_after))} if self.retry_after else {}

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """The JSON object of the dialect, the same before and in the middle of a stream."""
        if dialect == "ollama":
            return {"error": self.message, "hint": self.hint, "code": self.code}
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        status = self.status(dialect)
        kind = _TYPE.get(status, "invalid_request_error" if status < 500 else "api_error")
        if dialect == "anthropic":
            return {"type": "error", "error": {"type": kind, "message": text}}
        return {"error": {"message": text, "type": kind, "param": None, "code": self.code}}
