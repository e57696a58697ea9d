"""Goes on with an answer: its next token, drawn or forced by a grammar, the text of it, and whether the answer ends.

Called by the engine's thread alone. Frames go where the loop's go; a result that is a reason is for the loop to act on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from runtime import messages as m
from runtime.engine.session import Session
from runtime.llama.context import Context
from runtime.llama.sampling import Sampler
from runtime.llama.vocabulary import Vocabulary


class Answering:
    """The answers of one model."""

    def __init__(self, vocabulary: Vocabulary, context: Context, send: Callable[[Any], None]) -> None:
        self._vocabulary = vocabulary
        self._context = context
        self._send = send

    def begin(self, session: Session) -> m.FinishReason | None:
        """Prepare an answer that has left the queue for the first time. The result is as of `go_on`."""
        cached = len(session.seq.tokens) if session.seq else 0
        session.sampler = Sampler(self._vocabulary, session.request.sampling, session.index, self._context.tokens)
        session.sampler.read(session.tokens)
        session.cached = cached
        session.admitted_ns = time.monotonic_ns()
        if session.index == 0:
            self._send(m.Started(session.id, session.prompt_tokens, cached, session.truncated))
        if session.prompt_rows:
            from runtime.llama.logprobs import first_logprob  # NumPy: a worker starts faster without

            self._send(session.report([first_logprob(self._vocabulary, session.tokens[0])]))
        elif session.request.echo:
            text = b"".join(map(self._vocabulary.piece, session.tokens)).decode(errors="replace")
            self._send(m.Delta(session.id, text, 0, session.index, kind="prompt"))
        if session.grammar is None or session.left <= 0:
            return None
        from runtime.llama.masking import MaskedSampler  # NumPy: a worker starts faster without

        session.masked = MaskedSampler(session.sampler)
        return self._force(session)

    def go_on(self, session: Session, row: int) -> m.FinishReason | None:
        """Append the token that the logits of `row` give, and the tokens that must follow.

        The result is why the answer ends, None where it goes on. Raises EngineError.
        """
        if session.left <= 0:
            return "length"
        token = self._next(session, row)
        if self._vocabulary.ends(token):
            session.end = token
            return "stop"
        return self._show(session, token, row) or self._force(session)

    def report(self, session: Session, start: int, size: int, row: int) -> None:
        """Send the tokens of a prompt whose probabilities are known now: its rows from `start` begin at `row`."""
        told = range(max(start + 1, session.reported), min(start + size + 1, session.prompt_tokens))
        rows = [self._logprob(session, session.tokens[at], row + at - start - 1) for at in told]
        if rows:
            self._send(session.report(rows))

    def _logprob(self, session: Session, token: int, row: int) -> m.TokenLogprob:
        """The probability of a token by the logits of `row`, with the alternatives that the request asks for."""
        from runtime.llama.logprobs import token_logprob  # NumPy: a worker starts faster without

        return token_logprob(self._vocabulary, self._context.logits(row), token, session.request.logprobs)

    def _next(self, session: Session, row: int) -> int:
        """The answer's next token."""
        assert session.sampler
        if not session.first_ns:
            session.first_ns = time.monotonic_ns()
        if session.forced:
            return session.forced.popleft()
        context = self._context
        if session.grammar and session.masked:
            return session.masked.draw(context.handle, row, context.logits(row), session.grammar)
        return session.sampler.sample(context.handle, row)

    def _force(self, session: Session) -> m.FinishReason | None:
        """Append the tokens that the grammar forces, if there is one. The result is as of `go_on`.

        Their logits are not computed. So where probabilities are reported they wait, one for each step.
        """
        if session.grammar is None or session.forced:
            return None
        assert session.sampler
        session.forced.extend(session.grammar.forced())
        for token in session.forced:
            session.sampler.accept(token)
        while session.forced and session.request.logprobs < 0:
            if reason := self._show(session, session.forced.popleft()):
                return reason
        return "stop" if session.written else None

    def _show(self, session: Session, token: int, row: int | None = None) -> m.FinishReason | None:
        """Append a token to the answer, and send the text that is complete. The result is as of `go_on`.

        `row` is where its logits are, None for a token that the grammar forced.
        """
        logprob = None
        if session.request.logprobs >= 0 and row is not None:
            logprob = self._logprob(session, token, row)
        # The marks between the parts of an answer are control tokens in many models.
        piece = self._vocabulary.piece(token) if session.parser is None else self._vocabulary.marked_piece(token)
        for frame in session.add(token, piece, logprob):
            self._send(frame)
        if session.assembler.stop or session.written:
            return "stop"
        return "length" if session.left <= 0 else None
