"""Opens one object as a file, without a dataset."""

from __future__ import annotations

from s3core import S3Client
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader import S3Reader
from s3torch_datasets._reader_constructor import S3ReaderConstructor


def open_reader(
    client: S3Client, bucket: str, key: str, reader_constructor: S3ReaderConstructorProtocol | None = None
) -> S3Reader:
    """Opens one object as a binary file; nothing is fetched before it is used.

    All bytes are of one version of the object, however it is read: one that is replaced meanwhile raises
    `ObjectChangedError`.

    Args:
        client: Client of the bucket.
        bucket: Bucket of the object.
        key: Exact key of the object.
        reader_constructor: How it is read; None for `S3ReaderConstructor.default()`.

    Returns:
        The reader. It pickles where its constructor's readers do.

    Example:
        >>> from s3core import S3Client
        >>> from s3torch_datasets import open_reader
        >>> with open_reader(S3Client("eu-central-1"), "my-bucket", "data.zip") as file:  # doctest: +SKIP
        ...     names = zipfile.ZipFile(file).namelist()
    """
    source = ObjectSource(client, S3BucketKeyData(bucket, key))
    return (reader_constructor or S3ReaderConstructor.default())(bucket, key, source.get_object_info, source.get_stream)
