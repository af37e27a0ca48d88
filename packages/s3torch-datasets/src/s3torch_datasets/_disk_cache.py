"""A folder of whole objects that all processes of a node share: least recently used files go first.

Each file is written under another name and renamed when it is complete, so a file is whole or not there. The sum of all
sizes stands in a file of its own, changed under a lock; making room measures the folder anew, which also corrects the
sum after a process was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from s3core import ObjectInfo
from s3torch_datasets._byte_stream import as_bytes_view
from s3torch_datasets._fork_count import ForkCount

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HAS_LOCKS = fcntl is not None

logger = logging.getLogger(__name__)

_ROOM_AFTER_EVICTION = 0.9
_STALE_AFTER_SECONDS = 3600
_COUNTER = "s3torch-cache-size"
_LOCK = "s3torch-cache-lock"
_TEMPORARY = ".tmp"
# Whatever else lies in the folder is somebody else's, and is neither counted nor removed.
_FILE = re.compile(r"[0-9a-f]{40}(\.[0-9a-f]{32}\.tmp)?")


class DiskCache:
    """The cache, as a value: it pickles, and opens nothing before it is used.

    A folder that cannot be written, or a full disk, turns it off for this process with one warning; what is there is
    still read.

    Args:
        folder: Where the files lie.
        size_bytes: Most bytes of all files together.
        endpoint: Store that the objects are of, so that two stores may have the same bucket.
    """

    def __init__(self, folder: str | os.PathLike[str], size_bytes: int, endpoint: str | None) -> None:
        self.folder = os.path.abspath(os.fspath(folder))
        self.size_bytes = size_bytes
        self._endpoint = endpoint or ""
        self._is_writable = True

    def path_of(self, bucket: str, info: ObjectInfo) -> str:
        """Returns where the object of this ETag lies when it is there."""
        parts = (self._endpoint, bucket, info.key, info.etag or "", info.version_id or "")
        name = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return os.path.join(self.folder, name[:2], name)

    def open(self, bucket: str, info: ObjectInfo) -> int | None:
        """Returns a descriptor of the object's file and marks it as used; None when it is not there."""
        path = self.path_of(bucket, info)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError:
            return None
        if os.fstat(descriptor).st_size != info.size:
            os.close(descriptor)  # cut short by a crash of the machine
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return descriptor

    def has(self, bucket: str, info: ObjectInfo) -> bool:
        """Returns whether the object's file is there."""
        return os.path.exists(self.path_of(bucket, info))

    def begin(self, bucket: str, info: ObjectInfo) -> CacheFile | None:
        """Returns a file to write an object to; None when there is no place for it."""
        if not self._is_writable or info.size > self.size_bytes:
            return None
        if not _HAS_LOCKS:
            self.turn_off("files cannot be locked on this system")
            return None
        return CacheFile(self, self.path_of(bucket, info), info.size)

    def make_room(self, size_bytes: int) -> None:
        """Counts bytes that are about to be added, and removes old files when it would be too many; under the lock."""
        counter = os.path.join(self.folder, _COUNTER)
        try:
            with open(counter) as file:
                total = int(file.read())
        except (FileNotFoundError, ValueError):
            total = self._sum_of_files(0)
        if total + size_bytes > self.size_bytes:
            total = self._sum_of_files(size_bytes)
        with open(counter, "w") as file:
            file.write(str(total + size_bytes))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the folder, against threads, forked children and other processes alike."""
        # A new descriptor each time: a lock belongs to the open file, which a forked child would share.
        descriptor = os.open(os.path.join(self.folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Closing alone would leave it to a child that was forked meanwhile, which shares the open file.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _sum_of_files(self, coming_bytes: int) -> int:
        """Returns the bytes of all files, after removing the oldest ones when the coming ones would not fit."""
        files = []
        long_ago = time.time() - _STALE_AFTER_SECONDS
        for entry in self._entries():
            with contextlib.suppress(OSError):
                found = entry.stat()
                if entry.name.endswith(_TEMPORARY):
                    if found.st_mtime < long_ago:
                        os.unlink(entry.path)  # of a process that was killed
                    continue
                files.append((found.st_mtime_ns, found.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        if total + coming_bytes <= self.size_bytes:
            return total
        wanted = min(int(self.size_bytes * _ROOM_AFTER_EVICTION), self.size_bytes - coming_bytes)
        for _, size, path in sorted(files):
            if total <= wanted:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as folders:
            for folder in folders:
                if len(folder.name) == 2 and folder.is_dir():
                    with os.scandir(folder.path) as entries:
                        yield from (
                            entry
                            for entry in entries
                            if entry.name.startswith(folder.name) and _FILE.fullmatch(entry.name)
                        )

    def turn_off(self, cause: str) -> None:
        """Adds nothing any more in this process, and says so once."""
        if self._is_writable:
            self._is_writable = False
            logger.warning("no more objects are cached in %s by this process: %s", self.folder, cause)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_is_writable": True}


class CacheFile:
    """An object on its way into the cache; a forked child leaves it to its parent.

    Args:
        cache: The cache.
        path: Where it will lie.
        size_bytes: Its size.
    """

    def __init__(self, cache: DiskCache, path: str, size_bytes: int) -> None:
        self._cache = cache
        self._path = path
        self._size = size_bytes
        self._written = 0
        self._temporary = f"{path}.{uuid.uuid4().hex}{_TEMPORARY}"
        self._descriptor: int | None = None
        self._is_over = False
        self._forks = ForkCount.now

    def write(self, piece: Any) -> None:
        """Adds the next bytes; when they are the last, the file becomes visible."""
        if self._is_over or self._forks != ForkCount.now:
            return
        try:
            if self._descriptor is None:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                self._descriptor = os.open(self._temporary, flags, 0o666)
            view = as_bytes_view(piece)
            while view:
                count = os.write(self._descriptor, view)
                self._written += count
                view = view[count:]
            if self._written >= self._size:
                self._finish()
        except OSError as error:
            self.discard()
            self._cache.turn_off(str(error))

    def discard(self) -> None:
        """Gives the file up when it is not complete."""
        self._is_over = True
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            if self._forks == ForkCount.now:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary)

    def _finish(self) -> None:
        if self._written == self._size:
            with self._cache.locked():
                # Another process may have taken it for a stale one, after a long pause.
                if os.path.exists(self._temporary) and not os.path.exists(self._path):
                    self._cache.make_room(self._size)
                    os.replace(self._temporary, self._path)
        self.discard()

    def __del__(self) -> None:
        if not getattr(self, "_is_over", True):
            self.discard()
