"""What the datasets share: their objects, their client, and how a sample is made of an object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from s3core import S3Client, S3ClientConfig
from s3torch_datasets.__about__ import __version__
from s3torch_datasets._background_listing import BackgroundListing
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._complete_index import complete_index
from s3torch_datasets._disk_cache import DiskCache
from s3torch_datasets._errors import ErrorHandler, replace_stop_iteration
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._look_ahead import LookAhead
from s3torch_datasets._manifest_write import write_manifest
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._options import ReadSettings
from s3torch_datasets._place import find_worker
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader import S3Reader
from s3torch_datasets._reader_constructor import S3ReaderConstructor
from s3torch_datasets._shared_index import SharedIndex

T_co = TypeVar("T_co", covariant=True, default=S3Reader)

GetDatasetObjects = Callable[[S3Client], Iterable[S3BucketKeyData]]


def identity(source: Any) -> Any:
    """Returns the reader, or what else a transform gets, itself: the transform where none is given."""
    return source


class ObjectDataset(Generic[T_co]):
    """A dataset over a list of objects. It pickles, and connects to nothing before it is used.

    Args:
        region: Region of the bucket; None to find it.
        get_dataset_objects: Returns the objects.
        endpoint: Endpoint of an S3-compatible store; None for AWS, or the environment's.
        transform: Makes a sample of a reader.
        s3client_config: Settings of the client.
        reader_constructor: Which reader to make.
        settings: The added options.
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None,
        transform: Callable[..., T_co],
        s3client_config: S3ClientConfig | None,
        reader_constructor: S3ReaderConstructorProtocol | None,
        settings: ReadSettings,
    ) -> None:
        self._region = region
        self._get_dataset_objects = get_dataset_objects
        self._endpoint = endpoint
        self._transform = transform
        self._config = s3client_config or S3ClientConfig()
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()
        self._settings = settings
        self._shared_index = SharedIndex()
        self._on_error = ErrorHandler(settings.on_error)
        self._cache = None
        if settings.cache_dir is not None:
            self._cache = DiskCache(settings.cache_dir, settings.cache_size, endpoint)
        self._client: S3Client | None = None
        self._client_place: tuple[int, int] | None = None

    @property
    def region(self) -> str | None:
        """Region of the bucket, as it was given."""
        return self._region

    @property
    def endpoint(self) -> str | None:
        """Endpoint of the store, as it was given."""
        return self._endpoint

    @property
    def index(self) -> ObjectIndex:
        """The objects of the dataset; the first use lists them."""
        if self._cache is None and self._settings.object_filter is None:
            known: ObjectIndex | None = getattr(self._get_dataset_objects, "known_index", None)
            if known is not None:
                return known
        return self._shared_index.get(self._make_index)

    @property
    def skipped(self) -> int:
        """Number of samples that `on_error` left out, in this process."""
        return self._on_error.skipped

    def save_manifest(self, destination: str | os.PathLike[str]) -> None:
        """Saves the list of objects, so that other jobs and tools read it instead of listing.

        Args:
            destination: `s3://bucket/key` or a path, ending in `.parquet` (needs the extra `parquet`), `.jsonl` or
                `.jsonl.gz`. It holds the whole list or what it held before.

        Raises:
            ValueError: The ending is another one.
        """
        write_manifest(self.index, os.fspath(destination), self._get_client)

    def _make_index(self) -> ObjectIndex:
        index = self._find_objects()
        if self._cache is not None:
            index = complete_index(index, self._get_client(), progress=self._shows_progress())
        return index

    def _find_objects(self) -> ObjectIndex:
        object_filter = self._settings.object_filter
        client = self._get_client()
        make_index = getattr(self._get_dataset_objects, "make_index", None)
        if make_index is not None:
            made: ObjectIndex = make_index(client, object_filter, progress=self._shows_progress())
            return made
        objects = self._get_dataset_objects(client)
        if object_filter is not None:
            objects = (one for one in objects if object_filter.accepts(one))
        return ObjectIndex.of(objects)

    def _follow_listing(self) -> BackgroundListing | None:
        """Returns the listing whose objects can be used while it goes on; None where the index comes otherwise."""
        plan_listing = getattr(self._get_dataset_objects, "plan_listing", None)
        if plan_listing is None:
            return None
        return self._shared_index.follow(
            lambda: plan_listing(self._get_client(), self._settings.object_filter, progress=self._shows_progress())
        )

    def _shows_progress(self) -> bool:
        """Whether this process may show a bar, as far as the dataset can tell."""
        return self._settings.progress

    def _get_client(self) -> S3Client:
        """Returns the client of this process, which has its part of the requests that the node may send."""
        workers = find_worker()[1]
        place = (os.getpid(), workers)
        if self._client is None or self._client_place != place:
            config = self._config
            if workers > 1:
                config = replace(config, max_concurrency=max(1, config.concurrency // workers))
            self._client = S3Client(
                self._region,
                endpoint=self._endpoint,
                s3client_config=config,
                user_agent=f"s3torch-datasets/{__version__}",
            )
            self._client_place = place
        return self._client

    def _source(self, row: int) -> ObjectSource:
        return ObjectSource(self._get_client(), self.index[row], self._cache)

    def _look_ahead(
        self,
        get_object: Callable[[int], S3BucketKeyData | None],
        is_ready: Callable[[int], bool] = lambda number: True,
    ) -> LookAhead:
        client, cache = self._get_client(), self._cache

        def get_source(number: int) -> ObjectSource | None:
            one = get_object(number)
            return None if one is None else ObjectSource(client, one, cache)

        return self._look_ahead_over(get_source, is_ready)

    def _look_ahead_over(
        self, get_source: Callable[[int], ObjectSource | None], is_ready: Callable[[int], bool] = lambda number: True
    ) -> LookAhead:
        workers = find_worker()[1]
        return LookAhead(
            get_source,
            max_objects=max(1, self._config.concurrency // workers),
            memory_limit_bytes=self._config.memory_limit,
            part_size_bytes=self._config.part_size,
            is_ready=is_ready,
        )

    def _sample_of(self, source: ObjectSource) -> T_co:
        """Returns the sample of an object, or `SKIP`, as `on_error` has it."""
        try:
            return self._transform(
                self._reader_constructor(source.bucket, source.key, source.get_object_info, source.get_stream)
            )
        except Exception as error:
            error = replace_stop_iteration(error, "the transform", source.uri)
            return cast(T_co, self._on_error(error, source.uri))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_client_place": None}
