"""The entry point of `lm`: until its modules are imported, Ctrl-C ends the process without a word."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command and run it; ends the process with its exit code."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a job in the background of a script
    if not ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cli import main as command

    if not ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command.main()


if __name__ == "__main__":
    main()
