"""The file `policy.toml` in the home: rules that pulls, imports, creates and loads keep.

    allow_licenses = ["Apache-2.0", "MIT", "LicenseRef-llama*"]    # by SPDX identifier; `*` stands for any letters
    sources = ["hf.co/Qwen", "registry.lan:5000/*", "here"]        # beginnings, or patterns; `here`: made on this box
    max_size = "8GB"                                               # of a model's file
    require_signature = ["keys"]                                   # public keys: files, or folders of `.pem` files

Each rule that stands there narrows; without the file everything is allowed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import BadSignature, RegistryError
from registry.signatures.attaching import FoundSignature
from registry.signatures.keys import TrustedKey, read_public
from runtime.units import size_text
from server.config import Config
from server.policy.licenses import UNKNOWN, is_spdx, license_texts, recognise_any
from server.settings import BadSetting

# The source of a model that was made on this box.
HERE = "here"
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([KMGT]?B)", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_NAMES = ("allow_licenses", "sources", "max_size", "require_signature")
_MOST_KEYS = 64


class PolicyRefused(RegistryError):
    """A model that the policy of this box does not allow."""

    code = "policy_refused"


class PolicyRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules. None allows everything; sizes are bytes. `require_signature` are the keys whose signatures count."""

    allow_licenses: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    max_size: int | None = None
    require_signature: tuple[TrustedKey, ...] | None = None

    def check_source(self, source: str) -> None:
        """Raise PolicyRefused for a source that is not allowed; "" is a model that was made here."""
        if self.sources is None or any(_matches(source or HERE, pattern) for pattern in self.sources):
            return
        shown = f"from `{source[:120]}`" if source else "that were made here"
        raise PolicyRefused(
            f"the policy of this box allows no models {shown}",
            f"it allows {', '.join(self.sources) or 'none'} (`sources` in `policy.toml`)",
        )

    def check_size(self, title: str, size: int) -> None:
        """Raise PolicyRefused for a file that is too large."""
        if self.max_size is not None and size > self.max_size:
            raise PolicyRefused(
                f"`{title}` takes {size_text(size)}, and the policy of this box allows {size_text(self.max_size)}",
                "take a smaller level, or change `max_size` in `policy.toml`",
            )

    def check_license(self, title: str, texts: Iterable[str]) -> None:
        """Raise PolicyRefused unless one of these words or texts is a licence that is allowed."""
        if self.allow_licenses is None:
            return
        found = recognise_any(texts)
        if found != UNKNOWN and any(fnmatchcase(found.id.lower(), each.lower()) for each in self.allow_licenses):
            return
        what = f"the licence `{found.id}`" if found != UNKNOWN else "no licence that is recognised"
        raise PolicyRefused(
            f"`{title}` has {what}, and the policy of this box does not allow that",
            f"it allows {', '.join(self.allow_licenses) or 'none'} (`allow_licenses` in `policy.toml`)",
        )

    def check_signature(self, title: str, signatures: Sequence[FoundSignature]) -> None:
        """Raise PolicyRefused unless one of these signatures is for the model's files and by a key that counts."""
        if self.require_signature is None:
            return
        reasons = []
        for found in signatures:
            if found.fault or found.signed is None:
                reasons.append(str(found.fault))
                continue
            for key in self.require_signature:
                try:
                    key.verify(found.signed)
                    return
                except BadSignature as fault:
                    reasons.append(str(fault))
        keys = ", ".join(map(_shown, self.require_signature)) or "no key at all"
        why = f"no signature on it counts ({'; '.join(dict.fromkeys(reasons))})" if reasons else "it is not signed"
        raise PolicyRefused(
            f"the policy of this box wants `{title}` signed by {keys}, and {why}",
            "`lm sign` signs it with the private key of one of them; `require_signature` in `policy.toml` names them",
        )

    def check_file(self, title: str, size: int, metadata: Mapping[str, Any], licenses: Iterable[str]) -> None:
        """Raise PolicyRefused for a model's file by its size, its metadata and the texts of licences beside it."""
        self.check_size(title, size)
        self.check_license(title, license_texts(metadata, licenses))


ANYTHING = PolicyRules()


def policy_file(config: Config) -> Path:
    """Where the policy of a home is."""
    return config.home / "policy.toml"


