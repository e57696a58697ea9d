"""Names of models, as users type them and as the store files them.

A `Reference` says where a model comes from. A `Name` is the model's place in the store: host, namespace, model, tag.
Paths in the store are built from `Name`s only, and a `Name` refuses words such as `..`, which `registry/words.py` tells
from good ones. So this module is the guard against names that try to be paths. It reads no disk and no network; only
for relative paths it asks for the current folder.
"""

from __future__ import annotations

import hashlib
import os.path
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from registry.errors import BadName
from registry.words import AUTO, bad_name, canonical_level, is_word, package_word, short_word, word_of

# `bare` is a single word: whoever knows this machine decides of which of the others it is (`server/api/sources.py`).
Kind = Literal["bare", "demo", "folder", "hub", "oci", "ollama", "package", "store", "url"]

HUB = "hf.co"
OLLAMA = "registry.ollama.ai"
LOCAL = "local"
LIBRARY = "library"
LATEST = "latest"

_ALIASES = {"huggingface.co": HUB, "www.huggingface.co": HUB, "ollama.com": OLLAMA}
_PAGES = {OLLAMA: "ollama.com"}  # what people call a registry by
_PACKAGE = re.compile(r"package://([a-z0-9]+(?:-[a-z0-9]+)*)(?:/([^/:]+))?(?::([^/:]+))?")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::[0-9]{1,5})?")
# A model pinned by the digest of its manifest; a tag before the digest does not count. The store has it as a tag.
_PINNED = re.compile(r"([^@]+?)(?::[^:/@]+)?@sha256:([0-9a-f]{64})")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]{40}")
# A manifest in the store of Ollama, or of lm: its path says the name.
_MANIFEST = re.compile(r".*/manifests/([^/]+)/([^/]+)/([^/]+)/([^/:]+)")
_FILE = re.compile(r"(?<=.)(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
# A level behind a URL's file, and the digest of the file: `https://x.example/a.gguf:Q4_K_M#sha256=…`.
_LEVELLED, _FRAGMENT = re.compile(r"\.gguf:[^/:]+$", re.IGNORECASE), re.compile(r"(sha256[=:][0-9a-f]{64})?")
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Name:
    """The place of a model in the store: `hf.co`, `org`, `repo`, `Q4_K_M`. Without a `tag` it means all its variants.

    Raises BadName for a word that is unsafe as the name of a file.
    """

    host: str
    namespace: str
    model: str
    tag: str | None = None

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host) or ".." in self.host:
            raise bad_name(self.host)
        for word in (self.namespace, self.model, *([] if self.tag is None else [self.tag])):
            if not is_word(word):
                raise bad_name(word)

    @property
    def parts(self) -> tuple[str, ...]:
        """The words in order, each safe as one component of a path: three, or four with a tag."""
        return (self.host, self.namespace, self.model, *([] if self.tag is None else [self.tag]))

    @property
    def display(self) -> str:
        """The shortest form that `parse` and the store understand: `tale:Q4_K_M`, `hf.co/org/repo:Q4_K_M`."""
        short = {(LOCAL, LIBRARY): self.model, (OLLAMA, LIBRARY): self.model}
        host = _PAGES.get(self.host, self.host)
        text = short.get((self.host, self.namespace), f"{host}/{self.namespace}/{self.model}")
        return text if self.tag is None else f"{text}:{self.tag}"

    def tagged(self, tag: str | None) -> Name:
        """The name of another variant of the model, or of the model without a variant (None)."""
        return replace(self, tag=tag)

    def same(self, other: Name) -> bool:
        """Whether two names are equal, or differ in upper and lower case only."""
        return [part.lower() for part in self.parts] == [part.lower() for part in other.parts]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a model comes from.

    `location` is `demo`, an absolute path, `org/repo` (hub), `namespace/model` (Ollama), `host/namespace/model` (OCI),
    a URL, the name of an installed package with or without a folder of it, or a bare word. `level` is the canonical
    form of the text behind the colon: `auto`, a named level (`Q4_K_M`), a budget (`4GB`, `4.5bpw`) or, on a hub, a file
    (`x.gguf`); None without a colon. Whether a level exists is not checked here. `name.tag` is the level, but None for
    `auto`, which is resolved later. For Ollama, OCI and bare words the text behind the colon is the tag, and `level` is
    None.
    """

    kind: Kind
    location: str
    level: str | None
    name: Name

    @property
    def names(self) -> tuple[Name, ...]:
        """The names under which the store may have it.

        A folder whose name is taken is called by its parent as well, the model of a package by the whole package, a
        file at a URL by its host.
        """
        if not self.local:
            return (self.name,)
        model, parent = self.name.model, word_of(os.path.basename(os.path.dirname(self.location)))  # noqa: PTH119, PTH120
        parent = word_of(urlsplit(self.location).hostname or "") if self.kind == "url" else parent
        longer = f"{parent}-{model}" if parent else self.location if self.kind == "package" else model
        mark = hashlib.sha256(self.origin.encode(errors="surrogateescape")).hexdigest()[:6]
        words = [model, short_word(longer), f"{short_word(model, 80)}-{mark}"]
        return tuple(replace(self.name, model=word) for word in dict.fromkeys(words))

    @property
    def automatic(self) -> bool:
        """Whether the choice of the level, or of the tag, is left to us."""
        return self.level in (None, AUTO) and (self.kind not in _TAGGED or self.name.tag in (None, LATEST))

    @property
    def local(self) -> bool:
        """Whether its name in the store is only a word, which models of other origins may have as well."""
        return self.kind in ("folder", "package", "url")

    @property
    def registry(self) -> bool:
        """Whether it comes from a registry, which has one model for each tag."""
        return self.kind in ("oci", "ollama")

    @property
    def on_disk(self) -> bool:
        """Whether its location is a path of this machine."""
        return self.kind in ("folder", "store")

    @property
    def host(self) -> str:
        """The host that it comes from, without a port; "" for this machine's files, and for the hub."""
        if self.kind == "url":
            return urlsplit(self.location).hostname or ""
        return self.name.host.partition(":")[0] if self.registry else ""

    @property
    def origin(self) -> str:
        """Where the model comes from, as text that `parse` reads: without the level, but with a registry's tag.

        A URL is without its query, which may be signed and secret, and without the digest of the file.
        """
        if self.kind == "url":
            return urlsplit(self.location)._replace(query="", fragment="").geturl()
        if self.kind == "store":
            return f"{_PAGES.get(self.name.host, self.name.host)}/{'/'.join(self.name.parts[1:3])}:{self.name.tag}"
        return self.text if self.kind in _TAGGED else replace(self, level=None).text.removesuffix("/")

    @property
    def text(self) -> str:
        """The reference as text that any process reads in the same way, whatever its current folder."""
        if self.kind == "url" and self.level is not None:
            url = urlsplit(self.location)
            return url._replace(path=f"{url.path}:{self.level}").geturl()
        if self.kind == "store":
            return self.location
        if self.kind != "folder":
            prefix = {"hub": f"{HUB}/", "ollama": f"{_PAGES[OLLAMA]}/", "package": "package://"}.get(self.kind, "")
            suffix = self.name.tag if self.kind in _TAGGED else self.level
            return f"{prefix}{self.location}" if suffix is None else f"{prefix}{self.location}:{suffix}"
        if self.level is not None:
            return f"{self.location}:{self.level}"
        # A slash at the end says that a colon before it belongs to the folder's name.
        return f"{self.location}/" if ":" in os.path.basename(self.location) else self.location  # noqa: PTH119


