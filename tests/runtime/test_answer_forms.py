"""Forms of answers by small templates of our own, and by texts that models are known to write."""

from __future__ import annotations

import pytest

from runtime.answers.enough import MOST_ALIKE, Enough
from runtime.answers.learning import learn
from runtime.answers.notations import NOTATIONS
from runtime.answers.parser import AnswerForm, AnswerParser
from runtime.answers.pieces import AnswerText, Arguments, CallBegun, CallBroken, CallEnded
from tests.runtime.test_answers import parsed, renderer

ROLE = "{% for m in messages %}<|{{ m.role }}|>\n{% if m.content %}{{ m.content }}{% endif %}"
END = "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}"
TEMPLATES = {
    "an object for each call": EACH + "\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}",
    "a list": "{% if m.tool_calls %}[CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}",
    "a name, an id and an object": EACH
    + "[CALL]{{ c.function.name }}[ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}",
    "tags": "{% if m.tool_calls %}<calls>" + EACH + '\n<call name="{{ c.function.name }}">'
    '{% for k, v in c.function.arguments.items() %}\n<value key="{{ k }}">'
    "{{ v if v is string else v | tojson }}</value>{% endfor %}\n</call>{% endfor %}\n</calls>{% endif %}",
    "numbers": EACH + "<|call|>functions.{{ c.function.name }}:{{ loop.index0 }}<|args|>"
    "{{ c.function.arguments | tojson }}<|done|>{% endfor %}",
    "nothing around": "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}",
}
TEXTS = {
    "an object for each call": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    "a list": '[CALLS][{"name": "add", "arguments": {"a": 1}}]',
    "a name, an id and an object": '[CALL]add[ID]x9[ARGS]{"a": 1}',
    "tags": '<calls>\n<call name="add">\n<value key="a">1</value>\n</call>\n</calls>',
    "numbers": '<|call|>functions.add:0<|args|>{"a": 1}<|done|>',
    "nothing around": '{"name": "add", "arguments": {"a": 1}}',
}


def form(name: str) -> AnswerForm:
    source = ROLE + TEMPLATES[name] + END
    return learn(renderer(source), source).form


def notated(name: str, source: str) -> AnswerForm:
    found = next(each for each in NOTATIONS if each.name == name).form(AnswerForm(), source)
    assert found is not None
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_form_is_learned_from_a_template_that_nobody_has_seen(name: str) -> None:
    for blanks in ("", "\n", "  "):
        found = parsed(form(name), list(blanks + TEXTS[name]))
        assert (found.calls, found.text.strip()) == ([("add", {"a": 1})], "")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "nothing around"])
def test_text_around_calls_stays(name: str) -> None:
    found = parsed(form(name), list(f"Let me see.\n\n{TEXTS[name]}\nThat is it."))
    assert (found.calls, found.text) == ([("add", {"a": 1})], "Let me see.That is it.")


@pytest.mark.parametrize("name", TEMPLATES)
def test_half_a_call_comes_back_as_it_was_written(name: str) -> None:
    # Where the arguments are complete, a model may have ended its turn.
    for length in range(1, TEXTS[name].find("1")):
        text = TEXTS[name][:length]
        found = parsed(form(name), list(text))
        assert found.calls == []
        assert found.source.strip().endswith(text.strip())


def test_a_template_without_calls_has_no_form_of_them() -> None:
    source = ROLE + END
    assert learn(renderer(source), source).form.calls == ()


def test_text_that_looks_like_a_mark_is_text() -> None:
    text = 'Write <tool_call> around {"name": …}, or [CALLS], as in a < b > c.'
    for name in TEMPLATES:
        assert parsed(form(name), list(text)).text == text


def test_arguments_go_out_as_they_come() -> None:
    parser = AnswerParser(form("an object for each call"))
    assert parser.feed("Hm") == [AnswerText("Hm")]
    assert parser.feed('\n<tool_call>\n{"name": "add", "argum') == []
    assert parser.feed('ents": {"text": "a long') == [CallBegun(0, "add"), Arguments(0, '{"text": "a long')]
    assert parser.feed(' one"') == [Arguments(0, ' one"')]
    assert parser.feed("}}") == [Arguments(0, "}")]
    assert parser.feed("\n</tool_call>") == [CallEnded(0)]
    assert parser.finish() == []


