"""The image: what its recipe names is there, versions are pinned; a long run makes it and lets it answer."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.test_architecture import PACKAGES, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
QUADLET = (ROOT / "containers" / "lm.container").read_text()
# An image of Debian 12 that is here already, for machines that cannot fetch the one that the recipe names; words for
# the builder in front of the folder, such as `--volume` for certificates of a mirror.
BASE, WORDS = os.environ.get("LM_TEST_BASE", ""), shlex.split(os.environ.get("LM_TEST_BUILD", ""))
MOST_MB, MOST_COMPRESSED_MB = 550, 220


def pins() -> dict[str, str]:
    lines = (ROOT / "containers" / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_all_that_lm_needs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert wanted.specifier.contains(pins()[name]), f"{name} in containers/constraints.txt is {pins()[name]}"
    installs = re.findall(r"pip install (.*)", DOCKERFILE.replace("\\\n", ""))
    assert len(installs) == 2
    assert all("--constraint containers/constraints.txt" in words for words in installs)


def test_the_recipe_copies_what_there_is() -> None:
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(PACKAGES) <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text()
    assert [name for name in copied if f"!{name.split('/')[0]}\n" not in ignored] == []


def test_the_image_has_no_root_and_one_base() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", last, re.M), "a number, so that Kubernetes sees that it is not root"
    assert "HEALTHCHECK" in last
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}
    assert "ADD " not in DOCKERFILE
    for text in (DOCKERFILE, COMPOSE, QUADLET):
        assert "://" not in text, "no host is named but the base's"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            COMPOSE,
            ("read_only: true", "cap_drop: [ALL]", "no-new-privileges:true", "127.0.0.1:11434:11434", "LM_API_KEY"),
            id="compose",
        ),
        pytest.param(
            QUADLET,
            ("ReadOnly=true", "DropCapability=all", "NoNewPrivileges=true", "127.0.0.1:11434:11434", "LM_API_KEY"),
            id="quadlet",
        ),
    ],
)
def test_a_container_gets_no_more_than_it_needs(text: str, words: tuple[str, ...]) -> None:
    assert [word for word in words if word not in text] == []


# What a container does from outside, for machines that start none: its processes, network and mounts are its own, its
# root is read-only, its user is the image's, without capabilities.
ENTER = """set -eu
mount --bind "$1" "$1"
for place in proc dev tmp data; do mkdir -p "$1/$place"; done
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$1/data"
mount -o remount,ro,bind "$1"
ip link set lo up
root=$1
shift
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env -i "$@"
"""
# What is done inside: a daemon that is asked until it is healthy, an answer, a write that fails, the findings.
INSIDE = """set -eu
"$@" >/tmp/log 2>&1 &
for try in $(seq 600); do
    if python3 -P -c "$HEALTH" >/tmp/health 2>&1; then break; fi
    [ "$try" != 600 ] || { cat /tmp/log /tmp/health; exit 1; }
    sleep 0.2
done
lm run demo "Once upon a time" >/tmp/answer
[ -s /tmp/answer ]
[ "$(id -u)" = 10001 ]
if touch /opt/lm/new 2>/tmp/refused; then echo "the root can be written"; exit 1; fi
grep -q "Read-only" /tmp/refused
lm doctor --json || true
"""


class Image(NamedTuple):
    size: int
    compressed: int
    way: str


def works(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


def ways() -> list[str]:
    """The programs that can make the image here, the best first."""
    found = []
    for engine in ("docker", "podman"):
        base = BASE or re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.M)[0]
        if shutil.which(engine) and works(engine, "run", "--rm", base, "true"):
            found.append(engine)
    tools = ("buildah", "unshare", "chroot", "ip")
    if os.getuid() == 0 and all(map(shutil.which, tools)) and works("unshare", "--mount", "--net", "--pid", "true"):
        found.append("buildah")
    return found


def made(way: str) -> Image:
    """Make the image `lm-test`; skips where its base cannot be fetched."""
    engine = ["buildah", "bud", "--isolation", "chroot", "--layers"] if way == "buildah" else [way, "build"]
    form = [] if way == "docker" else ["--format", "docker"]  # the other form has no health check
    base = ["--build-arg", f"BASE={BASE}"] if BASE else []
    words = [*engine, *form, *base, *WORDS, "--tag", "lm-test", str(ROOT)]
    built = subprocess.run(words, capture_output=True, text=True)
    if built.returncode and not BASE and re.search(r"pull|registry|resolve|lookup|short-name", built.stderr):
        pytest.skip(f"{way} cannot fetch the base: {built.stderr.strip()[-200:]}")
    assert built.returncode == 0, built.stderr[-3000:]
    inspect = [way, "image", "inspect", "-f", "{{.Size}}", "lm-test"]
    if way == "buildah":
        inspect = ["podman", *inspect[1:]]
    size = int(subprocess.run(inspect, capture_output=True, check=True).stdout)
    save = f"{inspect[0]} save lm-test | gzip -6 | wc -c"
    return Image(size, int(subprocess.run(save, shell=True, capture_output=True, check=True).stdout), way)


def run_inside(way: str) -> str:
    """What `INSIDE` writes in a container without a network, with a read-only root and as the image's user."""
    health = re.findall(r'CMD \["python3", "-P", "-c", "(.*)"\]', DOCKERFILE)[0]
    values = {"HEALTH": health, "LM_API_KEY": "a-key-of-the-test-alone"}
    inside = ["sh", "-c", INSIDE, "sh", "lm", "serve"]
    if way != "buildah":
        flags = ["--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--cap-drop", "ALL"]
        flags += ["--security-opt", "no-new-privileges", "--entrypoint", ""]
        named = [word for key, value in values.items() for word in ("--env", f"{key}={value}")]
        done = subprocess.run([way, "run", *flags, *named, "lm-test", *inside], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    told = subprocess.run(["podman", "image", "inspect", "lm-test"], capture_output=True, check=True).stdout
    config = json.loads(told)[0]["Config"]
    assert config["User"] == "10001:10001"
    pairs = [*config["Env"], *(f"{key}={value}" for key, value in values.items())]
    container = subprocess.run(
        ["buildah", "from", "lm-test"], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        mounted = ["buildah", "mount", container]
        root = subprocess.run(mounted, capture_output=True, text=True, check=True).stdout.strip()
        own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        done = subprocess.run([*own, "sh", "-c", ENTER, "sh", root, *pairs, *inside], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True)


@pytest.mark.long(name="image")
@pytest.mark.timeout(3600)
def test_the_image_is_made_and_answers() -> None:
    """By Docker, else by Podman, else its lines by Buildah in a root of its own; the way and the sizes are told."""
    found = ways()
    if not found:
        pytest.skip(
            "no program here makes images: Docker or Podman that run containers, or Buildah with the rights of root"
        )
    image = made(found[0])
    text = f"{image.size / 1e6:.0f} MB unpacked, {image.compressed / 1e6:.0f} MB compressed"
    print(f"made by {image.way}: {text}")
    assert image.size <= MOST_MB * 1e6
    assert image.compressed <= MOST_COMPRESSED_MB * 1e6
    answered = run_inside(image.way)
    findings = {finding["check"]: finding for finding in json.loads(answered)}
    assert findings["llama.cpp"]["state"] == "ok"
