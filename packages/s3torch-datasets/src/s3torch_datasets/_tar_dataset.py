"""The iterable dataset of tar shards, in WebDataset's convention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import TypeVar, Unpack

from s3core import S3ClientConfig
from s3torch_datasets._constructed_dataset import ConstructedDataset
from s3torch_datasets._dataset import GetDatasetObjects, identity
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._options import IterationOptions
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader_constructor import S3ReaderConstructor
from s3torch_datasets._tar_iterator import TarIterator

logger = logging.getLogger(__name__)

T_co = TypeVar("T_co", covariant=True, default=dict[str, Any])

DEFAULT_SHUFFLE_BUFFER_SAMPLES = 1000


class S3TarDataset(ConstructedDataset[dict[str, Any], T_co]):
    """An iterable dataset of the samples in tar archives, streamed.

    Files that follow each other and have the same name up to the first dot make a sample: `dog.jpg` and `dog.cls` are
    `{"__key__": "dog", "jpg": b"…", "cls": b"…"}`, as in
    [WebDataset](https://github.com/webdataset/webdataset#the-webdataset-format). With `shuffle=True` the shards come in
    another order each epoch, and each sample is drawn from a buffer. Sharding gives whole archives to ranks and
    workers, so have many more of them than workers.

    Most users call `from_prefix` (whose objects must end in `.tar` unless `object_filter` says otherwise),
    `from_objects` or `from_manifest`.

    Args:
        region: Region of the bucket; None to find it from the environment, the profile, or the bucket's answer.
        get_dataset_objects: Called once with the client; returns the archives in order.
        endpoint: Endpoint of an S3-compatible store; None for AWS, or the environment's.
        transform: Makes a sample of such a dictionary; the dictionary itself by default.
        s3client_config: Settings of the client.
        enable_sharding: Split the archives over ranks and workers.
        reader_constructor: Which reader to make of an archive; streaming by default.
        **options: See `IterationOptions` and `ReadOptions`.

    Example:
        >>> dataset = S3TarDataset.from_prefix(  # doctest: +SKIP
        ...     "s3://bucket/shards/", region="eu-central-1", transform=decode, enable_sharding=True, shuffle=True
        ... )
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[dict[str, Any]], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[IterationOptions],
    ) -> None:
        if options.get("object_filter") is None and hasattr(get_dataset_objects, "prefix"):
            options["object_filter"] = ObjectFilter(suffix=".tar")
        super().__init__(
            region,
            get_dataset_objects,
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor or S3ReaderConstructor.streaming(),
            **options,
        )

    @property
    def shuffle_buffer(self) -> int:
        """Number of samples of which the next one is drawn; 0 without `shuffle`."""
        if not self._settings.shuffle:
            return 0
        chosen = self._settings.shuffle_buffer
        return DEFAULT_SHUFFLE_BUFFER_SAMPLES if chosen is None else chosen

    def _start(self) -> Iterator[T_co]:
        progress = self._begin()
        if progress.shard.size == 0 and len(self.index):
            logger.warning(
                "rank %d, worker %d has none of the %d archives; make more of them, or use fewer workers",
                progress.place.rank,
                progress.place.worker,
                len(self.index),
            )
        return TarIterator(
            self._rows(progress),
            self._source,
            self._reader_constructor,
            self._transform,
            self._on_error,
            progress,
            buffer_size=self.shuffle_buffer,
            seed=self._settings.seed,
        )

    def _order(self) -> dict[str, Any]:
        return super()._order() | {"shuffle_buffer": self.shuffle_buffer}
