"""What the tests found out of architectures (`docs/models.md`) and of packed weights (`docs/quantized.md`), as tables.

They are printed at the end of a run. `python -m tests.quant.matrix [-k WORD]` runs the tests that fill them, or some,
and writes what they found.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
EMPTY = "·"
# Where a matrix begins: its first column has no heading.
_BEGIN = "\n|  |"
_ARCHITECTURES = ("logits", "attention", "tokenizer", "tied", "shards", "experts", "transforms", "entries", "levels")
_FAMILIES = ("llama", "qwen2", "qwen3moe", "gemma3", "phi3", "qwen3next", "deepseek2", "gpt2")


class Matrix:
    """A table at the end of a page: cells by row and column; a dot is a cell that no test filled."""

    def __init__(self, title: str, page: str, columns: tuple[str, ...], tests: str) -> None:
        """`page` is a name below `docs/`, `tests` that of the module that fills the table."""
        self.title, self.page, self.columns = title, _ROOT / "docs" / page, columns
        self.tests = Path(__file__).with_name(tests)
        self.found: dict[str, dict[str, str]] = {}

    def note(self, row: str, column: str, cell: str) -> None:
        """Fill a cell."""
        assert column in self.columns
        self.found.setdefault(row, {})[column] = cell

    def lines(self) -> list[str]:
        """The table, empty where nothing was tried."""
        table = self._table(self.found)
        widths = [max(len(line[index]) for line in table) for index in range(len(self.columns) + 1)]
        filled = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return [line.rstrip() for line in filled] if self.found else []

    def _table(self, rows: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
        filled = ((row, *(cells.get(column, EMPTY) for column in self.columns)) for row, cells in rows.items())
        return [("", *self.columns), *filled]

    def read(self, text: str | None = None) -> dict[str, dict[str, str]]:
        """The rows of the page's last table."""
        matrix = (self.page.read_text() if text is None else text).partition(_BEGIN)[2]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in matrix.splitlines()[2:]]
        found = {row: dict(zip(self.columns, filled, strict=True)) for row, *filled in rows}
        return {
            row: {column: cell for column, cell in filled.items() if cell != EMPTY} for row, filled in found.items()
        }

    def text(self, text: str, rows: dict[str, dict[str, str]]) -> str:
        """The page with these rows in its table; the text above it stays."""
        head, *body = self._table(rows)
        rule = ("---",) * (len(self.columns) + 1)
        lines = [f"| {' | '.join(line)} |\n" for line in (head, rule, *body)]
        return f"{text.partition(_BEGIN)[0]}\n{''.join(lines)}"

    def write(self, names: list[str]) -> None:
        """Write into the page what was found now, else what it said before, for the rows `names` and the new ones."""
        text = self.page.read_text()
        before = self.read(text)
        names = [*names, *sorted(self.found.keys() - set(names))]
        rows = {name: {**before.get(name, {}), **self.found.get(name, {})} for name in names}
        self.page.write_text(self.text(text, rows))


ARCHITECTURES = Matrix("architectures", "models.md", _ARCHITECTURES, "test_zoo.py")
LAYOUTS = Matrix("layouts of packed weights", "quantized.md", _FAMILIES, "test_layouts.py")
ALL = (ARCHITECTURES, LAYOUTS)


def main() -> int:
    """Run the tests and write the pages."""
    import pytest

    # Not this module, which is `__main__`, but the one that the tests import.
    from tests.quant import matrix
    from tests.quant.layouts import LAYOUTS as ROWS
    from tests.quant.zoo import ZOO

    code = pytest.main(["-q", "-m", "", *sys.argv[1:], *(str(each.tests) for each in matrix.ALL)])
    matrix.ARCHITECTURES.write(list(ZOO))
    matrix.LAYOUTS.write([row.title for row in ROWS])
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
