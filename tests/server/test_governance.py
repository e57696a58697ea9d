"""Whatever is wrong with the records, the rules and the files of a box is named by `lm doctor` and at the start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.audit.files import full_files
from server.audit.line import AuditEvent
from server.audit.log import AuditLog
from server.config import Config
from server.doctor.frames import OK, WARN
from server.doctor.governance import governance
from server.doctor.modes import open_files
from server.policy.rules import policy_file
from tests.daemon import Daemon, environment

LATER = 7200.0


def spoil(home: Path) -> dict[str, str]:
    """A home in which much is wrong; the settings by which a daemon starts in it, as in the environment."""
    pytest.importorskip("cryptography", reason="the extra `signing` is not installed")
    from tests.server.test_signing import certificate

    log = AuditLog(home / "audit", full_bytes=1 << 14)
    for number in range(200):
        log.append([AuditEvent("lm", "load", f"model{number}")], durable=False)
    log.append([AuditEvent("lm", "load", "from the future", moment=time.time() + LATER)])
    log.close()
    full_files(log.folder)[1].unlink()
    policy = policy_file(Config(home=home))
    policy.write_text('sources = []\nallow_licenses = ["Apache-2"]\n')
    policy.chmod(0o600)
    key, cert = certificate(home, "box", -9)
    key.chmod(0o644)
    (home / "config.toml").write_text('hf_token = "hf_planted"\n')
    (home / "credentials.json").write_text("{}")
    for name in ("config.toml", "credentials.json"):
        (home / name).chmod(0o646)
    home.chmod(0o755)
    return {"LM_HOME": str(home), "LM_TLS_CERT": str(cert), "LM_TLS_KEY": str(key)}


SENTENCES = (
    "are missing",  # a rotated file of the audit log
    "the clock was set",
    "`sources` is empty",
    "`Apache-2` in `allow_licenses` is no SPDX identifier",
    "expired 9 days ago",
    "may read `{home}/box.key`, which holds a private key",
    "may read `{home}/config.toml`, which holds `hf_token`",
    "may change `{home}/config.toml`",
    "may read `{home}/credentials.json`, which holds logins",
    "may change `{home}/credentials.json`",
)


@pytest.mark.slow
def test_all_that_is_wrong_is_named_by_doctor_and_at_the_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = spoil(home)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "server.doctor"], env=environment() | settings, capture_output=True, text=True
    )
    rows = [row for row in json.loads(done.stdout) if row["state"] != OK]
    told = "\n".join(row["found"] for row in rows)
    assert done.returncode == 1 and all(row["hint"] for row in rows)
    with Daemon(home, env=settings) as daemon:
        said = daemon.log
    for sentence in SENTENCES:
        wanted = sentence.format(home=home)
        assert wanted in told, "doctor"
        assert wanted in said, "start"
    assert "hf_planted" not in told + said


def test_modes_count_where_others_reach_the_file(tmp_path: Path) -> None:
    """A file that others could read lies in a folder that they cannot search: nothing is said."""
    config = Config(home=tmp_path)
    path = config.config_file
    path.write_text('api_key = "a long one"\n')
    cases = {(0o755, 0o644): 1, (0o755, 0o600): 0, (0o700, 0o666): 0, (0o755, 0o666): 2, (0o710, 0o604): 0}
    cases |= {(0o710, 0o640): 1, (0o701, 0o640): 0, (0o711, 0o622): 1}
    for (folder, file), count in cases.items():
        tmp_path.chmod(folder)
        path.chmod(file)
        found = open_files(config)
        assert (len(found), {each.state for each in found} <= {WARN}) == (count, True), (oct(folder), oct(file))
    path.write_text("port = 11435\n")  # no secret in it, so it may be read
    for mode, count in ((0o644, 0), (0o666, 1)):
        tmp_path.chmod(0o755)
        path.chmod(mode)
        assert len(open_files(config)) == count


def test_nothing_is_said_of_a_home_in_order(tmp_path: Path) -> None:
    assert {each.state for each in governance(Config(home=tmp_path))} == {OK}
