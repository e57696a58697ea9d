"""The table in docs/tools.md: how the answers of llama.cpp's own templates are told apart.

`LLAMA_CPP=…/vendor/llama.cpp python -m tests.runtime.template_table` writes it.
"""

from __future__ import annotations

from pathlib import Path

from runtime.answers.forms import JsonArguments, JsonCall, Tags
from tests.runtime.test_answers import TEMPLATES, template

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"
BEGIN = "| template |"
SHAPES = {JsonCall: "a JSON object", JsonArguments: "a name, then a JSON object", Tags: "tags"}


def table() -> str:
    """The table, a row for each template."""
    rows = [f"{BEGIN} calls | several at once | thinking between | recognised |", "|---|---|---|---|---|"]
    for name in TEMPLATES:
        _, learned = template(name)
        form = learned.form
        shape = SHAPES.get(type(form.calls[0].body), "a notation of its own") if form.calls else "none"
        thinking = f"`{form.thinking.open}` and `{form.thinking.close}`" if form.thinking else "no"
        parallel = ("yes" if learned.parallel else "no") if form.calls else ""
        how = learned.how if form.calls else "it takes no tools"
        rows.append(f"| {name} | {shape} | {parallel} | {thinking.replace('|', chr(92) + '|')} | {how} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN)] + table())
