"""The iterable dataset: objects in order, with the coming ones on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from typing_extensions import Unpack

from s3core import S3ClientConfig
from s3torch_datasets._background_listing import ListedObjects
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._constructed_dataset import ConstructedDataset
from s3torch_datasets._dataset import GetDatasetObjects, T_co, identity
from s3torch_datasets._errors import SKIP
from s3torch_datasets._look_ahead import LookAhead
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._options import IterationOptions
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader import S3Reader
from s3torch_datasets._resume import Progress
from s3torch_datasets._shared_iterator import SharedIterator


class S3IterableDataset(ConstructedDataset[S3Reader, T_co]):
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
        >>> dataset = S3IterableDataset.from_prefix(  # doctest: +SKIP
        ...     "s3://bucket/images/", region="eu-central-1", transform=decode, enable_sharding=True, shuffle=True
        ... )
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=32, num_workers=4)  # doctest: +SKIP
        >>> for epoch in range(10):  # doctest: +SKIP
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
        if options.get("shuffle_buffer") is not None:
            raise ValueError("shuffle_buffer is for S3TarDataset; S3IterableDataset shuffles over all objects at once")
        super().__init__(
            region,
            get_dataset_objects,
            endpoint,
            transform,
            s3client_config,
            enable_sharding,
            reader_constructor,
            **options,
        )

    def _start(self) -> Iterator[T_co]:
        listing = self._find_listing()
        progress = self._begin(listing)
        if listing is not None:
            listed = ListedObjects(listing, progress.shard)
            look_ahead = self._look_ahead(listed.get, listed.has)
        else:
            index, rows = self.index, self._rows(progress)

            def get_object(number: int) -> S3BucketKeyData | None:
                row = rows.get(number)
                return None if row is None else index[row]

            look_ahead = self._look_ahead(get_object)
        return SampleIterator(look_ahead, self._sample_of, progress)


class SampleIterator(SharedIterator[T_co]):
    """Makes the samples of one iteration, and keeps account of them.

    It goes on after an error that it raised: behind the object that failed, and at the object that Ctrl-C interrupted.

    Args:
        look_ahead: The objects.
        make_sample: Makes the sample of one, or `SKIP`.
        progress: What to advance.
    """

    def __init__(self, look_ahead: LookAhead, make_sample: Callable[[ObjectSource], T_co], progress: Progress) -> None:
        super().__init__()
        self._look_ahead = look_ahead
        self._make_sample = make_sample
        self._progress = progress
        self._is_closed = False

    def _next(self) -> T_co:
        while not (self._progress.finished or self._is_closed):
            source = self._look_ahead.get(self._progress.position)
            if source is None:
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
        """Stops what is on its way, and the iteration with it."""
        self._is_closed = True
        self._look_ahead.close()

    def __del__(self) -> None:
        look_ahead = getattr(self, "_look_ahead", None)
        if look_ahead is not None:
            look_ahead.close()
