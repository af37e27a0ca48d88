"""Datasets, readers and a writer that connect PyTorch's DataLoader to S3."""

from s3core import S3ClientConfig, S3Exception
from s3torch_datasets.__about__ import __version__
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._concat_dataset import S3ConcatDataset
from s3torch_datasets._errors import SKIP
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._iterable_dataset import S3IterableDataset
from s3torch_datasets._map_dataset import S3MapDataset
from s3torch_datasets._open_reader import open_reader
from s3torch_datasets._options import IterationOptions, ReadOptions
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._ranged_reader import RangedS3Reader
from s3torch_datasets._reader import S3Reader
from s3torch_datasets._reader_constructor import S3ReaderConstructor
from s3torch_datasets._sequential_reader import SequentialS3Reader
from s3torch_datasets._streaming_reader import StreamingS3Reader
from s3torch_datasets._tar import BrokenArchiveError
from s3torch_datasets._tar_dataset import S3TarDataset
from s3torch_datasets._writer import S3Writer

__all__ = [
    # datasets
    "S3MapDataset",
    "S3IterableDataset",
    "S3ConcatDataset",
    "S3TarDataset",
    "S3BucketKeyData",
    "ObjectFilter",
    "ReadOptions",
    "IterationOptions",
    "SKIP",
    "S3Exception",
    "BrokenArchiveError",
    # readers
    "S3Reader",
    "SequentialS3Reader",
    "RangedS3Reader",
    "StreamingS3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "open_reader",
    # writer
    "S3Writer",
    # settings
    "S3ClientConfig",
    "__version__",
]
