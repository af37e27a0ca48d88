"""Makes `s3://` known to fsspec, which Lightning asks for checkpoints, where s3fs is not there to answer."""

from __future__ import annotations

import importlib.util
import logging

from fsspec import register_implementation
from fsspec.registry import known_implementations, registry

logger = logging.getLogger(__name__)

_OURS = "s3torch_lightning._filesystem.S3FileSystem"
_S3FS = "s3fs.S3FileSystem"


def register_filesystem(*, replace: bool = False) -> bool:
    """Let `s3://` in fsspec be served by this package.

    The plugin does this by itself where nothing else serves `s3://`. fsspec learns only a name; the filesystem is
    imported when the first `s3://` path is looked at.

    Args:
        replace: Take the place of s3fs, or of whatever else serves `s3://` now.

    Returns:
        Whether `s3://` is served by this package from now on.
    """
    registered = _registered()
    known = known_implementations.get("s3", {}).get("class", _S3FS)
    if f"{getattr(registered, '__module__', '')}.{getattr(registered, '__qualname__', '')}" == _OURS:
        return True
    if not replace and (registered is not None or known not in (_OURS, _S3FS) or _is_s3fs_installed()):
        return False
    register_implementation("s3", _OURS, clobber=True, errtxt="s3torch-lightning could not be imported")
    if registered is not None:
        from ._filesystem import S3FileSystem

        register_implementation("s3", S3FileSystem, clobber=True)
    return True


def forget_listings(uri: str) -> None:
    """Tell another filesystem of `s3://` that an object has changed behind its back: s3fs remembers what it has listed.

    Args:
        uri: `s3://bucket/key`.
    """
    # fsspec makes an instance for each thread and keeps it; that of a `ModelCheckpoint` is among them.
    for filesystem in list(getattr(_registered(), "_cache", {}).values()):
        filesystem.invalidate_cache(uri)


def _registered() -> type | None:
    # Before fsspec 2023.1 the registry is a dict whose own `get` finds nothing.
    if "s3" not in registry:
        return None
    served_by: type = registry["s3"]
    return served_by


def _is_s3fs_installed() -> bool:
    return importlib.util.find_spec("s3fs") is not None
