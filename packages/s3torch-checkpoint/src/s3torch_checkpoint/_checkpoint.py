"""`S3Checkpoint`: a model in one object, for `torch.save` and `torch.load`."""

from __future__ import annotations

from functools import partial

from s3core import S3Client, S3ClientConfig
from s3torch_datasets import S3Reader, S3ReaderConstructor, S3ReaderConstructorProtocol, S3Writer

from ._address import parse_object_uri


class S3Checkpoint:
    """Saves and loads checkpoints that are one object each.

    Nothing is sent before the first use, and the object pickles. A checkpoint becomes visible only when its writer is
    closed cleanly; until then the previous object of that key stays as it was.

    Args:
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        reader_constructor: How `reader` reads; None for `S3ReaderConstructor.default()`.

    Example:
        >>> checkpoint = S3Checkpoint(region="eu-central-1")
        >>> with checkpoint.writer("s3://my-bucket/run/epoch0.ckpt") as writer:  # doctest: +SKIP
        ...     torch.save(model.state_dict(), writer)
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
    ) -> None:
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()

    @property
    def region(self) -> str | None:
        """The region as it was given."""
        return self._client.region

    @property
    def endpoint(self) -> str | None:
        """The endpoint as it was given."""
        return self._client.endpoint

    def reader(self, s3_uri: str) -> S3Reader:
        """Open a checkpoint for `torch.load`.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.

        Returns:
            A binary file that reads from S3; nothing is fetched before it is used.

        Raises:
            ValueError: The URI is malformed or names no object.
        """
        bucket, key = parse_object_uri(s3_uri)
        return self._reader_constructor(
            bucket,
            key,
            partial(self._client.head_object, bucket, key),
            partial(self._client.get_object, bucket, key),
        )

    def writer(self, s3_uri: str) -> S3Writer:
        """Open a checkpoint for `torch.save`.

        Use it in a `with` block: the checkpoint appears in the bucket when the block ends, and not at all when the
        block raises.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.

        Returns:
            A binary file that writes to S3.

        Raises:
            ValueError: The URI is malformed or names no object.
        """
        bucket, key = parse_object_uri(s3_uri)
        return S3Writer(self._client.put_object(bucket, key))
