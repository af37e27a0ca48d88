"""The few numbers that a dataset and its copies in worker processes share while they run."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import get_worker_info

from s3torch_datasets._spawning import is_spawning

_EPOCH, _WAS_SET, _MIDDLE_WAS_LOADED, _WORKERS_STARTED = range(4)


class SharedEpoch:
    """The epoch of the next iteration, how it was chosen in the main process, and where the last iteration began.

    Persistent workers see what is chosen while they run, in the process that started them. Any other process that comes
    by a copy, such as a rank that was spawned or forked, goes its own way from what was chosen when it was started.
    """

    def __init__(self, chosen: Sequence[int] = (0, False, False)) -> None:
        self._array = RawArray("q", 4)
        self._array[:_WORKERS_STARTED] = chosen
        self._handed_over = chosen
        self._owner_pid = os.getpid()
        _note(self)

    @property
    def _numbers(self) -> Any:
        """The numbers of this process, or of the one whose DataLoader worker this is.

        A worker's copy is unpickled before torch says that it is one, so that this cannot be decided earlier.
        """
        if os.getpid() != self._owner_pid and get_worker_info() is None:
            self.__init__(self._handed_over)  # type: ignore[misc]  # a copy that goes its own way
        return self._array

    def hand_over(self) -> Any:
        """Makes the numbers ready for a child process, and returns those that it begins with if it is no worker."""
        self._handed_over = self._numbers[:_WORKERS_STARTED]
        return self._handed_over

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
        state: dict[str, Any] = {"chosen": self.hand_over()}
        if is_spawning():
            state |= {"array": self._array, "owner_pid": self._owner_pid}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "array" not in state:
            self.__init__(state["chosen"])  # type: ignore[misc]  # a copy that goes its own way
            return
        self._array, self._owner_pid, self._handed_over = state["array"], state["owner_pid"], state["chosen"]
        _note(self)


_in_this_process: set[weakref.ref[SharedEpoch]] = set()


def _note(epoch: SharedEpoch) -> None:
    _in_this_process.add(weakref.ref(epoch, _in_this_process.discard))


def _hand_over_all() -> None:
    """Called before each fork: the child cannot tell afterwards whose numbers a parent that had none would have."""
    for epoch in [reference() for reference in list(_in_this_process)]:  # in one step: other threads make datasets
        if epoch is not None:
            epoch.hand_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hand_over_all)
