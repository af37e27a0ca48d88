"""One ranged GET: sent, checked, and read to its announced end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._answer import Answer, Distrusted, Stopped, check_range, open_native
from ._direct import open_direct
from ._errors import error_for
from ._exceptions import S3ConnectionError, S3Exception
from ._head import Target, changed_error, head
from ._info import ObjectInfo
from ._keys import is_path
from ._memory import Destination, Slot
from ._plan import SMALL_RANGE
from ._request import Refused

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("s3core")

# Up to so many requests at a time are no work for obstore, whose loading takes 14 ms and 8 MB.
_FEW = 4


class Wish:
    """Whether the bytes of some requests are still wanted; apart from who wants them, whom it does not keep alive."""

    __slots__ = ("_slots", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self._slots: set[Slot] = set()

    def end(self) -> None:
        """Stop the transfers; waits for nothing, so that it is safe in a destructor."""
        self.is_over = True
        for slot in list(self._slots):
            slot.stop()

    def check(self) -> None:
        """See whether the bytes are still wanted.

        Raises:
            Stopped: They are not.
        """
        if self.is_over:
            raise Stopped

    def fill(self, slot: Slot, fill: Callable[[Slot], None]) -> None:
        """Have a slot filled, unless the wish ends meanwhile.

        Raises:
            Stopped: It has ended.
        """
        self._slots.add(slot)
        try:
            self.check()
            fill(slot)
        finally:
            self._slots.discard(slot)


def fetch(
    runtime: Runtime,
    target: Target,
    start: int,
    end: int,
    *,
    etag: str | None = None,
    slot: Slot | None = None,
    wish: Wish | None = None,
    on_answer: Callable[[ObjectInfo], None] | None = None,
    is_guess: bool = False,
    attempts_made: int | None = None,
) -> Any:
    """Get `[start, end)` of an object, in this thread.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last byte; the answer ends earlier where the object does.
        etag: The ETag that the object must still have.
        slot: Where to put the bytes; None to return them.
        wish: When it ends, the transfer does; None for one that never does.
        on_answer: Told about the object as soon as the head of the answer is there, before its bytes.
        is_guess: Whether the object may well end long before `end`, since nobody knows its size.
        attempts_made: How many attempts were made to get it as a small range; None where that was not tried.

    Returns:
        The bytes, as a buffer; an empty one when they went to `slot` or when the object ends before `start`.

    Raises:
        ObjectChangedError: The object does not have this ETag any more.
        Stopped: The wish ended, or the slot was closed.
        S3Exception: Anything else that went wrong, in every attempt.
    """
    wish = wish or Wish()
    wish.check()
    is_native = (
        slot is None
        and attempts_made is None
        and runtime.pool.busy > _FEW
        and (is_guess if end - start > SMALL_RANGE else not runtime.has_exchanges(target.bucket))
        and is_path(target.key)
        and not runtime.is_distrusted
    )
    began = time.perf_counter()
    outcome = "failed"
    try:
        answer = _open(runtime, target, start, end, etag, is_native, attempts_made or 0, wish)
        try:
            if etag is not None and answer.info.etag is not None and answer.info.etag != etag:
                raise changed_error(target)
            if on_answer is not None:
                on_answer(answer.info)
            data = _read(answer, target, slot, wish)
        finally:
            answer.close()
        outcome = f"{answer.end - answer.start} bytes"
        return data
    except Stopped:
        outcome = "stopped"
        raise
    finally:
        # Requests of our own tell of themselves.
        if logger.isEnabledFor(logging.DEBUG) and is_native:
            took = 1000 * (time.perf_counter() - began)
            logger.debug("GET %s bytes=%d-%d: %s in %.1f ms", target.uri, start, end - 1, outcome, took)


def _read(answer: Answer, target: Target, slot: Slot | None, wish: Wish) -> Any:
    """Read a body to its end and check its length."""
    length = answer.end - answer.start
    if length == 0:
        return b""
    if slot is None and length <= SMALL_RANGE and answer.whole is not None:
        data = answer.whole()
        _check_length(target, answer, len(data))
        return data
    filled: bytes = b""
    if slot is None:
        destination, filled = Destination.of_new_bytes(length)
        slot = destination.slot(0, length)
    slot.map_pages()
    try:
        wish.fill(slot, answer.fill)
    except OverflowError as error:
        raise _length_error(target, answer, str(error)) from error
    _check_length(target, answer, slot.filled)
    return filled


def _check_length(target: Target, answer: Answer, came: int) -> None:
    if came != answer.end - answer.start:
        raise _length_error(target, answer, f"{came} came")


def _length_error(target: Target, answer: Answer, cause: str) -> S3Exception:
    return S3ConnectionError(
        f"GET of {target.uri} failed: the store announced bytes {answer.start} to {answer.end} of the object, but "
        f"{cause}; try again, and suspect a proxy if it happens again"
    )


def _open(
    runtime: Runtime,
    target: Target,
    start: int,
    end: int,
    etag: str | None,
    is_native: bool,
    attempts_made: int,
    wish: Wish,
) -> Answer:
    """Send the request and check that the answer is the range that was asked for."""
    try:
        answer = _open_native(runtime, target, start, end, etag) if is_native else None
        if answer is None:
            answer = open_direct(runtime, target, start, end, etag, attempts_made, wish.check)
    except Refused as refused:
        failure = refused.failure
        if failure.status == 416:
            return _nothing(runtime, target, start)
        if failure.status == 412 and etag is not None:
            raise changed_error(target) from None
        raise error_for(failure, "GET", target.uri) from None
    try:
        check_range(target, (start, min(end, answer.info.size)), (answer.start, answer.end))
    except S3Exception:
        answer.close()
        raise
    return answer


def _open_native(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer | None:
    """Ask by obstore; None where it does not trust the store, so that OpenSSL decides."""
    try:
        return open_native(runtime, target, start, end, etag)
    except Distrusted:
        runtime.is_distrusted = True
        return None


def _nothing(runtime: Runtime, target: Target, start: int) -> Answer:
    """The answer for a range that begins at or behind the end, as every range of an empty object does."""
    info = head(runtime, target)
    if start < info.size:
        raise changed_error(target)
    return Answer(info, start, start, lambda slot: None)
