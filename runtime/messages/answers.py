"""The frames from a worker to the daemon."""

from __future__ import annotations

from typing import Literal, Self

import msgspec

from runtime.confinement import Confinement
from runtime.errors import EngineError


class Ready(msgspec.Struct, tag="ready"):
    """The model is loaded. `context` is the true size of the KV cache in tokens; bytes count the worker's buffers.

    `confinement` says which walls stand around the process.
    """

    context: int
    sequences: int
    load_ns: int
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    confinement: Confinement = Confinement()


class Started(msgspec.Struct, tag="started"):
    """Request `id` left the queue.

    `truncated` counts prompt tokens that were dropped; `cached` counts prompt tokens found in the KV cache.
    """

    id: int
    prompt_tokens: int
    cached: int = 0
    truncated: int = 0


class TokenLogprob(msgspec.Struct):
    """One token's text, natural logarithm of its probability, and the best alternatives.

    The first token of a prompt has no probability. The text of a control token is its name, and `raw` is empty.
    """

    token: str
    id: int
    logprob: float | None
    raw: bytes
    top: list[tuple[str, int, float, bytes]] = []


DeltaKind = Literal["text", "thinking", "prompt"]
"""The kind of a piece of an answer: its own text, its thinking, or the prompt once more (`Submit.echo`)."""

FinishReason = Literal["stop", "length", "cancelled"]
"""Why an answer ended: by its last token or a stop string, by its limit or the context's, or because nobody waits."""


class Delta(msgspec.Struct, tag="delta", omit_defaults=True):
    """More of answer `index` of request `id`, from N `tokens`; whole characters, and no part of a stop string.

    `ids` are these tokens, where the request wants them.
    """

    id: int
    text: str
    tokens: int
    index: int = 0
    logprobs: list[TokenLogprob] = []
    kind: DeltaKind = "text"
    ids: list[int] = []


class CallDelta(msgspec.Struct, tag="call", omit_defaults=True):
    """More of call number `call` in answer `index` of request `id`.

    The first frame of a call has its `name`, and the id that the model gave it (`call_id`), if any. `arguments` is more
    of the text of a JSON object. With `ended` that is complete. `broken` is the text of a call that has begun and then
    breaks its form: all that the model wrote of it.
    """

    id: int
    call: int
    index: int = 0
    name: str = ""
    call_id: str = ""
    arguments: str = ""
    ended: bool = False
    broken: str = ""


class Finished(msgspec.Struct, tag="finished", omit_defaults=True):
    """Answer `index` of request `id` is complete.

    `stop` is the stop string that ended it. `ids` are the tokens of prompt and answer as they were computed, and the
    token that ended the answer. `drafted` tokens were computed before they were drawn, and `accepted` of them were
    drawn then. Times do not count the queue.
    """

    id: int
    reason: FinishReason
    prompt_tokens: int
    answer_tokens: int
    cached: int = 0
    prompt_ns: int = 0
    answer_ns: int = 0
    index: int = 0
    stop: str = ""
    ids: list[int] = []
    drafted: int = 0
    accepted: int = 0


class Failed(msgspec.Struct, tag="failed"):
    """Request `id`, or the load where `id` is 0, ended in an error; `code` is the code of a class in `errors.py`.

    `field` is the field of the request's body that is at fault, "" where none is.
    """

    id: int
    code: str
    message: str
    hint: str = ""
    field: str = ""

    @classmethod
    def of(cls, request: int, error: EngineError) -> Self:
        """The frame about an error."""
        return cls(request, error.code, str(error), error.hint, error.field)


class Vectors(msgspec.Struct, tag="vectors"):
    """One vector per input, float32 little-endian and L2-normalised, or one score per document; and the tokens read."""

    id: int
    vectors: list[bytes]
    tokens: int


class Tokens(msgspec.Struct, tag="tokens", omit_defaults=True):
    """The result of `Tokenize`: token ids, the bytes of each where they are wanted, and the text of a request's prompt.

    A control token has its name for bytes.
    """

    id: int
    ids: list[int]
    pieces: list[bytes] = []
    text: str = ""


class Drafts(msgspec.Struct, frozen=True):
    """Drafted tokens since the model was loaded, and accepted ones.

    `reason` says why there are none, or how they pay; "" before anything is known.
    """

    drafted: int = 0
    accepted: int = 0
    reason: str = ""


class Beat(msgspec.Struct, tag="beat"):
    """Once a second: the loop's step counter and whether it has work, so that a hung loop is seen.

    `spilled` bytes are copies of sequences and a second context, which the prediction of a model's memory leaves out.
    `obstacle` says why long prompts are not read beside answers; "" where they are. `adapters` are those in memory.
    """

    step: int
    busy: bool
    spilled: int = 0
    obstacle: str = ""
    drafts: Drafts = Drafts()
    adapters: list[str] = []


FromWorker = Ready | Started | Delta | CallDelta | Finished | Failed | Vectors | Tokens | Beat
