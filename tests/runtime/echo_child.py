"""A child for `test_child.py`: answers frames, or misbehaves as its argument says."""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from runtime.child import Parent


class Say(msgspec.Struct, tag="say"):
    text: str


class Answer(msgspec.Struct, tag="answer"):
    text: str
    nice: int
    args: list[str]


def main() -> None:
    parent = Parent.connect(sys.argv[1:], Say)
    if parent.args[:1] == ["sleep"]:
        parent.send(Answer("asleep", os.nice(0), parent.args))
        parent.listen(lambda frame: None)
        signal.pause()
    if parent.args[:1] == ["nonsense"]:
        os.write(int(sys.argv[1]), b"\xff\xff\xff\xff rubbish")  # the connection's descriptor
        signal.pause()
    if parent.args[:1] == ["exit"]:
        os._exit(3)
    while (frame := parent.receive()) is not None:
        print("to the log:", frame.text[:20])
        parent.send(Answer(frame.text, os.nice(0), parent.args))


if __name__ == "__main__":
    main()
