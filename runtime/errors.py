"""Errors between a loaded model and its answer.

EngineError
├── DoesNotFit       the machine cannot hold the model, even at its smallest
├── BadRequest       parameters, messages or template input that the model refuses
├── PromptTooLong    more tokens than the context holds
├── QueueFull        too many requests wait for this model
├── LoadFailed       llama.cpp refused the file
├── WorkerDied       the worker was killed, crashed or hung; the request may be tried again
└── Timeout          a deadline of the request passed
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of the tree. `code` is stable and public, `hint` says what to do (may be empty).

    `field` is the field of the request that is at fault, "" where none is.
    """

    code = "engine_failed"

    def __init__(self, message: str, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.field = field


class DoesNotFit(EngineError):
    """Not enough memory; the message has the number needed and the number there is."""

    code = "does_not_fit"


class BadRequest(EngineError):
    """The request itself is wrong; trying again will not help."""

    code = "bad_request"


class PromptTooLong(EngineError):
    """The prompt has more tokens than the context; the message has both numbers."""

    code = "prompt_too_long"


class QueueFull(EngineError):
    """The model's queue is at its bound; try again later."""

    code = "queue_full"


class LoadFailed(EngineError):
    """The engine refused the model file."""

    code = "load_failed"


class WorkerDied(EngineError):
    """The process that held the model is gone."""

    code = "worker_died"


class Timeout(EngineError):
    """A deadline passed."""

    code = "timeout"
