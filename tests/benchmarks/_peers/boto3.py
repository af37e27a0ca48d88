"""boto3 and its transfer manager, s3transfer; https://boto3.amazonaws.com/v1/documentation/api/latest/guide/s3.html."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from boto3.s3.transfer import TransferConfig

from benchmarks._peers._in_memory import InMemoryCheckpoints
from benchmarks._peers._loading import CONCURRENCY, KeysByIndex, KeysInTurn, batches, in_threads, shuffled
from benchmarks._peers._peer import Bytes, Digest
from benchmarks._target import Target
from servers.counting import GeneratedObjects

_TRANSFER = TransferConfig(max_concurrency=CONCURRENCY)
# Of s3transfer's configuration, which boto3's extends; it holds, and sends, ten parts of a file without.
_TRANSFER.max_in_memory_upload_chunks = CONCURRENCY


class Boto3(InMemoryCheckpoints):
    """Large objects by the managed transfers, small ones by `get_object` in threads."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        keys = self._keys(folder.prefix)
        many = in_threads(self._open_one, workers)
        return batches(KeysInTurn(shuffled(keys) if is_shuffled else keys, many), workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        many = in_threads(self._open_one, workers)
        return batches(KeysByIndex(self._keys(folder.prefix), many), workers, is_shuffled=True)

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        for page in self._pages(self.target.key(name)):
            yield [(found["Key"], found["Size"]) for found in page.get("Contents", [])]

    def read(self, name: str) -> Bytes:
        return self.download(name).getbuffer()

    def download(self, name: str) -> io.BytesIO:
        buffer = io.BytesIO()
        self._client().download_fileobj(self.target.bucket, self.target.key(name), buffer, Config=_TRANSFER)
        buffer.seek(0)
        return buffer

    def read_into(self, name: str, buffer: memoryview) -> None:
        body = self._get(name)
        done = 0
        while done < len(buffer):
            count = body.readinto(buffer[done:])
            if not count:
                raise ValueError("short read")
            done += count

    def stream(self, name: str) -> Iterator[Bytes]:
        yield from self._get(name).iter_chunks(2**20)

    def read_start(self, name: str, size: int) -> Bytes:
        body = self._client().get_object(
            Bucket=self.target.bucket, Key=self.target.key(name), Range=f"bytes=0-{size - 1}"
        )["Body"]
        data: bytes = body.read()
        return data

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        self._send(name, io.BufferedReader(_Chunks(chunks), 2**20))

    def send(self, name: str, buffer: io.BytesIO) -> None:
        buffer.seek(0)
        self._send(name, buffer)

    why_not: ClassVar[Mapping[str, str]] = {
        "read_samples": "has no datasets",
        "save_to_writer": "has no files",
        "load_from_reader": "has no files",
        "storage_writer": "has no storage for distributed checkpoints",
        "storage_reader": "has no storage for distributed checkpoints",
        "lightning_saver": "has no checkpoint plugin",
    }

    def _send(self, name: str, file: io.BufferedReader | io.BytesIO) -> None:
        self._client().upload_fileobj(file, self.target.bucket, self.target.key(name), Config=_TRANSFER)

    def _client(self) -> Any:
        return _make_client(self.target, os.getpid())

    def _get(self, name: str) -> Any:
        return self._client().get_object(Bucket=self.target.bucket, Key=self.target.key(name))["Body"]

    def _pages(self, prefix: str) -> Any:
        paginator = self._client().get_paginator("list_objects_v2")
        return paginator.paginate(Bucket=self.target.bucket, Prefix=prefix)

    def _keys(self, prefix: str) -> list[str]:
        return [found["Key"] for page in self._pages(prefix) for found in page.get("Contents", [])]

    def _open_one(self) -> Any:
        client, bucket = self._client(), self.target.bucket
        return lambda key: client.get_object(Bucket=bucket, Key=key)["Body"].read()


@cache
def _make_client(target: Target, pid: int) -> Any:
    """Make one for each process: a forked worker can't have its parent's connections."""
    return target.boto3_client(max_pool_connections=CONCURRENCY)


class _Chunks(io.RawIOBase):
    """An iterable of chunks as a file to read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


PEER = Boto3
