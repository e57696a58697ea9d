"""Repositories with models in folders, one for each kind of machine: the folder that a model is made of."""

from __future__ import annotations

from quant.convert.onnx.settings import CONFIG
from quant.plan import Files
from quant.safetensors import INDEX, SINGLE


class Below:
    """The files of one folder within a source, by names from there on. `path` gives a name in the whole source."""

    def __init__(self, files: Files, folder: str, others: int) -> None:
        """`others` is the number of folders that were not taken."""
        self.title = files.title
        self.folder, self.others = folder, others
        self._files, self._before = files, f"{folder}/"

    def names(self) -> list[str]:
        """Paths of the files, from the folder on."""
        found = self._files.names()
        return [name.removeprefix(self._before) for name in found if name.startswith(self._before)]

    def size(self, name: str) -> int:
        """Length in bytes."""
        return self._files.size(self.path(name))

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""
        return self._files.read(self.path(name), offset, size)

    def path(self, name: str) -> str:
        """The name in the whole source, of a name that may be one already."""
        return name if name.startswith(self._before) else self._before + name

    @property
    def remark(self) -> str:
        """A clause on the choice, "" where there was none."""
        return f"made of its folder `{self.folder}`, the largest of {self.others + 1}" if self.others else ""


def folder_of(files: Files) -> Files:
    """The source, or the folder of it that has the model: the largest, whose weights lost least.

    A source with a model of its own outside its folders is taken as it is.
    """
    names = files.names()
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG}")})
    if not folders or {CONFIG, INDEX, SINGLE} & set(names):
        return files

    def weight(folder: str) -> int:
        return sum(files.size(name) for name in names if name.rpartition("/")[0] == folder)

    return Below(files, max(folders, key=weight), len(folders) - 1)
