"""Local copies of checkpoints for `mmap`: one per version of an object, whole or absent, shared by all processes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: several processes may download the same object; each copy is whole
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial"
_REMEDY = "give cache_dir, or set S3TORCH_CACHE_DIR, to a folder that can be written"


def default_cache_dir() -> Path:
    """`$S3TORCH_CACHE_DIR`, or `s3torch/checkpoints` in the user's cache directory.

    Raises:
        FileNotFoundError: The user has no home directory, as many containers have it.
    """
    given = os.environ.get("S3TORCH_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        home = os.path.expanduser("~")
        if home == "~":  # It would be a folder of that name.
            raise FileNotFoundError(f"this user has no home directory, and HOME is not set: {_REMEDY}")
        base = os.path.join(home, ".cache")
    return Path(base) / "s3torch" / "checkpoints"


def cached_copy(
    cache_dir: Path, identity: tuple[str, ...], version: str, size_bytes: int, download: Callable[[Any], None]
) -> Path:
    """Give the local copy of one version of an object, and download it first where there is none.

    Copies of other versions of the same object are removed; a process that has one mapped keeps what it has.

    Args:
        cache_dir: Where the copies lie; made when it is missing.
        identity: What names the object: endpoint, bucket, key.
        version: What changes with its content: the ETag.
        size_bytes: Its length, which a copy must have.
        download: Writes the object to a binary file.

    Returns:
        The path of the copy.

    Raises:
        OSError: The directory cannot be written, or the disk is full; no partial copy is left.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {_REMEDY}", str(cache_dir)) from error
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    path = cache_dir / f"{name}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"
    with _lock(cache_dir / f"{name}.lock") as is_alone:
        if path.is_file() and path.stat().st_size == size_bytes:
            return path
        handle, partial = tempfile.mkstemp(prefix=f"{name}-", suffix=_PARTIAL, dir=cache_dir)
        try:
            with os.fdopen(handle, "wb") as file:
                if hasattr(os, "posix_fallocate") and size_bytes:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk is known before the download
                download(file)
                if file.tell() != size_bytes:
                    raise OSError(f"the copy in {partial} has {file.tell()} bytes instead of {size_bytes}")
                # Or a power failure could leave a file of the right name and length that holds zeros.
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        for other in cache_dir.glob(f"{name}-*"):
            if other != path and (is_alone or other.suffix != _PARTIAL):
                other.unlink(missing_ok=True)
    return path


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Let one process at a time download an object; the lock ends with its process, however that ends.

    Yields:
        Whether there are no others: some filesystems, such as Lustre without its option for that, know no locks.
    """
    is_alone = False
    with path.open("wb") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
                is_alone = True
        yield is_alone
