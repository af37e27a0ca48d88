"""What is done to whole objects in single requests: copy and delete."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from ._batch import run_all
from ._errors import Failure, error_for
from ._exceptions import NoSuchKeyError, PreconditionFailedError
from ._head import Target, changed_error, head_with_headers
from ._headers import creation_headers, customer_key_headers
from ._multipart import MultipartUpload
from ._plan import MAX_COPY_SIZE, plan_part_size, split_range
from ._pool import wait_for
from ._request import Refused, Request
from ._stop import INTERRUPT_SECONDS, Stop
from ._uri import check_key, uri_of
from ._xml import Document, deletion_document, fits_xml

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("s3core")

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_DELETED_AT_ONCE = 1000
_COPY_PART_SIZE = 512 * 2**20
_KEPT_HEADERS = frozenset(
    {"cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"}
)


def delete_object(runtime: Runtime, bucket: str, key: str) -> None:
    """Delete one object; one that is not there is deleted already."""
    try:
        runtime.rest.change(Request("DELETE", bucket, key))
    except Refused as refused:
        if not _is_missing(refused):
            raise refused.translated() from None


def delete_objects(runtime: Runtime, bucket: str, keys: Iterable[str]) -> None:
    """Delete many objects, a thousand per request, the requests in parallel, and no more of them at hand than needed.

    Raises:
        ValueError: One of the keys cannot be a key.
        TypeError: `keys` is one text, whose characters would be taken for keys.
        S3Exception: Some could not be deleted; the message names the first and counts the others.
    """
    if isinstance(keys, str):
        raise TypeError(f"keys is the text {keys!r}; pass a list of keys, or call delete_object for one")
    deletion = _Deletion(runtime, bucket)
    try:
        run_all(runtime.pool, (_DeleteJob(deletion, chunk) for chunk in _chunks(runtime, bucket, keys)))
        run_all(runtime.pool, (_DeleteJob(deletion, [key]) for key in deletion.left))
    except BaseException:
        deletion.stop.finish()
        raise
    failures = deletion.failures
    if failures:
        key, failure = failures[0]
        error = error_for(failure, "DELETE", uri_of(bucket, key))
        if len(failures) > 1:
            error = type(error)(f"{error}; {len(failures) - 1} more of s3://{bucket} could not be deleted either")
        raise error


def _chunks(runtime: Runtime, bucket: str, keys: Iterable[str]) -> Iterator[list[str]]:
    """As many keys as one request deletes; alone a key that its XML cannot carry."""
    chunk: list[str] = []
    for key in keys:
        check_key(bucket, key)
        if not fits_xml(key):
            yield [key]
            continue
        chunk.append(key)
        if len(chunk) == _DELETED_AT_ONCE or not runtime.deletes_many:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Deletion:
    """A bulk deletion.

    Args:
        runtime: The client.
        bucket: The bucket.

    Attributes:
        stop: Ends its requests.
        failures: Keys that could not be deleted, and why.
        left: Keys to delete one by one, since the store does not know how to delete many.
    """

    def __init__(self, runtime: Runtime, bucket: str) -> None:
        self.runtime = runtime
        self.bucket = bucket
        self.stop = Stop()
        self.failures: list[tuple[str, Failure]] = []
        self.left: list[str] = []


class _DeleteJob:
    """One request of a bulk deletion.

    Args:
        deletion: The deletion.
        keys: The keys.
    """

    def __init__(self, deletion: _Deletion, keys: list[str]) -> None:
        self._deletion = deletion
        self._keys = keys

    @property
    def size(self) -> int:
        """Nothing comes."""
        return 0

    def run(self) -> int:
        """Delete them, or leave them to be deleted one by one."""
        deletes_many = self._deletion.runtime.deletes_many
        if len(self._keys) == 1 and not (deletes_many and fits_xml(self._keys[0])):
            self._delete_one(self._keys[0])
        elif deletes_many:
            self._delete_many()
        else:
            self._deletion.left += self._keys
        return 0

    def _delete_one(self, key: str) -> None:
        deletion = self._deletion
        try:
            deletion.runtime.rest.try_send(Request("DELETE", deletion.bucket, key, stop=deletion.stop))
        except Refused as refused:
            if _is_unknown(refused.failure):  # as of all others
                raise refused.translated() from None
            if not _is_missing(refused):
                deletion.failures.append((key, refused.failure))

    def _delete_many(self) -> None:
        deletion = self._deletion
        try:
            deletion.failures += _delete_chunk(deletion.runtime, deletion.bucket, self._keys, deletion.stop)
        except Refused as refused:
            if not _is_unknown(refused.failure):
                raise refused.translated() from None
            if deletion.runtime.deletes_many:
                logger.info("the store of s3://%s deletes one object at a time: %s", deletion.bucket, refused)
            deletion.runtime.deletes_many = False
            deletion.left += self._keys

    def stop(self) -> None:
        """Make no attempt any more: it would delete what is written after this."""
        self._deletion.stop.set()


def copy_object(
    runtime: Runtime,
    source: Target,
    target: Target,
    *,
    most_at_once: int = MAX_COPY_SIZE,
    part_size: int = _COPY_PART_SIZE,
) -> None:
    """Copy inside the store, without the bytes passing through here; in parts above 5 GiB.

    Args:
        runtime: The client.
        source: The object to copy.
        target: Where to.
        most_at_once: The largest object that one request copies, in bytes.
        part_size: Bytes per part of a larger one.

    Raises:
        ObjectChangedError: The source was replaced meanwhile.
        S3Exception: The copy failed; the target is as it was.
    """
    info, described = wait_for(runtime.pool.submit(head_with_headers, runtime, source))
    config = runtime.config
    headers = {"x-amz-copy-source": _copy_source(source), **customer_key_headers(config, for_copy_source=True)}
    if info.etag:
        # The object that was measured is the one that is copied.
        headers["x-amz-copy-source-if-match"] = info.etag
    try:
        if info.size <= most_at_once:
            headers.update(creation_headers(config))
            request = Request("PUT", target.bucket, target.key, headers=headers, what="COPY", result="CopyObjectResult")
            runtime.rest.change(request)
            return
    except Refused as refused:
        error = changed_error(source) if refused.failure.status == 412 else None
        raise refused.translated_change(error) from None
    part_size = plan_part_size(part_size, info.size)
    # One request copies the metadata by itself; an upload of parts must be told.
    kept = {name: value for name, value in described.items() if _is_kept(name)}
    upload = MultipartUpload(runtime, target, {**kept, **creation_headers(config)}, checksum=None)
    try:
        upload.create()
        for number, (start, end) in enumerate(split_range(0, info.size, part_size), 1):
            upload.submit_copy(number, end - start, {**headers, "x-amz-copy-source-range": f"bytes={start}-{end - 1}"})
        upload.complete()
    except BaseException as error:
        upload.abort(30.0 if isinstance(error, Exception) else INTERRUPT_SECONDS)
        if isinstance(error, PreconditionFailedError):
            raise changed_error(source) from None
        raise


def _copy_source(source: Target) -> str:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html#API_CopyObject_RequestSyntax."""
    bucket, key = quote(source.bucket, safe=":/"), quote(source.key, safe="/-_.~")
    middle = "/object/" if source.bucket.startswith("arn:") else "/"
    version = f"?versionId={quote(source.version_id, safe='')}" if source.version_id else ""
    return f"{bucket}{middle}{key}{version}"


