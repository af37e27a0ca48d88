"""What S3 says about an object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a listing, a HEAD or the first GET describes it.

    Args:
        key: The key, byte for byte.
        size: Length of the object in bytes.
        etag: The ETag as S3 sends it, with its quotes; None where the store sends none.
        last_modified: When the object was written, with its time zone.
        storage_class: `STANDARD`, `GLACIER`, …; None where the store does not say.
        version_id: The version, in a bucket that keeps versions.
    """

    key: str
    size: int
    etag: str | None = None
    last_modified: datetime | None = None
    storage_class: str | None = None
    version_id: str | None = None
