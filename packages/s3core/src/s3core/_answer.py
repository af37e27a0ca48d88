"""The ranged GET, its answer, and how to ask obstore for one; `_direct` and `_small` have the other ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._config import KiB
from ._errors import (
    CERTIFICATE_REFUSED,
    OUTDATED_KEYS_CODES,
    WRONG_REGION_CODES,
    Failure,
    connection_error,
    error_for,
    parse_native,
    timeout_error,
)
from ._exceptions import S3Exception
from ._head import Target, changed_error
from ._headers import customer_key_headers
from ._info import ObjectInfo
from ._memory import Slot
from ._request import Refused, Request
from ._wire import content_length

if TYPE_CHECKING:
    from ._runtime import Runtime

_CHUNK_SIZE = 64 * KiB
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Stopped(Exception):
    """Nobody wants the bytes any more."""


class Distrusted(Exception):
    """obstore refuses the store's certificate; OpenSSL may accept it, such as one that is its own authority."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer to a ranged GET, with its body still to come.

    Args:
        info: The object as this answer describes it.
        start: First byte of the range that comes.
        end: One past its last byte.
        fill: Puts the body into a slot; raises `Stopped` when that was closed.
        close: Ends the connection, unless the body was read.
        whole: The body in one piece that is there already, where there is such a way.
    """

    info: ObjectInfo
    start: int
    end: int
    fill: Callable[[Slot], None]
    close: Callable[[], None] = lambda: None
    whole: Callable[[], Any] | None = None


def ranged_get(
    runtime: Runtime, target: Target, start: int, end: int, etag: str | None, attempts_made: int = 0
) -> Request:
    """The request for `[start, end)` of an object that has this ETag, if it is given."""
    headers = {"Range": f"bytes={start}-{end - 1}", **customer_key_headers(runtime.config)}
    if etag is not None:
        headers["If-Match"] = etag
    query = {"versionId": target.version_id} if target.version_id else {}
    return Request("GET", target.bucket, target.key, query=query, headers=headers, attempts_made=attempts_made)


def range_of(target: Target, status: int, headers: Mapping[str, str]) -> tuple[int, int, int]:
    """Which range an answer brings, and the object's size.

    Args:
        target: The object.
        status: The answer's status.
        headers: Its headers, by their names in lower case or in any.

    Raises:
        S3Exception: It brings a part and does not say which, or the whole and does not say how much that is.
    """
    if status == 206:
        announced = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if announced is None:
            raise S3Exception(
                f"GET of {target.uri} failed: the store sent a part and did not say which: "
                f"{headers.get('content-range')!r}; the store or a proxy does not keep to ranges"
            )
        first, last, size = (int(number) for number in announced.groups())
        return first, last + 1, size
    length = content_length(headers)
    if length is None:
        raise S3Exception(
            f"GET of {target.uri} failed: the store sent the whole object and did not say how long it is: "
            f"{status} with a length of {headers.get('content-length')!r}; the store or a proxy does not keep to ranges"
        )
    return 0, length, length


def check_range(target: Target, asked: tuple[int, int], sent: tuple[int, int]) -> None:
    """Refuse an answer of another range than was asked for.

    Args:
        target: The object.
        asked: First byte and one past the last, within the object.
        sent: The same of the answer.

    Raises:
        S3Exception: They differ.
    """
    if sent != asked:
        raise S3Exception(
            f"GET of {target.uri} failed: bytes {asked[0]} to {asked[1]} were asked for and {sent[0]} to {sent[1]} "
            "were sent; the store or a proxy does not keep to ranges"
        )


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
        Distrusted: Its certificate is refused.
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
            result = runtime.process.native.get(runtime.store(target.bucket, keys), target.key, options=options)
        except S3Exception:
            raise
        except Exception as error:
            failure = _native_failure(runtime, target, error)
            corrected = False
            if corrections and failure.code in OUTDATED_KEYS_CODES and keys is not None:
                corrected = runtime.credentials.renew(keys)
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

        def fill(slot: Slot, result: Any = result) -> None:
            for chunk in _chunks(runtime, target, result):
                if not slot.write(chunk):
                    raise Stopped

        def whole(result: Any = result) -> Any:
            try:
                return result.bytes()
            except Exception as error:
                raise _body_error(runtime, target, error) from None

        return Answer(info, first, last, fill, whole=whole)


def _chunks(runtime: Runtime, target: Target, result: Any) -> Iterator[Any]:
    try:
        yield from result.stream(min_chunk_size=_CHUNK_SIZE)
    except Exception as error:
        raise _body_error(runtime, target, error) from None


def _native_failure(runtime: Runtime, target: Target, error: Exception) -> Failure:
    """The store's refusal, or the error to raise when no answer came."""
    failure, kind, cause = parse_native(error)
    if failure.status:
        return failure
    if kind == CERTIFICATE_REFUSED:
        raise Distrusted from None
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
