"""Conversations of any shape with templates of every kind: each text reaches the prompt, or the request is refused.

With `LLAMA_CPP` in the environment, the folder of llama.cpp's source, its own templates are asked too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from runtime.errors import BadRequest
from runtime.text.template import ChatTemplate

TALKS = {
    "system": ["system"],
    "assistant": ["assistant"],
    "system, system, user": ["system", "system", "user"],
    "system in the middle": ["system", "user", "assistant", "system", "user"],
    "system at the end": ["user", "assistant", "system"],
    "user, user": ["user", "user"],
    "assistant first": ["system", "assistant", "user"],
    "assistant, assistant": ["user", "assistant", "assistant", "user"],
    "answer begun": ["user", "assistant"],
    "usual": ["system", "user", "assistant", "user"],
}
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles!') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
)
TEMPLATES = {
    "any": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>",
    "the first is asked for": "{{ messages[0].role }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "by turns": ALTERNATING,
    "only the first system message": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('System first') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    ),
    "others are dropped": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    ),
    "the last system message": (
        "{% set ns = namespace(s='') %}{% for m in messages if m.role == 'system' %}{% set ns.s = m.content %}"
        "{% endfor %}{{ ns.s }}{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    ),
    "kept for the first user": (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}"
        "{% elif m.role == 'user' %}<user>{{ ns.s }}{{ m.content }}{% else %}<model>{{ m.content }}{% endif %}"
        "{% endfor %}"
    ),
    "no system message": (
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}<model>"
    ),
    "parts": (
        "{% for m in messages %}{{ m.role | capitalize }}{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    ),
    "parts of the user": (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'user' %}{% for part in m.content %}{{ part['text'] }}"
        "{% endfor %}{% else %}{{ m.content + '' }}{% endif %}\n{% endfor %}"
    ),
    "tools are looked through": "{% for t in tools %}{% endfor %}" + ALTERNATING,
}
OWN = [pytest.param(source, id=name) for name, source in TEMPLATES.items()]
FOLDER = Path(os.environ.get("LLAMA_CPP", "none")) / "models" / "templates"
THEIRS = [pytest.param(path.read_text(), id=path.stem) for path in sorted(FOLDER.glob("*.jinja"))]


@pytest.mark.parametrize("source", OWN + THEIRS)
def test_no_text_is_lost(source: str) -> None:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    for name, roles in TALKS.items():
        texts = [f"say {number}{'abcdefgh'[number]} now" for number in range(len(roles))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        prompt = "".join(part.text for part in template.render(messages))
        assert [text for text in texts if text not in prompt] == [], name
        assert "'type'" not in prompt, name  # a list of parts that the template wrote as Python would


@pytest.mark.parametrize(
    ("template", "talk", "wanted"),
    [
        ("parts", "usual", "System: AUser: BAssistant: CUser: D"),
        ("parts", "user, user", "User: AUser: B"),
        ("parts of the user", "usual", "system: Auser: Bassistant: Cuser: D"),
        ("only the first system message", "system, system, user", "<system>A\n\nB<user>C<assistant>"),
        (
            "only the first system message",
            "system in the middle",
            "<system>A<user>B<assistant>C<user>D\n\nE<assistant>",
        ),
        ("the last system message", "system, system, user", "A\n\nB<user>C"),
        ("the last system message", "system in the middle", "A<user>B<assistant>C<user>D\n\nE"),
        ("no system message", "system, system, user", "<user>A\n\nB\n\nC<model>"),
        ("no system message", "system at the end", "<user>A<assistant>B<user>C<model>"),
        ("by turns", "user, user", "<user>A\n\nB<model>"),
        ("by turns", "assistant first", "<user>A<assistant>B<user>C<model>"),
        ("by turns", "assistant, assistant", "<user>A<assistant>B\n\nC<user>D<model>"),
        ("by turns", "assistant", "<model>A"),
        ("only the first system message", "assistant first", "<system>A<assistant>B<user>C<assistant>"),
    ],
)
def test_a_shape_that_a_template_does_not_take_is_the_nearest_that_it_takes(
    template: str, talk: str, wanted: str
) -> None:
    messages = [{"role": role, "content": text} for role, text in zip(TALKS[talk], "ABCDEFGH", strict=False)]
    prompt = "".join(part.text for part in ChatTemplate(TEMPLATES[template]).render(messages))
    assert prompt == wanted


def test_what_a_template_takes_stays_as_it_is() -> None:
    template = ChatTemplate(TEMPLATES["any"])
    messages = [{"role": role, "content": role[:1]} for role in ("system", "user", "user", "system", "tool", "user")]
    prompt = "".join(part.text for part in template.render(messages))
    assert prompt == "<system>s<user>u<user>u<system>s<tool>t<user>u<assistant>"


def test_a_later_system_message_is_put_before_the_users_next_one() -> None:
    template = ChatTemplate(TEMPLATES["others are dropped"])
    talk = [("system", "A"), ("system", "B"), ("user", "C"), ("assistant", "D"), ("system", "E"), ("user", "F")]
    prompt = "".join(part.text for part in template.render([{"role": role, "content": text} for role, text in talk]))
    assert prompt == "A\n\nB<user>C<assistant>D<user>E\n\nF<assistant>"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (TEMPLATES["no system message"].replace("system", "tool"), "loses message 2, whose role is `tool`"),
        ("{% for m in messages %}{% endfor %}", "loses message 1"),
        (ALTERNATING.replace("'user')", "'user' or m.role == 'tool')"), "refuses these messages: Roles!"),
    ],
)
def test_a_message_without_a_place_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(reason)) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}])
    assert caught.value.hint
