"""The frames from the daemon to a worker."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from quant.notes import MAX_TEMPLATE
from runtime.conversation import Turn
from runtime.defaults import CACHE_TYPE, CONTEXT, GAP, SEQUENCES
from runtime.infilling import Infill
from runtime.options import (
    MAX_ADAPTERS,
    MAX_ANSWERS,
    MAX_GRAMMAR,
    MAX_INPUTS,
    MAX_INT,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    AdapterScale,
    Limits,
    Sampling,
)

Turns = Annotated[list[Turn], Meta(max_length=MAX_MESSAGES)]


class CacheConfig(msgspec.Struct, frozen=True):
    """The KV cache that a model is loaded with, or judged by: part of every frame that speaks of a model in memory.

    `context` counts the tokens that the cache holds, `sequences` how many texts may share it at once, `kv_type` (one of
    `CACHE_TYPES` in `runtime/defaults.py`) is the type of keys and values. With `automatic` nobody asked for this
    context, and a model that answers better with less of it gets less (`ModelSize.cap_context`).
    """

    context: int = CONTEXT
    sequences: int = SEQUENCES
    kv_type: str = CACHE_TYPE
    automatic: bool = False

    @classmethod
    def wanted(cls, context: int | None, sequences: int, kv_type: str = CACHE_TYPE) -> Self:
        """A cache of the context that somebody asked for, or of the usual one."""
        return cls(context or CONTEXT, sequences, kv_type, automatic=context is None)


def texts_of(prompt: str | list[int | str]) -> list[str]:
    """The texts of a prompt: all of it, or those between its token ids."""
    return [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]


class Load(msgspec.Struct, tag="load"):
    """The first frame: the file of the model to hold, and the KV cache to make for it.

    `gap` is how many times as long as usual a step may take while prompts are read (`runtime/engine/pace.py`). `queue`
    requests may wait. `spill` is the bytes of memory beside the KV cache that copies of conversations, and a prompt
    that is read beside answers, may take; -1 is half of the cache's size. `short_context` is the number of that name in
    `runtime/machine/fit.py`. With `speculation` answers have drafts (`runtime/engine/speculation.py`). The model of
    the path and name `draft` guesses them too, or the model's own `heads` do; `missing` says why heads that it has are
    left out. A model with a state keeps as many states as `rollback` says, to go back behind drafts. With `sandbox` the
    process gives up whatever it does not need (`runtime/confinement.py`). `engine` is `llama`, or `fake` with a
    `script`.
    """

    path: str
    cache_config: CacheConfig
    threads: int
    queue: int
    engine: str = "llama"
    gpu_layers: int = -1
    spill: int = -1
    short_context: int = 0
    gap: float = GAP
    speculation: bool = True
    draft: tuple[str, str] = ("", "")
    heads: bool = False
    rollback: int = 0
    missing: str = ""
    sandbox: bool = True
    script: dict[str, Any] = {}


class Grammar(msgspec.Struct, frozen=True):
    """The form that an answer is held to.

    `text` is a JSON schema, or a grammar in GBNF or in llguidance's dialect of Lark, or a regular expression. For
    `json`, any JSON object, there is none. `calls` are in Lark too, made by the worker from the schemas of tools. The
    request's body had it in `field`.
    """

    kind: Literal["json", "schema", "gbnf", "lark", "regex", "calls"]
    text: Annotated[str, Meta(max_length=MAX_GRAMMAR)] = ""
    field: str = ""


class Adapter(msgspec.Struct, frozen=True, order=True):
    """An adapter as a request wants it: the file `path` of `size` bytes, and the scale of its change.

    `name` is for messages. A path names one content for ever: it is a blob's of the store.
    """

    path: str
    scale: AdapterScale = 1.0
    size: int = 0
    name: str = ""


AdapterSet = tuple[Adapter, ...]
"""The adapters that change an answer, in the order of their paths, none with the scale 0; without any: the model."""


class Submit(msgspec.Struct, tag="submit", omit_defaults=True):
    """One request: `turns`, which the template renders, or `prompt`: a text, or token ids and texts between them.

    With both, the answer to `turns` goes on from the text `prompt`.
    `parse_special` lets text of a raw prompt spell control tokens. With `infill` the prompt is the text before a hole.
    `earlier` are the tokens of a conversation that `turns` continue. `truncate` drops the oldest turns, the oldest of
    `earlier`, or the head of a raw prompt, when the prompt does not fit. `shift` lets the context slide when an answer
    reaches its end. `count` answers are drawn from one prompt. `logprobs` is the number of alternatives reported, -1
    for none at all. `echo` puts the prompt's text before each answer, with the probabilities of its tokens where
    `logprobs` asks for any. With `give_ids` each text comes with its tokens, and the last frame has the tokens of
    prompt and answer. `grammar` is what each answer is held to, after its thinking. The model may call `tools`, each
    described as in OpenAI's API; with `forced` it has to call one of these names. Calls keep the schemas of tools that
    are forced or `strict`. With `single` an answer ends after its first call. The template gets `variables`, and others
    that switch thinking on, off, or to an effort, as `think` says. Thinking ends after `think_tokens`, -1 for no limit.
    The weights are changed by `adapters`. With `template`, one in Go's language, turns are rendered by that.
    A draft has at most `drafts` tokens, none where that is 0; -1 leaves it to the engine. The answer is expected to
    resemble `prediction`.
    """

    id: int
    turns: Turns | None = None
    prompt: str | list[int | str] | None = None
    parse_special: bool = False
    infill: Infill | None = None
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    limits: Limits = msgspec.field(default_factory=Limits)
    truncate: bool = False
    shift: bool = False
    count: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] = 1
    logprobs: Annotated[int, Meta(ge=-1, le=MAX_LOGPROBS)] = -1
    echo: bool = False
    earlier: list[int] = []
    give_ids: bool = False
    grammar: Grammar | None = None
    tools: list[dict[str, Any]] = []
    forced: list[str] = []
    single: bool = False
    think: bool | str | None = None
    think_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT)] = -1
    variables: dict[str, Any] = {}
    template: Annotated[str, Meta(max_length=MAX_TEMPLATE)] = ""
    drafts: Annotated[int, Meta(ge=-1, le=MAX_INT)] = -1
    prediction: str = ""
    adapters: Annotated[list[Adapter], Meta(max_length=MAX_ADAPTERS)] = []

    @property
    def adapter_set(self) -> AdapterSet:
        """The adapters that have an effect; the scales of one that is named twice are added up."""
        merged: dict[str, Adapter] = {}
        for each in self.adapters:
            before = merged.get(each.path)
            merged[each.path] = msgspec.structs.replace(each, scale=each.scale + (before.scale if before else 0.0))
        return tuple(sorted(each for each in merged.values() if each.scale))

    @property
    def compiles(self) -> bool:
        """Whether its answers, or their calls, are held to a grammar, which has to be compiled."""
        return bool(self.grammar or self.forced or self.strict)

    @property
    def strict(self) -> bool:
        """Whether calls of one of its tools have to keep the tool's schema."""
        return any(tool["function"].get("strict") is True for tool in self.tools)

    @property
    def letters(self) -> int:
        """The length of all texts, in letters; ids of tokens are not counted."""
        said = sum(len(part.text) for turn in self.turns or [] for part in turn.parts)
        return said + sum(len(part) for part in texts_of(self.prompt or ""))


class Embed(msgspec.Struct, tag="embed"):
    """Make one vector for each text, or list of token ids; `truncate` cuts long inputs instead of refusing them."""

    id: int
    inputs: Annotated[list[str | list[int]], Meta(max_length=MAX_INPUTS)]
    truncate: bool = True


class Rank(msgspec.Struct, tag="rank"):
    """Score how well each document answers the query; the result is `Vectors` of length 1. Long documents are cut."""

    id: int
    query: str
    documents: list[str]


class Tokenize(msgspec.Struct, tag="tokenize", omit_defaults=True):
    """Find the token ids of a text, or of token ids with texts between them; or of the prompt of a request.

    `special` parses control tokens in the texts. `add` puts the tokens that the model puts before and after a text.
    With `pieces` each token comes with its bytes.
    """

    id: int
    text: str | list[int | str] = ""
    special: bool = False
    add: bool = False
    pieces: bool = False
    submit: Submit | None = None


class Cancel(msgspec.Struct, tag="cancel"):
    """Stop request `id`; each of its answers ends with a `Finished` whose reason is `cancelled`."""

    id: int


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Exit at once; running answers are lost."""


ToWorker = Load | Submit | Embed | Rank | Tokenize | Cancel | Shutdown
