"""From the pieces of an answer to the frames that tell the daemon of them."""

from __future__ import annotations

from runtime import messages as m
from runtime.answers.pieces import AnswerText, Arguments, CallBegun, CallBroken, CallEnded, Piece, Thought


def frame_of(piece: Piece, delta: m.Delta) -> m.Delta | m.CallDelta:
    """The frame of a piece: `delta` with its text, or of a call one with the same request and answer.

    `delta` has what has not been reported yet: its tokens and probabilities go with text alone.
    """
    match piece:
        case AnswerText():
            delta.text = piece.text
            return delta
        case Thought():
            delta.text, delta.kind = piece.text, "thinking"
            return delta
        case CallBegun():
            return m.CallDelta(delta.id, piece.call, delta.index, name=piece.name, call_id=piece.id)
        case Arguments():
            return m.CallDelta(delta.id, piece.call, delta.index, arguments=piece.text)
        case CallEnded():
            return m.CallDelta(delta.id, piece.call, delta.index, ended=True)
        case CallBroken():
            return m.CallDelta(delta.id, piece.call, delta.index, broken=piece.source)