# Kinds whose text behind the colon is a registry's tag.
_TAGGED = ("bare", "oci", "ollama", "store")


def parse(text: str) -> Reference:
    """The reference that a user means by `text`; the README has a table of names. Raises BadName."""
    if not text or len(text) > _LONGEST or not text.isprintable() or text != text.strip():
        raise bad_name(text)
    if is_path(text):
        return _folder(text)
    text = unicodedata.normalize("NFC", text)
    if text.startswith("package://"):
        return _package(text)
    if "://" in text:
        return _url(text)
    pinned = _PINNED.fullmatch(text)
    if "@" in text and not pinned:
        raise bad_name(text, "a digest is `@sha256:` and 64 digits, each one of 0-9 and a-f; no other kind is read")
    if pinned:
        text = f"{pinned[1]}:sha256-{pinned[2]}"
    body, colon, suffix = text.rpartition(":")
    if not colon or "/" in suffix:
        body, suffix = text, ""
    if colon and not suffix and body != text:
        raise bad_name(text)
    found = _named(body.split("/"), suffix or None, text)
    if pinned and found.kind not in ("oci", "ollama"):
        raise bad_name(text, "a digest pins a model of a registry, `host/namespace/model@sha256:…`")
    return found


def is_path(text: str) -> bool:
    """Whether `text` means a folder or file of this machine: it begins with `/`, `./`, `../` or `~`."""
    return text in (".", "..") or text.startswith(("/", "./", "../", "~"))


