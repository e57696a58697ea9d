"""Many questions from a file, one on each line, and their answers as lines of JSON in the same order."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from io import FileIO
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from typing import Any, NamedTuple

from cli import console
from cli.answers import Answers, Question
from cli.asking import Asking
from cli.errors import UNREACHABLE, Failure
from runtime.defaults import MAX_BODY

Line = dict[str, Any]

AHEAD = 8  # answers for each that is under way which may wait for an earlier one
BUSY_SECONDS = 1.0
_KEPT = ("response", "thinking", "tool_calls", "done_reason", "prompt_eval_count", "eval_count", "warning")


class Pending(NamedTuple):
    """A question on its way, and its answer to come."""

    future: Future[Line]
    question: Question


class Batch:
    """Answers the lines of an input, `parallel` of them at once; `vectors` are made where the model does not write."""

    def __init__(self, asking: Asking, parallel: int, *, vectors: bool) -> None:
        self._asking = asking
        self._vectors = vectors
        self._parallel = parallel
        self._todo: SimpleQueue[Pending] = SimpleQueue()
        self._ordered: Queue[Pending | BaseException | None] = Queue(AHEAD * parallel)
        self.done = self.failed = 0

    def run(self, found: Iterator[Question], write: Callable[[Line], None]) -> None:
        """Write an answer, or an error, for each question, in their order, as soon as it is there.

        Raises Failure where the daemon is gone, and KeyboardInterrupt; each answer that is there by then is written.
        """
        threads = [threading.Thread(target=self._read, args=(found,), daemon=True)]
        threads += [threading.Thread(target=self._work, daemon=True) for _ in range(self._parallel)]
        for thread in threads:  # no executor, which would wait for running answers at Ctrl-C
            thread.start()
        future: Future[Line] | None = None
        try:
            while job := self._ordered.get():
                if isinstance(job, BaseException):
                    raise job
                future = job.future
                self._count(future.result(), write)
                future = None
        except (KeyboardInterrupt, Failure):
            for each in [future, *self._waiting()]:
                if each and each.done() and not each.exception():
                    self._count(each.result(), write)
            raise

    def _waiting(self) -> Iterator[Future[Line]]:
        with suppress(Empty):
            while True:
                if isinstance(job := self._ordered.get_nowait(), Pending):
                    yield job.future

    def _count(self, row: Line, write: Callable[[Line], None]) -> None:
        write(row)
        self.done += "error" not in row
        self.failed += "error" in row

    def _read(self, found: Iterator[Question]) -> None:
        """Read questions ahead of the answers, in a thread: a pipe may have no further line for long."""
        try:
            for question in found:
                job = Pending(Future(), question)
                self._todo.put(job)
                self._ordered.put(job)
            self._ordered.put(None)
        except BaseException as error:
            self._ordered.put(error)

    def _work(self) -> None:
        while True:
            future, question = self._todo.get()
            try:
                future.set_result(self._answered(question))
            except BaseException as error:
                future.set_exception(error)

    def _answered(self, question: Question) -> Line:
        """The row of a question. Raises Failure where the daemon is gone."""
        row: Line = {"line": question.line, "mark": question.mark}
        try:
            given = _body(question.text)
            if "id" in given:
                row["id"] = given.pop("id")
            return row | self._ask(given)
        except Failure as error:
            if error.code == UNREACHABLE:
                raise
            return row | {"error": str(error), "hint": error.hint, "code": error.code}

    def _ask(self, given: Line) -> Line:
        options = {**self._asking.options, **(given.pop("options", None) or {})}
        body = self._asking.tool_field | self._asking.body(**given, stream=False)
        body |= {"options": options} if options else {}
        if self._vectors:
            body.setdefault("input", body.pop("prompt", ""))
            return {"embedding": self._post("/api/embed", body)["embeddings"][0]}
        system = body.pop("system", None) or self._asking.system
        if not {"messages", "tools"} & set(body):
            answer = self._post("/api/generate", body | ({"system": system} if system else {}))
        else:
            turns = body.pop("messages", None) or [{"role": "user", "content": body.pop("prompt", "")}]
            if system:
                turns = [{"role": "system", "content": system}, *turns]
            answer = self._post("/api/chat", body | {"messages": turns})
            message = answer["message"]
            answer |= {"response": message["content"], **{k: message[k] for k in _KEPT if k in message}}
        return {key: answer[key] for key in _KEPT if key in answer}

    def _post(self, path: str, body: Line) -> Any:
        """An answer; waits while the model's queue is full. Raises Failure."""
        while True:
            try:
                return self._asking.client.ask("POST", path, body)
            except Failure as error:
                if error.code != "queue_full":
                    raise
                time.sleep(BUSY_SECONDS)


def _body(text: bytes) -> Line:
    """The fields of a question: a JSON object with `prompt` or `messages`, or a JSON string. Raises Failure."""
    hint = 'a line is `{"prompt": "…"}`, `{"messages": […]}` or a JSON string'
    if len(text) > MAX_BODY:
        raise Failure(f"the line is larger than {MAX_BODY >> 20} MiB", "no context holds so much text", "bad_body")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"the line is not JSON: {error}", hint, "bad_body") from None
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, dict) or not {"prompt", "messages", "input"} & set(given):
        raise Failure("the line has no prompt", hint, "bad_body")
    if not isinstance(given.get("options") or {}, dict) or not isinstance(given.get("messages") or [], list):
        raise Failure("`options` is an object, and `messages` a list", "correct the line", "bad_body")
    return {key: value for key, value in given.items() if key not in ("stream", "model")}


def questions(file: FileIO) -> Iterator[Question]:
    """The lines of a file that are not empty.

    The file has no buffer of Python's: its lock, held by a thread that waits for a pipe, would stop the process's end.
    """
    number, rest = 0, bytearray()
    while part := file.read(1 << 16):
        rest += part
        if b"\n" in part:
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for text in whole:
                number += 1
                if text.strip():
                    yield Question(number, text)
        del rest[MAX_BODY + 1 :]  # a line that is too long is refused
    if rest.strip():
        yield Question(number + 1, bytes(rest))


def run_batch(asking: Asking, source: str, out: str | None, parallel: int) -> int:
    """Answer the questions of a file, or of stdin for `-`, to stdout or to the file `out`; the exit code."""
    answers = Answers(Path(out)) if out else None
    batch = Batch(asking, parallel, vectors=not asking.writes())
    try:
        file = FileIO(sys.stdin.fileno() if source == "-" else source, closefd=source != "-")
    except OSError as error:
        hint = "it has a JSON object on each line"
        raise Failure(f"`{source}` cannot be read: {error.strerror}", hint, "usage") from None
    found = questions(file)
    try:
        if answers:
            batch.run(answers.left(found), answers.write)
        else:
            batch.run(found, lambda row: console.out(json.dumps(row, ensure_ascii=False)))
    except (KeyboardInterrupt, Failure):
        way = "; the same command goes on with it" if out else "; with `--out FILE` it could be gone on with"
        console.note(f"{batch.done} answers are kept{way}")
        raise
    if answers:
        answers.finish()
    kept = f", {answers.kept} were there" if answers and answers.kept else ""
    console.note(f"{batch.done} answers, {batch.failed} errors{kept}")
    return 1 if batch.failed else 0
