"""Lists a prefix into an index."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial

from s3core import S3Client, parse_s3_uri
from s3torch_datasets._background_listing import ListingPlan, OnListed, OnPiece, ignore
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._inherited_index import InheritedIndex
from s3torch_datasets._parallel_listing import list_prefix
from s3torch_datasets._progress import progress_bar

logger = logging.getLogger(__name__)


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

    def make_index(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool) -> ObjectIndex:
        """Lists the prefix."""
        with progress_bar(f"Listing {self.uri}", " objects", shown=progress) as bar:
            return self._list(client, object_filter, bar.update, ignore)

    def plan_listing(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool) -> ListingPlan:
        """Says how to list the prefix in the background."""
        make_bar = partial(progress_bar, f"Listing {self.uri}", " objects", shown=progress, is_kept=False)
        return ListingPlan(partial(self._list, client, object_filter), make_bar)

    def _list(
        self, client: S3Client, object_filter: ObjectFilter | None, on_listed: OnListed, on_piece: OnPiece
    ) -> ObjectIndex:
        object_filter = object_filter or ObjectFilter()
        selector = list_prefix(client, self.bucket, self.prefix, object_filter, on_listed, on_piece)
        if selector.markers or selector.archived:
            logger.info(
                "%s: left out %d directory markers and %d archived objects (ObjectFilter keeps them)",
                self.uri,
                selector.markers,
                selector.archived,
            )
        index = selector.builder.build()
        if not len(index):
            logger.warning("%s: no object is there that the dataset takes; check the prefix and the filter", self.uri)
        return index


class UriObjects:
    """The `get_dataset_objects` of `from_objects`: the URIs are read once, when the dataset is made.

    Args:
        object_uris: One `s3://bucket/key`, or any iterable of them.

    Raises:
        ValueError: A URI is malformed or names no object.
    """

    def __init__(self, object_uris: str | Iterable[str]) -> None:
        uris = (object_uris,) if isinstance(object_uris, str) else object_uris
        self._inherited = InheritedIndex(ObjectIndex.of(_named_objects(uris)))

    @property
    def known_index(self) -> ObjectIndex:
        """The objects, which are known without a request."""
        return self._inherited.index

    def __call__(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Returns the objects; sends nothing."""
        return iter(self.known_index)

    def make_index(self, client: S3Client, object_filter: ObjectFilter | None, *, progress: bool) -> ObjectIndex:
        """Returns the objects; sends nothing."""
        if object_filter is None:
            return self.known_index
        return ObjectIndex.of(one for one in self.known_index if object_filter.accepts(one))


def _named_objects(uris: Iterable[str]) -> Iterator[S3BucketKeyData]:
    for uri in uris:
        bucket, key = parse_s3_uri(uri)
        if not key:
            raise ValueError(f"{uri!r} names a bucket and no object; use from_prefix for all objects of a prefix")
        yield S3BucketKeyData(bucket, key)
