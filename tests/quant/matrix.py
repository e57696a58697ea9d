"""What the tests found out about every architecture: a table, printed at the end of a run and kept in `docs/models.md`.

`python -m tests.quant.matrix [-k WORD]` runs the tests that fill it, or some, and writes what they found.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
COLUMNS = ("logits", "attention", "tokenizer", "tied", "shards", "experts", "transforms", "entries", "levels")
EMPTY = "·"
# Where the matrix begins: its first column has no heading.
_BEGIN = "\n|  |"
_found: dict[str, dict[str, str]] = {}


def note(row: str, column: str, cell: str) -> None:
    """Fill a cell."""
    assert column in COLUMNS
    _found.setdefault(row, {})[column] = cell


def found() -> dict[str, dict[str, str]]:
    """The cells that were filled, by row and column."""
    return _found


def lines() -> list[str]:
    """The table, empty where nothing was tried; a dot is a cell that no test filled."""
    table = _table(_found)
    widths = [max(len(line[index]) for line in table) for index in range(len(COLUMNS) + 1)]
    filled = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return [line.rstrip() for line in filled] if _found else []


def _table(rows: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    return [("", *COLUMNS), *((row, *(cells.get(column, EMPTY) for column in COLUMNS)) for row, cells in rows.items())]


def read(text: str | None = None) -> dict[str, dict[str, str]]:
    """The rows of the page's last table, the matrix."""
    matrix = (PAGE.read_text() if text is None else text).partition(_BEGIN)[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in matrix.splitlines()[2:]]
    found = {row: dict(zip(COLUMNS, filled, strict=True)) for row, *filled in cells}
    return {row: {column: cell for column, cell in filled.items() if cell != EMPTY} for row, filled in found.items()}


def page(text: str, rows: dict[str, dict[str, str]]) -> str:
    """The page with these rows in its matrix; the text above it stays."""
    head, *body = _table(rows)
    rule = ("---",) * (len(COLUMNS) + 1)
    lines = [f"| {' | '.join(line)} |\n" for line in (head, rule, *body)]
    return f"{text.partition(_BEGIN)[0]}\n{''.join(lines)}"


def write(names: list[str]) -> None:
    """Write into the page what was found now, else what it said before, for the rows in `names` and the new ones."""
    text = PAGE.read_text()
    before = read(text)
    names = [*names, *sorted(_found.keys() - set(names))]
    PAGE.write_text(page(text, {name: {**before.get(name, {}), **_found.get(name, {})} for name in names}))


def main() -> int:
    """Run the tests and write the page."""
    import pytest

    from tests.quant import matrix
    from tests.quant.zoo import ZOO

    code = pytest.main(["-q", "-m", "oracle", *sys.argv[1:], str(Path(__file__).with_name("test_zoo.py"))])
    # Not this module, which is `__main__`, but the one that the tests have imported.
    matrix.write(list(ZOO))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
