"""What S3 says about objects: about one, and about a page of a listing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a listing, a HEAD or the first GET describes it.

    Args:
        key: The key, byte for byte.
        size: Length of the object in bytes.
        etag: The ETag as S3 sends it, with its quotes; None where the store sends none.
        last_modified: When the object was written, with its time zone; None where what the store says is no time.
        storage_class: `STANDARD`, `GLACIER`, …; None where the store does not say.
        version_id: The version, in a bucket that keeps versions.
    """

    key: str
    size: int
    etag: str | None = None
    last_modified: datetime | None = None
    storage_class: str | None = None
    version_id: str | None = None


@dataclass(frozen=True)
class ListObjectResult:
    """One page of a listing, as columns of equal length.

    Args:
        keys: The keys, byte for byte.
        sizes: Sizes in bytes.
        etags: ETags with their quotes; empty text where the store sends none.
        last_modified: Times of the last write, ISO 8601.
        storage_classes: Storage classes; empty text where the store sends none.
        common_prefixes: What the delimiter rolled up.
    """

    keys: list[str]
    sizes: list[int]
    etags: list[str]
    last_modified: list[str]
    storage_classes: list[str]
    common_prefixes: list[str] = field(default_factory=list)

    @cached_property
    def object_info(self) -> list[ObjectInfo]:
        """The page as one `ObjectInfo` per object, made when it is first asked for."""
        rows = zip(self.keys, self.sizes, self.etags, self.last_modified, self.storage_classes, strict=True)
        return [
            ObjectInfo(key, size, etag or None, _moment(modified), storage_class or None)
            for key, size, etag, modified, storage_class in rows
        ]

    def __len__(self) -> int:
        return len(self.keys)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
