"""The few numbers that a dataset and its copies in worker processes share while they run."""

from __future__ import annotations

from multiprocessing.sharedctypes import RawArray
from typing import Any

from s3torch_datasets._shared_index import is_spawning

_EPOCH, _WORKERS_STARTED = 0, 1


class SharedEpoch:
    """An epoch that persistent workers see when it is set in the main process, and a mark that workers iterated."""

    def __init__(self, epoch: int = 0) -> None:
        self._numbers = RawArray("q", [epoch, 0])

    @property
    def epoch(self) -> int:
        """The epoch, as last set in any process."""
        return int(self._numbers[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._numbers[_EPOCH] = epoch

    @property
    def was_iterated_in_a_worker(self) -> bool:
        """Whether the last copy that began to iterate was in a worker process."""
        return bool(self._numbers[_WORKERS_STARTED])

    def mark_iteration(self, *, in_worker: bool) -> None:
        """Says where the dataset is iterated from now on: by copies in worker processes, or in the main process."""
        self._numbers[_WORKERS_STARTED] = in_worker

    def __getstate__(self) -> dict[str, Any]:
        return {"shared": self._numbers} if is_spawning() else {"epoch": self.epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "shared" in state:
            self._numbers = state["shared"]
        else:
            self.__init__(state["epoch"])  # type: ignore[misc]  # a copy that goes its own way
