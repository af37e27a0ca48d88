"""One safetensors object on S3: its header, checked, and the version of it that all reads must be of."""

from __future__ import annotations

from dataclasses import dataclass

from s3core import S3Client

from .._address import parse_object_uri
from .._errors import CorruptCheckpointError
from ._header import LENGTH_BYTES, Header, header_length, parse_header

# One request brings most headers: about 100 bytes per tensor.
_FIRST_READ_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A file whose header has been read.

    Args:
        uri: Its URI.
        bucket: The bucket.
        key: The key.
        etag: ETag of the version that the header came from.
        header: What it holds.
    """

    uri: str
    bucket: str
    key: str
    etag: str | None
    header: Header


def open_file(client: S3Client, uri: str) -> SafetensorsFile:
    """Read and check the header of a file.

    Args:
        client: Client of the bucket.
        uri: `s3://bucket/key` of the file.

    Returns:
        The file.

    Raises:
        CorruptCheckpointError: It is no valid safetensors file.
        NoSuchKeyError: There is no such object.
    """
    bucket, key = parse_object_uri(uri)
    with client.get_object(bucket, key, end=_FIRST_READ_BYTES) as stream:
        start = stream.read_all()
        info = stream.object_info
    if len(start) != min(info.size, _FIRST_READ_BYTES):
        raise CorruptCheckpointError(f"{uri} gave {len(start)} bytes at its start, but has {info.size}; read it again")
    length = header_length(start, info.size, uri)
    end = LENGTH_BYTES + length
    if end > len(start):
        with client.get_object(bucket, key, object_info=info, start=len(start), end=end) as stream:
            start += stream.read_all()
            if stream.object_info.etag != info.etag:
                raise CorruptCheckpointError(f"{uri} was replaced while its header was read; read it again")
    header = parse_header(bytes(start[LENGTH_BYTES:end]), info.size, uri)
    return SafetensorsFile(uri, bucket, key, info.etag, header)
