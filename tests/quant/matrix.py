"""What the tests found out about every architecture: a table, printed at the end of a run (`conftest.py`)."""

from __future__ import annotations

COLUMNS = ("logits", "attention", "tokenizer", "tied", "shards", "experts", "transforms", "entries", "levels")
_found: dict[str, dict[str, str]] = {}


def note(row: str, column: str, cell: str) -> None:
    """Fill a cell."""
    assert column in COLUMNS
    _found.setdefault(row, {})[column] = cell


def lines() -> list[str]:
    """The table, empty where nothing was tried; a dot is a cell that no test filled."""
    table = [("", *COLUMNS), *((row, *(cells.get(column, "·") for column in COLUMNS)) for row, cells in _found.items())]
    widths = [max(len(line[index]) for line in table) for index in range(len(COLUMNS) + 1)]
    filled = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return [line.rstrip() for line in filled] if _found else []