def _is_kept(header: str) -> bool:
    return header.lower().startswith("x-amz-meta-") or header.lower() in _KEPT_HEADERS


def _is_missing(refused: Refused) -> bool:
    """Whether there is no object to delete: S3 answers 204 then, some stores answer 404."""
    return isinstance(refused.translated(), NoSuchKeyError)


def _is_unknown(failure: Failure) -> bool:
    """Whether the store does not know the request, as some that speak S3 do not know how to delete many objects."""
    return failure.status in (405, 501) or failure.code in ("MethodNotAllowed", "NotImplemented")


def _delete_chunk(runtime: Runtime, bucket: str, keys: list[str], stop: Stop) -> list[tuple[str, Failure]]:
    body = deletion_document(keys)
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    request = Request(
        "POST",
        bucket,
        query={"delete": ""},
        headers={"Content-MD5": digest, "Content-Type": "application/xml"},
        body=body,
        what="DELETE",
        stop=stop,
        result="DeleteResult",
    )
    answer = runtime.rest.try_send(request).data
    failures = [
        (row.get("Key", ""), Failure(200, row.get("Code", ""), row.get("Message", "")))
        for row in Document(answer, f"DELETE of {len(keys)} objects of s3://{bucket}").children("Error")
    ]
    return [(key, failure) for key, failure in failures if failure.code != "NoSuchKey"]
