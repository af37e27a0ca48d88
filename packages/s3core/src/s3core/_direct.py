"""A range by a signed request of our own, whose body goes from the socket straight into place.

obstore hands over chunks, which are copied into place: twice the work, and memory for what is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ._answer import Answer, Stopped, check_range, range_of, ranged_get
from ._config import KiB
from ._errors import connection_error, timeout_error
from ._exceptions import S3Exception
from ._head import Target, changed_error, info_of_headers
from ._info import ObjectInfo
from ._memory import Slot
from ._request import Refused
from ._rest import Reply

if TYPE_CHECKING:
    from ._runtime import Runtime

# Of a body that broke, the library reads this much at a time, so that each attempt gets further: a read of its that
# fails does not say how much it had put into place. Else a body is one read: threads wait for each other between two.
_PIECE = 256 * KiB


def open_direct(
    runtime: Runtime,
    target: Target,
    start: int,
    end: int,
    etag: str | None,
    attempts_made: int,
    check: Callable[[], None],
) -> Answer:
    """Ask for a range; see `open_native`.

    Args:
        runtime: See there, as for all below.
        target: See there.
        start: See there.
        end: See there.
        etag: See there.
        attempts_made: How many attempts were made in another way.
        check: Called before each attempt; raises `Stopped` when nobody wants the range any more.

    Raises:
        Refused: The store answered with an error.
        S3Exception: No answer came.
    """
    reply, attempts = runtime.rest.try_open(ranged_get(runtime, target, start, end, etag, attempts_made), check)
    try:
        first, last, size = range_of(target, reply.status, reply.headers)
    except S3Exception:
        reply.close()
        raise
    info = info_of_headers(target, reply.headers, size)
    body = _Body(runtime, target, info, first, last, reply, attempts, check)
    return Answer(info, first, last, body.fill, body.close)


class _Body:
    """A body to come; when the connection breaks, the rest of it is asked for.

    Args:
        runtime: The client.
        target: The object.
        info: What the answer says about it.
        first: First byte that comes.
        last: One past the last byte.
        reply: The answer, its body unread.
        attempts: How many attempts were made until it came; those at the body count on from there.
        check: See `open_direct`.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        info: ObjectInfo,
        first: int,
        last: int,
        reply: Reply,
        attempts: int,
        check: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._info = info
        self._first = first
        self._last = last
        self._reply = reply
        self._attempts = attempts
        self._check = check

    def fill(self, slot: Slot) -> None:
        """Put the body into a slot."""
        most = self._last - self._first
        while True:
            try:
                self._receive(slot, most)
                return
            except OSError as error:
                self.close()
                if not slot.is_open:
                    raise Stopped from None
                if self._attempts >= self._runtime.config.max_attempts:
                    make = timeout_error if isinstance(error, TimeoutError) else connection_error
                    raise make("GET", self._target.uri, str(error) or type(error).__name__, self._attempts) from error
            self._ask_again(slot)
            if not self._reply.tells_count:
                most = _PIECE

    def close(self) -> None:
        """End the connection, unless the body was read to its end."""
        self._reply.close()

    def _receive(self, slot: Slot, most: int) -> None:
        length = self._last - self._first
        while slot.filled < length:
            count = slot.receive(self._reply.readinto, min(most, length - slot.filled), self._reply.interrupt)
            if count is None:
                raise Stopped
            if count == 0:
                raise ConnectionError(f"the connection ended after {slot.filled} of {length} bytes")
        self._reply.release()

    def _ask_again(self, slot: Slot) -> None:
        """Ask for what is still to come, of the same version; for all of it where the store tells no versions."""
        etag = self._info.etag
        if etag is None:
            slot.restart()
        begin = self._first + slot.filled
        try:
            request = ranged_get(self._runtime, self._target, begin, self._last, etag, self._attempts)
            self._reply, self._attempts = self._runtime.rest.try_open(request, self._check)
        except Refused as refused:
            if refused.failure.status == 412:
                raise changed_error(self._target) from None
            raise refused.translated() from None
        first, last, size = range_of(self._target, self._reply.status, self._reply.headers)
        if self._reply.headers.get("etag") != etag or size != self._info.size:
            raise changed_error(self._target)
        check_range(self._target, (begin, self._last), (first, last))
