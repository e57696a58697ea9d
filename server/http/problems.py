"""Errors as HTTP tells them: one table of statuses, and the body in each dialect.

Every error that a client sees is a `Problem`: an exception of the four `errors.py` trees, or a child process's error,
which arrives by its code. Any other exception becomes `internal`: the log gets the traceback, the client an id.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from quant import errors as quant
from registry import errors as registry
from runtime import errors as runtime
from server import errors as server
from server.audit.log import AuditFailed
from server.errors import INTERNAL, PUBLIC_ERRORS
from server.keys.file import BadKeyFile
from server.policy.rules import PolicyRefused
from server.settings import BadSetting

Dialect = Literal["ollama", "openai", "anthropic", "llama"]

_Coded = server.ServerError | runtime.EngineError | registry.RegistryError | quant.QuantError | BadSetting
_STATUS_OF: dict[type[_Coded], int] = {
    server.ServerError: 500,
    server.BadBody: 400,
    server.BodyTooLarge: 413,
    server.UnknownEncoding: 415,
    server.CheckFailed: 400,
    server.Forbidden: 403,
    server.Unauthorized: 401,
    server.KeysUnreadable: 503,
    server.RateLimited: 429,
    server.QuotaUsed: 429,
    server.NotFound: 404,
    server.NoSuchObject: 404,
    server.Conflict: 409,
    server.SpaceUsed: 507,
    server.WrongMethod: 405,
    server.Unsupported: 400,
    server.Unstable: 503,
    server.Stopping: 503,
    server.StartFailed: 500,
    BadSetting: 500,
    BadKeyFile: 500,
    runtime.EngineError: 500,
    runtime.DoesNotFit: 507,
    runtime.BadRequest: 400,
    runtime.PromptTooLong: 400,
    runtime.QueueFull: 503,
    runtime.LoadFailed: 500,
    runtime.WorkerDied: 500,
    runtime.Timeout: 504,
    registry.RegistryError: 500,
    registry.BadName: 400,
    registry.BadModelfile: 400,
    registry.SeveralLevels: 409,
    registry.ModelNotFound: 404,
    registry.NothingOlder: 409,
    registry.AccessDenied: 403,
    registry.BadBundle: 400,
    registry.BadSignature: 400,
    registry.NeedsPassword: 400,
    registry.SourceUnavailable: 502,
    registry.Offline: 403,
    registry.DigestMismatch: 502,
    registry.DiskFull: 507,
    registry.StoreLocked: 503,
    registry.StoreDamaged: 500,
    registry.StoreFailed: 500,
    AuditFailed: 507,
    PolicyRefused: 403,
    quant.QuantError: 500,
    quant.MalformedFile: 400,
    quant.UnsupportedModel: 400,
    quant.UnknownLevel: 400,
    quant.WrongShape: 400,
    quant.BadValues: 400,
    quant.BadImportance: 400,
}
# By code, because an error of a child process has no class here.
STATUS = {error.code: status for error, status in _STATUS_OF.items()} | {INTERNAL[0]: 500}
RETRY_SECONDS = {runtime.QueueFull.code: 2.0, server.Stopping.code: 5.0, server.KeysUnreadable.code: 5.0}
# The code of a prompt that is too long, and the sentence with both numbers, by which OpenAI's clients know to trim it.
_CONTEXT_EXCEEDED = "context_length_exceeded"
_BOTH_NUMBERS = re.compile(r"([0-9][0-9,]*) tokens\b.*?([0-9][0-9,]*)")
_LLAMA_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "unavailable_error",
}
_MISSING = re.compile(r"model `(.+)` is not here")
# Codes that OpenAI's clients know by other words.
_OPENAI_CODES = {
    server.Unauthorized.code: "invalid_api_key",
    server.RateLimited.code: "rate_limit_exceeded",
    server.QuotaUsed.code: "insufficient_quota",
}
# Anthropic tells errors apart by their types, OpenAI by its codes.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Problem:
    """An error as every client sees it. `retry_after` in seconds, 0 where another try is of no use.

    `field` is the field of the body that is at fault, "" where none is.
    """

    code: str
    message: str
    hint: str = ""
    retry_after: float = 0.0
    field: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """The problem of an exception; one outside the trees is `internal`, and its own words go to the log only."""
        if not isinstance(error, PUBLIC_ERRORS):
            return cls(*INTERNAL)
        code = error.code if error.code in STATUS else INTERNAL[0]
        own = error.retry_after if isinstance(error, server.ServerError) else None
        retry_after = RETRY_SECONDS.get(code, 0.0) if own is None else own
        return cls(code, str(error), error.hint, retry_after, getattr(error, "field", ""))

    def status(self, dialect: Dialect) -> int:
        """HTTP status. A full queue is 429 to OpenAI's clients, and Anthropic's know 529 where others know 503."""
        status = STATUS[self.code]
        if dialect == "anthropic":
            return 529 if status == 503 else status
        return 429 if dialect == "openai" and self.code == runtime.QueueFull.code else status

    def headers(self) -> dict[str, str]:
        """`Retry-After` where it helps, and the challenge that asks for a key."""
        found = {"Retry-After": str(math.ceil(self.retry_after))} if self.retry_after else {}
        return found | ({"WWW-Authenticate": "Bearer"} if self.code == server.Unauthorized.code else {})

    def body(self, dialect: Dialect, request_id: str = "") -> dict[str, Any]:
        """The JSON object of the dialect, the same before and in the middle of a stream.

        `request_id` is for the dialect that has it in the object.
        """
        if dialect == "ollama":
            return {"error": self._as_ollama_says(), "hint": self.hint, "code": self.code}
        if dialect == "llama":
            return {"error": self._as_llama_server()}
        text, code = self.message, self.code
        if code == runtime.PromptTooLong.code:
            text, code = (_as_anthropic_says if dialect == "anthropic" else _as_openai_says)(text), _CONTEXT_EXCEEDED
        code = _OPENAI_CODES.get(code, code)
        text = f"{text} ({self.hint})" if self.hint else text
        status = self.status(dialect)
        if dialect == "anthropic":
            kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id or None}
        kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
        kind = code if self.code == server.QuotaUsed.code else kind
        return {"error": {"message": text, "type": kind, "param": self.field or None, "code": code}}

    def _as_llama_server(self) -> dict[str, Any]:
        """The error object of llama-server, whose `code` is the status."""
        status = self.status("llama")
        kind = _LLAMA_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        if self.code == server.Unsupported.code:
            kind = "not_supported_error"
        if self.code != runtime.PromptTooLong.code or (match := _BOTH_NUMBERS.search(self.message)) is None:
            return {"code": status, "message": text, "type": kind}
        length, most = (int(number.replace(",", "")) for number in match.groups())
        text = f"the request ({length} tokens) exceeds the available context size ({most} tokens): {text}"
        sizes = {"n_prompt_tokens": length, "n_ctx": most}
        return {"code": status, "message": text, "type": "exceed_context_size_error"} | sizes

    def _as_ollama_says(self) -> str:
        """The message in the words that Ollama's clients look for: about a missing model, and a text without room."""
        if self.code == runtime.PromptTooLong.code and self.field == "input":
            return f"the input length exceeds the context length: {self.message}"
        if self.code == registry.ModelNotFound.code and (match := _MISSING.fullmatch(self.message)):
            return f'model "{match[1]}" not found, try pulling it first'
        return self.message


def _as_anthropic_says(message: str) -> str:
    """The same in Anthropic's words, by which coding agents know that they have to summarise the conversation."""
    match = _BOTH_NUMBERS.search(message)
    if match is None:
        return f"prompt is too long: {message}"
    length, most = (number.replace(",", "") for number in match.groups())
    return f"prompt is too long: {length} tokens > {most} maximum: {message}"


def _as_openai_says(message: str) -> str:
    """A message about a prompt that is too long, behind the words in which OpenAI says it and clients look for it."""
    match = _BOTH_NUMBERS.search(message)
    if match is None:
        return f"This model's maximum context length is exceeded; the prompt is too long: {message}"
    length, most = (number.replace(",", "") for number in match.groups())
    return (
        f"This model's maximum context length is {most} tokens. However, your messages resulted in {length} tokens; "
        f"the prompt is too long: {message}"
    )
