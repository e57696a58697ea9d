"""Bytes as text, by one rule for all that people read: tables, reasons, messages, logs."""

from __future__ import annotations


def size_text(count: float) -> str:
    """`count` bytes in decimal units, with two digits or three: 340 B, 12 kB, 1.5 MB, 340 MB, 5.7 GB, 115 GB."""
    if count < 999.5:
        return f"{count:.0f} B"
    if count < 999_500:
        return f"{count / 1e3:.0f} kB"
    if count < 999_500_000:
        return f"{count / 1e6:.{1 if count < 9_950_000 else 0}f} MB"
    return f"{count / 1e9:.{1 if count < 99_950_000_000 else 0}f} GB"
