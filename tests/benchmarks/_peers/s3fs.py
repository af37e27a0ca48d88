"""s3fs, S3 for fsspec; https://s3fs.readthedocs.io."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar

import s3fs
import torch

from benchmarks._peers._in_memory import InMemoryCheckpoints
from benchmarks._peers._loading import (
    CONCURRENCY,
    KeysByIndex,
    KeysInTurn,
    batches,
    read_ahead,
    share_of_concurrency,
    shuffled,
)
from benchmarks._peers._peer import Bytes, Digest
from servers.counting import GeneratedObjects

# Of a checkpoint: its 50 MiB make few parts to be in flight. What it reads comes slower in pieces so small.
_PART_BYTES = 8 * 2**20


class S3FS(InMemoryCheckpoints):
    """Many objects by its coroutines, which its documentation has for concurrent use; large ones whole, or as files."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        keys = self._keys(folder.prefix)
        many = partial(self._open_many, workers)
        return batches(KeysInTurn(shuffled(keys) if is_shuffled else keys, many), workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        many = partial(self._open_many, workers)
        return batches(KeysByIndex(self._keys(folder.prefix), many), workers, is_shuffled=True)

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        bucket = f"{self.target.bucket}/"
        found = self._fs().find(bucket + self.target.key(name), detail=True)
        yield [(path.removeprefix(bucket), info["size"]) for path, info in found.items()]

    def read(self, name: str) -> Bytes:
        data: bytes = self._fs().cat_file(self._path(name))
        return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        with self._fs().open(self._path(name), "rb") as file:
            if file.readinto(buffer) != len(buffer):
                raise ValueError("short read")

    def stream(self, name: str) -> Iterator[Bytes]:
        with self._fs().open(self._path(name), "rb") as file:
            while chunk := file.read(2**20):
                yield chunk

    def read_start(self, name: str, size: int) -> Bytes:
        data: bytes = self._fs().cat_file(self._path(name), start=0, end=size)
        return data

    def send(self, name: str, buffer: io.BytesIO) -> None:
        self._fs().pipe_file(self._path(name), buffer.getvalue(), chunksize=_PART_BYTES)

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        with self._fs().open(self._path(name), "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    def save_to_writer(self, name: str, state: Any) -> None:
        with self._fs().open(self._path(name), "wb") as file:
            torch.save(state, file)

    def load_from_reader(self, name: str) -> Any:
        with self._fs().open(self._path(name), "rb") as file:
            return torch.load(file, weights_only=True)

    def storage_writer(self, name: str) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(self.target.uri(name), thread_count=4, **self._options())

    def storage_reader(self, name: str) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(self.target.uri(name), **self._options())

    def lightning_saver(self) -> Callable[[str, dict[str, Any]], None]:
        import fsspec.config
        from lightning.pytorch.plugins.io import TorchCheckpointIO

        fsspec.config.conf["s3"] = self._options()
        plugin = TorchCheckpointIO()
        return lambda name, checkpoint: plugin.save_checkpoint(checkpoint, self.target.uri(name))

    why_not: ClassVar[Mapping[str, str]] = {"read_samples": "has no datasets"}

    def _options(self) -> dict[str, Any]:
        target = self.target
        client: dict[str, Any] = {"region_name": target.region}
        if target.endpoint is not None:
            client["endpoint_url"] = target.endpoint
        return {
            "key": target.access_key,
            "secret": target.secret_key,
            "client_kwargs": client,
            "config_kwargs": {"max_pool_connections": CONCURRENCY},
            "max_concurrency": CONCURRENCY,
        }

    def _fs(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(**self._options())  # the same for as long as the process is

    def _path(self, name: str) -> str:
        return f"{self.target.bucket}/{self.target.key(name)}"

    def _keys(self, prefix: str) -> list[str]:
        bucket = f"{self.target.bucket}/"
        return [path.removeprefix(bucket) for path in self._fs().find(bucket + prefix)]

    def _open_many(self, workers: int) -> Any:
        fs, bucket = self._fs(), self.target.bucket

        def submit(key: str) -> Future[bytes]:
            return asyncio.run_coroutine_threadsafe(fs._cat_file(f"{bucket}/{key}"), fs.loop)

        return partial(read_ahead, submit, 2 * share_of_concurrency(workers))


PEER = S3FS
