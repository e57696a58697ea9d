"""Prompts as token ids: one BOS token in front, earlier tokens before a question, and nothing of the question cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import messages as m
from runtime.conversation import Turn
from runtime.engine.prompt import Prompter
from runtime.errors import BadRequest, PromptTooLong
from runtime.llama.model import LlamaModel
from tests import templates
from tests.runtime.test_tokenizer import phi_3
from tests.runtime.tiny import load

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
BOS = 1


@pytest.fixture(scope="module", params=["", "{{ bos_token }}", "{% set a = 1 %} {{ bos_token }}"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """A model with a BOS token that its template leaves out, writes, or writes after a blank."""
    config = {"chat_template": request.param + CHAT, "bos_token": "<s>", "add_bos_token": True}
    return load(phi_3(), tmp_path_factory.mktemp("model") / "m.gguf", tokenizer_config=config)


def asked(text: str, **more: object) -> m.Submit:
    return m.Submit(0, turns=[Turn.of("system", "Be brief."), Turn.of("user", text)], **more)  # type: ignore[arg-type]


def test_there_is_one_bos_token(model: LlamaModel) -> None:
    ids = Prompter(model, 512).prompt(asked("Hi")).ids.tolist()
    assert ids.count(BOS) == 1
    further = Prompter(model, 512).prompt(asked("And?", earlier=[*ids, 40, 41])).ids.tolist()
    assert further.count(BOS) == 1
    assert further[: len(ids) + 2] == [*ids, 40, 41]


def test_the_oldest_of_an_earlier_conversation_go_first_and_the_question_stays(model: LlamaModel) -> None:
    question = Prompter(model, 512).prompt(asked("And what then?")).ids.tolist()
    prompt = Prompter(model, 256).prompt(asked("And what then?", earlier=[BOS, *range(40, 340)], truncate=True))
    tail = question[question.index(BOS) + 1 :]
    assert prompt.ids.tolist()[-len(tail) - 1 :] == [339, *tail]
    assert prompt.ids.tolist().count(BOS) == 1
    assert prompt.dropped > 40
    assert len(prompt.ids) < 256
    with pytest.raises(PromptTooLong):
        Prompter(model, 256).prompt(asked("And what then?", earlier=[BOS, *range(40, 340)]))
    with pytest.raises(BadRequest, match="token 99999") as caught:
        Prompter(model, 256).prompt(asked("x", earlier=[99999]))
    assert "of this model" in caught.value.hint


def test_a_question_that_is_too_long_is_refused_whole(model: LlamaModel) -> None:
    with pytest.raises(PromptTooLong, match="holds 256") as caught:
        Prompter(model, 256).prompt(asked("a b " * 300, truncate=True))
    assert "up to 4,096 tokens" in caught.value.hint
    with pytest.raises(PromptTooLong) as caught:
        Prompter(model, 4096).prompt(asked("a b " * 5000, truncate=True))
    assert "no more than 4,096 tokens" in caught.value.hint
    assert "larger" not in caught.value.hint


def test_an_answer_goes_on_from_its_beginning(model: LlamaModel) -> None:
    prompter = Prompter(model, 512)
    whole, begun = prompter.prompt(asked("Hi")), prompter.prompt(asked("Hi", prompt="<s>It is ("))
    assert begun.ids.tolist()[: len(whole.ids)] == whole.ids.tolist()
    assert begun.ids.tolist().count(BOS) == 1  # the beginning spells no control token
    assert begun.form is None and len(begun.ids) > len(whole.ids)
    assert prompter.preview(asked("Hi", prompt="It is ("), 512)[1].endswith("<|assistant|>It is (")


def test_the_beginning_of_an_answer_stands_behind_its_thinking(tmp_path: Path) -> None:
    model = load(phi_3(), tmp_path / "m.gguf", tokenizer_config={"chat_template": templates.OPEN})
    prompter = Prompter(model, 512)
    _, text = prompter.preview(asked("Hi", prompt="It is"), 512)
    assert text.endswith("<think>\n</think>\n\nIt is")
    form = prompter.prompt(asked("Hi", prompt="It is")).form
    assert form is not None and form.thinking is None and not form.opened
