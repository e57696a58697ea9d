"""Go templates: the language, and chat templates of published models, rendered as Ollama renders them.

The expected texts are written by the rules of Go's `text/template` and of Ollama's page about templates.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from runtime.errors import BadRequest
from runtime.text.gotemplate.chat import GoTemplate, fault_of
from runtime.text.gotemplate.nodes import GoTemplateError
from runtime.text.gotemplate.parser import parse
from runtime.text.gotemplate.render import render
from runtime.text.template import ChatTemplate
from tests.daemon import allowed

LLAMA_3 = (
    "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>\n"
    "{{- end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
    "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
MISTRAL = (
    "{{- range $index, $_ := .Messages }}\n"
    '{{- if eq .Role "user" }}\n'
    "{{- if and (eq (len (slice $.Messages $index)) 1) $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]\n"
    "{{- end }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) $.System }}{{ $.System }}\n\n"
    "{{ end }}{{ .Content }}[/INST]\n"
    '{{- else if eq .Role "assistant" }}\n'
    "{{- if .Content }} {{ .Content }}</s>\n"
    "{{- else if .ToolCalls }}[TOOL_CALLS] [\n"
    '{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
    "{{- end }}]</s>\n"
    "{{- end }}\n"
    '{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ .Content }}}[/TOOL_RESULTS]\n'
    "{{- end }}\n"
    "{{- end }}"
)
QWEN = (
    "{{- if .Messages }}\n"
    "{{- if or .System .Tools }}<|im_start|>system\n"
    "{{- if .System }}\n{{ .System }}\n{{- end }}\n"
    "{{- if .Tools }}\n\n# Tools\n\n<tools>\n"
    "{{- range .Tools }}\n"
    '{"type": "function", "function": {{ .Function }}}\n'
    "{{- end }}\n</tools>\n"
    "{{- end }}<|im_end|>\n"
    "{{ end }}\n"
    "{{- range $i, $_ := .Messages }}\n"
    "{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n"
    '{{- if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
    "{{ if .Content }}{{ .Content }}\n"
    "{{- else if .ToolCalls }}<tool_call>\n"
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
    "{{ end }}</tool_call>\n"
    "{{- end }}{{ if not $last }}<|im_end|>\n"
    "{{ end }}\n"
    '{{- else if eq .Role "tool" }}<|im_start|>user\n<tool_response>\n{{ .Content }}\n</tool_response><|im_end|>\n'
    "{{ end }}\n"
    '{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant\n'
    "{{ end }}\n"
    "{{- end }}\n"
    "{{- else }}\n"
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n"
    "{{ end }}{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n"
    "{{ end }}{{ .Response }}{{ if .Response }}<|im_end|>{{ end }}"
)
THINKING = (
    '{{- range .Messages }}<{{ .Role }}>{{ if and $.IsThinkSet (eq .Role "user") }}'
    "{{ if $.Think }}/think {{ else }}/no_think {{ end }}{{ end }}"
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}<assistant>"
)
CODE = "<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>"
USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Hello"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a <city>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"description": "Which", "type": "string"}},
            "required": ["city"],
        },
    },
}
FUNCTION = (
    '{"name":"weather","description":"Of a \\u003ccity\\u003e","parameters":{"type":"object","required":["city"],'
    '"properties":{"city":{"type":"string","description":"Which"}}}}'
)
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "content": "sun", "tool_call_id": "1", "name": "weather"}


def chat(source: str, *messages: dict[str, Any], **more: Any) -> str:
    return "".join(GoTemplate(source).generate(messages=list(messages), **more))


def test_llama() -> None:
    assert chat(LLAMA_3, SYSTEM, USER) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_template_of_one_exchange_is_written_for_each() -> None:
    first = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat(CHATML, SYSTEM, USER) == first
    again = {"role": "user", "content": "And?"}
    assert chat(CHATML, SYSTEM, USER, ANSWER, again) == (
        f"{first}Hello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat("{{ .Prompt }} = ", USER) == "Hi = "  # without a place for the answer it comes at the end


def test_texts_of_one_role_are_one_message() -> None:
    twice = chat(LLAMA_3, USER, {"role": "user", "content": "there"})
    assert "Hi\n\nthere<|eot_id|>" in twice


def test_mistral_with_tools() -> None:
    text = chat(MISTRAL, SYSTEM, USER, CALLED, RESULT, {"role": "user", "content": "And?"}, tools=[TOOL])
    assert text == (
        '[INST] Hi[/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"city":"Rome"}}]</s>'
        '[TOOL_RESULTS] {"content": sun}[/TOOL_RESULTS]'
        f'[AVAILABLE_TOOLS] [{{"type":"function","function":{FUNCTION}}}][/AVAILABLE_TOOLS]'
        "[INST] Be brief.\n\nAnd?[/INST]"
    )


def test_qwen_with_tools() -> None:
    assert chat(QWEN, SYSTEM, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    text = chat(QWEN, USER, CALLED, RESULT, tools=[TOOL])
    assert text == (
        '<|im_start|>system\n\n# Tools\n\n<tools>\n{"type": "function", "function": ' + FUNCTION + "}\n</tools>"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city":"Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_is_switched() -> None:
    assert chat(THINKING, USER) == "<user>Hi<assistant>"
    assert chat(THINKING, USER, enable_thinking=True) == "<user>/think Hi<assistant>"
    assert chat(THINKING, USER, enable_thinking=False, reasoning_effort="low") == "<user>/no_think Hi<assistant>"
    assert "<think>hm</think>Hello" in chat(THINKING, USER, ANSWER | {"reasoning_content": "hm"}, USER)


def test_the_text_between_two_others() -> None:
    assert GoTemplate(CODE).fill("a", "b") == "<PRE> a <SUF>b <MID>"
    filler = ChatTemplate(CODE, go=True)
    assert filler.fills and not ChatTemplate(CHATML, go=True).fills


def test_capabilities_by_the_fields_of_a_template() -> None:
    found = [GoTemplate(source).capabilities for source in (CHATML, QWEN, THINKING, CODE)]
    assert found == [[], ["tools"], ["thinking"], ["insert"]]


def test_the_conversation_alone_is_the_beginning_of_any_longer_one() -> None:
    for source in (LLAMA_3, CHATML, QWEN):
        whole = chat(source, USER, add_generation_prompt=False)
        assert whole and chat(source, USER, ANSWER, USER).startswith(whole)
        assert not whole.endswith("assistant\n")


def test_a_users_control_tokens_are_told_apart() -> None:
    template = ChatTemplate(CHATML, control=["<|im_start|>", "<|im_end|>"], go=True)
    parts = template.render([{"role": "user", "content": "a<|im_end|>b"}])
    assert [part.text for part in parts if not part.special] == ["<|im_end|>"]
    assert not template.fault and not template.stops


def test_calls_are_learned_from_a_go_template() -> None:
    template = ChatTemplate(QWEN, control=["<|im_start|>", "<|im_end|>"], go=True)
    form = template.answers.form.calls
    assert form and form[0].open == "<tool_call>"
    listed = ChatTemplate(MISTRAL, go=True).answers.form.calls
    assert listed and listed[0].open.startswith("[TOOL_CALLS]") and listed[0].listed


def test_a_file_with_a_go_template_is_rendered_by_it() -> None:
    template = ChatTemplate(LLAMA_3)
    assert not template.fault
    assert "<|start_header_id|>user" in "".join(part.text for part in template.render([USER]))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a {{- 1 }} b", "a1 b"),
        ("a {{- 1 -}}  b", "a1b"),
        ("a\n{{- /* c */ -}}\nb", "ab"),
        ("{{/* a }} b */}}c", "c"),
        ('{{ "a\\tb" }}{{ `c\\` }}', "a\tbc\\"),
        ("{{ .x }}", "<no value>"),
        ("{{ if .x }}a{{ else if .t }}b{{ else }}c{{ end }}", "b"),
        ("{{ with .m }}{{ .k }}{{ $.s }}{{ else }}no{{ end }}", "vtext"),
        ("{{ with .x }}yes{{ else with .s }}{{ . }}{{ end }}", "text"),
        ("{{ range .l }}{{ . }},{{ else }}none{{ end }}", "1,2,3,"),
        ("{{ range $i, $e := .l }}{{ $i }}{{ $e }} {{ end }}", "01 12 23 "),
        ("{{ range $k, $v := .m }}{{ $k }}={{ $v }}{{ end }}", "k=v"),
        ("{{ range .e }}a{{ else }}none{{ end }}", "none"),
        ("{{ range .l }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ . }}{{ end }}", "13"),
        ("{{ range .l }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}", "1"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ $x := 1 }}{{ range .l }}{{ $x = . }}{{ end }}{{ $x }}", "3"),
        ("{{ $x := 1 }}{{ if .t }}{{ $x := 2 }}{{ end }}{{ $x }}", "1"),
        ('{{ "x" | print "y" "z" }}', "yzx"),
        ("{{ print 1 2 .s 3 }}", "1 2text3"),
        ("{{ println 1 .s }}", "1 text\n"),
        ('{{ printf "%5d|%-4s|%q|%v|%t|%.2f|%%" 7 "a" "b<" .l .t 1.5 }}', '    7|a   |"b<"|[1 2 3]|true|1.50|%'),
        ("{{ len .s }}{{ len .l }}{{ len .m }}", "431"),
        ('{{ index .l 1 }}{{ index .m "k" }}{{ index .n 0 "k" }}', "2vw"),
        ("{{ slice .l 1 }}{{ slice .s 1 3 }}", "[2 3]ex"),
        ("{{ and .t .s }}{{ or .x .s }}{{ not .x }}", "texttexttrue"),
        ("{{ and .x .x.y.z }}", "<no value>"),
        ('{{ eq .s "a" "text" }}{{ ne 1 2 }}{{ lt 1 2 }}{{ ge 2 2 }}{{ gt "b" "a" }}', "truetruetruetruetrue"),
        ("{{ le 3 2 }}{{ le 2 2 }}", "falsetrue"),
        ("{{ json .m }}{{ json .s }}{{ json .l }}", '{"k":"v"}"text"[1,2,3]'),
        ("{{ .m }}", "map[k:v]"),
        ("{{ (index .n 0).k }}", "w"),
        ("{{ .f }} {{ 2.0 }} {{ 1e3 }} {{ 0x10 }} {{ -3 }} {{ 'a' }}", "0.5 2 1000 16 -3 97"),
        ("{{ if and (gt (len .l) 2) (not .x) }}y{{ end }}", "y"),
        ("{{\n.s\n}}", "text"),
        ("{{ true }}{{ nil | not }}", "truetrue"),
    ],
)  # fmt: skip
def test_the_language(source: str, text: str) -> None:
    data = {"s": "text", "t": True, "l": [1, 2, 3], "m": {"k": "v"}, "n": [{"k": "w"}], "e": [], "f": 0.5}
    assert render(parse(source), data) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\n{{ if .x }}", "line 2: `if` has no"),
        ("{{ end }}", "nothing to end"),
        ("{{ else }}", "nothing to end"),
        ("{{ .x", "line 1"),
        ("{{ }}", "empty"),
        ("{{ foo }}", "no function `foo`"),
        ("{{ $x }}", "no variable `$x`"),
        ("{{ define `a` }}{{ end }}", "`define` is not in the part"),
        ("{{ template `a` }}", "`template` is not in the part"),
        ("{{ break }}", "outside of a range"),
        ("{{ .x | }}", "a command is missing"),
        ("{{ (.x }}", "not closed"),
        ("{{ .x) }}", "stands where it cannot"),
        ("{{ /* x }}", ""),
        ("{{ 'a }}", ""),
        ('{{ "\\q" }}', "no escape"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", ""),
        ("{{ if .x }}" * 100 + "{{ end }}" * 100, "within each other"),
        ("{{ " + "(" * 100 + "1" + ")" * 100 + " }}", "brackets"),
        ("x" * (2 << 20), "longer than"),
    ],
)
def test_a_broken_template_is_refused_by_its_place(source: str, words: str) -> None:
    fault = fault_of(source)
    assert fault and words in fault
    with pytest.raises(GoTemplateError):
        parse(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ range .Messages }}{{ .Nothing }}{{ end }}", "no field `.Nothing`"),
        ("{{ index .Messages 9 }}", "out of range"),
        ("{{ slice .Messages 9 }}", "out of range"),
        ("{{ eq .System 1 }}{{ .Messages }}", "different kinds"),
        ("{{ html .System }}{{ .Messages }}", "`html` is not among"),
        ("{{ .System.X }}{{ .Messages }}", "no object"),
        ("{{ len 3 }}{{ .Messages }}", "no length"),
        ("{{ range 1000000 }}{{ range 1000000 }}{{ end }}{{ end }}{{ .Messages }}", "steps"),
        ('{{ $x := "aaaaaaaaaaaaaaaa" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}{{ .Messages }}', "letters"),
        ('{{ printf "%9999d" 1 }}{{ .Messages }}', "too wide"),
    ],
)
def test_a_rendering_that_fails_is_the_requests_error(source: str, words: str) -> None:
    with pytest.raises(GoTemplateError) as caught:
        chat(source, SYSTEM, USER)
    assert words in str(caught.value)
    with pytest.raises(BadRequest):
        ChatTemplate(source, go=True).render([SYSTEM, USER])


def test_ten_thousand_broken_templates_are_read_or_refused() -> None:
    chance = random.Random(2)
    words = ["", "{{", "}}", '"', "`", "(", ")", "|", "$x", ":=", ".", "-", "{{ end }}", "{{ .Content }}", "not", "\0"]
    read, began = 0, time.monotonic()
    for _ in range(10_000):
        whole = chance.choice((LLAMA_3, CHATML, MISTRAL, QWEN, THINKING))
        at = chance.randrange(len(whole))
        source = whole[:at] + chance.choice(words) + whole[at + chance.choice((0, 0, 1, 5, 40, 400)) :]
        try:
            text = chat(source, SYSTEM, USER, CALLED, RESULT, tools=[TOOL])
        except GoTemplateError as error:
            assert str(error)
            continue
        read += 1
        assert isinstance(text, str)
    print(f"{read} of 10,000 were templates, in {time.monotonic() - began:.1f} s")
    assert read > 500 and time.monotonic() - began < allowed(30)


def test_any_json_of_a_tool_can_be_written() -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": True, "b": []}, "x": 1}}}
    text = chat("{{ json .Tools }}{{ if .Messages }}{{ end }}", USER, tools=[odd])
    assert json.loads(text) == [odd]
