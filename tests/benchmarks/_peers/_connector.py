"""What this project and s3torchconnector have in common: the code is the same but for the import line."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import torch

from benchmarks._peers._loading import batches
from benchmarks._peers._peer import Bytes, Digest, Peer, digest
from servers.counting import GeneratedObjects


class ConnectorPeer(Peer):
    """Datasets, readers and writers as s3torchconnector names them."""

    library: ModuleType
    checkpoint: Any  # its S3Checkpoint
    config: Any  # an S3ClientConfig

    def _where(self) -> dict[str, Any]:
        return {"region": self.target.region, "endpoint": self.target.endpoint, "s3client_config": self.config}

    @cached_property
    def _checkpoint(self) -> Any:
        return self.checkpoint(**self._where())

    @cached_property
    def _by_ranges(self) -> Any:
        # s3torchconnector's README has it ("Reader Configurations") for sparse reads of large objects, and, without
        # a buffer, for `readinto`.
        return self.library.S3ReaderConstructor.range_based(buffer_size=0)

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        uri = f"s3://{folder.bucket}/{folder.prefix}"
        options = {"shuffle": True} if is_shuffled else {}
        dataset = self.library.S3IterableDataset.from_prefix(
            uri, transform=_digest, enable_sharding=workers > 1, **options, **self._where()
        )
        return batches(dataset, workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        uri = f"s3://{folder.bucket}/{folder.prefix}"
        dataset = self.library.S3MapDataset.from_prefix(uri, transform=_digest, **self._where())
        return batches(dataset, workers, is_shuffled=True)

    def index_objects(self, name: str) -> Any:
        return self.library.S3MapDataset.from_prefix(self.target.uri(name), **self._where())

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        dataset = self.library.S3IterableDataset.from_prefix(
            self.target.uri("tar/"), transform=_untar, enable_sharding=workers > 1, **self._where()
        )
        return (samples for shards in batches(dataset, workers) for samples in shards)  # type: ignore[misc]

    def read(self, name: str) -> Bytes:
        with self._checkpoint.reader(self.target.uri(name)) as reader:
            data: bytes = reader.read()
            return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        with self._checkpoint.reader(self.target.uri(name)) as reader:
            if reader.readinto(buffer) != len(buffer):
                raise ValueError("short read")

    def read_start(self, name: str, size: int) -> Bytes:
        with self._checkpoint.reader(self.target.uri(name)) as reader:
            data: bytes = reader.read(size)
            return data

    def read_range(self, name: str, size: int) -> Bytes:
        with self._ranged(name) as reader:
            data: bytes = reader.read(size)
            return data

    def _ranged(self, name: str) -> Any:
        """Open a reader of ranges."""
        raise NotImplementedError

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        with self._checkpoint.writer(self.target.uri(name)) as writer:
            for chunk in chunks:
                writer.write(chunk)

    def save_to_writer(self, name: str, state: Any) -> None:
        with self._checkpoint.writer(self.target.uri(name)) as writer:
            torch.save(state, writer)

    def load_from_reader(self, name: str) -> Any:
        with self._checkpoint.reader(self.target.uri(name)) as reader:
            return torch.load(reader, weights_only=True)


def _digest(reader: Any) -> Digest:
    return digest(reader.key, reader.read())


def _untar(reader: Any) -> list[Digest]:
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar)
        return [digest(name, file.read()) for name, file in files if file is not None]
