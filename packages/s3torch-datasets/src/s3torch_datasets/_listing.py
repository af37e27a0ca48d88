"""Lists a prefix into an index."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from s3core import S3Client, parse_s3_uri
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._filters import ObjectFilter, is_archived, is_directory_marker
from s3torch_datasets._index import IndexBuilder, ObjectIndex
from s3torch_datasets._progress import progress_bar

logger = logging.getLogger(__name__)


class PageSelector:
    """Adds the objects of listing pages that a filter accepts to an index, and counts what it leaves out."""

    def __init__(self, bucket: str, object_filter: ObjectFilter) -> None:
        self.builder = IndexBuilder()
        self.markers = 0
        self.archived = 0
        self._bucket = bucket
        self._filter = object_filter

    def add(self, page: Any) -> None:
        """Adds a page, an `s3core.ListObjectResult`."""
        rows = self._select(page)
        keys, sizes, etags = page.keys, page.sizes, page.etags
        if len(rows) < len(keys):
            keys, sizes, etags = ([column[row] for row in rows] for column in (keys, sizes, etags))
        self.builder.add_rows(self._bucket, keys, sizes, etags)

    def _select(self, page: Any) -> list[int]:
        accepts = self._filter
        rows = []
        for row, (key, size, storage_class) in enumerate(zip(page.keys, page.sizes, page.storage_classes, strict=True)):
            if not accepts.accepts_key(key) or not accepts.accepts_size(size):
                continue
            if not accepts.directory_markers and is_directory_marker(key, size):
                self.markers += 1
            elif not accepts.archived and is_archived(storage_class):
                self.archived += 1
            else:
                rows.append(row)
        if accepts.predicate is not None and rows:
            infos = page.object_info
            rows = [row for row in rows if accepts.predicate(infos[row])]
        return rows


class PrefixObjects:
    """The `get_dataset_objects` of `from_prefix`.

    Args:
        s3_uri: `s3://bucket/prefix`; the prefix is raw, so `s3://b/data/a` also means `data/abc`.
    """

    def __init__(self, s3_uri: str) -> None:
        self.uri = s3_uri
        self.bucket, self.prefix = parse_s3_uri(s3_uri)

    def __call__(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Lists one object after the other."""
        return iter(self.make_index(client, ObjectFilter(), progress=False))

    def make_index(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool | None) -> ObjectIndex:
        """Lists the prefix."""
        selector = PageSelector(self.bucket, object_filter or ObjectFilter())
        with progress_bar(f"Listing {self.uri}", " objects", shown=progress) as bar:
            for page in client.list_objects(self.bucket, self.prefix):
                selector.add(page)
                bar.update(len(page.keys))
        if selector.markers or selector.archived:
            logger.info(
                "%s: left out %d directory markers and %d archived objects (ObjectFilter keeps them)",
                self.uri,
                selector.markers,
                selector.archived,
            )
        return selector.builder.build()


class UriObjects:
    """The `get_dataset_objects` of `from_objects`: the URIs are read once, when the dataset is made.

    Args:
        object_uris: One `s3://bucket/key`, or any iterable of them.

    Raises:
        ValueError: A URI is malformed or names no object.
    """

    def __init__(self, object_uris: str | Iterable[str]) -> None:
        uris = (object_uris,) if isinstance(object_uris, str) else object_uris
        self._index = ObjectIndex.of(_named_objects(uris))

    def __call__(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Returns the objects; sends nothing."""
        return iter(self._index)

    def make_index(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool | None) -> ObjectIndex:
        """Returns the objects; sends nothing."""
        if object_filter is None:
            return self._index
        return ObjectIndex.of(one for one in self._index if object_filter.accepts(one))


def _named_objects(uris: Iterable[str]) -> Iterator[S3BucketKeyData]:
    for uri in uris:
        bucket, key = parse_s3_uri(uri)
        if not key:
            raise ValueError(f"{uri!r} names a bucket and no object; use from_prefix for all objects of a prefix")
        yield S3BucketKeyData(bucket, key)
