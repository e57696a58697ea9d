"""Rules and records of this box as `lm doctor` judges them, and as the daemon tells them at its start."""

from __future__ import annotations

import stat
import time
from pathlib import Path

from server.audit.line import boot_id
from server.audit.verify import glance
from server.config import Config
from server.doctor.certificates import validities
from server.doctor.frames import FAIL, OK, WARN, Finding
from server.doctor.modes import open_files
from server.policy.rules import contradictions, key_faults, policy_file, read_policy
from server.settings import BadSetting

# A certificate that ends within this time is named, in seconds.
SOON_SECONDS = 14 * 86400.0


def governance(config: Config) -> list[Finding]:
    """Findings about the audit log, the policy, certificates, and files that are open to others. Reads files."""
    return [*_audit(config), *_policy(config), *_certificates(config), *open_files(config)]


def _audit(config: Config) -> list[Finding]:
    if config.audit == "off":
        return [Finding("audit", OK, "nothing is recorded: `audit` is off")]
    found = []
    if config.audit_text:
        message = "questions and answers are recorded in the audit log, in plain text"
        found.append(Finding("audit", WARN, message, "`lm config unset audit_text` ends that"))
    folder = config.audit_folder
    try:
        sentences = glance(folder, boot_id())
        mode = folder.stat().st_mode if folder.exists() else 0
    except OSError as error:
        message = f"the audit log in `{folder}` cannot be read: {error.strerror}"
        return [*found, Finding("audit", FAIL, message, "check the folder and its owner")]
    found += [Finding("audit", WARN, sentence, "`lm audit verify` reads every line") for sentence in sentences]
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        found.append(Finding("audit", WARN, f"others may write to `{folder}`", f"chmod go-w {folder}"))
    return found or [Finding("audit", OK, f"recorded in {folder}")]


def _policy(config: Config) -> list[Finding]:
    try:
        rules = read_policy(config)
    except BadSetting as error:
        return [Finding("policy", FAIL, str(error), error.hint)]
    path = policy_file(config)
    found = [Finding("policy", WARN, sentence, f"correct `{path}`") for sentence in contradictions(rules)]
    return found + [Finding("policy", FAIL, str(fault), fault.hint) for fault in key_faults(rules)]


def _certificates(config: Config) -> list[Finding]:
    return [
        finding
        for path in dict.fromkeys((config.tls_cert, config.tls_ca))
        if path is not None
        for finding in _certificate(path)
    ]


def _certificate(path: Path) -> list[Finding]:
    """Findings about a file of certificates whose time is not now, or ends soon."""
    try:
        times = validities(path)
    except OSError as error:
        return [Finding("TLS", FAIL, f"`{path}` cannot be read: {error.strerror}", "check the file")]
    except ValueError:
        return [Finding("TLS", FAIL, f"`{path}` is no file of certificates in PEM", "name another in `tls_cert`")]
    now, hint = time.time(), "put a new one there, and send SIGHUP to the daemon"
    begins, ends = max(each.begins for each in times), min(each.ends for each in times)
    if ends <= now:
        return [Finding("TLS", FAIL, f"a certificate in `{path}` expired {_days(now - ends)} ago", hint)]
    if begins > now:
        message = f"a certificate in `{path}` holds only from {_days(begins - now)} on"
        return [Finding("TLS", FAIL, message, "is the clock of this machine right?")]
    if ends - now < SOON_SECONDS:
        return [Finding("TLS", WARN, f"a certificate in `{path}` expires in {_days(ends - now)}", hint)]
    return []


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.0f} h"