def read_policy(config: Config) -> PolicyRules:
    """The policy of a home. Raises BadSetting for a file that cannot be used: then nothing is allowed by mistake."""
    path = policy_file(config)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return PolicyRules()
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}", "give yourself the right to read it") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, "is no file", "move it away")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _bad(path, "can be changed by other users", f"`chmod go-w {path}`")
        data = file.read(1 << 20)
    import tomllib  # only where there is a policy

    try:
        return _rules(path, tomllib.loads(data.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(path, f"is no TOML: {error}", "correct it") from None


def contradictions(rules: PolicyRules) -> list[str]:
    """Sentences about rules that allow nothing, or that mean nothing."""
    found = []
    if rules.sources == ():
        found.append("`sources` is empty, so no model may come in or be loaded")
    if rules.allow_licenses == ():
        found.append("`allow_licenses` is empty, so no model may come in or be loaded")
    if rules.require_signature == ():
        found.append("`require_signature` names no key, so no model may come in or be loaded")
    if rules.max_size == 0:
        found.append("`max_size` is 0, so no model may come in or be loaded")
    named = [each for each in rules.allow_licenses or () if "*" not in each and not each.startswith("LicenseRef-")]
    found += [
        f"`{each}` in `allow_licenses` is no SPDX identifier, so no model has it" for each in named if not is_spdx(each)
    ]
    return found


def _matches(source: str, pattern: str) -> bool:
    plain, wanted = _plain(source), _plain(pattern)
    return plain == wanted or plain.startswith((f"{wanted}/", f"{wanted}:")) or fnmatchcase(plain, wanted)


def _plain(text: str) -> str:
    text = text.lower().rstrip("/")
    text = text.removeprefix("https://").removeprefix("http://")
    return "hf.co/" + text.removeprefix("huggingface.co/") if text.startswith("huggingface.co/") else text


def _rules(path: Path, table: dict[str, Any]) -> PolicyRules:
    if unknown := sorted(set(table) - set(_NAMES)):
        raise _bad(path, f"has no rule `{unknown[0]}`", f"rules are {', '.join(_NAMES)}")
    values = dict(table)
    for name in ("allow_licenses", "sources"):
        if name in values and not (isinstance(values[name], list) and all(isinstance(x, str) for x in values[name])):
            raise _bad(path, f"has `{name}`, which is no list of texts", 'write `["…"]`')
    if "max_size" in values:
        values["max_size"] = _size(path, values["max_size"])
    if "require_signature" in values:
        values["require_signature"] = tuple(_keys(path, values["require_signature"]))
    return msgspec.convert(values, PolicyRules)


def key_faults(rules: PolicyRules) -> list[BadSignature]:
    """The faults of keys whose signatures would count, such as a certificate that expired."""
    found = []
    for key in rules.require_signature or ():
        try:
            key.check()
        except BadSignature as fault:
            found.append(fault)
    return found


def _keys(path: Path, value: object) -> Iterator[TrustedKey]:
    """The public keys of `require_signature`: of files, and of folders. Raises BadSetting."""
    places = [value] if isinstance(value, str) else value
    if not (isinstance(places, list) and all(isinstance(each, str) for each in places)):
        raise _bad(path, "has `require_signature`, which is no list of files of keys", 'write `["keys/acme.pem"]`')
    for place in places:
        full = path.parent / Path(place).expanduser()
        files = [full]
        if full.is_dir():
            if full.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise _bad(path, f"names `{place}`, which other users can change", f"`chmod go-w {full}`")
            files = sorted(each for each in full.iterdir() if each.suffix in (".pem", ".pub", ".crt"))[:_MOST_KEYS]
        for file in files:
            try:
                yield read_public(file, file.name)
            except BadSignature as error:
                raise _bad(path, f"names a key that is not used: {error}", error.hint) from None


def _shown(key: TrustedKey) -> str:
    """A key by its file's name and the beginning of its fingerprint."""
    try:
        return f"`{key.name}` ({key.fingerprint[:16]})"
    except BadSignature as fault:
        return f"`{key.name}` (not usable: {fault})"


def _size(path: Path, value: object) -> int:
    match = _SIZE.fullmatch(str(value)) if isinstance(value, str) else None
    if match:
        return round(float(match[1]) * _UNITS[match[2].lower()])
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _bad(path, "has `max_size`, which is no size", 'write one such as `"8GB"`')


def _bad(path: Path, what: str, hint: str) -> BadSetting:
    return BadSetting(f"the policy `{path}` {what}", hint)
