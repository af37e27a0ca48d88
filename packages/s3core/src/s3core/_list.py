"""Listings: pages of objects under a raw string prefix, with exact keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ._config import is_whole
from ._exceptions import S3Exception
from ._info import ListObjectResult
from ._outcome import Outcome
from ._pool import wait_for
from ._request import Request
from ._uri import uri_of
from ._xml import parse_listing, peek_token

if TYPE_CHECKING:
    from ._client import S3Client


_FIRST_PAGE = ""
_SENDING_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class _Coming:
    """A page on its way.

    Args:
        token: Its continuation token.
        pid: The process that asked for it.
        body: Its document.
    """

    token: str
    pid: int
    body: Outcome[bytes]


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
        if not is_whole(max_keys) or max_keys < 1:
            raise ValueError(f"max_keys is {max_keys!r}; it must be a whole number of keys per page, at least 1")
        self._client = client
        self.bucket = bucket
        self.prefix = prefix
        self.delimiter = delimiter
        self.max_keys = int(max_keys)
        self._start_after = start_after
        self._token: str | None = _FIRST_PAGE  # Of the next page to hand out; None behind the last.
        self._coming: _Coming | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ListObjectResult:
        """The next page."""
        token = self._token
        if token is None:
            raise StopIteration
        coming = self._coming
        # Another page than the next one is on its way where Ctrl-C came before that one was handed out.
        if coming is None or coming.token != token or coming.pid != self._client._runtime.pid:
            coming = self._ask(token)
        try:
            body = wait_for(coming.body)
        finally:
            self._coming = None
        following = peek_token(body, self._what)
        if following and following == token:
            raise S3Exception(
                f"{self._what} failed: the store sent the same continuation token twice, which would go on for ever"
            )
        if following:
            self._coming = self._ask(following)  # Before this page is parsed: it is on its way meanwhile.
            # Parsing holds Python's lock for milliseconds: until the request is sent, unless its thread gets a moment.
            self._coming.body.wait(_SENDING_SECONDS)
        page = parse_listing(body, self._what)
        self._token = following  # Last of all: a page that could not be handed out comes again.
        return page

    @property
    def _what(self) -> str:
        return f"LIST of {uri_of(self.bucket, self.prefix)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coming": None}

    def _ask(self, token: str) -> _Coming:
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(self.max_keys), "prefix": self.prefix}
        if self.delimiter:
            query["delimiter"] = self.delimiter
        if token != _FIRST_PAGE:
            query["continuation-token"] = token
        elif self._start_after is not None:
            query["start-after"] = self._start_after
        runtime = self._client._runtime
        request = Request("GET", self.bucket, query=query, what="LIST")
        return _Coming(token, runtime.pid, runtime.pool.submit(runtime.rest.read, request))
