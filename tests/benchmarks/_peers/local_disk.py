"""The local disk, for reference: the same bytes as files, most likely in the page cache."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks._peers._loading import KeysByIndex, KeysInTurn, batches, shuffled
from benchmarks._peers._peer import Bytes, Digest, Peer, digest
from servers.counting import GeneratedObjects


class LocalDisk(Peer):
    """Plain files."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        keys = self._keys(folder.prefix)
        return batches(KeysInTurn(shuffled(keys) if is_shuffled else keys, self._open_many), workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        return batches(KeysByIndex(self._keys(folder.prefix), self._open_many), workers, is_shuffled=True)

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        if workers:
            self._cannot("read_samples")
        for path in sorted(self._path("tar/").iterdir()):
            with tarfile.open(path, "r|") as tar:
                files = ((member.name, tar.extractfile(member)) for member in tar)
                yield [digest(name, file.read()) for name, file in files if file is not None]

    def read(self, name: str) -> Bytes:
        return self._path(name).read_bytes()

    def read_into(self, name: str, buffer: memoryview) -> None:
        with self._path(name).open("rb", buffering=0) as file:
            done = 0
            while done < len(buffer):
                done += file.readinto(buffer[done:]) or 0

    def stream(self, name: str) -> Iterator[Bytes]:
        with self._path(name).open("rb", buffering=0) as file:
            while chunk := file.read(2**20):
                yield chunk

    def read_start(self, name: str, size: int) -> Bytes:
        with self._path(name).open("rb", buffering=0) as file:
            return file.read(size)

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        with self._new(name).open("wb", buffering=0) as file:
            for chunk in chunks:
                file.write(chunk)

    def save(self, name: str, state: Any) -> None:
        torch.save(state, self._new(name))

    def save_to_writer(self, name: str, state: Any) -> None:
        with self._new(name).open("wb") as file:
            torch.save(state, file)

    def load(self, name: str) -> Any:
        return torch.load(self._path(name), weights_only=True)

    def load_from_reader(self, name: str) -> Any:
        with self._path(name).open("rb") as file:
            return torch.load(file, weights_only=True)

    def storage_writer(self, name: str) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        return FileSystemWriter(self._new(name), thread_count=4, sync_files=False)

    def storage_reader(self, name: str) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        return FileSystemReader(self._path(name))

    def load_safetensors(self, name: str) -> Mapping[str, Any]:
        import safetensors.torch

        # Not `load_file`, which maps the file and leaves it to be read later.
        return safetensors.torch.load(self._path(name).read_bytes())

    def save_safetensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        import safetensors.torch

        safetensors.torch.save_file(dict(tensors), self._new(name))

    def lightning_saver(self) -> Callable[[str, dict[str, Any]], None]:
        from lightning.pytorch.plugins.io import TorchCheckpointIO

        plugin = TorchCheckpointIO()
        return lambda name, checkpoint: plugin.save_checkpoint(checkpoint, self._new(name))

    why_not: ClassVar[Mapping[str, str]] = {
        "list_keys": "has no million files",
        "read_samples": "is not measured with workers here",
    }

    def _path(self, name: str) -> Path:
        return Path(self.target.local_directory, self.target.key(name))

    def _new(self, name: str) -> Path:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _keys(self, prefix: str) -> list[str]:
        return sorted(prefix + name for name in os.listdir(Path(self.target.local_directory, prefix)))

    def _open_many(self) -> Any:
        root = self.target.local_directory

        def read(keys: Sequence[str]) -> Iterator[bytes]:
            return (Path(root, key).read_bytes() for key in keys)

        return read


PEER = LocalDisk
