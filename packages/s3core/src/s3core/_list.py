"""Listings: pages of objects under a raw string prefix, with exact keys."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from ._exceptions import S3Exception
from ._info import ObjectInfo
from ._pool import wait_for
from ._rest import Request
from ._uri import uri_of
from ._xml import ListingPage, parse_listing

if TYPE_CHECKING:
    from ._client import S3Client


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


class ListObjectStream:
    """The pages of a listing, made by `S3Client.list_objects`; the next page is on its way while one is worked on.

    Pickling it in mid-listing keeps its place: the copy goes on with the next page.

    Example:
        >>> for page in client.list_objects("bucket", "images/"):  # doctest: +SKIP
        ...     print(sum(page.sizes))
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        start_after: str | None = None,
    ) -> None:
        if isinstance(max_keys, bool) or not isinstance(max_keys, int) or max_keys < 1:
            raise ValueError(f"max_keys is {max_keys!r}; it must be a whole number of keys per page, at least 1")
        self._client = client
        self.bucket = bucket
        self.prefix = prefix
        self.delimiter = delimiter
        self.max_keys = max_keys
        self._start_after = start_after
        self._token: str | None = None
        self._over = False
        self._coming: Future[ListingPage] | None = None
        self._coming_pid = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ListObjectResult:
        """The next page."""
        if self._over:
            raise StopIteration
        runtime = self._client._runtime
        if self._coming is None or self._coming_pid != runtime.pid:
            self._ask()
        assert self._coming is not None
        try:
            page = wait_for(self._coming)
        finally:
            self._coming = None
        if page.next_token is not None and page.next_token == self._token:
            raise S3Exception(
                f"LIST of {uri_of(self.bucket, self.prefix)} failed: the store sent the same continuation token twice, "
                "which would go on for ever"
            )
        self._token = page.next_token
        self._over = page.next_token is None
        if not self._over:
            self._ask()
        return ListObjectResult(
            page.keys, page.sizes, page.etags, page.last_modified, page.storage_classes, page.common_prefixes
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coming": None, "_coming_pid": 0}

    def _ask(self) -> None:
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(self.max_keys), "prefix": self.prefix}
        if self.delimiter:
            query["delimiter"] = self.delimiter
        if self._token is not None:
            query["continuation-token"] = self._token
        elif self._start_after is not None:
            query["start-after"] = self._start_after
        runtime = self._client._runtime
        request = Request("GET", self.bucket, query=query, what="LIST")
        what = f"LIST of {uri_of(self.bucket, self.prefix)}"
        self._coming = runtime.pool.submit(lambda: parse_listing(runtime.rest.send(request).data, what))
        self._coming_pid = runtime.pid


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
