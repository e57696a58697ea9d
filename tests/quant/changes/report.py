"""What the property test found, as a table of `docs/models.md`: which scalings and settings of each row were tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.quant.changes.trial import Result

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
_BEGIN, _END = "## Settings that were tried\n", "\n## Every architecture"
_SCALING = "scaling: "
_TEXT = """
Written by `python -m tests.quant.changes --page`, from its own results: {rows} rows, {singles} changes of one key and
{pairs} of two, some of them in configs as transformers 4 saved them. {right} gave the logits of `transformers`,
{refused} were refused with the setting's name before a weight moves ({strict} of them though no logit of a short text
changes), and {open} differ in the way that is told above of GPT-OSS. A setting that is not named as refused was right
with each value that was tried.

| row | scalings that are right | scalings that are refused | settings tried | of them refused with some value |
|---|---|---|---|---|
"""


def write(results: list[Result]) -> None:
    """Write the table into the page, in place of the one that it has; a later result of a change counts."""
    results = list({(each.row, each.change): each for each in results}.values())
    text = PAGE.read_text()
    head, _, rest = text.partition(_BEGIN)
    if not rest:
        head, _, rest = text.partition(_END)
        head, rest = head + "\n", _END + rest
    PAGE.write_text(head + _BEGIN + table(results) + _END + rest.partition(_END)[2])


def table(results: list[Result]) -> str:
    """The section's text, with a line for each row of the zoo."""
    tried = [each for each in results if each.kind != "impossible"]
    pairs = sum(";" in each.change for each in tried)
    kinds = Counter(each.kind for each in tried)
    rows = list(dict.fromkeys(each.row for each in tried))
    counts = {
        "rows": len(rows),
        "singles": f"{len(tried) - pairs:,}",
        "pairs": f"{pairs:,}",
        "right": f"{kinds['right']:,}",
        "refused": f"{kinds['refused'] + kinds['too strict']:,}",
        "strict": kinds["too strict"],
        "open": len(tried) - kinds["right"] - kinds["refused"] - kinds["too strict"],
    }
    lines = [_line(row, [each for each in tried if each.row == row and ";" not in each.change]) for row in rows]
    return _TEXT.format(**counts) + "".join(lines)


def _line(row: str, found: list[Result]) -> str:
    scalings = {kind: _named(each for each in found if each.kind == kind) for kind in ("right", "refused")}
    right = [name for name in scalings["right"] if name not in scalings["refused"]]
    keys = {key for each in found for key in each.keys if not key.startswith(_SCALING)}
    refused = {each.keys[0] for each in found if each.kind in ("refused", "too strict") and len(each.keys) == 1}
    cells = (row, ", ".join(right), ", ".join(scalings["refused"]), str(len(keys)), ", ".join(sorted(refused)))
    return f"| {' | '.join(cell or '-' for cell in cells)} |\n"


def _named(found: Iterable[Result]) -> list[str]:
    names = (key for each in found for key in each.keys if key.startswith(_SCALING))
    return list(dict.fromkeys(name.removeprefix(_SCALING).replace(", ", " with ") for name in names))
