"""An index that a spawned process inherits as an open file, and maps, instead of a copy of its own.

`SharedIndex` goes by the name of its file, which ends with the dataset of the process that listed; whoever finds none
there lists again. A list that the user gave cannot be had again, so this file has no name, and lasts as long as a
process holds it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._index_file import map_open_index, write_open_index
from s3torch_datasets._spawning import is_spawning

logger = logging.getLogger(__name__)

# A file takes a descriptor in every process, of which there are few; shorter lists are copied.
_SHORTEST_BYTES = 2**20


class InheritedIndex:
    """Holds an index in the process that made it and in those that it starts.

    Args:
        index: The index.
    """

    def __init__(self, index: ObjectIndex) -> None:
        self.index = index
        self._descriptor: int | None = None

    def _write(self) -> None:
        try:
            with tempfile.TemporaryFile() as file:
                write_open_index(self.index, file)
                self._map(os.dup(file.fileno()))
        except OSError as error:
            logger.warning(
                "cannot share the list of %d objects through a file, each process keeps its own: %s",
                len(self.index),
                error,
            )

    def _map(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)
        self.index, self._descriptor = map_open_index(descriptor), descriptor

    def __getstate__(self) -> dict[str, Any]:
        # Windows has no `DupFd`.
        if is_spawning() and hasattr(reduction, "DupFd") and self.index.size_bytes >= _SHORTEST_BYTES:
            if self._descriptor is None:
                self._write()
            if self._descriptor is not None:
                return {"descriptor": reduction.DupFd(self._descriptor)}
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "descriptor" in state:
            self._map(state["descriptor"].detach())
        else:
            self.__init__(state["index"])  # type: ignore[misc]  # a copy that goes its own way
