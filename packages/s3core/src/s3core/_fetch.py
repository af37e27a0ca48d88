"""One ranged GET: sent, checked, and read to its announced end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._answer import Answer, open_native, open_rest
from ._config import KiB
from ._errors import error_for
from ._exceptions import S3ConnectionError, S3Exception
from ._head import Target, changed_error, head
from ._info import ObjectInfo
from ._keys import is_path
from ._memory import Destination, Slot
from ._rest import Refused

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("s3core")

# Up to here the body is taken in one piece: the cost is per call, not per byte.
_SMALL = 256 * KiB


class Stopped(Exception):
    """Nobody wants the bytes any more."""


def fetch(
    runtime: Runtime,
    target: Target,
    start: int,
    end: int,
    *,
    etag: str | None = None,
    slot: Slot | None = None,
    wanted: Callable[[], bool] = lambda: True,
    on_answer: Callable[[ObjectInfo], None] | None = None,
) -> Any:
    """Get `[start, end)` of an object, in this thread.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last byte; the answer ends earlier where the object does.
        etag: The ETag that the object must still have.
        slot: Where to put the bytes; None to return them.
        wanted: Asked between chunks; when it says no, the transfer ends.
        on_answer: Told about the object as soon as the head of the answer is there, before its bytes.

    Returns:
        The bytes, as a buffer; an empty one when they went to `slot` or when the object ends before `start`.

    Raises:
        ObjectChangedError: The object does not have this ETag any more.
        Stopped: `wanted` said no, or the slot was closed.
        S3Exception: Anything else that went wrong, in every attempt.
    """
    if not wanted():
        raise Stopped
    began = time.perf_counter()
    outcome = "failed"
    try:
        answer = _open(runtime, target, start, end, etag)
        try:
            if etag is not None and answer.info.etag is not None and answer.info.etag != etag:
                raise changed_error(target)
            if on_answer is not None:
                on_answer(answer.info)
            data = _read(answer, target, slot, wanted)
        finally:
            answer.close()
        outcome = f"{answer.end - answer.start} bytes"
        return data
    except Stopped:
        outcome = "stopped"
        raise
    finally:
        # Requests of our own tell of themselves.
        if logger.isEnabledFor(logging.DEBUG) and is_path(target.key):
            took = 1000 * (time.perf_counter() - began)
            logger.debug("GET %s bytes=%d-%d: %s in %.1f ms", target.uri, start, end - 1, outcome, took)


def _read(answer: Answer, target: Target, slot: Slot | None, wanted: Callable[[], bool]) -> Any:
    """Read a body to its end and check its length."""
    length = answer.end - answer.start
    if length == 0:
        return b""
    if slot is None and length <= _SMALL:
        data = answer.whole()
        _check_length(target, answer, len(data))
        return data
    filled: bytes = b""
    if slot is None:
        destination, filled = Destination.of_new_bytes(length)
        slot = destination.slot(0, length)
    slot.map_pages()
    for chunk in answer.chunks():
        try:
            if not wanted() or not slot.write(chunk):
                raise Stopped
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


def _open(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer:
    """Send the request and check that the answer is the range that was asked for."""
    try:
        if is_path(target.key):
            answer = open_native(runtime, target, start, end, etag)
        else:
            answer = open_rest(runtime, target, start, end, etag)
    except Refused as refused:
        failure = refused.failure
        if failure.status == 416:
            return _nothing(runtime, target, start)
        if failure.status == 412 and etag is not None:
            raise changed_error(target) from None
        raise error_for(failure, "GET", target.uri) from None
    if answer.start != start or answer.end != min(end, answer.info.size):
        answer.close()
        raise S3Exception(
            f"GET of {target.uri} failed: bytes {start} to {min(end, answer.info.size)} were asked for and "
            f"{answer.start} to {answer.end} were sent; the store or a proxy does not keep to ranges"
        )
    return answer


def _nothing(runtime: Runtime, target: Target, start: int) -> Answer:
    """The answer for a range that begins at or behind the end, as every range of an empty object does."""
    info = head(runtime, target)
    if start < info.size:
        raise changed_error(target)
    return Answer(info, start, start, lambda: iter(()), lambda: b"")
