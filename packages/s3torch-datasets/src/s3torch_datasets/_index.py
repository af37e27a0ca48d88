"""The list of a dataset's objects, a few dozen bytes of flat memory each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from s3core import ObjectInfo
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._columns import Columns, EtagColumn, EtagColumnBuilder, TextColumn, TextColumnBuilder

UNKNOWN_SIZE = -1
_FINGERPRINT_ROWS = 4096


class ObjectIndex(Sequence[S3BucketKeyData]):
    """The objects of a dataset in their order.

    Rows are made when they are asked for; the memory is flat and never written. A row takes the bytes of its key and 34
    more. A forked process shares all of it, since reading changes no reference count in it; `index_file` lets other
    processes map it.

    Args:
        buckets: Names of the buckets that rows refer to.
        columns: Flat memory by name, as `IndexBuilder.build` makes it.
    """

    __slots__ = ("_bucket_numbers", "_buckets", "_columns", "_etags", "_keys", "_sizes", "_versions")

    def __init__(self, buckets: tuple[str, ...], columns: Columns) -> None:
        self._buckets = buckets
        self._columns = columns
        self._keys = TextColumn(columns["key_bytes"], columns["key_offsets"])
        self._sizes = columns["sizes"]
        self._etags = EtagColumn(columns)
        self._bucket_numbers = columns.get("bucket_numbers")
        self._versions = (
            TextColumn(columns["version_bytes"], columns["version_offsets"]) if "version_bytes" in columns else None
        )

    @classmethod
    def of(cls, objects: Iterable[S3BucketKeyData]) -> ObjectIndex:
        """Returns the index of some objects, in their order."""
        builder = IndexBuilder()
        builder.extend(objects)
        return builder.build()

    @property
    def buckets(self) -> tuple[str, ...]:
        """Names of the buckets that rows refer to."""
        return self._buckets

    @property
    def columns(self) -> Columns:
        """The flat memory, by name."""
        return self._columns

    @property
    def size_bytes(self) -> int:
        """Memory that the columns take."""
        return sum(column.nbytes for column in self._columns.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self._sizes)
        if not 0 <= row < len(self._sizes):
            raise IndexError(f"object {row} of a dataset of {len(self._sizes)}")
        key = self._keys[row]
        bucket = self._buckets[self._bucket_numbers[row] if self._bucket_numbers is not None else 0]
        return S3BucketKeyData(bucket, key, self._info(row, key))

    def rows_without_etag(self) -> list[int]:
        """Returns the rows of the objects whose ETag is not known, in order."""
        return self._etags.rows_without()

    def __iter__(self) -> Iterator[S3BucketKeyData]:
        return (self[row] for row in range(len(self)))

    def _info(self, row: int, key: str) -> ObjectInfo | None:
        size = self._sizes[row]
        if size == UNKNOWN_SIZE:
            return None
        version = self._versions[row] or None if self._versions is not None else None
        return ObjectInfo(key, size, self._etags[row], version_id=version)

    def fingerprint(self) -> str:
        """Returns a short text that differs for lists of other objects, from the length and rows evenly spread."""
        digest = hashlib.blake2b(f"{len(self)} {self._buckets}".encode(), digest_size=16)
        count = min(len(self), _FINGERPRINT_ROWS)
        for number in range(count):
            digest.update(repr(self[number * len(self) // count]).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        contents = {name: (column.format, column.tobytes()) for name, column in self._columns.items()}
        return _rebuild, (self._buckets, contents)


class IndexBuilder:
    """Gathers an `ObjectIndex`, from pages of a listing or from single objects."""

    _ROWS_AT_A_TIME = 1000

    def __init__(self) -> None:
        self._buckets: dict[str, int] = {}
        self._bucket_runs: list[tuple[int, int]] = []  # (bucket number, rows), in order
        self._keys = TextColumnBuilder()
        self._sizes = array("q")
        self._etags = EtagColumnBuilder()
        self._versions: TextColumnBuilder | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    def add_rows(
        self,
        bucket: str,
        keys: Sequence[str],
        sizes: Sequence[int],
        etags: Sequence[str | None],
        versions: Sequence[str | None] | None = None,
    ) -> None:
        """Adds objects of one bucket.

        Args:
            bucket: Their bucket.
            keys: Their keys.
            sizes: Their sizes in bytes; `UNKNOWN_SIZE` where nothing is known of an object.
            etags: Their ETags with quotes, None where unknown.
            versions: Their version ids, where reads shall name one.
        """
        if not keys:
            return
        if self._versions is None and versions is not None and any(versions):
            self._versions = TextColumnBuilder()
            self._versions.extend("" for _ in range(len(self)))
        if self._versions is not None:
            self._versions.extend(version or "" for version in (versions or [None] * len(keys)))
        self._keys.extend(keys)
        self._sizes.extend(sizes)
        self._etags.extend(etags)
        self._add_bucket_run(bucket, len(keys))

    def extend(self, objects: Iterable[S3BucketKeyData]) -> None:
        """Adds objects one by one."""
        waiting: list[S3BucketKeyData] = []
        for one in objects:
            if waiting and (one.bucket != waiting[0].bucket or len(waiting) == self._ROWS_AT_A_TIME):
                self._add_objects(waiting)
                waiting = []
            waiting.append(one)
        if waiting:
            self._add_objects(waiting)

    def extend_index(self, other: IndexBuilder) -> None:
        """Adds all rows of another builder, which keeps them."""
        if self._versions is not None or other._versions is not None:
            for builder in (self, other):
                if builder._versions is None:
                    builder._versions = TextColumnBuilder()
                    builder._versions.extend("" for _ in range(len(builder)))
            assert self._versions is not None
            assert other._versions is not None
            self._versions.extend_column(other._versions)
        names = list(other._buckets)
        self._keys.extend_column(other._keys)
        self._sizes.extend(other._sizes)
        self._etags.extend_column(other._etags)
        for number, rows in other._bucket_runs:
            self._add_bucket_run(names[number], rows)

    def build(self) -> ObjectIndex:
        """Returns the index over the gathered memory; the builder is of no use afterwards."""
        columns = {**self._keys.columns("key"), "sizes": memoryview(self._sizes), **self._etags.columns()}
        if self._versions is not None:
            columns |= self._versions.columns("version")
        if len(self._buckets) > 1:
            numbers = array("I")
            for number, rows in self._bucket_runs:
                numbers.extend(array("I", [number]) * rows)
            columns["bucket_numbers"] = memoryview(numbers)
        return ObjectIndex(tuple(self._buckets), columns)

    def _add_objects(self, objects: list[S3BucketKeyData]) -> None:
        infos = [one.object_info for one in objects]
        self.add_rows(
            objects[0].bucket,
            [one.key for one in objects],
            [UNKNOWN_SIZE if info is None else info.size for info in infos],
            [None if info is None else info.etag for info in infos],
            [None if info is None else info.version_id for info in infos],
        )

    def _add_bucket_run(self, bucket: str, rows: int) -> None:
        number = self._buckets.setdefault(bucket, len(self._buckets))
        if self._bucket_runs and self._bucket_runs[-1][0] == number:
            rows += self._bucket_runs.pop()[1]
        self._bucket_runs.append((number, rows))


def recast(data: memoryview, form: str) -> memoryview:
    """Returns the bytes as items of a format of one letter."""
    return data.cast(form)  # type: ignore[call-overload, no-any-return]  # one letter, but not a literal


def _rebuild(buckets: tuple[str, ...], contents: dict[str, tuple[str, bytes]]) -> ObjectIndex:
    return ObjectIndex(buckets, {name: recast(memoryview(data), form) for name, (form, data) in contents.items()})
