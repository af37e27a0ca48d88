"""Opens one object with a reader constructor of s3torch-datasets; what it is given pickles."""

from __future__ import annotations

from functools import partial

from s3core import GetObjectStream, S3Client
from s3torch_datasets import S3Reader, S3ReaderConstructorProtocol


def open_reader(client: S3Client, constructor: S3ReaderConstructorProtocol, bucket: str, key: str) -> S3Reader:
    """Open an object; nothing is fetched before the reader is used.

    Args:
        client: Client of the bucket.
        constructor: How it is read.
        bucket: The bucket.
        key: The key.
    """
    return constructor(bucket, key, partial(client.head_object, bucket, key), partial(_stream, client, bucket, key))


def _stream(
    client: S3Client, bucket: str, key: str, start: int | None = None, end: int | None = None
) -> GetObjectStream:
    return client.get_object(bucket, key, start=start, end=end)