def _named(words: list[str], suffix: str | None, text: str) -> Reference:
    host = words[0].lower()
    host = _ALIASES.get(host, host)
    repository = 3 if host == HUB else 2 if re.fullmatch(r"[^.:]+", host) and host != "localhost" else len(words)
    if suffix is None and len(words) > repository and words[-1].lower().endswith(".gguf"):
        words, suffix = words[:repository], words[-1]  # `org/repo/x.gguf`: a file of a repository
    if host == HUB and len(words) > 1:
        if len(words) != 3:
            raise bad_name(text, f"a model on the hub is named `{HUB}/org/repo`")
        return _hub(words[1], words[2], suffix)
    if len(words) == 1:
        if words[0].lower() == "demo":
            return Reference("demo", "demo", *_levelled(Name(LOCAL, LIBRARY, "demo"), suffix))
        return Reference("bare", words[0], None, Name(OLLAMA, LIBRARY, words[0], suffix))
    if host == OLLAMA:
        if len(words) != 3:
            raise bad_name(
                text, "a model of Ollama's registry is named `model:tag` or `ollama.com/namespace/model:tag`"
            )
        return _ollama(words[1], words[2], suffix)
    if len(words) == 2 and host == LIBRARY:
        return _ollama(LIBRARY, words[1], suffix)  # as Ollama itself calls `model` in full
    if len(words) == 2 and ":" not in words[0]:
        return _hub(words[0], words[1], suffix)
    if host == LOCAL and len(words) == 3:
        raise bad_name(text, f"name it `{words[2]}`")
    if len(words) == 3 and ("." in host or ":" in host or host == "localhost"):
        name = Name(host, words[1], words[2], suffix or LATEST)
        return Reference("oci", "/".join(name.parts[:3]), None, name)
    raise bad_name(text)


def _hub(organisation: str, repository: str, suffix: str | None) -> Reference:
    if not (organisation.isascii() and repository.isascii()):
        raise bad_name(f"{organisation}/{repository}")
    name = Name(HUB, organisation, repository)
    return Reference("hub", f"{organisation}/{repository}", *_levelled(name, suffix))


def _ollama(namespace: str, model: str, tag: str | None) -> Reference:
    return Reference("ollama", f"{namespace}/{model}", None, Name(OLLAMA, namespace, model, tag or LATEST))


def _levelled(name: Name, suffix: str | None) -> tuple[str | None, Name]:
    if suffix is None or suffix.lower() == LATEST:
        return None, name  # Ollama's clients add `latest` to a name without a tag
    level = canonical_level(suffix)
    return level, name if level == AUTO else name.tagged(level)


def _folder(text: str) -> Reference:
    path, _, level = text.rpartition(":")
    if not path or "/" in level:
        path, level = text, ""
    elif not level:
        raise bad_name(text)
    location = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  lexical: the folder need not exist
    if (manifest := _MANIFEST.fullmatch(location)) and not level:
        with suppress(BadName):
            return Reference("store", location, None, Name(*manifest.groups()))
    word = _folder_word(location)
    if not word:
        raise bad_name(text, "give the folder a name with letters or digits in it")
    return Reference("folder", location, *_levelled(Name(LOCAL, LIBRARY, word), level or None))


def _folder_word(location: str) -> str:
    """The word in the name of a folder or a file, "" where no letter or digit is in it."""
    cached = _SNAPSHOT.search(location)
    return short_word(word_of(cached[2] if cached else _FILE.sub("", os.path.basename(location))))  # noqa: PTH119


def _package(text: str) -> Reference:
    match = _PACKAGE.fullmatch(text)
    if match is None:
        raise bad_name(text, "the model of an installed package is named `package://NAME`, or by its bare name")
    distribution, folder, level = match.groups()
    location = distribution if folder is None else f"{distribution}/{folder}"
    return Reference("package", location, *_levelled(Name(LOCAL, LIBRARY, folder or package_word(distribution)), level))


def _url(text: str) -> Reference:
    try:
        url = urlsplit(text)
        host = (url.hostname or "") if url.port is None else f"{url.hostname}:{url.port}"
    except ValueError:
        raise bad_name(text) from None
    alias = _ALIASES.get(host, host)
    if url.scheme in ("http", "https") and alias in (HUB, OLLAMA):
        return _page(alias, url, text)
    if url.scheme not in ("http", "https") or "@" in url.netloc or not host:
        raise bad_name(text, "a URL begins with `https://` and holds no user name")
    path, _, level = url.path.rpartition(":") if _LEVELLED.search(url.path) else (url.path, "", "")
    file = unquote(path).rpartition("/")[2]
    if not file.lower().endswith(".gguf") or not file.isprintable() or not _FRAGMENT.fullmatch(url.fragment):
        raise bad_name(
            text, "a URL leads to a `.gguf` file; models of other registries are named `host/namespace/model:tag`"
        )
    word = short_word(re.sub(r"[^A-Za-z0-9_.-]+|\.{2,}", "-", file[: -len(".gguf")]).strip("-."))
    location = url._replace(path=path).geturl()
    return Reference("url", location, *_levelled(Name(LOCAL, LIBRARY, word), level or None))


def _page(host: str, url: SplitResult, text: str) -> Reference:
    """The reference in a pasted address of a model's page, or of a file: the path is the name, without `/tree/main`."""
    words = [unquote(word) for word in url.path.split("/") if word]
    if host == HUB and words[2:4] in (["blob", "main"], ["resolve", "main"]) and words[-1].lower().endswith(".gguf"):
        return parse(f"{HUB}/{words[0]}/{words[1]}:{words[-1]}")
    if url.query or url.fragment or "@" in url.netloc or not words:
        raise bad_name(text)
    if len(words) == 4 and words[2:] == ["tree", "main"]:
        words = words[:2]
    return parse("/".join([host, *words]))
