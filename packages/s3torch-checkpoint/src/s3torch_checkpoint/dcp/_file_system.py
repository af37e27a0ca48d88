"""`S3FileSystem`: torch's file system interface over S3, for planners and tools that ask for one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch.distributed.checkpoint.filesystem import FileSystemBase

from s3core import S3Client, S3ClientConfig, parse_s3_uri
from s3torch_datasets import S3ReaderConstructor, S3ReaderConstructorProtocol, S3Writer, open_reader

from .._address import parse_object_uri


class S3FileSystem(FileSystemBase):
    """Files on S3 for `torch.distributed.checkpoint`: a path is a URI, and a file appears when its stream is closed.

    Args:
        region: AWS region of the bucket; None for the environment's.
        s3_client: A client to use instead of a new one.
        s3client_config: Settings of the client.
        reader_constructor: How files are read; None for `S3ReaderConstructor.default()`.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.

    Example:
        >>> files = S3FileSystem("eu-central-1")
        >>> with files.create_stream("s3://my-bucket/run/.metadata", "rb") as stream:  # doctest: +SKIP
        ...     metadata = pickle.load(stream)
    """

    def __init__(
        self,
        region: str | None = None,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        endpoint: str | None = None,
    ) -> None:
        self._client = s3_client or S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()
        self.path: str | os.PathLike[str] = ""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open a file.

        Args:
            path: Its URI.
            mode: `"rb"` or `"wb"`.

        Yields:
            The open file. One that is written appears when the block ends, and not at all when the block raises.

        Raises:
            ValueError: The mode is another, or the path is no URI of an object.
        """
        bucket, key = parse_object_uri(os.fspath(path))
        if mode in ("wb", "w"):
            with S3Writer(self._client.put_object(bucket, key)) as writer:
                yield cast("io.IOBase", writer)
        elif mode in ("rb", "r"):
            with open_reader(self._client, bucket, key, self._reader_constructor) as reader:
                yield reader
        else:
            raise ValueError(f"{os.fspath(path)} cannot be opened with mode {mode!r}; 'rb' and 'wb' are possible")

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Join a folder's URI and a name."""
        base = os.fspath(path)
        return f"{base}{suffix}" if base.endswith("/") else f"{base}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """Check a URI and remember it."""
        parse_s3_uri(os.fspath(path))
        self.path = path
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy an object inside the store and delete the old one; S3 has no rename.

        Args:
            path: URI of the object.
            new_path: Its new URI.
        """
        bucket, key = parse_object_uri(os.fspath(path))
        new_bucket, new_key = parse_object_uri(os.fspath(new_path))
        if (bucket, key) == (new_bucket, new_key):
            return
        self._client.copy_object(bucket, key, new_bucket, new_key)
        self._client.delete_object(bucket, key)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Do nothing: S3 has no folders."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an id is a well-formed S3 URI."""
        try:
            parse_s3_uri(os.fspath(checkpoint_id))
        except ValueError:
            return False
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is an object at a URI; anything but a missing object is an error."""
        bucket, key = parse_object_uri(os.fspath(path))
        return self._client.find_object(bucket, key) is not None

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete the object at a URI; a failure is an error."""
        bucket, key = parse_object_uri(os.fspath(path))
        self._client.delete_object(bucket, key)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """The URIs of the objects directly under a folder's URI."""
        bucket, key = parse_s3_uri(os.fspath(path))
        base = key if not key or key.endswith("/") else key + "/"
        pages = self._client.list_objects(bucket, base, "/")
        return [f"s3://{bucket}/{name}" for page in pages for name in page.keys]
