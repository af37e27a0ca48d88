"""Which objects of a listing's pages go into the index, and how many do not."""

from __future__ import annotations

from collections.abc import Sequence

from s3core import ListObjectResult
from s3torch_datasets._filters import ARCHIVED_STORAGE_CLASSES, ObjectFilter, is_archived, is_directory_marker
from s3torch_datasets._index import IndexBuilder


class PageSelector:
    """Adds the objects of listing pages that a filter accepts to an index, and counts what it leaves out."""

    def __init__(self, bucket: str, object_filter: ObjectFilter) -> None:
        self.builder = IndexBuilder()
        self.listed = 0
        self.markers = 0
        self.archived = 0
        self._bucket = bucket
        self._filter = object_filter

    def add(self, page: ListObjectResult, first: int = 0, last: int | None = None) -> None:
        """Adds rows `[first, last)` of a page; all of them by default."""
        last = len(page.keys) if last is None else last
        rows = self._select(page, first, last)
        keys, sizes, etags = page.keys, page.sizes, page.etags
        if len(rows) < len(keys):
            keys, sizes = [keys[row] for row in rows], [sizes[row] for row in rows]
            etags = [etags[row] for row in rows]
        self.builder.add_rows(self._bucket, keys, sizes, etags)
        self.listed += last - first

    def add_selector(self, other: PageSelector) -> None:
        """Adds all that another one has, which that one keeps."""
        self.builder.extend_index(other.builder)
        self.listed += other.listed
        self.markers += other.markers
        self.archived += other.archived

    def _select(self, page: ListObjectResult, first: int, last: int) -> Sequence[int]:
        accepts = self._filter
        keys, sizes, storage_classes = page.keys, page.sizes, page.storage_classes
        if accepts.has_no_condition and 0 not in sizes and ARCHIVED_STORAGE_CLASSES.isdisjoint(storage_classes):
            return range(first, last)
        rows = []
        for row in range(first, last):
            key, size = keys[row], sizes[row]
            if not accepts.accepts_key(key) or not accepts.accepts_size(size):
                continue
            if not accepts.directory_markers and is_directory_marker(key, size):
                self.markers += 1
            elif not accepts.archived and is_archived(storage_classes[row]):
                self.archived += 1
            else:
                rows.append(row)
        if accepts.predicate is not None and rows:
            infos = page.object_info
            rows = [row for row in rows if accepts.predicate(infos[row])]
        return rows
