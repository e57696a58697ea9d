"""One answer: its request, its tokens and text so far, and its sequence in the KV cache."""

from __future__ import annotations

import codecs
import time
from array import array
from collections import deque
from typing import TYPE_CHECKING, Literal

from runtime import messages as m
from runtime.answers.enough import Enough
from runtime.answers.parser import AnswerParser
from runtime.answers.pieces import AnswerText, Piece
from runtime.cache.pool import Sequence
from runtime.engine.prompt import Prompt
from runtime.engine.telling import frame_of
from runtime.llama.sampling import Sampler
from runtime.text.stops import Assembler, Stops

if TYPE_CHECKING:  # a worker starts faster without NumPy and llguidance
    from runtime.drafts.drafting import Drafting
    from runtime.llama.masking import MaskedSampler, Rules

# In the queue; reading the prompt, many tokens a step; writing the answer, one token a step.
Phase = Literal["waiting", "prefill", "decode"]


class Session:
    """The state of one answer. `tokens` are the prompt's and the answer's.

    `seq` is the sequence of the KV cache that has the first of them, None while the session waits. `phase` is set by
    `Schedule` alone.
    """

    def __init__(
        self, request: m.Submit, index: int, prompt: Prompt, stops: Stops, grammar: Rules | None = None
    ) -> None:
        """`index` is the number of this answer among those to the same prompt, `grammar` what it is held to."""
        self.id = request.id
        self.index = index
        self.request = request
        self.adapters = request.adapter_set
        self.phase: Phase = "waiting"
        self.tokens = array("i", prompt.ids)
        self.prompt_tokens = len(prompt.ids)
        self.truncated = prompt.dropped
        self.stable = prompt.stable
        self.checkpoints: list[int] = []
        """Positions in the prompt at which a checkpoint is due, the next one first."""
        self.seq: Sequence | None = None
        self.sampler: Sampler | None = None
        self.grammar = grammar
        self.drafting: Drafting | None = None
        self.masked: MaskedSampler | None = None
        """Draws the tokens of an answer that is held to a grammar."""
        self.forced: deque[int] = deque()
        """Tokens that come next without being drawn, where probabilities are reported: each waits for its logits."""
        self.assembler = Assembler(stops)
        self.prompt_rows = request.echo and request.logprobs >= 0
        """Whether the tokens of the prompt are sent with their probabilities."""
        self.reported = 0
        """Tokens of the prompt that were sent with their probabilities."""
        self._prompt_text = codecs.getincrementaldecoder("utf-8")("replace")
        self.parser = AnswerParser(prompt.form, prompt.schemas) if prompt.form else None
        self._enough = Enough(single=request.single)
        self.answer_tokens = 0
        """Tokens of the answer so far."""
        self.end: int | None = None
        """The token that ended the answer, if one did."""
        self.cached = 0
        """Tokens of the prompt that were in the KV cache already."""
        limit = request.limits.max_tokens
        self.max_tokens = limit if limit >= 0 else 1 << 30
        seconds = request.limits.seconds
        self.deadline = time.monotonic() + seconds if seconds > 0 else 0.0
        self.admitted_ns = 0
        """When it left the queue for the first time, by the monotonic clock."""
        self.first_ns = 0
        """When the first token of the answer was drawn."""
        self._unsent = 0
        """Tokens that no `Delta` has counted yet: their text is held back."""
        self._logprobs: list[m.TokenLogprob] = []

    @property
    def pending(self) -> int:
        """How many tokens are not in the KV cache yet."""
        return len(self.tokens) - len(self.seq.tokens) if self.seq else len(self.tokens)

    @property
    def until_checkpoint(self) -> int:
        """How many of the pending tokens one step may compute: it must end where a checkpoint is due."""
        if self.checkpoints and self.seq:
            return min(self.pending, self.checkpoints[0] - len(self.seq.tokens))
        return self.pending

    @property
    def left(self) -> int:
        """How many tokens the answer may still get."""
        return self.max_tokens - self.answer_tokens

    @property
    def reads_all(self) -> bool:
        """Whether logits of all rows of the prompt are needed, so that none of it may come from the cache."""
        return self.prompt_rows and self.reported < self.prompt_tokens

    def report(self, rows: list[m.TokenLogprob]) -> m.Delta:
        """The next tokens of the prompt, with their probabilities."""
        self.reported += len(rows)
        text = self._prompt_text.decode(b"".join(row.raw for row in rows), final=self.reported == self.prompt_tokens)
        return m.Delta(self.id, text, 0, self.index, rows, kind="prompt")

    @property
    def written(self) -> bool:
        """Whether nothing may follow but the answer's end: by its grammar, or after the calls that it may have."""
        return self._enough.reached or bool(self.grammar and self.grammar.complete and not self.forced)

    def add(self, token: int, piece: bytes, logprob: m.TokenLogprob | None) -> list[m.Delta | m.CallDelta]:
        """Append a token to the answer. `piece` is its bytes; the result is the part of it that can be shown now."""
        self.tokens.append(token)
        if self.drafting:
            self.drafting.feed(token)
        self.answer_tokens += 1
        self._unsent += 1
        if logprob:
            self._logprobs.append(logprob)
        text = self.assembler.push(piece)
        return self._frames([AnswerText(text)] if self.parser is None else self.parser.feed(text)) if text else []

    def rest(self) -> list[m.Delta | m.CallDelta]:
        """At the end of the answer: the text that was held back, and tokens not reported yet."""
        text = self.assembler.finish()
        pieces: list[Piece] = [AnswerText(text)] if text else []
        if self.parser is not None:
            pieces = [*self.parser.feed(text), *self.parser.finish()]
        frames = self._frames(pieces)
        # Calls carry no probabilities, so the last ones come with an empty text.
        if self._unsent and (self._logprobs or not frames):
            frames.append(self._frame(AnswerText("")))
        return frames

    def _frames(self, pieces: list[Piece]) -> list[m.Delta | m.CallDelta]:
        frames: list[m.Delta | m.CallDelta] = []
        for piece in pieces:
            if self._enough.reached:
                break  # it has come with the end of the last call that is wanted
            self._enough.note(piece)
            frames.append(self._frame(piece))
        return frames

    def _frame(self, piece: Piece) -> m.Delta | m.CallDelta:
        ids = self.tokens[len(self.tokens) - self._unsent :].tolist() if self.request.give_ids else []
        frame = frame_of(piece, m.Delta(self.id, "", self._unsent, self.index, self._logprobs, ids=ids))
        if isinstance(frame, m.Delta):
            self._unsent, self._logprobs = 0, []
        return frame

    def finished(self, reason: m.FinishReason) -> m.Finished:
        """The last frame."""
        now = time.monotonic_ns()
        start = self.admitted_ns or now
        first = self.first_ns or now
        return m.Finished(
            self.id,
            reason,
            self.prompt_tokens,
            self.answer_tokens,
            self.cached,
            prompt_ns=first - start,
            answer_ns=now - first,
            index=self.index,
            stop=self.assembler.stop,
            ids=[*self.tokens, *([] if self.end is None else [self.end])] if self.request.give_ids else [],
            drafted=self.drafting.drafted if self.drafting else 0,
            accepted=self.drafting.accepted if self.drafting else 0,
        )
