"""s3torchconnector, the library whose interface this project keeps; https://github.com/awslabs/s3-connector-for-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import s3torchconnector
import safetensors.torch
from s3torchconnector._s3client import S3Client  # which its README shows for direct use

from benchmarks._peers._connector import ConnectorPeer
from benchmarks._peers._peer import Bytes, CannotDoError, Digest
from benchmarks._target import Target
from servers.counting import GeneratedObjects


class S3TorchConnector(ConnectorPeer):
    """As its README shows; its classes for distributed checkpoints find the server by the environment."""

    library = s3torchconnector
    checkpoint = s3torchconnector.S3Checkpoint

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.config = s3torchconnector.S3ClientConfig(force_path_style=target.endpoint is not None)

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        if is_shuffled:
            raise CannotDoError("its datasets don't shuffle")
        return super().iterate(folder, workers, is_shuffled)

    def read_into(self, name: str, buffer: memoryview) -> None:
        with self._ranged(name) as reader:
            if reader.readinto(buffer) != len(buffer):
                raise ValueError("short read")

    def stream(self, name: str) -> Iterator[Bytes]:
        client = self._client
        yield from client.get_object(self.target.bucket, self.target.key(name))._get_stream()

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        for page in self._client.list_objects(self.target.bucket, self.target.key(name)):
            yield [(info.key, info.size) for info in page.object_info]

    save = ConnectorPeer.save_to_writer
    load = ConnectorPeer.load_from_reader

    def storage_writer(self, name: str) -> Any:
        from s3torchconnector.dcp import S3StorageWriter

        # Eight threads, as in the README under "Distributed checkpoints".
        return S3StorageWriter(self.target.region, self.target.uri(name), self.config, thread_count=8)

    def storage_reader(self, name: str) -> Any:
        from s3torchconnector.dcp import S3StorageReader

        return S3StorageReader(self.target.region, self.target.uri(name), self.config)

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        return safetensors.torch.load(bytes(self.read(name)))

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        self.upload(name, [safetensors.torch.save(dict(tensors))])

    def lightning_saver(self) -> Callable[[str, dict[str, Any]], None]:
        from s3torchconnector.lightning import S3LightningCheckpoint

        plugin = S3LightningCheckpoint(**self._where())
        return lambda name, checkpoint: plugin.save_checkpoint(checkpoint, self.target.uri(name))

    def _ranged(self, name: str) -> Any:
        return self._client.get_object(self.target.bucket, self.target.key(name), reader_constructor=self._by_ranges)

    @cached_property
    def _client(self) -> Any:
        return S3Client(self.target.region, endpoint=self.target.endpoint, s3client_config=self.config)


PEER = S3TorchConnector
