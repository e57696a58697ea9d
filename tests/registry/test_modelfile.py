"""Modelfiles: Ollama's grammar, errors with their lines, the text written back; and ten thousand broken ones."""

from __future__ import annotations

import random
import time

import pytest

from registry.errors import BadModelfile
from registry.modelfile import Command, Modelfile, decode, parse, written, written_as_far_as_possible

WHOLE = '''# a comment
from llama3.2:3b
PARAMETER temperature 0.7
  parameter stop "<|im_end|>"
PARAMETER stop <|end|>
PARAMETER num_ctx 4096
PARAMETER num_ctx 8192

TEMPLATE """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}"""
System You are "Mario", # the plumber.
ADAPTER ./lora.gguf
LICENSE "one"
LICENSE """
two
"""
MESSAGE user Hello, is it me?
MESSAGE Assistant """It is
you."""
REQUIRES 0.14.0
DRAFT ./draft
RENDERER qwen3-coder
PARSER qwen3-coder
'''


def test_every_instruction_is_read() -> None:
    found = parse(WHOLE)
    assert found.last("from") == "llama3.2:3b"
    assert found.parameters == {"temperature": "0.7", "stop": ["<|im_end|>", "<|end|>"], "num_ctx": "8192"}
    assert found.last("template") == "{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}"
    assert found.last("system") == 'You are "Mario", # the plumber.'
    assert found.values("adapter") == ["./lora.gguf"]
    assert found.values("license") == ["one", "\ntwo\n"]
    assert found.messages == [("user", "Hello, is it me?"), ("assistant", "It is\nyou.")]
    one = [found.last(name) for name in ("requires", "draft", "renderer", "parser")]
    assert one == ["0.14.0", "./draft", "qwen3-coder", "qwen3-coder"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SYSTEM  two  words \t", "two  words"),
        ('SYSTEM "two lines  \n of text"', "two lines  \n of text"),
        ('SYSTEM """a "quoted" word"""', 'a "quoted" word'),
        ('SYSTEM "  kept  "', "  kept  "),
        ('SYSTEM ""', ""),
        ('SYSTEM """"""', ""),
        ("SYSTEM 'single'", "'single'"),
        (r"SYSTEM back\nslash\\", r"back\nslash\\"),
        ('SYSTEM """\nFROM in a value\n# no comment\n"""', "\nFROM in a value\n# no comment\n"),
        ("SYSTEM a\r\nPARAMETER seed 1\r\n", "a"),
    ],
)
def test_values_as_ollama_reads_them(text: str, value: str) -> None:
    assert parse(f"FROM x\n{text}").last("system") == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_windows_are_read(encoding: str) -> None:
    data = "FROM x\r\nSYSTEM Grüße\r\n".encode(encoding)
    assert parse(decode(data)).last("system") == "Grüße"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 0, "no FROM"),
        ("PARAMETER seed 1\n", 0, "no FROM"),
        ("FROM x\n\nSYSTEN hello", 3, "`SYSTEN` is no instruction"),
        ("FROM\n", 1, "FROM has no value"),
        ("FROM x\nPARAMETER", 2, "no name"),
        ("FROM x\nPARAMETER seed", 2, "no value"),
        ("FROM x\nMESSAGE\n", 2, "no role"),
        ("FROM x\nMESSAGE tool hi", 2, "no role of a MESSAGE"),
        ('FROM x\nSYSTEM """a\nb\nc', 2, "never closed"),
        ('FROM x\nPARAMETER stop "', 2, "never closed"),
        ("FROM x\n\x00\x01", 2, "no instruction"),
    ],
)
def test_errors_name_the_line(text: str, line: int, words: str) -> None:
    with pytest.raises(BadModelfile) as caught:
        parse(text)
    assert words in str(caught.value)
    assert f"line {line} " in str(caught.value) or not line


def test_bytes_that_are_no_text_are_refused() -> None:
    for data in (b"FROM \xff\xff", b"FROM x" * (2 << 20)):
        with pytest.raises(BadModelfile):
            decode(data)


def test_what_is_written_reads_the_same() -> None:
    found = parse(WHOLE)
    again = parse(found.text)
    assert [each[:3] for each in again.commands] == [each[:3] for each in found.commands]


@pytest.mark.parametrize(
    "value", ["plain", " spaces ", "", "two\nlines", '"quoted"', 'a "b"\nc', '"', "x\n", "\n", "# x", 'say "hi"']
)
def test_any_usual_value_can_be_written(value: str) -> None:
    assert parse(f"FROM x\n{written(Command('system', value))}").last("system") == value


def test_a_value_that_no_modelfile_has_is_said_to_be_so() -> None:
    impossible = Command("system", 'a """\nb"')
    with pytest.raises(BadModelfile):
        _ = Modelfile((impossible,)).text
    lines = written_as_far_as_possible([Command("from", "x"), impossible]).splitlines()
    assert lines[0] == "FROM x" and lines[1].startswith("# the SYSTEM")


def test_ten_thousand_broken_modelfiles_are_read_or_refused() -> None:
    """Pieces of Modelfiles in any order: each is read, or refused with a sentence; what is read can be written."""
    chance = random.Random(1)
    words = [
        *WHOLE.splitlines(keepends=True),
        '"',
        '"""',
        "\n",
        "\r",
        " ",
        "\ufeff",
        "\0",
        "#",
        "FROM ",
        "{{",
        "ß",
        "😀",
    ]
    began, read = time.monotonic(), 0
    for _ in range(10_000):
        head = chance.choice(("", "FROM x\n"))
        text = head + "".join(chance.choice(words)[: chance.randrange(1, 60)] for _ in range(chance.randrange(12)))
        try:
            found = parse(text)
        except BadModelfile as error:
            assert str(error) and "\n" not in str(error)
            continue
        read += 1
        assert all(each.instruction and each.line > 0 for each in found.commands)
        parse(written_as_far_as_possible(found.commands))
    print(f"{read} of 10,000 were Modelfiles, in {time.monotonic() - began:.1f} s")
    assert read > 1000
