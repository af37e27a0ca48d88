"""The map-style dataset: objects by their number, a whole batch at once."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from torch.utils.data import Dataset
from typing_extensions import Unpack

from s3core import S3ClientConfig, S3Exception
from s3torch_datasets._dataset import GetDatasetObjects, ObjectDataset, T_co, identity
from s3torch_datasets._errors import SKIP
from s3torch_datasets._listing import PrefixObjects, UriObjects
from s3torch_datasets._manifest import ManifestObjects
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._options import ReadOptions, ReadSettings
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader import S3Reader


class S3MapDataset(ObjectDataset[T_co], Dataset[T_co]):
    """A map-style dataset of S3 objects.

    `DataLoader` asks for whole batches, whose objects are fetched at the same time: larger batches (64 and more) read
    faster. Most users call `from_prefix`, `from_objects` or `from_manifest`.

    Args:
        region: Region of the bucket; None to find it from the environment, the profile, or the bucket's answer.
        get_dataset_objects: Called once with the client, when the objects are first needed; returns them in order.
        endpoint: Endpoint of an S3-compatible store; None for AWS, or the environment's.
        transform: Makes a sample of a reader. It runs in the thread that asks for the sample.
        s3client_config: Settings of the client.
        reader_constructor: Which reader to make; sequential by default.
        **options: See `ReadOptions`.

    Example:
        >>> dataset = S3MapDataset.from_prefix("s3://bucket/images/", transform=decode)  # doctest: +SKIP
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=128, shuffle=True, num_workers=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            endpoint,
            transform,
            s3client_config,
            reader_constructor,
            ReadSettings.of(options, type(self)),
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
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[ReadOptions],
    ) -> Self:
        """Makes a dataset of the objects that some URIs name.

        Args:
            object_uris: `s3://bucket/key`, one or an iterable, which is read once, here.
            region: See the class, as for all below.
            endpoint: See the class.
            transform: See the class.
            s3client_config: See the class.
            reader_constructor: See the class.
            **options: See `ReadOptions`.

        Raises:
            ValueError: A URI is malformed or names no object.
        """
        return cls(region, UriObjects(object_uris), endpoint, transform, s3client_config, reader_constructor, **options)

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[ReadOptions],
    ) -> Self:
        """Makes a dataset of all objects whose keys begin with a prefix.

        Args:
            s3_uri: `s3://bucket/prefix`. The prefix is raw: `s3://bucket/data/a` also means `data/abc`; end it in `/`
                for a folder.
            region: See the class, as for all below.
            endpoint: See the class.
            transform: See the class.
            s3client_config: See the class.
            reader_constructor: See the class.
            **options: See `ReadOptions`.

        Raises:
            ValueError: The URI is malformed.
        """
        return cls(region, PrefixObjects(s3_uri), endpoint, transform, s3client_config, reader_constructor, **options)

    @classmethod
    def from_manifest(
        cls,
        manifest: str | os.PathLike[str],
        *,
        region: str | None = None,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], T_co] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        columns: str | Sequence[str] | None = None,
        **options: Unpack[ReadOptions],
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
            reader_constructor: See the class.
            columns: Names of the columns of a CSV file without a header, such as `"Bucket, Key, Size, ETag"`.
            **options: See `ReadOptions`.

        Raises:
            ValueError: When the objects are first needed: the manifest is malformed.
        """
        return cls(
            region,
            ManifestObjects(manifest, columns),
            endpoint,
            transform,
            s3client_config,
            reader_constructor,
            **options,
        )

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[T_co]:
        """Returns the samples one by one; without it, an IndexError of the transform would end a loop."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: int) -> T_co:
        """Returns one sample; `on_error="skip"` cannot leave it out here, and raises.

        Raises:
            IndexError: There is no such object.
        """
        (sample,) = self._read([index])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[T_co]:
        """Returns the samples of a batch, whose objects are fetched at the same time.

        Objects that `on_error` skips are left out; when it skips the whole batch, the last error is raised. A subclass
        that overrides `__getitem__` alone is asked for one sample after the other.
        """
        if _overrides(self, "__getitem__") and not _overrides(self, "__getitems__"):
            return [self[index] for index in indices]
        return self._read(indices)

    def sources(self, indices: Sequence[int]) -> list[ObjectSource]:
        """Returns what the samples of some objects are made of, for `read_samples`.

        Raises:
            IndexError: There is no such object.
        """
        index, client = self.index, self._get_client()
        return [ObjectSource(client, index[operator.index(number)], self._cache) for number in indices]

    def _read(self, indices: Sequence[int]) -> list[T_co]:
        members = {number: (self, source) for number, source in enumerate(self.sources(indices))}
        samples = read_samples(members)
        if members and not samples:
            raise nothing_left(members)
        return list(samples.values())


Members = Mapping[int, tuple[S3MapDataset[Any], ObjectSource]]


def makes_own_samples(dataset: S3MapDataset[Any]) -> bool:
    """Whether the dataset is of a subclass that overrides how its samples are had."""
    return _overrides(dataset, "__getitem__") or _overrides(dataset, "__getitems__")


def _overrides(dataset: S3MapDataset[Any], method: str) -> bool:
    return getattr(type(dataset), method) is not getattr(S3MapDataset, method)


def read_samples(members: Members) -> dict[int, Any]:
    """Returns the samples of objects of one dataset or several, fetched at the same time, without those left out.

    Args:
        members: Each object with the dataset that it is of, by a number that its sample is returned by; the settings of
            the first one bound the requests.
    """
    if not members:
        return {}
    sources = [source for _, source in members.values()]
    (first, _), *_ = members.values()
    look_ahead = first._look_ahead_over(lambda place: sources[place] if place < len(sources) else None)
    samples = {}
    try:
        for place, (number, (dataset, _)) in enumerate(members.items()):
            source = look_ahead.get(place)
            assert source is not None
            sample = dataset._sample_of(source)
            if sample is not SKIP:
                samples[number] = sample
    finally:
        look_ahead.close()
    return samples


def nothing_left(members: Members) -> S3Exception:
    """Returns the error for a batch of which `on_error` left out every object."""
    *_, (last, _) = members.values()
    return last._on_error.nothing_left(len(members))
