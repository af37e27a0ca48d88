"""S3's operations on multipart uploads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from servers.counting._bodies import Body, DroppedBody, MemoryBody, PieceBody
from servers.counting._checksums import element_of
from servers.counting._errors import S3Error
from servers.counting._messages import Request, Response, kept_headers
from servers.counting._ranges import check_conditions, must_be_first, parse_range
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


def handlers(
    store: Store, source_of: Callable[[Request], StoredObject]
) -> dict[str, Callable[[Request, Body], Response]]:
    """The operations by name.

    Args:
        store: Where the uploads are.
        source_of: Finds the object that a request copies.
    """
    uploads = _Uploads(store, source_of)
    return {
        "CreateMultipartUpload": uploads.create,
        "UploadPart": uploads.put_part,
        "UploadPartCopy": uploads.copy_part,
        "CompleteMultipartUpload": uploads.complete,
        "AbortMultipartUpload": uploads.abort,
        "ListMultipartUploads": uploads.list_uploads,
        "ListParts": uploads.list_parts,
    }


class _Uploads:
    def __init__(self, store: Store, source_of: Callable[[Request], StoredObject]) -> None:
        self._store = store
        self._source_of = source_of

    def create(self, request: Request, body: Body) -> Response:
        upload = self._store.create_upload(request.bucket, request.key, kept_headers(request))
        return document("InitiateMultipartUploadResult", [*_names(request), text("UploadId", upload.upload_id)])

    def put_part(self, request: Request, body: Body) -> Response:
        if not isinstance(body, PieceBody | DroppedBody):
            raise TypeError(f"a body to keep, not {type(body).__name__}")
        number, upload_id = _part_number(request), self._upload_id(request)
        piece = body.finish(request.headers)
        self._store.put_part(upload_id, number, piece)
        return Response(200, {"ETag": piece.etag, **piece.checksums})

    def copy_part(self, request: Request, body: Body) -> Response:
        number, upload_id, source = _part_number(request), self._upload_id(request), self._source_of(request)
        start, end = _source_range(request, source.size)
        writer = self._store.new_piece(end - start)
        for view in source.views(start, end):
            writer.write(view)
        piece = writer.finish()
        self._store.put_part(upload_id, number, piece)
        return document("CopyPartResult", [text("ETag", piece.etag), text("LastModified", iso_time(time.time()))])

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
        stored = StoredObject(request.key, etag, pieces, headers)
        self._store.put(request.bucket, stored, is_first=must_be_first(request.headers))
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
            element(
                "Part",
                text("PartNumber", number),
                text("ETag", part.etag),
                text("Size", part.size),
                *(text(element_of(header), checksum) for header, checksum in part.checksums.items()),
            )
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
            checksums = {element_of(header): value for header, value in there[number].checksums.items()}
            stated = {child.tag: child.text for child in node if child.tag.startswith("Checksum")}
            if checksums and not stated.items() <= checksums.items():
                raise S3Error(400, "InvalidPart", f"Part {number} has another checksum: {checksums}")
            numbers.append(number)
            pieces.append(there[number])
        if not pieces:
            raise S3Error(400, "MalformedXML", "You must specify at least one part")
        if numbers != sorted(set(numbers)):
            raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order")
        if any(piece.size < SMALLEST_PART_BYTES for piece in pieces[:-1]):
            raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        return pieces


def _part_number(request: Request) -> int:
    number = request.query.get("partNumber", "")
    if not number.isdigit() or not 1 <= int(number) <= _MOST_PARTS:
        raise S3Error(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
    return int(number)


def _source_range(request: Request, size: int) -> tuple[int, int]:
    """The bytes `[start, end)` that a part is copied from; unlike those of a read, they must all be there."""
    wanted = request.headers.get("x-amz-copy-source-range")
    if wanted is None:
        return 0, size
    span = parse_range(wanted, size)
    if span is None or wanted != f"bytes={span[0]}-{span[1] - 1}":
        raise S3Error(400, "InvalidArgument", f"Range specified is not valid for source object of size: {size}")
    return span


def _names(request: Request) -> list[str]:
    return [text("Bucket", request.bucket), text("Key", request.key)]
