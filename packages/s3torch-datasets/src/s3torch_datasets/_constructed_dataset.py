"""The ways to make an iterable dataset: of a prefix, of named objects, of a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, TypeVar

from typing_extensions import Unpack

from s3core import S3ClientConfig
from s3torch_datasets._dataset import GetDatasetObjects, T_co, identity
from s3torch_datasets._epoch_dataset import EpochDataset
from s3torch_datasets._listing import PrefixObjects, UriObjects
from s3torch_datasets._manifest import ManifestObjects
from s3torch_datasets._options import IterationOptions, IterationSettings
from s3torch_datasets._protocol import S3ReaderConstructorProtocol

Source = TypeVar("Source")


class ConstructedDataset(EpochDataset[T_co], Generic[Source, T_co]):
    """An iterable dataset whose transform makes samples of a `Source`.

    Args:
        region: Region of the bucket; None to find it from the environment, the profile, or the bucket's answer.
        get_dataset_objects: Called once with the client, when the objects are first needed; returns them in order.
        endpoint: Endpoint of an S3-compatible store; None for AWS, or the environment's.
        transform: Makes a sample. It runs in the thread that iterates, in order.
        s3client_config: Settings of the client.
        enable_sharding: Split the objects over the ranks of the job and the workers of each DataLoader, found when an
            iteration starts. Without it each of them reads all.
        reader_constructor: Which reader to make.
        **options: See `IterationOptions` and `ReadOptions`.
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[Source], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterationOptions],
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor,
            IterationSettings.of(options, type(self)),
        )

    @classmethod
    def from_objects(
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[Source], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterationOptions],
    ) -> Self:
        """Makes a dataset of the objects that some URIs name.

        Args:
            object_uris: `s3://bucket/key`, one or an iterable, which is read once, here.
            region: See the class, as for all below.
            endpoint: See the class.
            transform: See the class.
            s3client_config: See the class.
            enable_sharding: See the class.
            reader_constructor: See the class.
            **options: See `IterationOptions` and `ReadOptions`.

        Raises:
            ValueError: A URI is malformed or names no object.
        """
        return cls(
            region,
            UriObjects(object_uris),
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor,
            **options,
        )

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[Source], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterationOptions],
    ) -> Self:
        """Makes a dataset of all objects whose keys begin with a prefix.

        Args:
            s3_uri: `s3://bucket/prefix`. The prefix is raw: `s3://bucket/data/a` also means `data/abc`; end it in `/`
                for a folder.
            region: See the class, as for all below.
            endpoint: See the class.
            transform: See the class.
            s3client_config: See the class.
            enable_sharding: See the class.
            reader_constructor: See the class.
            **options: See `IterationOptions` and `ReadOptions`.

        Raises:
            ValueError: The URI is malformed.
        """
        return cls(
            region,
            PrefixObjects(s3_uri),
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor,
            **options,
        )

    @classmethod
    def from_manifest(
        cls,
        manifest: str | os.PathLike[str],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[Source], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        columns: str | Sequence[str] | None = None,
        **options: Unpack[IterationOptions],
    ) -> Self:
        """Makes a dataset of the objects in a manifest, without listing.

        Args:
            manifest: `s3://bucket/key` or a path: a file that `save_manifest` wrote (`.parquet`, `.jsonl`,
                `.jsonl.gz`), a CSV file (`.csv`, `.csv.gz`; without a header it is taken for an S3 Inventory's, whose
                keys are percent-encoded), or the `manifest.json` of an S3 Inventory in CSV or Parquet.
            region: See the class, as for all below.
            endpoint: See the class.
            transform: See the class.
            s3client_config: See the class.
            enable_sharding: See the class.
            reader_constructor: See the class.
            columns: Names of the columns of a CSV file without a header, such as `"Bucket, Key, Size, ETag"`.
            **options: See `IterationOptions` and `ReadOptions`.

        Raises:
            ValueError: When the objects are first needed: the manifest is malformed.
        """
        return cls(
            region,
            ManifestObjects(manifest, columns),
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor,
            **options,
        )
