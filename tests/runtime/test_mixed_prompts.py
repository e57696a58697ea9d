"""Token ids and texts in one prompt, the tokens of an answer as they come, the prompt of a request: by the demo."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.conversation import Turn
from runtime.options import Limits, Sampling
from tests.runtime.working import Answer, load_frame, working


@pytest.fixture(scope="module")
def ask(demo: Path) -> Iterator[Callable[[Any], Answer]]:
    """Ask one worker many things, one at a time."""
    with asyncio.Runner() as runner:
        context = working(load_frame(demo))
        worker = runner.run(context.__aenter__())
        yield lambda request: runner.run(worker.ask(request))
        runner.run(context.__aexit__(None, None, None))


def submit(prompt: Any, **more: Any) -> m.Submit:
    return m.Submit(
        0, prompt=prompt, give_ids=True, sampling=Sampling(temperature=0), limits=Limits(max_tokens=6), **more
    )


def spelled(ask: Callable[[Any], Answer], text: Any, **more: Any) -> m.Tokens:
    end = ask(m.Tokenize(0, text=text, **more)).end
    assert isinstance(end, m.Tokens), end
    return end


def ids_of(answer: Answer) -> list[int]:
    assert isinstance(answer.end, m.Finished), answer.end
    return answer.end.ids


def test_ids_and_texts_in_one_prompt_are_the_whole_text(ask: Callable[[Any], Answer]) -> None:
    once, upon = spelled(ask, "Once upon").ids, spelled(ask, " a time").ids
    whole = ask(submit("Once upon a time"))
    for prompt in ([*once, *upon], ["Once upon", *upon], [*once, " a time"], ["Once upon", " a time"]):
        answer = ask(submit(prompt))
        assert (answer.text, ids_of(answer)) == (whole.text, ids_of(whole))
    failed = ask(submit(["a", 10**6])).end
    assert isinstance(failed, m.Failed)
    assert failed.code == "bad_request"


def test_each_text_comes_with_its_tokens(ask: Callable[[Any], Answer]) -> None:
    answer = ask(submit("Once upon a time"))
    assert isinstance(answer.end, m.Finished)
    told = [id for delta in answer.deltas for id in delta.ids]
    assert told == answer.end.ids[answer.end.prompt_tokens :][: answer.end.answer_tokens]
    assert b"".join(spelled(ask, told, pieces=True).pieces).decode() == answer.text
    plain = ask(m.Submit(0, prompt="Once", limits=Limits(max_tokens=3)))
    assert not any(delta.ids for delta in plain.deltas)


def test_pieces_join_to_the_text_and_control_tokens_have_names(ask: Callable[[Any], Answer]) -> None:
    text = "Wörld 🤗\n<|im_end|>"
    plain, special = spelled(ask, text, pieces=True), spelled(ask, text, special=True, pieces=True)
    assert b"".join(plain.pieces).decode() == b"".join(special.pieces).decode() == text
    assert len(special.ids) < len(plain.ids), "one token for <|im_end|>"
    for text in ("", []):
        assert spelled(ask, text).ids == []
        assert spelled(ask, text, add=True, pieces=True).pieces == []  # the demo model puts nothing around a text


def test_a_long_text_is_tokenized_beside_other_requests(ask: Callable[[Any], Answer]) -> None:
    text = "Once upon a time. " * 20_000
    told = spelled(ask, text, pieces=True)
    assert b"".join(told.pieces).decode() == text
    failed = ask(m.Tokenize(0, text=[text, 10**6])).end
    assert isinstance(failed, m.Failed)


def test_the_prompt_of_a_chat_is_told_as_it_would_be_read(ask: Callable[[Any], Answer]) -> None:
    turns = [Turn.of("system", "Be brief."), Turn.of("user", "Hi")]
    told = ask(m.Tokenize(0, submit=m.Submit(0, turns=turns))).end
    assert isinstance(told, m.Tokens)
    assert told.text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    answer = ask(m.Submit(0, turns=turns, give_ids=True, limits=Limits(max_tokens=1)))
    assert isinstance(answer.end, m.Finished)
    assert answer.end.ids[: answer.end.prompt_tokens] == told.ids
    raw = ask(m.Tokenize(0, submit=m.Submit(0, prompt="Hi"))).end
    assert isinstance(raw, m.Tokens)
    assert raw.text == "Hi"
