"""Packed tars of a source, unpacked into a folder of a pull: as a stream, bounded, and checked before they are read.

FOLDER/HEX.tar      the tar of the layer sha256:HEX, whole and synced
FOLDER/HEX.part     one on its way; it is begun anew
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.errors import DiskFull, SourceUnavailable
from registry.sources.base import FileReader
from registry.sources.inflating import Inflater, inflater
from registry.store import fsops, reading
from registry.store.fsops import plainly

# A tar has at most SLACK bytes and EXPANSION times its packed length. Weights pack to half of their length at best, a
# file that is made to fill disks to a thousandth.
EXPANSION, SLACK = 32, 64 << 20
_STEP = 1 << 20
Tell = Callable[[int, int], None]


@dataclass
class Unpacking:
    """The place for tars that are unpacked: a folder, which is made, and the bytes that may lie in it.

    `tell` hears how many bytes of how many of a layer were read.
    """

    folder: Path
    room: int
    tell: Tell

    def unpack(self, archive: str, digest: str, size: int, opened: Callable[[], FileReader], title: str) -> Path:
        """The tar of a packed layer (`sha256:…`, `size` bytes); `opened` reads it and checks its digest.

        `archive` is a name whose ending tells the packer. A tar that an earlier pull unpacked is there still. Raises
        SourceUnavailable, DigestMismatch, DiskFull, StoreFailed.
        """
        path = self.folder / f"{digest.removeprefix('sha256:')}.tar"
        with plainly(self.folder):
            fsops.make_folders(self.folder.parent, self.folder)
            if (there := reading.status(path)) is None:
                part = path.with_suffix(".part")
                fsops.unlink(part)
                self._write(part, size, opened(), inflater(archive, title), title)
                fsops.fsync(part)
                fsops.rename(part, path)
                fsops.fsync_dir(self.folder)
                there = path.lstat()
        self.room -= there.st_size
        return path

    def _write(self, part: Path, size: int, reader: FileReader, inflated: Inflater, title: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        written, most = 0, size * EXPANSION + SLACK
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb", buffering=0) as file:
                done, buffer = 0, memoryview(bytearray(_STEP))
                while done < size:
                    piece = buffer[: min(_STEP, size - done)]
                    reader.readinto(piece)
                    done += len(piece)
                    for data in inflated.pieces(piece):
                        written += len(data)
                        if written > most:
                            why = f"`{title}` has a packed tar that becomes {EXPANSION} times as long and more"
                            raise SourceUnavailable(why, "no weights do that: it may be made to fill disks")
                        if written > self.room:
                            raise DiskFull(f"a packed tar of `{title}` does not fit on the disk", "make room: `lm rm`")
                        file.write(data)
                    self.tell(done, size)
            reader.finish()
            if not inflated.ended:
                hint = "ask its publisher to push it again"
                raise SourceUnavailable(f"`{title}` has a packed tar that ends early", hint)
        except BaseException:
            fsops.unlink(part)
            raise
        finally:
            reader.close()
