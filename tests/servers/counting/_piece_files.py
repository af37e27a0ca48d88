"""The files of pieces, of which some take over the memory of removed ones.

A virtual machine may give free memory back to its host (https://docs.kernel.org/mm/free_page_reporting.html). To take
it again then costs several times as much as to write into it, and would be measured as if the client were that slow.
"""

from __future__ import annotations

import os
import stat
import sys
import uuid
from pathlib import Path
from typing import BinaryIO

_SMALLEST_KEPT_BYTES = 2**20


class PieceFiles:
    """The files of a store's pieces.

    Only files that were never read are written to again: the bytes of a removed object may still be on their way.

    Args:
        root: Where their directories are, shared by all server processes.
        kept: How many files are kept at most when their pieces are removed.
    """

    def __init__(self, root: Path, kept: int = 0) -> None:
        self._pieces = root / "pieces"
        self._free = root / "free"
        self._kept = 0 if sys.platform == "win32" else kept  # A file that is mapped cannot be renamed there.
        self.folders = (self._pieces, self._free)
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def new_path(self) -> str:
        """A path at which no file is yet."""
        return f"{self._pieces}/{uuid.uuid4().hex}"

    def create(self, size: int) -> tuple[str, BinaryIO]:
        """Open a file for a new piece; it may be longer than what is written to it.

        Args:
            size: About how many bytes that will be.
        """
        path = self.new_path()
        if self._kept and size >= _SMALLEST_KEPT_BYTES:
            for name in os.listdir(self._free):
                try:
                    os.rename(self._free / name, path)
                except FileNotFoundError:  # another process took it
                    continue
                return path, open(path, "r+b", buffering=0)
        return path, open(path, "wb", buffering=0)

    def remove(self, path: str) -> None:
        """Remove the file of a piece; one that is not there is no error."""
        if self._kept and len(os.listdir(self._free)) < self._kept:
            removed = f"{path}.removed"  # From here on nobody begins to read it.
            try:
                os.rename(path, removed)
            except FileNotFoundError:
                return
            if _is_kept(os.stat(removed)):
                os.rename(removed, self._free / os.path.basename(path))
                return
            path = removed
        Path(path).unlink(missing_ok=True)


def begin_to_read(path: str) -> BinaryIO:
    """Open the file of a piece, which from here on is never written to again.

    Raises:
        FileNotFoundError: The piece was removed.
    """
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    if sys.platform != "win32":
        os.fchmod(file.fileno(), stat.S_IRUSR)
        if not os.path.exists(path):  # It was removed before it was marked.
            file.close()
            raise FileNotFoundError(path)
    return file


def _is_kept(status: os.stat_result) -> bool:
    is_unread = bool(status.st_mode & stat.S_IWUSR)
    return is_unread and status.st_nlink == 1 and status.st_size >= _SMALLEST_KEPT_BYTES
