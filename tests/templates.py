"""A chat template that knows tools and thinking, in the manner of Qwen, for models whose own does not."""

from __future__ import annotations

_SYSTEM = (
    "{% if tools %}{{ '<|im_start|>system\nCall these functions:\n' }}{% for tool in tools %}"
    "{{ tool.function | tojson }}{{ '\n' }}{% endfor %}"
    '{{ \'Write <tool_call>\n{"name": the name, "arguments": an object}\n</tool_call><|im_end|>\n\' }}{% endif %}'
)
_CALLS = (
    "{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
)
_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content or '' }}" + _CALLS + "{{ '<|im_end|>\n' }}{% endfor %}"
)
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
TOOLS = _SYSTEM + _TURNS.replace(
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}", ""
)
TOOLS += _ANSWER + "{% endif %}"
_LOOP = "{% if tools %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}{% endif %}"
LOOPING = _LOOP + _TURNS + _ANSWER + "{% endif %}"
OPEN = (
    _SYSTEM
    + _TURNS
    + _ANSWER
    + "{{ '<think>\n' }}{% if enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
