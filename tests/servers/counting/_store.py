"""Uploaded objects in a directory, best on tmpfs, so that several server processes share them.

    buckets/BUCKET/SHA1(KEY)     JSON of the object, which names its pieces in order
    uploads/ID/upload            JSON of a multipart upload
    uploads/ID/NUMBER            JSON of one of its parts
    pieces/NAME                  bytes; the completed upload names the pieces of its parts, and copies nothing
    free/NAME                    the file of a piece that was removed, for another piece

Every JSON file appears by a rename, so that a reader sees the old object or the new one; or by a link, which only the
first of several writers can make.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from servers.counting._errors import S3Error
from servers.counting._maps import Maps
from servers.counting._piece_files import PieceFiles

_maps = Maps()


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes in a file of their own, never changed.

    Attributes:
        path: The file; empty when the bytes were dropped, and zeros are read instead.
        size: Its length in bytes.
        etag: Quoted.
        checksums: Those that its upload stated and that were checked, by the names of their headers.
    """

    path: str
    size: int
    etag: str
    checksums: Mapping[str, str] = field(default_factory=dict)

    def view(self) -> memoryview:
        """Its bytes."""
        if not self.path:
            return _zeros(self.size)
        return _maps.view(self.path)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An uploaded object.

    Attributes:
        key: The exact key.
        etag: Quoted.
        pieces: Its bytes in order.
        headers: To answer with, in lower case.
        modified: Seconds since 1970.
        checksums: Of all its bytes, as far as they are known: of what came in parts they are not.
    """

    key: str
    etag: str
    pieces: Sequence[Piece]
    headers: Mapping[str, str] = field(default_factory=dict)
    modified: float = field(default_factory=time.time)
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(self.part_sizes)

    @property
    def part_sizes(self) -> Sequence[int]:
        """Bytes of each part."""
        return [piece.size for piece in self.pieces]

    def views(self, start: int, end: int) -> list[memoryview]:
        """Its bytes `[start, end)`, one view for each piece that has some."""
        views = []
        for piece in self.pieces:
            if start < piece.size and end > 0:
                views.append(piece.view()[max(start, 0) : min(end, piece.size)])
            start, end = start - piece.size, end - piece.size
        return views


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    upload_id: str
    bucket: str
    key: str
    headers: Mapping[str, str]
    initiated: float


class Store:
    """The uploaded objects of all buckets.

    Args:
        root: Its directory, shared by all server processes.
        is_md5: Whether ETags are MD5 sums as on S3, or arbitrary ones that cost nothing.
        kept_pieces: How many files of removed pieces are kept for others.
    """

    def __init__(self, root: Path, is_md5: bool = True, kept_pieces: int = 0) -> None:
        self._root = root
        self._is_md5 = is_md5
        self._files = PieceFiles(root, kept_pieces)
        self._seen: dict[str, tuple[tuple[int, int], StoredObject]] = {}
        for name in ("buckets", "uploads"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def create_bucket(self, bucket: str) -> None:
        """Create a bucket, or do nothing when it is there."""
        (self._root / "buckets" / bucket).mkdir(exist_ok=True)

    def delete_bucket(self, bucket: str) -> None:
        """Remove an empty bucket."""
        try:
            self._bucket(bucket).rmdir()
        except OSError:
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty") from None

    def buckets(self) -> list[str]:
        """The names of all buckets."""
        return sorted(os.listdir(self._root / "buckets"))

    def has_bucket(self, bucket: str) -> bool:
        """Tell whether there is such a bucket."""
        return (self._root / "buckets" / bucket).is_dir()

    def clear(self) -> None:
        """Remove every object, upload and bucket."""
        for bucket in self.buckets():
            shutil.rmtree(self._root / "buckets" / bucket)
        for folder in (self._root / "uploads", *self._files.folders):
            shutil.rmtree(folder)
            folder.mkdir()
        self._seen.clear()
        _maps.clear()

    def get(self, bucket: str, key: str) -> StoredObject | None:
        """The object, or None."""
        return self._read(self._object_path(bucket, key))

    def objects(self, bucket: str) -> Iterator[StoredObject]:
        """All objects of a bucket, in no order."""
        for name in os.listdir(self._bucket(bucket)):
            stored = self._read(f"{self._root}/buckets/{bucket}/{name}") if "." not in name else None
            if stored is not None:
                yield stored

    def put(self, bucket: str, stored: StoredObject, *, is_first: bool = False) -> None:
        """Make an object visible under its key, in place of the one before it.

        Args:
            bucket: The bucket.
            stored: The object.
            is_first: Whether there must be none before it, not even one that another process puts meanwhile.

        Raises:
            S3Error: There is one, or no bucket.
        """
        path = self._object_path(bucket, stored.key)
        before = None if is_first else self._read(path)
        self._write_json(path, asdict(stored), is_first)
        if before is not None:
            self._remove_pieces(before.pieces)

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        self._bucket(bucket)
        before = self.get(bucket, key)
        if before is not None:
            Path(self._object_path(bucket, key)).unlink(missing_ok=True)
            self._remove_pieces(before.pieces)

    def new_piece(self, size: int = 0) -> PieceWriter:
        """Begin to write bytes that no object has yet.

        Args:
            size: About how many.
        """
        return PieceWriter(*self._files.create(size), self._is_md5)

    def copy(self, stored: StoredObject, key: str) -> StoredObject:
        """The same bytes as another object, which outlive the first."""
        pieces = []
        for piece in stored.pieces:
            path = self._files.new_path() if piece.path else ""
            if path:
                os.link(piece.path, path)
            pieces.append(replace(piece, path=path))
        return StoredObject(key, stored.etag, pieces, stored.headers, checksums=stored.checksums)

    def create_upload(self, bucket: str, key: str, headers: Mapping[str, str]) -> Upload:
        """Begin a multipart upload."""
        self._bucket(bucket)
        upload = Upload(uuid.uuid4().hex, bucket, key, dict(headers), time.time())
        (self._root / "uploads" / upload.upload_id).mkdir()
        self._write_json(f"{self._root}/uploads/{upload.upload_id}/upload", asdict(upload))
        return upload

    def upload(self, upload_id: str) -> Upload:
        """An upload under way.

        Raises:
            S3Error: When there is none of that id.
        """
        fields = _read_json(f"{self._root}/uploads/{os.path.basename(upload_id)}/upload")
        if fields is None:
            raise S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist")
        return Upload(**fields)

    def uploads(self) -> list[Upload]:
        """Every upload under way."""
        found = (_read_json(f"{self._root}/uploads/{name}/upload") for name in os.listdir(self._root / "uploads"))
        return [Upload(**fields) for fields in found if fields is not None]

    def put_part(self, upload_id: str, number: int, piece: Piece) -> None:
        """Keep a part, in place of an earlier one of its number."""
        self.upload(upload_id)
        path = f"{self._root}/uploads/{upload_id}/{number}"
        before = _read_json(path)
        self._write_json(path, asdict(piece))
        if before is not None:
            self._remove_pieces([Piece(**before)])

    def parts(self, upload_id: str) -> dict[int, Piece]:
        """The parts that have arrived, by number."""
        self.upload(upload_id)
        folder = f"{self._root}/uploads/{upload_id}"
        found = {int(name): _read_json(f"{folder}/{name}") for name in os.listdir(folder) if name.isdigit()}
        return {number: Piece(**fields) for number, fields in sorted(found.items()) if fields is not None}

    def end_upload(self, upload_id: str, keep: Sequence[Piece] = ()) -> None:
        """Forget an upload, and remove the pieces of its parts save those to keep."""
        kept = {piece.path for piece in keep}
        self._remove_pieces([piece for piece in self.parts(upload_id).values() if piece.path not in kept])
        shutil.rmtree(self._root / "uploads" / upload_id)

    def _bucket(self, bucket: str) -> Path:
        if not self.has_bucket(bucket):
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        return self._root / "buckets" / bucket

    def _object_path(self, bucket: str, key: str) -> str:
        return f"{self._root}/buckets/{bucket}/{hashlib.sha1(key.encode()).hexdigest()}"

    def _read(self, path: str) -> StoredObject | None:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        version = (status.st_ino, status.st_mtime_ns)
        seen = self._seen.get(path)
        if seen is not None and seen[0] == version:
            return seen[1]
        fields = _read_json(path)
        if fields is None:
            return None
        stored = StoredObject(**fields | {"pieces": [Piece(**piece) for piece in fields["pieces"]]})
        self._seen[path] = (version, stored)
        return stored

    def _write_json(self, path: str, fields: dict[str, Any], is_first: bool = False) -> None:
        temporary = f"{path}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "w") as file:
                json.dump(fields, file)
        except FileNotFoundError:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist") from None
        if not is_first:
            os.replace(temporary, path)
            return
        try:
            os.link(temporary, path)  # which replaces nothing
        except FileExistsError:
            raise S3Error(412, "PreconditionFailed", "another writer was the first") from None
        finally:
            os.unlink(temporary)

    def _remove_pieces(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.path:
                self._files.remove(piece.path)


class PieceWriter:
    """Bytes on their way into a `Piece`."""

    def __init__(self, path: str, file: BinaryIO, is_md5: bool) -> None:
        self._path = path
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False) if is_md5 else None
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self._size += len(data)
        if self._md5 is not None:
            self._md5.update(data)

    def finish(self) -> Piece:
        """The piece, complete."""
        self._file.truncate(self._size)
        self._file.close()
        etag = self._md5.hexdigest() if self._md5 is not None else uuid.uuid4().hex
        return Piece(self._path, self._size, f'"{etag}"')

    def discard(self) -> None:
        """Give it up."""
        self._file.close()
        Path(self._path).unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _zeros(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size)) if size else memoryview(b"")


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path) as file:
            fields: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return fields
