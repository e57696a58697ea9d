"""Prints the matrix of architectures after the tests that fill it."""

from __future__ import annotations

import pytest

from tests.quant import matrix


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = matrix.lines()
    if lines:
        terminalreporter.section("architectures")
        for line in lines:
            terminalreporter.write_line(line)