def test_a_call_that_breaks_is_told_whole() -> None:
    parser = AnswerParser(form("an object for each call"))
    pieces = parser.feed('<tool_call>{"name": "add", "arguments": {"a": 1}}, and more</tool_call>') + parser.finish()
    assert pieces[:2] == [CallBegun(0, "add"), Arguments(0, '{"a": 1}')]
    assert pieces[2:] == [
        CallBroken(0, '<tool_call>{"name": "add", "arguments": {"a": 1}}'),
        AnswerText(", and more</tool_call>"),
    ]


def test_arguments_that_are_text_are_parsed() -> None:
    text = '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parsed(form("an object for each call"), [text]).calls == [("add", {"a": 1})]


@pytest.mark.parametrize("arguments", ["[1]", "1", '"no JSON"'])
def test_arguments_that_are_no_object_make_no_call(arguments: str) -> None:
    text = f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>'
    found = parsed(form("an object for each call"), list(text))
    assert (found.calls, found.text) == ([], text)


def test_an_answer_that_calls_the_same_over_and_over_has_enough() -> None:
    def calls_until_enough(arguments: list[str], *, single: bool = False) -> int:
        parser, enough = AnswerParser(form("an object for each call")), Enough(single=single)
        for count, each in enumerate(arguments, 1):
            for piece in parser.feed(f'<tool_call>{{"name": "roll", "arguments": {each}}}</tool_call>'):
                enough.note(piece)
            if enough.reached:
                return count
        return 0

    assert calls_until_enough(["{}"] * 100) == MOST_ALIKE
    assert calls_until_enough([f'{{"n": {number}}}' for number in range(100)]) == 0
    assert calls_until_enough(["{}"], single=True) == 1


CHANNELS = "<|channel|>analysis<|message|>"
HARMONY = [
    ('<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>', "", ""),
    (' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', "", ""),
    (
        f"{CHANNELS}Sum it.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1}',
        "Sum it.",
        "",
    ),
    (
        f"{CHANNELS}Sum it.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.add<|message|>{"a": 1}',
        "Sum it.",
        "One moment.",
    ),
]


@pytest.mark.parametrize(("text", "thought", "said"), HARMONY)
def test_channels_of_gpt_oss(text: str, thought: str, said: str) -> None:
    found = parsed(notated("channels of gpt-oss", CHANNELS), list(text))
    assert (found.calls, found.thought, found.text) == ([("add", {"a": 1})], thought, said)


def test_the_final_channel_of_gpt_oss_is_the_answer() -> None:
    text = f"{CHANNELS}Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 2 < 3.<|return|>"
    found = parsed(notated("channels of gpt-oss", CHANNELS), list(text))
    assert (found.thought, found.text, found.calls) == ("Easy.", "It is 2 < 3.", [])


PYTHON = [
    ("[add(a=1)]", [("add", {"a": 1})]),
    ("[add(a=1), now()]", [("add", {"a": 1}), ("now", {})]),
    ("[get_weather(city='L\\'Aquila (IT)', days=-3, note=\"a, b\")]", None),
    ("[add(a=true, b=[null, {'k': 'v'}])]", [("add", {"a": True, "b": [None, {"k": "v"}]})]),
    ("[add(a=__import__('os'))]", []),
    (r'[add(a="\ud83d\ude00")]', [("add", {"a": "😀"})]),
    ("[add(1)]", []),
]


@pytest.mark.parametrize(("text", "calls"), PYTHON)
def test_calls_of_python(text: str, calls: list[tuple[str, object]] | None) -> None:
    found = parsed(
        notated("calls of Python", "List of tools: "), list(f"<|tool_call_start|>{text}<|tool_call_end|>Done.")
    )
    wanted = [("get_weather", {"city": "L'Aquila (IT)", "days": -3, "note": "a, b"})] if calls is None else calls
    assert found.calls == wanted
    assert found.text.endswith("Done.")


def test_the_notation_of_gemma_4() -> None:
    text = '<|tool_call>call:add{a:-1.5,b:[<|"|>x, }<|"|>,true],c:{k:{},<|"|>odd key<|"|>:null}}<tool_call|>'
    found = parsed(notated("Gemma 4", "<|tool_call>call:"), list(text))
    assert found.calls == [("add", {"a": -1.5, "b": ["x, }", True], "c": {"k": {}, "odd key": None}})]
