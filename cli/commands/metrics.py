"""`lm metrics`: samples of the metrics that the daemon keeps; works on the home's files, whether it runs or not."""

from __future__ import annotations

from pathlib import Path

import click

from cli import console
from cli.client import settings
from cli.errors import Failure
from cli.sending import sending, token_option


@click.group()
def command() -> None:
    """Send samples of the metrics that the daemon keeps (settings `metrics_every`, `metrics_mib`)."""


@command.command()
@click.argument("url")
@token_option
def push(url: str, token_file: Path | None) -> None:
    """Send samples to a collector of OpenTelemetry, as JSON: all that it has not acknowledged by an answer of 2xx.

    URL is the whole address, such as https://collector.lan:4318/v1/metrics. Without a network samples wait, until newer
    ones need their room.
    """
    from server.telemetry.sending import send

    config = settings()
    if not config.metrics_folder.is_dir():
        off = "`lm config set metrics_every 1m` has the daemon keep one each minute" if not config.metrics_every else ""
        hint = off or "the daemon keeps the first one after `metrics_every`"
        raise Failure(f"there are no samples in `{config.metrics_folder}`", hint)
    with sending(token_file, config.metrics_folder) as token:
        samples = send(config, url, token)
    if samples.missing:
        why = "newer ones needed their room, or they are damaged"
        console.note(f"warning: {samples.missing} samples could not be sent: {why}", "yellow")
    console.note(f"{samples.sent} samples sent; the collector has them up to number {samples.last}")
