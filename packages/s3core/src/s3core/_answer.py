"""The two ways to ask for a range: obstore, and for keys that it cannot say a signed request of our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._config import KiB
from ._errors import (
    OUTDATED_KEYS_CODES,
    WRONG_REGION_CODES,
    Failure,
    connection_error,
    error_for,
    parse_native,
    timeout_error,
)
from ._exceptions import S3Exception
from ._head import Target, changed_error, info_of_headers
from ._headers import customer_key_headers
from ._info import ObjectInfo
from ._rest import Refused, Request, back_off

if TYPE_CHECKING:
    from ._runtime import Runtime

_CHUNK_SIZE = 64 * KiB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


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


def open_native(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer:
    """Ask by obstore.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last byte.
        etag: The ETag that the object must have.

    Returns:
        The head of the answer.

    Raises:
        Refused: The store answered with an error.
        S3Exception: No answer came.
    """
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
            if corrections and failure.code in OUTDATED_KEYS_CODES and keys is not None:
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


def open_rest(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> Answer:
    """Ask by a signed request of our own; see `open_native`."""
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

    info = info_of_headers(target, response.headers, size)
    return Answer(info, first, last, lambda: iter((whole(),)), whole, lambda: current.close())
