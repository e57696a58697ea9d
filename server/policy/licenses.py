"""Licences of models: SPDX identifiers, the words of hubs for them, and texts by their titles.

Identifiers are SPDX's (https://spdx.org/licenses). Licences of makers, which SPDX has not, are `LicenseRef-…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_SPDX = frozenset(
    [
        "AFL-3.0",
        "AGPL-3.0-only",
        "AGPL-3.0-or-later",
        "Apache-2.0",
        "Artistic-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSD-3-Clause-Clear",
        "BSL-1.0",
        "CC0-1.0",
        "CC-BY-2.0",
        "CC-BY-3.0",
        "CC-BY-4.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "CC-BY-NC-2.0",
        "CC-BY-NC-3.0",
        "CC-BY-NC-4.0",
        "CC-BY-NC-ND-4.0",
        "CC-BY-NC-SA-3.0",
        "CC-BY-NC-SA-4.0",
        "CC-BY-ND-4.0",
        "CDLA-Permissive-2.0",
        "ECL-2.0",
        "EPL-2.0",
        "EUPL-1.1",
        "EUPL-1.2",
        "GPL-2.0-only",
        "GPL-3.0-only",
        "ISC",
        "LGPL-3.0-only",
        "MIT",
        "MPL-2.0",
        "MS-PL",
        "ODbL-1.0",
        "OFL-1.1",
        "PDDL-1.0",
        "PostgreSQL",
        "Unlicense",
        "Zlib",
    ]
)
# Words of the Hugging Face Hub, and of packages of Python, that are not SPDX's.
_HUB = {
    "apache software license": "Apache-2.0",
    "agpl-3.0": "AGPL-3.0-only",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "mit license": "MIT",
    "odc-by": "LicenseRef-odc-by",
}
_KNOWN = {each.lower(): each for each in _SPDX} | _HUB
# Licences of makers: their beginnings in the hub's words, and whether they forbid commercial use.
_MAKERS = {
    "llama": False,
    "gemma": False,
    "openrail": False,
    "creativeml-openrail": False,
    "bigscience": False,
    "bigcode": False,
    "bigcode-openrail": False,
    "deepseek": False,
    "tongyi-qianwen": False,
    "qwen-research": True,
    "qwen": False,
    "lfm1.0": False,
    "falcon": False,
    "grok": False,
    "mrl": True,
    "mnpl": True,
    "exaone": True,
    "health-ai-developer-foundations": False,
    "apple-amlr": True,
}
# Titles in the first lines of a text.
_TITLES = (
    (re.compile(r"apache\s+license,?\s+version\s+2\.0"), "Apache-2.0"),
    (re.compile(r"^\s*(the\s+)?mit\s+license|permission is hereby granted, free of charge"), "MIT"),
    (re.compile(r"attribution-noncommercial-sharealike 4\.0"), "CC-BY-NC-SA-4.0"),
    (re.compile(r"attribution-noncommercial 4\.0"), "CC-BY-NC-4.0"),
    (re.compile(r"attribution-sharealike 4\.0"), "CC-BY-SA-4.0"),
    (re.compile(r"attribution 4\.0 international"), "CC-BY-4.0"),
    (re.compile(r"gnu affero general public license\s+version 3"), "AGPL-3.0-only"),
    (re.compile(r"gnu general public license\s+version 3"), "GPL-3.0-only"),
    (re.compile(r"llama ([0-9.]+) (?:version release|community license)"), "LicenseRef-llama{}"),
    (re.compile(r"gemma terms of use"), "LicenseRef-gemma"),
    (re.compile(r"qwen research license"), "LicenseRef-qwen-research"),
    (re.compile(r"mistral ai research license"), "LicenseRef-mrl"),
    (re.compile(r"deepseek license"), "LicenseRef-deepseek"),
)
_HEAD = 2000
_WORD = re.compile(r"[a-z0-9][a-z0-9 .+_-]{0,60}")
_LICENSE_REF = "LicenseRef-"


class License(NamedTuple):
    """A licence: its identifier, "" where nobody knows one, and whether it forbids commercial use."""

    id: str
    non_commercial: bool = False

    @property
    def is_spdx(self) -> bool:
        """Whether SPDX has it."""
        return bool(self.id) and not self.id.startswith(_LICENSE_REF)


UNKNOWN = License("")


def recognise(text: str) -> License:
    """The licence by a hub's word, an SPDX identifier, or the text of a licence."""
    flat = " ".join(text[:_HEAD].lower().split())
    if known := _KNOWN.get(flat):
        return License(known, "-nc" in known.lower())
    for pattern, name in _TITLES:
        if match := pattern.search(flat):
            found = name.format(*match.groups())
            return License(found, "-nc" in found.lower() or _forbids(found.removeprefix(_LICENSE_REF)))
    word = flat.removeprefix(_LICENSE_REF.lower())
    maker = next((each for each in sorted(_MAKERS, key=len, reverse=True) if word.startswith(each)), "")
    if maker and _WORD.fullmatch(word):
        return License(_LICENSE_REF + word.replace(" ", "-"), _forbids(word))
    return UNKNOWN


def recognise_any(texts: Iterable[str]) -> License:
    """The first of these texts that is the licence of somebody; UNKNOWN where none is."""
    return next((found for text in texts if (found := recognise(text)).id), UNKNOWN)


def _forbids(word: str) -> bool:
    maker = next((each for each in sorted(_MAKERS, key=len, reverse=True) if word.startswith(each)), "")
    return _MAKERS.get(maker, False) or "non-commercial" in word or "-nc" in word


def license_texts(metadata: Mapping[str, Any], texts: Iterable[str]) -> list[str]:
    """The words about its licence in a file's metadata, and the texts of licences beside it."""
    named = [metadata.get("general.license.name"), metadata.get("general.license")]
    return [*(each for each in named if isinstance(each, str)), *texts]


def is_spdx(text: str) -> bool:
    """Whether a text is an SPDX identifier that is known here, in upper case or lower."""
    return text.lower() in {each.lower() for each in _SPDX}
