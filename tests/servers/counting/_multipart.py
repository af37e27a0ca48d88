"""S3's operations on multipart uploads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from servers.counting._bodies import Body, DroppedBody, MemoryBody, PieceBody
from servers.counting._errors import S3Error
from servers.counting._messages import Request, Response, kept_headers
from servers.counting._ranges import check_conditions
from servers.counting._store import Piece, Store, StoredObject
from servers.counting._xml import document, element, iso_time, parse, text

SMALLEST_PART_BYTES = 5 * 2**20
_MOST_PARTS = 10_000


def operation_of(request: Request) -> str:
    """S3's name for what a request with `uploads` or `uploadId` asks."""
    if "uploadId" not in request.query:
        return "CreateMultipartUpload" if request.method == "POST" else f"{request.method} key uploads"
    if request.method == "PUT":
        return "UploadPartCopy" if "x-amz-copy-source" in request.headers else "UploadPart"
    return {"GET": "ListParts", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}.get(
        request.method, f"{request.method} key uploadId"
    )


def handlers(store: Store) -> dict[str, Callable[[Request, Body], Response]]:
    """The operations by name."""
    uploads = _Uploads(store)
    return {
        "CreateMultipartUpload": uploads.create,
        "UploadPart": uploads.put_part,
        "CompleteMultipartUpload": uploads.complete,
        "AbortMultipartUpload": uploads.abort,
        "ListMultipartUploads": uploads.list_uploads,
        "ListParts": uploads.list_parts,
    }


class _Uploads:
    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, request: Request, body: Body) -> Response:
        upload = self._store.create_upload(request.bucket, request.key, kept_headers(request))
        return document("InitiateMultipartUploadResult", [*_names(request), text("UploadId", upload.upload_id)])

    def put_part(self, request: Request, body: Body) -> Response:
        if not isinstance(body, PieceBody | DroppedBody):
            raise TypeError(f"a body to keep, not {type(body).__name__}")
        number = request.query.get("partNumber", "")
        if not number.isdigit() or not 1 <= int(number) <= _MOST_PARTS:
            raise S3Error(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        self._upload_id(request)
        piece = body.finish()
        self._store.put_part(request.query["uploadId"], int(number), piece)
        return Response(200, {"ETag": piece.etag})

    def complete(self, request: Request, body: Body) -> Response:
        if not isinstance(body, MemoryBody):
            raise TypeError(f"a body to read, not {type(body).__name__}")
        upload_id = self._upload_id(request)
        before = self._store.get(request.bucket, request.key)
        check_conditions(request.headers, before.etag if before else None, is_read=False)
        pieces = self._chosen(upload_id, bytes(body.data))
        sums = hashlib.md5(b"".join(bytes.fromhex(piece.etag.strip('"')) for piece in pieces), usedforsecurity=False)
        etag = f'"{sums.hexdigest()}-{len(pieces)}"'
        headers = self._store.upload(upload_id).headers
        self._store.put(request.bucket, StoredObject(request.key, etag, pieces, headers))
        self._store.end_upload(upload_id, keep=pieces)
        return document("CompleteMultipartUploadResult", [*_names(request), text("ETag", etag)])

    def abort(self, request: Request, body: Body) -> Response:
        self._store.end_upload(self._upload_id(request))
        return Response(204)

    def list_uploads(self, request: Request, body: Body) -> Response:
        if not self._store.has_bucket(request.bucket):
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        prefix = request.query.get("prefix", "")
        uploads = [
            element(
                "Upload",
                text("Key", upload.key),
                text("UploadId", upload.upload_id),
                text("Initiated", iso_time(upload.initiated)),
                text("StorageClass", upload.headers.get("x-amz-storage-class", "STANDARD")),
            )
            for upload in sorted(self._store.uploads(), key=lambda u: (u.key, u.initiated))
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        ]
        names = [text("Bucket", request.bucket), text("IsTruncated", "false")]
        return document("ListMultipartUploadsResult", names + uploads)

    def list_parts(self, request: Request, body: Body) -> Response:
        upload_id = self._upload_id(request)
        parts = [
            element("Part", text("PartNumber", number), text("ETag", part.etag), text("Size", part.size))
            for number, part in self._store.parts(upload_id).items()
        ]
        names = [*_names(request), text("UploadId", upload_id), text("IsTruncated", "false")]
        return document("ListPartsResult", names + parts)

    def _upload_id(self, request: Request) -> str:
        upload = self._store.upload(request.query["uploadId"])
        if (upload.bucket, upload.key) != (request.bucket, request.key):
            raise S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist")
        return upload.upload_id

    def _chosen(self, upload_id: str, data: bytes) -> list[Piece]:
        """The parts that a completion names, checked as S3 checks them."""
        there = self._store.parts(upload_id)
        numbers, pieces = [], []
        for node in parse(data).iterfind("Part"):
            number, etag = int(node.findtext("PartNumber", "0")), node.findtext("ETag", "")
            if number not in there or there[number].etag.strip('"') != etag.strip('"'):
                raise S3Error(400, "InvalidPart", f"Part {number} could not be found, or its ETag is another one")
            numbers.append(number)
            pieces.append(there[number])
        if not pieces:
            raise S3Error(400, "MalformedXML", "You must specify at least one part")
        if numbers != sorted(set(numbers)):
            raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order")
        if any(piece.size < SMALLEST_PART_BYTES for piece in pieces[:-1]):
            raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        return pieces


def _names(request: Request) -> list[str]:
    return [text("Bucket", request.bucket), text("Key", request.key)]
