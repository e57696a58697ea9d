"""Eight families' chat formats: as published, as transformers renders them, and what each of them refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from runtime.errors import BadRequest
from runtime.text.template import ChatTemplate
from tests.runtime.formats import FORMATS

Messages = list[dict[str, Any]]


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, HI, HELLO, WHY = (
    turn(*pair) for pair in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Why?"))
)
TURNS = [SYSTEM, HI, HELLO, WHY]
THOUGHT = turn("assistant", "<think>\nhm, {{ 7 }}\n</think>\n\n  So be it. ")
ODD = turn("user", "  {% raw %} é\n\n<b>\t日本 \u200d {{ bos_token }}  \n")
TALKS: dict[str, Messages] = {
    "one": [HI],
    "system": [SYSTEM, HI],
    "several": TURNS,
    "thoughts": [HI, THOUGHT, WHY],
    "odd": [turn("system", " {{ x }} \n"), ODD, HELLO, ODD],
    "long": [HI, HELLO] * 20 + [WHY],
    "two users": [HI, WHY],
    "answer first": [HELLO, HI],
    "a stranger": [HI, turn("narrator", "Night falls."), WHY],
}
# Templates that refuse these roles as they are.
SHAPED = {"two users": {"mistral", "gemma", "command-r"}, "answer first": {"mistral", "gemma", "command-r"}}
# Templates that refuse a role that they do not know, or lose its message.
REFUSING = ("llama-3", "qwen-3", "mistral", "gpt-oss", "phi-3", "command-r", "deepseek")


def render(name: str, messages: Messages, **extra: Any) -> str:
    format_ = FORMATS[name]
    template = ChatTemplate(format_.source, bos=format_.bos, eos=format_.eos)
    return "".join(piece.text for piece in template.render(messages, extra))


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_is_as_published(name: str) -> None:
    assert render(name, TURNS) == FORMATS[name].prompt.format(date=datetime.now())


@pytest.mark.parametrize("name", REFUSING)
def test_a_role_that_a_template_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(
        BadRequest, match=r"refuses these messages: .*[Rr]ole|loses message 2, whose role is `narrator`"
    ):
        render(name, TALKS["a stranger"])


@pytest.mark.parametrize(("talk", "name"), [(talk, name) for talk, names in SHAPED.items() for name in sorted(names)])
def test_turns_come_to_a_strict_template_in_a_shape_that_it_takes(talk: str, name: str) -> None:
    prompt = render(name, TALKS[talk])
    places = [prompt.index(message["content"]) for message in TALKS[talk]]
    assert places == sorted(places)


def test_variables_reach_a_template() -> None:
    assert render("qwen-3", [HI], enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert "Reasoning: high" in render("gpt-oss", [HI], reasoning_effort="high")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_is_that_of_transformers(name: str, talk: str) -> None:
    import jinja2
    from transformers.utils import chat_template_utils as utilities

    format_, messages = FORMATS[name], TALKS[talk]
    if name == "gemma" and messages[0]["role"] == "system":  # it refuses the role, and we fold
        first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        expecting = [first, *messages[2:]]
    else:
        expecting = messages
    try:
        (expected,), _ = utilities.render_jinja_template(
            conversations=[expecting],
            chat_template=format_.source,
            add_generation_prompt=True,
            bos_token=format_.bos,
            eos_token=format_.eos,
        )
    except jinja2.TemplateError:
        expected = None
    if expected is None or (talk == "a stranger" and messages[1]["content"] not in expected):
        # Tests above say what becomes of these.
        assert name in (*REFUSING, *SHAPED.get(talk, ()))
    else:
        assert render(name, messages) == expected
