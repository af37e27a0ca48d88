"""The iterable dataset: objects in order, with the coming ones on their way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from typing_extensions import Unpack

from s3core import S3ClientConfig
from s3torch_datasets._dataset import GetDatasetObjects, T_co, identity
from s3torch_datasets._epoch_dataset import EpochDataset
from s3torch_datasets._errors import SKIP
from s3torch_datasets._listing import PrefixObjects, UriObjects
from s3torch_datasets._look_ahead import LookAhead
from s3torch_datasets._manifest import ManifestObjects
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._options import IterationOptions, IterationSettings
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader import S3Reader
from s3torch_datasets._resume import Progress


class S3IterableDataset(EpochDataset[T_co]):
    """An iterable dataset of S3 objects, read many at a time and handed out in order.

    Most users call `from_prefix`, `from_objects` or `from_manifest`.

    Args:
        region: Region of the bucket; None to find it from the environment, the profile, or the bucket's answer.
        get_dataset_objects: Called once with the client, when the objects are first needed; returns them in order.
        endpoint: Endpoint of an S3-compatible store; None for AWS, or the environment's.
        transform: Makes a sample of a reader. It runs in the thread that iterates, in order.
        s3client_config: Settings of the client.
        enable_sharding: Split the objects over the ranks of the job and the workers of each DataLoader, found when an
            iteration starts. Without it each of them reads all.
        reader_constructor: Which reader to make; sequential by default.
        **options: See `IterationOptions` and `ReadOptions`.

    Example:
        >>> dataset = S3IterableDataset.from_prefix(
        ...     "s3://bucket/images/", region="eu-central-1", transform=decode, enable_sharding=True, shuffle=True
        ... )
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=32, num_workers=4)
        >>> for epoch in range(10):
        ...     dataset.set_epoch(epoch)
        ...     for batch in loader: ...
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], T_co] = identity,
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
            IterationSettings(**options),
        )

    @classmethod
    def from_objects(
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], T_co] = identity,
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
        transform: Callable[[S3Reader], T_co] = identity,
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
        transform: Callable[[S3Reader], T_co] = identity,
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

    def __iter__(self) -> Iterator[T_co]:
        """Starts an iteration: the objects of this rank and worker, from the loaded state on if there is one."""
        progress = self._begin()
        index = self.index
        look_ahead = self._look_ahead(index[row] for row in self._rows(progress))
        return SampleIterator(look_ahead, self._sample_of, progress)


class SampleIterator(Iterator[T_co]):
    """Makes the samples of one iteration, and keeps account of them. It goes on after an error that it raised.

    Args:
        look_ahead: The objects.
        make_sample: Makes the sample of one, or `SKIP`.
        progress: What to advance.
    """

    def __init__(self, look_ahead: LookAhead, make_sample: Callable[[ObjectSource], T_co], progress: Progress) -> None:
        self._look_ahead = look_ahead
        self._make_sample = make_sample
        self._progress = progress

    def __next__(self) -> T_co:
        while not self._progress.finished:
            try:
                source = next(self._look_ahead)
            except StopIteration:
                self._progress.finished = True
                break
            try:
                sample = self._make_sample(source)
            except Exception:
                self._progress.position += 1  # the error stands for the sample
                raise
            self._progress.position += 1
            if sample is not SKIP:
                return sample
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stops what is on its way."""
        self._look_ahead.close()

    def __del__(self) -> None:
        look_ahead = getattr(self, "_look_ahead", None)
        if look_ahead is not None:
            look_ahead.close()
