"""This project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import s3torch_checkpoint
import s3torch_datasets
from benchmarks._peers._connector import ConnectorPeer
from benchmarks._peers._loading import batches
from benchmarks._peers._peer import Bytes, Digest, digest
from benchmarks._target import Target
from s3core import S3Client, S3ClientConfig
from s3torch_checkpoint import safetensors


class Ours(ConnectorPeer):
    """As its README shows, with no option set but where the server is; a setting is given to see what it does."""

    library = s3torch_datasets
    checkpoint = s3torch_checkpoint.S3Checkpoint

    def __init__(self, target: Target, **settings: Any) -> None:
        super().__init__(target)
        self.config = S3ClientConfig(**settings)

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        dataset = s3torch_datasets.S3TarDataset.from_prefix(
            self.target.uri("tar/"), transform=_digest_sample, enable_sharding=workers > 1, **self._where()
        )
        return batches(dataset, workers)

    def stream(self, name: str) -> Iterator[Bytes]:
        yield from self._client.get_object(self.target.bucket, self.target.key(name))

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        for page in self._client.list_objects(self.target.bucket, self.target.key(name)):
            yield list(zip(page.keys, page.sizes, strict=True))

    def save(self, name: str, state: Any) -> None:
        self._checkpoint.save(state, self.target.uri(name))

    def load(self, name: str) -> Any:
        return self._checkpoint.load(self.target.uri(name))

    def storage_writer(self, name: str) -> Any:
        from s3torch_checkpoint import dcp

        return dcp.S3StorageWriter(path=self.target.uri(name), **self._where())

    def storage_reader(self, name: str) -> Any:
        from s3torch_checkpoint import dcp

        return dcp.S3StorageReader(path=self.target.uri(name), **self._where())

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        tensors: Mapping[str, Any] = safetensors.load_file(self.target.uri(name), **self._where())
        return tensors

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        safetensors.save_file(dict(tensors), self.target.uri(name), **self._where())

    def lightning_saver(self) -> Callable[[str, dict[str, Any]], None]:
        from s3torch_lightning import S3LightningCheckpoint

        plugin = S3LightningCheckpoint(**self._where())
        return lambda name, checkpoint: plugin.save_checkpoint(checkpoint, self.target.uri(name))

    def _ranged(self, name: str) -> Any:
        return self._checkpoint_by_ranges.reader(self.target.uri(name))

    @cached_property
    def _checkpoint_by_ranges(self) -> Any:
        return self.checkpoint(**self._where(), reader_constructor=self._by_ranges)

    @cached_property
    def _client(self) -> S3Client:
        return S3Client(self.target.region, endpoint=self.target.endpoint, s3client_config=self.config)


def _digest_sample(sample: Mapping[str, Any]) -> Digest:
    return digest(f"{sample['__key__']}.bin", sample["bin"])


PEER = Ours
