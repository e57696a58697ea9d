"""Templates that make much of little: refused before they take the memory, by whichever filter, operator or method."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from runtime.errors import BadRequest
from runtime.text.template import ChatTemplate

BIG = "{% set ns = namespace(s='ab' * 250000, l=[]) %}"  # a text of half a million characters
BOMBS = {
    "replace": "{{ ns.s | replace('a', ns.s) }}",
    "method replace": "{{ ns.s.replace('a', ns.s) }}",
    "replace nothing": "{{ ns.s | replace('', ns.s) }}",
    "join": "{{ ns.s | join(ns.s) }}",
    "method join": "{{ ns.s.join(range(100000) | map('string')) }}",
    "method join of a text": "{{ ns.s.join(ns.s) }}",
    "times": "{{ ns.s * 90000 }}",
    "list times": "{{ ([ns.s] * 90000) | length }}{{ ([ns.s] * 90000) }}",
    "list as text": "{{ ([ns.s] * 90000) | string | length }}",
    "list in capitals": "{{ ([ns.s] * 90000) | upper | length }}",
    "list to JSON": "{{ ([ns.s] * 90000) | tojson | length }}",
    "list to indented JSON": "{{ ([ns.s] * 90000) | tojson(indent=2) | length }}",
    "indent of JSON": "{{ [1, [2]] | tojson(indent=90000000000) | length }}",
    "tilde": "{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "plus": "{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "block": "{% for i in range(40) %}{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "block of a loop": "{% set s %}{% for i in range(90000) %}{{ ns.s }}{% endfor %}{% endset %}{{ s | length }}",
    "macro": "{% macro m() %}{% for i in range(90000) %}{{ ns.s }}{% endfor %}{% endmacro %}{{ m() | length }}",
    "kept in a list": "{% for i in range(99999) %}{% set ns.l = ns.l + [ns.s ~ i] %}{% endfor %}",
    "lists of lists": "{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "center": "{{ 'a'.center(90000000) }}",
    "percent": "{{ '%99999999d' % 1 }}",
    "percent of texts": "{{ ('%s' * 20000) % ((ns.s,) * 20000) }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format of a text": "{{ ('{0}' * 20000).format(ns.s) }}",
    "format whose width is an argument": "{{ '{:{}}'.format('x', '999999999') }}",
    "filter format": "{{ ('%s' * 20000) | format(*([ns.s] * 20000)) }}",
    "batch": "{{ [1] | batch(999999999, 'x') | list | length }}",
    "slice": "{{ [1] | slice(999999999, 'x') | list | length }}",
    "sum": "{{ ([[1] * 90000] * 90000) | sum(start=[]) | length }}",
    "tabs": "{{ ('\t' * 900000).expandtabs(90000) }}",
    "translate": "{{ ns.s.translate({97: ns.s}) }}",
    "to bytes": "{{ (1).to_bytes(99999, 'big') | length }}{{ ns.s.encode() }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "square": "{% set ns.l = 9 %}{% for i in range(40) %}{% set ns.l = ns.l * ns.l %}{% endfor %}",
    "indent": "{{ ('\n' * 900000) | indent(ns.s) }}",
}


QUICK = ("replace", "join", "times", "tilde", "macro", "format", "power")


@pytest.mark.parametrize(
    "source",
    [pytest.param(source, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, source in BOMBS.items()],
)
def test_what_multiplies_is_refused_before_it_takes_memory(source: str) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}" + BIG + source)
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            template.render([{"role": "user", "content": "Hi"}])
        assert tracemalloc.get_traced_memory()[1] < 600 << 20
    finally:
        tracemalloc.stop()


def test_what_templates_do_with_long_texts_is_allowed() -> None:
    source = (
        "{% set ns = namespace(all='') %}{% for m in messages %}"
        "{% set text = (m.content | trim | replace('<x>', '')).split('</think>')[-1].lstrip('\n') + '\n' %}"
        "{% set ns.all = ns.all ~ '<' ~ m.role ~ '>' ~ text %}{% endfor %}{{ ns.all }}{{ messages | length }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ {'a': [1, 'é']} | tojson(indent=1) }}"
    )
    text = "a\n" * (4 << 20)  # 8 MiB
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    prompt = "".join(part.text for part in ChatTemplate(source).render(messages))
    assert prompt == f"<user>{text}<assistant>b\n<user>c\n3user, assistant, user" + json.dumps(
        {"a": [1, "é"]}, ensure_ascii=False, indent=1
    )
