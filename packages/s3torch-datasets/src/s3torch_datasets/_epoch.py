"""The few numbers that a dataset and its copies in worker processes share while they run."""

from __future__ import annotations

from multiprocessing.sharedctypes import RawArray
from typing import Any

from s3torch_datasets._shared_index import is_spawning

_EPOCH, _WAS_SET, _MIDDLE_WAS_LOADED, _WORKERS_STARTED = range(4)


class SharedEpoch:
    """The epoch of the next iteration, how it was chosen in the main process, and where the last iteration began.

    Persistent workers see what is chosen while they run.
    """

    def __init__(self) -> None:
        self._numbers = RawArray("q", 4)

    @property
    def epoch(self) -> int:
        """The epoch, as last set in any process."""
        return int(self._numbers[_EPOCH])

    @property
    def was_set(self) -> bool:
        """Whether `set` chose the epoch, and no iteration has begun since."""
        return bool(self._numbers[_WAS_SET])

    @property
    def middle_was_loaded(self) -> bool:
        """Whether a state of the middle of this epoch waits in the main process for an iteration there."""
        return bool(self._numbers[_MIDDLE_WAS_LOADED])

    @property
    def was_iterated_in_a_worker(self) -> bool:
        """Whether the last copy that began to iterate was in a worker process."""
        return bool(self._numbers[_WORKERS_STARTED])

    def set(self, epoch: int) -> None:
        """Chooses the epoch; a state that was loaded for another one waits no more."""
        middle_waits = self.middle_was_loaded and epoch == self.epoch
        self._numbers[:_WORKERS_STARTED] = epoch, True, middle_waits

    def load(self, epoch: int, *, is_middle: bool) -> None:
        """Takes the epoch of a state that was loaded in the main process.

        Args:
            epoch: The epoch.
            is_middle: Whether the state is of the middle of it.
        """
        self._numbers[:] = epoch, False, is_middle, False

    def mark_iteration(self, *, in_worker: bool) -> None:
        """Says that an iteration began, by a copy in a worker process or in the main process."""
        self._numbers[_WAS_SET] = False
        self._numbers[_WORKERS_STARTED] = in_worker
        if not in_worker:
            self._numbers[_MIDDLE_WAS_LOADED] = False

    def __getstate__(self) -> dict[str, Any]:
        return {"shared": self._numbers} if is_spawning() else {"copied": self._numbers[:_WORKERS_STARTED]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "shared" in state:
            self._numbers = state["shared"]
        else:
            self.__init__()  # type: ignore[misc]  # a copy that goes its own way
            self._numbers[:_WORKERS_STARTED] = state["copied"]
