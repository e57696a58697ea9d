"""Errors between a request and the parts that answer it.

ServerError
├── BadBody          a body that does not match the route
├── BodyTooLarge     more bytes, or more values, than the daemon reads
├── UnknownEncoding  a body packed in a way that the daemon cannot unpack
├── Forbidden        a Host, Origin or peer that may not ask this
├── Unauthorized     the API key is missing, wrong or at its end
├── KeysUnreadable   the daemon's keys cannot be read for now
├── RateLimited      more requests than a key may send, or wrong keys from one machine
│   └── QuotaUsed    more tokens than a key may use
├── NotFound         no such route, or no such method on it
├── NoSuchObject     no response, file or batch of this id for the caller's key
├── Conflict         an object is not in a state in which this can be done to it
├── SpaceUsed        the files of a key take as much of the disk as they may
├── CheckFailed      a model that was brought in, and does not load or does not compute
├── Unsupported      a field or a kind of model that this version, or this model, does not support
├── Unstable         a model whose worker crashed several times in a row; it is not started for a while
├── Stopping         the daemon is on its way out
└── StartFailed      the daemon cannot start: a port or a home that is taken

`ChildError` stands beside the tree: an error of any of the trees that happened in a child process.
"""

from __future__ import annotations

from quant.errors import QuantError
from registry.errors import RegistryError
from runtime.errors import EngineError
from server.settings import BadSetting


class ServerError(Exception):
    """Base of the tree. `code` is stable and public, `hint` says what to do (may be empty).

    `field` is the field of the body that is at fault, "" where none is. `retry_after` is in seconds, None where the
    code says how long (`server/http/problems.py`).
    """

    code = "server_failed"

    def __init__(self, message: str, hint: str = "", field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.field = field
        self.retry_after = retry_after


class BadBody(ServerError):
    """The body is not JSON, too deep, or breaks the route's shape; the message names the place."""

    code = "bad_body"


class BodyTooLarge(ServerError):
    """The body has more bytes, or more values, than the daemon reads."""

    code = "body_too_large"


class UnknownEncoding(ServerError):
    """The body is packed in a way that the daemon cannot unpack."""

    code = "unknown_encoding"


class CheckFailed(ServerError):
    """A model was brought in whole, and does not load, or computes nonsense; nothing of it is kept."""

    code = "check_failed"


class Forbidden(ServerError):
    """The Host, the Origin or the client's machine may not send this request."""

    code = "forbidden"


class Unauthorized(ServerError):
    """The daemon wants a key, and the request carries none that is valid."""

    code = "unauthorized"


class KeysUnreadable(ServerError):
    """The file of keys cannot be used for now: whoever comes with a key may try again."""

    code = "keys_unreadable"


class RateLimited(ServerError):
    """Too many requests; `retry_after` is in seconds."""

    code = "rate_limited"


class QuotaUsed(RateLimited):
    """The tokens of a key are used; `retry_after` is in seconds."""

    code = "quota_used"


class NotFound(ServerError):
    """No such route."""

    code = "no_such_route"


class NoSuchObject(ServerError):
    """The caller's key has no response, file or batch of this id."""

    code = "no_such_object"


class Conflict(ServerError):
    """An object is not in a state in which this can be done to it."""

    code = "conflict"


class SpaceUsed(ServerError):
    """The files of a key take as many bytes of the disk as they may."""

    code = "space_used"


class WrongMethod(NotFound):
    """The route exists, the method does not."""

    code = "wrong_method"


class Unsupported(ServerError):
    """The request has a meaning that this version, or this model, does not support, and that must not be ignored."""

    code = "unsupported"


class Unstable(ServerError):
    """The model's worker crashed several times in a row; `retry_after` is in seconds."""

    code = "worker_unstable"


class Stopping(ServerError):
    """The daemon is stopping."""

    code = "stopping"


class StartFailed(ServerError):
    """The daemon cannot start."""

    code = "start_failed"


class ChildError(Exception):
    """An error that a child process met and sent by its code; raised where the process's answer was awaited."""

    def __init__(self, code: str, message: str, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = field


# Code, message and hint for every other exception, which is a fault of the program: the log has its traceback.
INTERNAL = ("internal", "the daemon failed at this request", "see `lm logs`")
# Errors whose message and hint are written for the user.
PUBLIC_ERRORS = (ServerError, EngineError, RegistryError, QuantError, BadSetting, ChildError)
