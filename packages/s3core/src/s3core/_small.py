"""A small range by an exchange, which takes no thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._answer import check_range, range_of
from ._connection import Connection, Reply, connect
from ._errors import RETRIED_STATUSES
from ._exceptions import S3Exception
from ._fetch import Wish
from ._get_template import ranged_get_on_the_wire
from ._head import Target, info_of_headers
from ._info import ObjectInfo
from ._outcome import Outcome
from ._plan import SMALL_RANGE

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("s3core")


def is_small_range(runtime: Runtime, target: Target, size: int) -> bool:
    """Say whether a range can be got by an exchange now.

    Args:
        runtime: The client.
        target: The object.
        size: The range's length in bytes.
    """
    return size <= SMALL_RANGE and runtime.is_ready(target.bucket) and runtime.has_exchanges(target.bucket)


class SmallRange:
    """`[start, end)` of an object, an exchange whose `data` are its bytes.

    Whatever comes but the bytes that were asked for, of the version that was asked for, is left to `otherwise`, which
    asks again and knows what to make of errors.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last byte.
        etag: The ETag that the object must have.
        wish: When it ends, the bytes are no longer wanted.
        answer: Told about the object before its bytes are there.
        otherwise: Gets the bytes in another way, or raises; called in a thread of the pool with the number of attempts
            that were made here.
    """

    __slots__ = (
        "_address",
        "_answer",
        "_began",
        "_end",
        "_etag",
        "_keys",
        "_otherwise",
        "_runtime",
        "_start",
        "_target",
        "_wish",
        "data",
        "origin",
    )

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        start: int,
        end: int,
        etag: str | None,
        *,
        wish: Wish,
        answer: Outcome[ObjectInfo] | None,
        otherwise: Callable[[int], Any],
    ) -> None:
        self.data: Outcome[Any] = Outcome()
        self._runtime = runtime
        self._target = target
        self._start = start
        self._end = end
        self._etag = etag
        self._wish = wish
        self._answer = answer
        self._otherwise = otherwise
        self._address = runtime.address(target.bucket)
        self._keys = runtime.keys()
        self._began = time.perf_counter()
        self.origin = self._address.origin

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for the bytes."""
        return not self._wish.is_over

    def connect(self) -> Connection:
        """Open a connection to the store."""
        return connect(self.origin, self._runtime.config.connect_timeout, self._runtime.network.tls)

    def request(self) -> bytes:
        """The signed request on the wire."""
        target, span = self._target, (self._start, self._end)
        return ranged_get_on_the_wire(self._runtime, target, *span, self._etag, self._address, self._keys)

    def on_reply(self, reply: Reply) -> None:
        """Take the bytes, if they are the right ones."""
        if not (reply.status == 206 and reply.body is not None and self.is_wanted):
            self.on_failure(1 if reply.status in RETRIED_STATUSES else 0)
            return
        try:
            first, last, size = range_of(self._target, reply.status, reply.headers)
            check_range(self._target, (self._start, min(self._end, size)), (first, last))
        except S3Exception:
            self.on_failure(0)
            return
        is_whole = len(reply.body) == last - first
        is_same = self._etag is None or reply.headers.get("etag", self._etag) == self._etag
        if not (is_whole and is_same):
            self.on_failure(0)
            return
        if logger.isEnabledFor(logging.DEBUG):
            took = 1000 * (time.perf_counter() - self._began)
            asked, came = f"bytes={self._start}-{self._end - 1}", f"{last - first} bytes"
            logger.debug("GET %s %s: %s in %.1f ms", self._target.uri, asked, came, took)
        if self._answer is not None:
            self._answer.set_result(info_of_headers(self._target, reply.headers, size))
        self.data.set_result(reply.body)

    def on_failure(self, attempts: int) -> None:
        """Ask again in the other way."""
        try:
            self._runtime.pool.submit(self._settle, attempts)
        except Exception as error:  # No thread can be started.
            if self._answer is not None:
                self._answer.set_exception(error)
            self.data.set_exception(error)

    def _settle(self, attempts: int) -> None:
        try:
            data = self._otherwise(attempts)
        except BaseException as error:
            self.data.set_exception(error)
        else:
            self.data.set_result(data)
