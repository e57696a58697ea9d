"""Answers told apart into text, thinking and calls, in the forms of real templates, whole and letter by letter."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime.answers.learning import Learned, learn
from runtime.answers.parser import AnswerForm, AnswerParser
from runtime.answers.pieces import AnswerText, Arguments, CallBegun, CallBroken, CallEnded, Piece, Thought
from runtime.answers.probing import common
from runtime.conversation import Text, ToolCall, Turn
from runtime.text.sandbox import environment
from runtime.text.talk import messages_of, tool_variables
from runtime.text.template import ChatTemplate

# The folder `vendor/llama.cpp` of llama-cpp-python's source package.
FOLDER = Path(os.environ.get("LLAMA_CPP", "none")) / "models" / "templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
# Templates without calls, and the reasons.
WITHOUT = {
    "HuggingFaceTB-SmolLM3-3B": "takes no tools",
    "google-gemma-2-2b-it": "takes no tools",
    "llama-cpp-rwkv-world": "takes no tools",
    "microsoft-Phi-3.5-mini-instruct": "takes no tools",
}
# Templates that leave out the calls of earlier answers, so that there is nothing to render.
LEFT_OUT = ("LFM2-8B-A1B", "LFM2.5-Instruct", "ibm-granite-granite-3.3-2B-Instruct")
USER = "Qprobe"
DESCRIBED = {"description": "d"}
SCHEMAS: dict[str, Any] = {
    "get_weather": {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {"type": "string"}},
    "add": {
        "a": {"type": "number"},
        "b": {"type": "array", "items": {"type": "string"}},
        "c": {"type": "object", "additionalProperties": {"type": "string"}},
        "flag": {"type": "boolean"},
    },
    "now": {},
}
PARAMETERS = {
    name: {
        "type": "object",
        "properties": {key: schema | DESCRIBED for key, schema in schemas.items()},
        "additionalProperties": False,
        "required": [],
    }
    for name, schemas in SCHEMAS.items()
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "does it ", "parameters": schema}}
    for name, schema in PARAMETERS.items()
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": "Paris <x> é", "days": 3, "note": "12"}),
    ("add", {"a": 1.5, "b": ["x", "y"], "c": {"k": {"w": [1, 2]}}, "flag": True}),
    ("now", {}),
]


class Told(NamedTuple):
    """What the pieces of one answer add up to."""

    text: str
    thought: str
    calls: list[tuple[str, Any]]
    # All of it in its order; and as it was written, but for calls that are complete.
    source: str
    whole: str


def told(pieces: Iterable[Piece]) -> Told:
    text = thought = source = whole = ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    calls = []
    for piece in pieces:
        source += str(getattr(piece, "text", getattr(piece, "source", "")))
        match piece:
            case AnswerText():
                text += piece.text
                whole += piece.text
            case Thought():
                thought += piece.text
            case CallBegun():
                names[piece.call], arguments[piece.call] = piece.name, ""
            case Arguments():
                arguments[piece.call] += piece.text
            case CallEnded():
                calls.append((names[piece.call], json.loads(arguments[piece.call])))
            case CallBroken():
                del names[piece.call]
                whole += piece.source
    return Told(text, thought, calls, source, whole)


def parsed(form: AnswerForm, texts: Iterable[str]) -> Told:
    parser = AnswerParser(form, PARAMETERS)
    pieces = [piece for text in texts for piece in parser.feed(text)]
    return told(pieces + parser.finish())


def renderer(source: str) -> Callable[..., str | None]:
    template = environment().from_string(source)
    variables = {"bos_token": "<BOS>", "eos_token": "<EOS>", "documents": None, "datetime": "today"}

    def render(messages: list[dict[str, Any]], *, tools: Any = None, answering: bool = False) -> str | None:
        try:
            return template.render(
                messages=messages,
                tools=tools,
                functions=json.dumps(tools),
                add_generation_prompt=answering,
                **variables,
            )
        except Exception:  # a template may raise anything
            return None

    return render


@cache
def template(name: str) -> tuple[Callable[..., str | None], Learned]:
    source = (FOLDER / f"{name}.jinja").read_text()
    return renderer(source), learn(renderer(source), source)


def answer(name: str, calls: int, thought: str, content: str) -> tuple[AnswerForm, str]:
    """What a model writes for this answer: the rendered turn after the prompt; and the form, opened by the prompt."""
    render, learned = template(name)
    given = [json.dumps(arguments) if learned.as_text else arguments for _, arguments in CALLS]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    message["tool_calls"] = [
        {"type": "function", "id": f"call0000{index}", "function": {"name": CALLS[index][0], "arguments": given[index]}}
        for index in range(calls)
    ]
    if thought:
        message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), thought)
    user = {"role": "user", "content": USER}
    whole = render([user, message], tools=TOOLS)
    if whole is None or CALLS[0][0] not in whole.rpartition(USER)[2]:
        whole = render([user, message | {"content": None}], tools=TOOLS)
    prompt = render([user], tools=TOOLS, answering=True)
    assert whole is not None
    assert prompt is not None
    whole, prompt = whole.rpartition(USER)[2], prompt.rpartition(USER)[2]
    start = common(whole, prompt)
    opener = whole.rfind("<", 0, start)
    start = opener if opener >= 0 and ">" not in whole[opener:start] else start
    mark = learned.form.thinking.open if learned.form.thinking else ""
    thinks = bool(thought) and thought in whole and prompt.rstrip().endswith(mark)
    opened = bool(mark) and (whole[:start].rstrip().endswith(mark) or thinks)
    return replace(learned.form, opened=opened), whole[start:]


needs_templates = pytest.mark.skipif(not TEMPLATES, reason="LLAMA_CPP does not name llama.cpp's source")


@needs_templates
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_of_every_template_come_back(name: str) -> None:
    """One call, and as many as the template takes, with and without thinking; whole, and letter by letter."""
    _, learned = template(name)
    if name in WITHOUT:
        assert not learned.form.calls
        return
    assert learned.form.calls, "no form was found"
    if name in LEFT_OUT:
        return
    # This template closes the section after its second call, and goes on with a third.
    most = 2 if name == "deepseek-ai-DeepSeek-R1-Distill-Llama-8B" else 3
    for count in range(1, (most if learned.parallel else 1) + 1):
        for thought in ("", "Deep thought."):
            form, text = answer(name, count, thought, "")
            found = parsed(form, [text])
            assert found.calls == CALLS[:count]
            assert parsed(form, list(text)) == found
            if thought and learned.form.thinking and thought in text:
                assert found.thought == thought


@needs_templates
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in (*WITHOUT, *LEFT_OUT)])
def test_no_mutation_loses_text_or_raises(name: str) -> None:
    """Letters left out, doubled, changed, and pieces moved: without a call in it, the text is there to the letter."""
    form, text = answer(name, 1, "", "")
    form = replace(form, opened=False)
    random_ = random.Random(name)
    for _ in range(int(os.environ.get("LM_MUTATIONS", "40"))):
        changed = f"{mutated(text, random_)}\nwords after"
        found = parsed(form, cut(changed, random_))
        assert "words after" in found.source, changed
        if not (found.calls or found.thought):
            kept = unmarked(form, changed)
            rest = unmarked(form, found.whole)
            # Blanks beside marks go with them.
            assert rest == kept if kept == changed.strip() else "".join(rest.split()) == "".join(kept.split())


@needs_templates
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in (*WITHOUT, *LEFT_OUT)])
def test_text_before_between_and_after_calls_stays(name: str) -> None:
    """The answer is cut in two at every letter."""
    form, text = answer(name, 1, "", "")
    form, calls = replace(form, opened=False), CALLS[:1]
    lines = ["Let me see.", text, "Once more.", text, "That is it."]
    if form.calls[0].bare:  # such a call counts at the beginning alone
        lines = lines[1:2] + lines[-1:]
    whole = "\n".join(lines)
    found = parsed(form, [whole])
    assert found.calls == calls * lines.count(text)
    assert [line for line in lines if line != text and line not in found.text] == []
    for at in range(len(whole)):
        assert parsed(form, [whole[:at], whole[at:]]) == found


def unmarked(form: AnswerForm, text: str) -> str:
    """The text without marks that belong to no part of an answer."""
    marks = {mark.strip() for mark in (*form.noise, *(form.content or ()), *(form.thinking or ()))} - {""}
    for mark in sorted(marks, key=len, reverse=True):
        text = text.replace(mark, "")
    return text.strip()


def mutated(text: str, random_: random.Random) -> str:
    letters = list(text)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(letters)) if letters else 0
        kind = random_.randrange(4)
        if kind == 0:
            del letters[at : at + random_.randint(1, 8)]
        elif kind == 1:
            letters[at:at] = letters[at : at + random_.randint(1, 8)]
        elif kind == 2:
            letters[at : at + 1] = random_.choice(['"', "{", "}", "<", ">", "[", "]", "\\", "é", "\x00", ",", ":"])
        else:
            letters = letters[at:] + letters[:at]
    return "".join(letters)


def cut(text: str, random_: random.Random) -> list[str]:
    """The text in pieces of random lengths."""
    places = sorted(random_.sample(range(len(text) + 1), min(len(text), 10)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@needs_templates
@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in WITHOUT])
def test_a_conversation_with_calls_is_rendered_as_transformers_renders_it(name: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = (FOLDER / f"{name}.jinja").read_text()
    ours = ChatTemplate(source, bos="<BOS>", eos="<EOS>")
    _, learned = template(name)
    count = 2 if learned.parallel else 1
    calls = list(enumerate(CALLS[:count]))
    turns = [
        Turn.of("user", "Weather, and a sum?"),
        Turn("assistant", [], [ToolCall(call, json.dumps(given), f"call0000{i}") for i, (call, given) in calls]),
        *(Turn("tool", [Text(f"result {i}")], call_id=f"call0000{i}") for i in range(count)),
    ]
    messages = messages_of(turns, learned)
    variables = {**tool_variables(TOOLS), "bos_token": "<BOS>", "eos_token": "<EOS>", "datetime": "today"}
    expected = None
    for content in ("", None):
        messages[1]["content"] = content
        try:
            expected = _compile_jinja_template(source).render(
                messages=messages, add_generation_prompt=True, **variables
            )
            break
        except Exception as error:
            reason = error
    if expected is None:
        pytest.skip(f"transformers cannot render it: {reason}")
    messages[1]["content"] = ""
    prompt = ours.render(messages, variables)
    assert "".join(part.text for part in prompt) == expected
