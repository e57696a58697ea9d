"""The `lm` command: a thin client of the daemon."""
