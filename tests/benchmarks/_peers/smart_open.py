"""smart_open, files over boto3; https://github.com/piskvorky/smart_open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import smart_open
import smart_open.s3
import torch

from benchmarks._peers._in_memory import InMemoryCheckpoints
from benchmarks._peers._loading import BATCH_SIZE, CONCURRENCY
from benchmarks._peers._peer import Bytes, CannotDoError, Digest, digest
from servers.counting import GeneratedObjects


class SmartOpen(InMemoryCheckpoints):
    """Many objects by `s3.iter_bucket`, one as a file."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        if is_shuffled or workers:
            raise CannotDoError("s3.iter_bucket reads in the order of the listing, in threads of one process")
        batch: list[Digest] = []
        found = smart_open.s3.iter_bucket(
            folder.bucket, folder.prefix, workers=CONCURRENCY, client_kwargs=self._client_settings()
        )
        for key, data in found:
            batch.append(digest(key, data))
            if len(batch) == BATCH_SIZE:
                yield batch
                batch = []
        if batch:
            yield batch

    def read(self, name: str) -> Bytes:
        with self._open(name, "rb") as file:
            data: bytes = file.read()
            return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        with self._open(name, "rb") as file:
            done = 0
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise ValueError("short read")
                done += count

    def stream(self, name: str) -> Iterator[Bytes]:
        with self._open(name, "rb") as file:
            while chunk := file.read(2**20):
                yield chunk

    def read_start(self, name: str, size: int) -> Bytes:
        with self._open(name, "rb") as file:
            data: bytes = file.read(size)
            return data

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        with self._open(name, "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    def save_to_writer(self, name: str, state: Any) -> None:
        with self._open(name, "wb") as file:
            torch.save(state, file)

    def load_from_reader(self, name: str) -> Any:
        with self._open(name, "rb") as file:
            return torch.load(file, weights_only=True)

    save = save_to_writer
    load = load_from_reader

    why_not: ClassVar[Mapping[str, str]] = {
        "fetch": "has no datasets",
        "read_samples": "has no datasets",
        "list_keys": "lists only to read",
        "storage_writer": "has no storage for distributed checkpoints",
        "storage_reader": "has no storage for distributed checkpoints",
        "lightning_saver": "has no checkpoint plugin",
    }

    def _open(self, name: str, mode: str) -> Any:
        parameters = {"client": self._client}
        return smart_open.open(self.target.uri(name), mode, transport_params=parameters, compression="disable")

    @cached_property
    def _client(self) -> Any:
        return self.target.boto3_client()

    def _client_settings(self) -> dict[str, Any]:
        target = self.target
        return {
            "region_name": target.region,
            "endpoint_url": target.endpoint,
            "aws_access_key_id": target.access_key,
            "aws_secret_access_key": target.secret_key,
        }


PEER = SmartOpen
