"""One ranged GET: sent, checked, and read to its announced end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ._config import KiB
from ._errors import (
    EXPIRED_CODES,
    WRONG_REGION_CODES,
    Failure,
    connection_error,
    error_for,
    parse_native,
    timeout_error,
)
from ._exceptions import ObjectChangedError, S3ConnectionError, S3Exception
from ._headers import customer_key_headers
from ._info import ObjectInfo
from ._keys import is_path
from ._memory import Destination, Slot
from ._rest import Refused, Request, back_off
from ._uri import uri_of

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("s3core")

_CHUNK_SIZE = 64 * KiB
# Up to here the body is taken in one piece: the cost is per call, not per byte.
_SMALL = 256 * KiB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Target:
    """The object that is read.

    Args:
        bucket: The bucket.
        key: The key.
        version_id: The version; None for the latest.
    """

    bucket: str
    key: str
    version_id: str | None = None

    @property
    def uri(self) -> str:
        """The `s3://bucket/key` for messages."""
        return uri_of(self.bucket, self.key)


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer to a ranged GET, with its body still to come.

    Args:
        info: The object as this answer describes it.
        start: First byte of the range that comes.
        end: One past its last byte.
        chunks: The body in pieces of about 64 KiB.
        whole: The body in one piece.
        close: Ends the connection, unless the body was read.
    """

    info: ObjectInfo
    start: int
    end: int
    chunks: Callable[[], Iterator[Any]]
    whole: Callable[[], Any]
    close: Callable[[], None] = lambda: None


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


def changed_error(target: Target) -> ObjectChangedError:
    """The error for an object that was replaced while it was read."""
    return ObjectChangedError(
        f"GET of {target.uri} failed: the object was replaced while it was being read, so that its parts would be of "
        "two versions; open it again, or keep objects unchanged while they are read"
    )


def head(runtime: Runtime, target: Target) -> ObjectInfo:
    """Ask for an object's size and headers.

    Raises:
        S3Exception: There is no such object, or the request failed.
    """
    return head_with_headers(runtime, target)[0]


def head_with_headers(runtime: Runtime, target: Target) -> tuple[ObjectInfo, Mapping[str, str]]:
    """As `head`, with all headers of the answer."""
    query = {"versionId": target.version_id} if target.version_id else {}
    headers = customer_key_headers(runtime.config)
    response = runtime.rest.send(Request("HEAD", target.bucket, target.key, query=query, headers=headers))
    size = response.headers.get("Content-Length")
    if size is None:
        raise S3Exception(f"HEAD of {target.uri} failed: the store did not tell the object's size")
    return _info_of_headers(target, response.headers, int(size)), response.headers


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
            answer = _open_native(runtime, target, start, end, etag)
        else:
            answer = _open_rest(runtime, target, start, end, etag)
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


def _open_native(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer:
    options: dict[str, Any] = {"range": (start, end)}
    if etag is not None:
        options["if_match"] = etag
    if target.version_id is not None:
        options["version"] = target.version_id
    corrections = 2  # One new region, one new set of credentials.
    while True:
        keys = runtime.keys()
        region = runtime.address(target.bucket).region
        try:
            result = runtime.process.native.get(runtime.store(target.bucket), target.key, options=options)
        except S3Exception:
            raise
        except Exception as error:
            failure = _native_failure(runtime, target, error)
            corrected = False
            if corrections and failure.code in EXPIRED_CODES and keys is not None:
                corrected = runtime.credentials.renew(keys)
                runtime.drop_store(target.bucket)
            elif corrections and failure.code in WRONG_REGION_CODES:
                # Where the region is told in a header only, which obstore does not show, a HEAD sees it.
                told = failure.region or runtime.rest.ask_region(target.bucket)
                corrected = told is not None and runtime.correct_region(target.bucket, told, region)
            if not corrected:
                raise Refused(failure, Request("GET", target.bucket, target.key)) from None
            corrections -= 1
            continue
        meta = result.meta
        info = ObjectInfo(target.key, meta["size"], meta["e_tag"], meta["last_modified"], None, meta["version"])
        first, last = result.range

        def chunks(result: Any = result) -> Iterator[Any]:
            try:
                yield from result.stream(min_chunk_size=_CHUNK_SIZE)
            except Stopped:
                raise
            except Exception as error:
                raise _body_error(runtime, target, error) from None

        def whole(result: Any = result) -> Any:
            try:
                return result.bytes()
            except Exception as error:
                raise _body_error(runtime, target, error) from None

        return Answer(info, first, last, chunks, whole)


def _native_failure(runtime: Runtime, target: Target, error: Exception) -> Failure:
    """The store's refusal, or the error to raise when no answer came."""
    failure, kind, cause = parse_native(error)
    if failure.status:
        return failure
    # The credential provider is called by native code, which wraps what it raises: let it raise here.
    runtime.keys()
    raise _transport_error(runtime, target, kind, cause) from None


def _body_error(runtime: Runtime, target: Target, error: Exception) -> S3Exception:
    failure, kind, cause = parse_native(error)
    if failure.status == 412:
        return changed_error(target)
    if failure.status:
        return error_for(failure, "GET", target.uri)
    return _transport_error(runtime, target, kind, cause)


def _transport_error(runtime: Runtime, target: Target, kind: str, cause: str) -> S3Exception:
    make = timeout_error if kind == "Timeout" else connection_error
    return make("GET", target.uri, cause, runtime.config.max_attempts)


def _open_rest(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer:
    headers = {"Range": f"bytes={start}-{end - 1}", **customer_key_headers(runtime.config)}
    if etag is not None:
        headers["If-Match"] = etag
    query = {"versionId": target.version_id} if target.version_id else {}
    request = Request("GET", target.bucket, target.key, query=query, headers=headers, stream=True)
    response = runtime.rest.try_send(request)
    length = int(response.headers.get("Content-Length", "-1"))
    announced = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status == 206 and announced is not None:
        first, last, size = (int(number) for number in announced.groups())
        last += 1
    else:
        first, last, size = 0, length, length

    current = response

    def whole() -> bytes:
        import urllib3.exceptions as http

        nonlocal current
        # A key of this kind is rare and its bodies are parts: read each at one go, and again when it breaks.
        for attempt in range(1, runtime.config.max_attempts + 1):
            try:
                data = current.read()
                current.release_conn()
                return data
            except (http.HTTPError, OSError) as error:
                current.close()
                if attempt == runtime.config.max_attempts:
                    raise connection_error("GET", target.uri, str(error), attempt) from error
            back_off(attempt)
            try:
                current = runtime.rest.try_send(request)
            except Refused as refused:
                if refused.failure.status == 412:
                    raise changed_error(target) from None
                raise refused.translated() from None
            if current.headers.get("ETag") != response.headers.get("ETag"):
                raise changed_error(target)
        raise AssertionError("unreachable: the last attempt returns or raises")

    info = _info_of_headers(target, response.headers, size)
    return Answer(info, first, last, lambda: iter((whole(),)), whole, lambda: current.close())


def _info_of_headers(target: Target, headers: Any, size: int) -> ObjectInfo:
    from email.utils import parsedate_to_datetime

    modified = headers.get("Last-Modified")
    moment: datetime | None = None
    if modified:
        try:
            moment = parsedate_to_datetime(modified)
        except ValueError:
            pass
    return ObjectInfo(
        target.key,
        size,
        headers.get("ETag"),
        moment,
        headers.get("x-amz-storage-class"),
        headers.get("x-amz-version-id"),
    )
