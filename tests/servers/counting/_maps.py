"""Files in memory, mapped once: a server that maps an object anew for each request spends a third of its time so."""

from __future__ import annotations

import mmap
import os
import sys
from collections import OrderedDict
from typing import BinaryIO

from servers.counting._piece_files import begin_to_read

_MOST_BYTES = 4 * 2**30
_MOST_FILES = 0 if sys.platform == "win32" else 256  # A mapped file cannot be removed there.


class Maps:
    """The files that were read last, mapped; what is removed is let go of when another file is mapped."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[BinaryIO, memoryview]] = OrderedDict()

    def view(self, path: str) -> memoryview:
        """The bytes of a file that is never changed.

        Raises:
            FileNotFoundError: It was removed before it was read.
        """
        kept = self._kept.get(path)
        if kept is not None:
            self._kept.move_to_end(path)
            return kept[1]
        self._forget_removed()
        file = begin_to_read(path)
        size = os.fstat(file.fileno()).st_size
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
        self._kept[path] = file, view
        while len(self._kept) > _MOST_FILES or sum(len(view) for _, view in self._kept.values()) > _MOST_BYTES:
            self._forget(next(iter(self._kept)))
        return view

    def clear(self) -> None:
        """Let go of all files; views that were given out stay valid."""
        for path in list(self._kept):
            self._forget(path)

    def _forget_removed(self) -> None:
        for path, (file, _) in list(self._kept.items()):
            if not os.fstat(file.fileno()).st_nlink:
                self._forget(path)

    def _forget(self, path: str) -> None:
        file, _ = self._kept.pop(path)
        file.close()
