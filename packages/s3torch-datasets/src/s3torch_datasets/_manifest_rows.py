"""The rows of a manifest, whatever file they come from: names of columns, and which rows count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3core import ObjectInfo
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._filters import ObjectFilter, is_archived, is_directory_marker

COLUMNS = ("bucket", "key", "size", "etag", "version_id")
_KNOWN = {"bucket", "key", "size", "etag", "versionid", "islatest", "isdeletemarker", "storageclass"}
_INVENTORY_ONLY = {"islatest", "isdeletemarker", "storageclass"}


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes objects of rows.

    Args:
        source: Name of the file, for errors.
        names: Name of each column: our own, or those of an S3 Inventory
            (https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html).
        is_inventory: Whether this is a list of all that is in a bucket, of which markers and archived objects are left
            out unless the filter keeps them.
        object_filter: Which objects to keep; None for all.
    """

    source: str
    names: Sequence[str]
    is_inventory: bool
    object_filter: ObjectFilter | None

    def __post_init__(self) -> None:
        missing = {"bucket", "key"} - set(self._normal_names())
        if missing:
            raise ValueError(
                f"{self.source}: a manifest needs the columns bucket and key, and has {', '.join(self.names)}; "
                "name them with columns= where the file has no header"
            )

    def known_names(self) -> list[str]:
        """Returns the names of the columns that tell something."""
        return [name for name, normal in zip(self.names, self._normal_names(), strict=True) if normal in _KNOWN]

    def objects(self, rows: Iterator[Sequence[Any]]) -> Iterator[S3BucketKeyData]:
        """Yields the objects that count."""
        names = self._normal_names()
        positions = {name: names.index(name) for name in names if name in _KNOWN}
        if self._versions_are_the_latest():
            positions.pop("versionid", None)
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                raise ValueError(f"{self.source}: row {number} has {len(row)} columns and not {len(names)}")
            try:
                one = self._object({name: row[position] for name, position in positions.items()})
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{self.source}: row {number} is malformed: {error}") from error
            if one is not None and (self.object_filter is None or self.object_filter.accepts(one)):
                yield one

    def _normal_names(self) -> list[str]:
        return [name.strip().lower().replace("_", "") for name in self.names]

    def _versions_are_the_latest(self) -> bool:
        """Whether versions are those of an inventory, which a read gets without naming them.

        In Parquet it calls them `version_id`, as we do, and then tells of each whether it is the latest.
        """
        named_so = "versionid" in [name.strip().lower() for name in self.names]
        return self.is_inventory and (named_so or "islatest" in self._normal_names())

    def _object(self, row: Mapping[str, Any]) -> S3BucketKeyData | None:
        bucket, key = _text(row, "bucket"), _text(row, "key")
        if bucket is None or key is None:
            raise ValueError(f"bucket {bucket!r} and key {key!r} must not be empty")
        size = _size_bytes(row.get("size"))
        if self.is_inventory and not self._counts(row, key, size):
            return None
        etag, version = _text(row, "etag"), _text(row, "versionid")
        if size is None:
            # An inventory lists what it was told to, and means no condition by it.
            if version is not None or (etag is not None and not self.is_inventory):
                raise ValueError("a version or an ETag is of use only with the size of the object beside it")
            return S3BucketKeyData(bucket, key)
        if etag is not None and not etag.startswith(('"', 'W/"')):
            etag = f'"{etag}"'
        return S3BucketKeyData(bucket, key, ObjectInfo(key, size, etag, version_id=version))

    def _counts(self, row: Mapping[str, Any], key: str, size: int | None) -> bool:
        if _is(row.get("isdeletemarker"), "true") or _is(row.get("islatest"), "false"):
            return False
        kept = self.object_filter or ObjectFilter()
        if not kept.directory_markers and size is not None and is_directory_marker(key, size):
            return False
        return kept.archived or not is_archived(row.get("storageclass"))


def looks_like_inventory(names: Sequence[str]) -> bool:
    """Whether columns are those of an S3 Inventory."""
    return any(name.strip().lower().replace("_", "") in _INVENTORY_ONLY for name in names)


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r} must be a text")
    value.encode("utf-8", "surrogateescape")  # as the index will, or ValueError
    return value


def _size_bytes(value: Any) -> int | None:
    if value is None or value == "":
        return None
    size = int(value)
    if not 0 <= size < 2**63 or (size != value and not isinstance(value, str)):
        raise ValueError(f"size {value!r} must be a whole number of bytes")
    return size


def _is(value: Any, text: str) -> bool:
    return value is not None and str(value).lower() == text
