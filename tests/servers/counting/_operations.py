"""S3's operations on objects and buckets; `_multipart` has those of multipart uploads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import unquote

from servers.counting import _multipart
from servers.counting._bodies import Body, DroppedBody, MemoryBody, PieceBody
from servers.counting._checksums import BodySums
from servers.counting._errors import S3Error
from servers.counting._listing import list_objects
from servers.counting._messages import Request, Response, kept_headers
from servers.counting._objects import GeneratedObjects, S3Object
from servers.counting._ranges import check_conditions, check_source_conditions, must_be_first, parse_range
from servers.counting._store import Store, StoredObject
from servers.counting._xml import document, element, iso_time, parse, text

REGION = "us-east-1"
_ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}


class S3Service:
    """Answers requests from a store and from generated objects.

    Args:
        store: What was uploaded.
        generated: Folders of generated objects.
        dropped: Prefix of the keys whose bytes are counted and dropped when they are uploaded; None for no key.
        checks_bodies: Whether bodies are compared with the checksums that their requests state.
    """

    def __init__(
        self,
        store: Store,
        generated: Sequence[GeneratedObjects] = (),
        dropped: str | None = None,
        checks_bodies: bool = False,
    ) -> None:
        self.store = store
        self._checks_bodies = checks_bodies
        self._generated = generated
        self._dropped = dropped
        self._create_generated_buckets()
        self._handlers: dict[str, Callable[[Request, Body], Response]] = {
            "GetObject": self._get,
            "HeadObject": self._get,
            "PutObject": self._put,
            "CopyObject": self._copy,
            "DeleteObject": self._delete,
            "DeleteObjects": self._delete_many,
            "ListObjectsV2": self._list,
            "ListObjects": self._list,
            "ListBuckets": self._list_buckets,
            "CreateBucket": self._create_bucket,
            "DeleteBucket": self._delete_bucket,
            "HeadBucket": self._head_bucket,
            "GetBucketLocation": self._location,
            **_multipart.handlers(store, self._source),
        }

    def clear(self) -> None:
        """Forget all that was uploaded, and every bucket that was created."""
        self.store.clear()
        self._create_generated_buckets()

    def open_body(self, operation: str, request: Request) -> Body:
        """Where the body of a request goes."""
        if operation not in ("PutObject", "UploadPart"):
            return MemoryBody()
        if self._dropped is not None and request.key.startswith(self._dropped):
            return DroppedBody(f'"{time.time_ns():032x}"')
        sums = BodySums(request.headers) if self._checks_bodies else None
        return PieceBody(self.store.new_piece(int(request.headers.get("content-length") or 0)), sums)

    def respond(self, operation: str, request: Request, body: Body) -> Response:
        """Carry out a request.

        Raises:
            S3Error: When it is refused.
        """
        handler = self._handlers.get(operation)
        if handler is None:
            raise S3Error(501, "NotImplemented", f"this server does not implement {operation}")
        return handler(request, body)

    def find(self, bucket: str, key: str) -> S3Object | None:
        """The object of that key, or None."""
        for folder in self._generated:
            if folder.bucket == bucket:
                index = folder.index(key)
                if index is not None:
                    return folder[index]
        return self.store.get(bucket, key)

    def replace(self, bucket: str, key: str, data: bytes) -> None:
        """Put other bytes under a key."""
        writer = self.store.new_piece()
        writer.write(data)
        piece = writer.finish()
        self.store.put(bucket, StoredObject(key, piece.etag, [piece]))

    def _create_generated_buckets(self) -> None:
        for folder in self._generated:
            self.store.create_bucket(folder.bucket)

    def _existing(self, bucket: str, key: str) -> S3Object:
        found = self.find(bucket, key)
        if found is None:
            if not self.store.has_bucket(bucket):
                raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        return found

    def _get(self, request: Request, body: Body) -> Response:
        found = self._existing(request.bucket, request.key)
        check_conditions(request.headers, found.etag, is_read=True)
        size = found.size
        headers = {"ETag": found.etag, "Last-Modified": _http_time(found.modified), "Accept-Ranges": "bytes"}
        if found.headers:
            headers |= found.headers
        headers.setdefault("content-type", "binary/octet-stream")
        status, start, end = 200, 0, size
        if "partNumber" in request.query:
            start, end = _part_range(found, int(request.query["partNumber"]))
            status, headers["x-amz-mp-parts-count"] = 206, str(len(found.part_sizes))
        elif "range" in request.headers:
            span = parse_range(request.headers["range"], size)
            if span is not None:
                status, (start, end) = 206, span
        if found.checksums and status == 200 and request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= {**found.checksums, "x-amz-checksum-type": "FULL_OBJECT"}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if request.method == "HEAD":
            return Response(status, headers, length=end - start)
        if found.headers.get("x-amz-storage-class") in _ARCHIVED:
            raise S3Error(403, "InvalidObjectState", "The operation is not valid for the object's storage class")
        return Response(status, headers, found.views(start, end), end - start)

    def _put(self, request: Request, body: Body) -> Response:
        if not isinstance(body, PieceBody | DroppedBody):
            raise TypeError(f"a body to keep, not {type(body).__name__}")
        if not self.store.has_bucket(request.bucket):
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        before = self.find(request.bucket, request.key)
        check_conditions(request.headers, before.etag if before else None, is_read=False)
        piece = body.finish(request.headers)
        stored = StoredObject(request.key, piece.etag, [piece], kept_headers(request), checksums=piece.checksums)
        self.store.put(request.bucket, stored, is_first=must_be_first(request.headers))
        return Response(200, {"ETag": piece.etag, **piece.checksums})

    def _copy(self, request: Request, body: Body) -> Response:
        source = self._source(request)
        copied = self.store.copy(source, request.key)
        if request.headers.get("x-amz-metadata-directive") == "REPLACE":
            copied = replace(copied, headers=kept_headers(request))
        self.store.put(request.bucket, copied)
        return document(
            "CopyObjectResult", [text("ETag", copied.etag), text("LastModified", iso_time(copied.modified))]
        )

    def _source(self, request: Request) -> StoredObject:
        """The object that a copy is made of."""
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
        source = self._existing(bucket, key.partition("?versionId=")[0])
        check_source_conditions(request.headers, source.etag)
        if not isinstance(source, StoredObject):
            raise S3Error(501, "NotImplemented", "generated objects can't be copied")
        return source

    def _delete(self, request: Request, body: Body) -> Response:
        if "if-match" in request.headers:
            found = self._existing(request.bucket, request.key)
            check_conditions(request.headers, found.etag, is_read=False)
        self.store.delete(request.bucket, request.key)
        return Response(204)

    def _delete_many(self, request: Request, body: Body) -> Response:
        if not isinstance(body, MemoryBody):
            raise TypeError(f"a body to read, not {type(body).__name__}")
        data = bytes(body.data)
        if self._checks_bodies:
            sums = BodySums(request.headers)
            sums.update(data)
            sums.check(request.headers)
        root = parse(data)
        keys = [node.text or "" for node in root.iterfind("Object/Key")]
        if len(keys) > 1000:
            raise S3Error(400, "MalformedXML", "more than 1,000 keys")
        for key in keys:
            self.store.delete(request.bucket, key)
        is_quiet = root.findtext("Quiet", "").lower() == "true"
        return document("DeleteResult", [] if is_quiet else [element("Deleted", text("Key", key)) for key in keys])

    def _list(self, request: Request, body: Body) -> Response:
        generated = [folder for folder in self._generated if folder.bucket == request.bucket]
        return list_objects(request, list(self.store.objects(request.bucket)), generated)

    def _list_buckets(self, request: Request, body: Body) -> Response:
        buckets = [element("Bucket", text("Name", name)) for name in self.store.buckets()]
        return document("ListAllMyBucketsResult", [element("Buckets", *buckets)])

    def _create_bucket(self, request: Request, body: Body) -> Response:
        self.store.create_bucket(request.bucket)
        return Response(200, {"Location": f"/{request.bucket}"})

    def _delete_bucket(self, request: Request, body: Body) -> Response:
        self.store.delete_bucket(request.bucket)
        return Response(204)

    def _head_bucket(self, request: Request, body: Body) -> Response:
        if not self.store.has_bucket(request.bucket):
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        return Response(200, {"x-amz-bucket-region": REGION})

    def _location(self, request: Request, body: Body) -> Response:
        return document("LocationConstraint", [])


def operation_of(request: Request) -> str:
    """S3's name for what a request asks."""
    method, query = request.method, request.query
    if not request.bucket:
        return "ListBuckets" if method == "GET" else f"{method} /"
    if request.key:
        if "uploadId" in query or "uploads" in query:
            return _multipart.operation_of(request)
        if method == "PUT":
            return "CopyObject" if "x-amz-copy-source" in request.headers else "PutObject"
        return {"GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, f"{method} key")
    if method == "GET":
        names = {"uploads": "ListMultipartUploads", "location": "GetBucketLocation", "list-type": "ListObjectsV2"}
        for name, operation in names.items():
            if name in query:
                return operation
        return "ListObjects" if query.keys() <= _LIST_PARAMETERS else "GET bucket " + next(iter(query))
    if method == "POST" and "delete" in query:
        return "DeleteObjects"
    return {"PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}.get(method, f"{method} bucket")


_LIST_PARAMETERS = {"prefix", "delimiter", "marker", "max-keys", "encoding-type"}


def _part_range(found: S3Object, number: int) -> tuple[int, int]:
    sizes = found.part_sizes
    if not 1 <= number <= max(len(sizes), 1) or not found.size:
        raise S3Error(416, "InvalidPartNumber", "The requested partnumber is not satisfiable")
    start = sum(sizes[: number - 1])
    return start, start + sizes[number - 1]


@lru_cache(maxsize=1024)
def _http_time(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)
