"""One index for all processes of a dataset, made once: by the first that needs it.

A forked worker has the parent's memory. A spawned worker, and forked workers of a parent that had not listed yet, share
a file: the first of them makes the index and writes it, the others and the parent wait for it and map it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

from s3torch_datasets._background_listing import BackgroundListing, ListingPlan, MakeIndex, ignore
from s3torch_datasets._fork_safe_lock import ForkSafeLock
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._index_file import map_index, write_index
from s3torch_datasets._pid_namespace import find_pid_namespace
from s3torch_datasets._shared_listing import CAN_SHARE, make_once
from s3torch_datasets._spawning import is_spawning

logger = logging.getLogger(__name__)

_STALE_AFTER_SECONDS = 24 * 3600
_FOREIGN_STALE_AFTER_SECONDS = 30 * 24 * 3600


class SharedIndex:
    """Holds a dataset's index in every process that the dataset reaches.

    Args:
        index: The index where it is made already; None to make it when it is first needed.
    """

    def __init__(self, index: ObjectIndex | None = None) -> None:
        self._index = index
        self._listing: BackgroundListing | None = None
        self._lock = ForkSafeLock()
        self._name = f"{find_pid_namespace()}-{os.getpid()}-{uuid.uuid4().hex}.index"
        self._owner_pid = os.getpid()
        Finalize(self, _remove, args=(self._name,), exitpriority=0)

    def get(self, make: Callable[[], ObjectIndex]) -> ObjectIndex:
        """Returns the index, making it when no process of this dataset has.

        Args:
            make: Makes the index, with requests.
        """
        if self._index is not None:  # always so but for the first time
            return self._index
        with self._lock.of_process():
            index, listing = self._find(), self._listing
            if index is None and listing is None:
                index = self._index = self._for_all(lambda on_listed, on_piece: make())(ignore, ignore)
        if index is None:
            assert listing is not None
            index = listing.wait_for_index()
        return index

    def follow(self, plan: Callable[[], ListingPlan]) -> BackgroundListing | None:
        """Returns a listing that makes the index; None where there is an index.

        Args:
            plan: Says how to list.
        """
        with self._lock.of_process():
            if self._find() is not None:
                return None
            if self._listing is None:
                planned = plan()
                self._listing = BackgroundListing(planned._replace(make=self._for_all(planned.make)))
            return self._listing

    def _find(self) -> ObjectIndex | None:
        """Returns the index where there is one: here, of a listing that has ended, or in the file."""
        listing = self._listing
        if listing is not None and not listing.is_running:
            self._index, self._listing = listing.index, None
        if self._index is None and self._listing is None:
            self._index = _map_existing(self._path())
        return self._index

    def _path(self) -> str | None:
        """Returns where the file of this index is, or would be; None where there can be none."""
        folder = _folder()
        return None if folder is None else os.path.join(folder, self._name)

    def _for_all(self, make: MakeIndex) -> MakeIndex:
        """Returns what makes the index for all processes that may need it now."""
        # A DataLoader may ask for the length after it started its workers, who then need the index too.
        is_alone = os.getpid() == self._owner_pid and not multiprocessing.active_children()
        path = None if is_alone or not CAN_SHARE else self._path()
        if path is None:
            return make
        return partial(
            make_once, path, make, partial(_map_existing, path), lambda index: _write_and_map(index, path) or index
        )

    def __getstate__(self) -> dict[str, Any]:
        index = self._find()
        if not is_spawning():
            return {"index": index}
        path = self._path()
        if index is not None and (path is None or not os.path.exists(path)):
            mapped = None if path is None else _write_and_map(index, path)
            if mapped is None:
                return {"index": index}
            self._index = mapped
        return {"name": self._name, "owner_pid": self._owner_pid}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "index" in state:
            self.__init__(state["index"])  # type: ignore[misc]  # a copy that goes its own way
        else:
            self._index = None
            self._listing = None
            self._lock = ForkSafeLock()
            self._name = state["name"]
            self._owner_pid = state["owner_pid"]


def _map_existing(path: str | None) -> ObjectIndex | None:
    if path is not None:
        with contextlib.suppress(OSError):  # It is not there, or its filesystem maps no files.
            return map_index(path)
    return None


def _write_and_map(index: ObjectIndex, path: str) -> ObjectIndex | None:
    try:
        write_index(index, path)
        return map_index(path)
    except OSError as error:
        logger.warning(
            "cannot share the index of %d objects through %s, each process keeps its own: %s", len(index), path, error
        )
        return None


def _folder() -> str | None:
    """Returns this user's folder for index files, or None where there can be none."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = os.path.join(tempfile.gettempdir(), f"s3torch-datasets-{user}")  # OSError: no folder can be written
    except OSError:
        return None
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != user):
            return None  # somebody else's: what lies there is not to be trusted
    except OSError:
        return None
    _remove_stale(folder)
    return folder


def _remove_stale(folder: str) -> None:
    """Removes what killed processes left behind.

    Machines and containers whose processes cannot be seen from here may share the folder. A file of theirs goes only
    when it is a month old, for nobody else would remove those of a container that was killed.
    """
    now, namespace = time.time(), find_pid_namespace()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner, _, rest = entry.name.partition("-")
            pid = rest.partition("-")[0]
            with contextlib.suppress(OSError):
                age_seconds = now - entry.stat().st_mtime
                if owner == namespace and pid.isdecimal():
                    is_stale = age_seconds > _STALE_AFTER_SECONDS and not _is_alive(int(pid))
                else:
                    is_stale = age_seconds > _FOREIGN_STALE_AFTER_SECONDS
                if is_stale:
                    os.unlink(entry.path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(name: str) -> None:
    user = os.getuid() if hasattr(os, "getuid") else 0
    with contextlib.suppress(OSError):
        path = os.path.join(tempfile.gettempdir(), f"s3torch-datasets-{user}", name)
        for leftover in (path, f"{path}.lock", f"{path}.pieces"):
            with contextlib.suppress(OSError):
                os.unlink(leftover)
