"""litdata, samples in its own chunks, or objects as they are; https://github.com/Lightning-AI/litData."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import litdata
from litdata.raw.indexer import FileIndexer
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter
from torch.utils.data import Dataset

from benchmarks._peers._loading import batches
from benchmarks._peers._peer import CannotDoError, Digest, Peer, digest
from benchmarks._target import Target
from servers.counting import GeneratedObjects

_NAME = "litdata/"


class LitData(Peer):
    """Objects as they are by `StreamingRawDataset`, samples in chunks of 64 MiB by `StreamingDataset`.

    Both find the server by the environment.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if (target.endpoint or "").startswith("http://"):
            # It builds obstore's stores with options of its own, which leave no way to allow plain HTTP.
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        if is_shuffled:
            raise CannotDoError("its dataset of raw objects is map-style: see there")
        return self._raw(folder, workers, is_shuffled=False)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        return self._raw(folder, workers, is_shuffled=True)

    def prepare_samples(self, samples: Iterable[tuple[str, bytes]]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            writer = BinaryWriter(directory, chunk_bytes=64 * 2**20)
            for index, (key, data) in enumerate(samples):
                writer.add_item(index, {"key": key, "data": data})
            writer.done()
            writer.merge()
            client = self.target.boto3_client()
            for path in Path(directory).iterdir():
                client.upload_file(str(path), self.target.bucket, self.target.key(_NAME + path.name))

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        cache = tempfile.mkdtemp(prefix="bench-litdata-")
        try:
            dataset = litdata.StreamingDataset(self.target.uri(_NAME), cache_dir=cache, transform=_digest_sample)
            loader = litdata.StreamingDataLoader(dataset, batch_size=64, num_workers=workers, collate_fn=list)
            yield from loader
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    why_not: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("read", "read_into", "stream", "read_start", "upload", "load"), "reads datasets only"
    )

    def _raw(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        cache = tempfile.mkdtemp(prefix="bench-litdata-")
        try:
            dataset = litdata.StreamingRawDataset(
                f"s3://{folder.bucket}/{folder.prefix}", cache_dir=cache, indexer=_Indexer()
            )
            # It gives the bytes alone, and the transform of items sees no more: take the keys from its index.
            keyed = _Keyed(dataset)
            yield from batches(keyed, workers, is_shuffled)
        finally:
            shutil.rmtree(cache, ignore_errors=True)


class _Indexer(FileIndexer):  # type: ignore[misc]  # it has no types
    def _upload_to_cloud(self, *args: Any) -> None:
        """Keep its index out of the folder that the others list."""


class _Keyed(Dataset[Digest]):
    """A raw dataset with its keys."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Digest:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Digest]:
        keys = [self._dataset.items[index].path.split("/", 3)[3] for index in indices]
        return [digest(key, data) for key, data in zip(keys, self._dataset.__getitems__(indices), strict=True)]


def _digest_sample(sample: dict[str, Any]) -> Digest:
    return digest(sample["key"], sample["data"])


PEER = LitData
