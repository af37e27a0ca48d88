"""The choice of a reader, as a value that pickles."""

from __future__ import annotations

from functools import partial

from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._ranged_reader import RangedS3Reader, check_buffer_size
from s3torch_datasets._sequential_reader import SequentialS3Reader
from s3torch_datasets._streaming_reader import StreamingS3Reader, check_window

_TYPE_STRINGS: dict[type, str] = {
    SequentialS3Reader: "sequential",
    RangedS3Reader: "range_based",
    StreamingS3Reader: "streaming",
}


def gives_own_bytes(reader: object) -> bool:
    """Whether what a reader gives is known to be the bytes of the object: one of somebody else's may decrypt them."""
    return type(reader) in _TYPE_STRINGS  # no subclass, for the same reason


class S3ReaderConstructor:
    """Makes the `reader_constructor` argument of datasets and checkpoints.

    Example:
        >>> from s3torch_datasets import S3MapDataset, S3ReaderConstructor
        >>> dataset = S3MapDataset.from_prefix(
        ...     "s3://bucket/shards/",
        ...     region="eu-central-1",
        ...     reader_constructor=S3ReaderConstructor.range_based(buffer_size=2**20),
        ... )
    """

    @staticmethod
    def sequential() -> S3ReaderConstructorProtocol:
        """Returns the constructor of readers that fetch an object once and hold it; best for reading all of it."""
        return partial(SequentialS3Reader)

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:
        """Returns the constructor of readers that fetch only the ranges asked for; best for sparse reads.

        Args:
            buffer_size: Size in bytes of the buffer that smaller reads go through; None means 8 MiB, 0 no buffer.

        Raises:
            ValueError: The buffer size is negative.
        """
        return partial(RangedS3Reader, buffer_size=check_buffer_size(buffer_size))

    @staticmethod
    def streaming(window: int | None = None) -> S3ReaderConstructorProtocol:
        """Returns the constructor of readers that move a window over the object; best for objects beyond memory.

        Args:
            window: Most bytes held and on their way at a time; None means 128 MiB.

        Raises:
            ValueError: The window is not positive.
        """
        return partial(StreamingS3Reader, window=check_window(window))

    @staticmethod
    def dcp_optimized(max_gap_size: float = 32 * 2**20) -> S3ReaderConstructorProtocol:
        """Returns `default()`: `S3StorageReader` plans the ranges of a load by itself, whatever it is given.

        Args:
            max_gap_size: Taken because s3torchconnector takes it, and not used.
        """
        return S3ReaderConstructor.default()

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:
        """Returns the constructor that datasets use where none is given: `sequential()`."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def get_reader_type_string(constructor: S3ReaderConstructorProtocol | None) -> str:
        """Returns "sequential", "range_based", "streaming", or "unknown" for a constructor of one's own.

        Args:
            constructor: A reader constructor; None means the default one.
        """
        if constructor is None:
            constructor = S3ReaderConstructor.default()
        reader = constructor.func if isinstance(constructor, partial) else constructor
        return _TYPE_STRINGS.get(reader, "unknown") if isinstance(reader, type) else "unknown"
