"""obstore alone, which this project's client is built on; https://developmentseed.org/obstore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import obstore
from obstore.store import S3Store

from benchmarks._peers._in_memory import InMemoryCheckpoints
from benchmarks._peers._loading import CONCURRENCY, KeysByIndex, KeysInTurn, batches, in_threads, shuffled
from benchmarks._peers._peer import Bytes, Digest
from servers.counting import GeneratedObjects


class Obstore(InMemoryCheckpoints):
    """Its synchronous functions, in threads where there are many objects."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        keys = self._keys(folder.prefix, workers)
        many = in_threads(self._open_one, workers)
        return batches(KeysInTurn(shuffled(keys) if is_shuffled else keys, many), workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        many = in_threads(self._open_one, workers)
        return batches(KeysByIndex(self._keys(folder.prefix, workers), many), workers, is_shuffled=True)

    def count_keys(self, name: str) -> Iterator[int]:
        for page in obstore.list(self._store, self.target.key(name), chunk_size=1000):
            yield len([found["size"] for found in page])

    def read(self, name: str) -> Bytes:
        return memoryview(obstore.get(self._store, self.target.key(name)).bytes())

    def stream(self, name: str) -> Iterator[Bytes]:
        for chunk in obstore.get(self._store, self.target.key(name)).stream(min_chunk_size=2**20):
            yield memoryview(chunk)

    def read_start(self, name: str, size: int) -> Bytes:
        return memoryview(obstore.get_range(self._store, self.target.key(name), start=0, end=size))

    def upload(self, name: str, chunks: Iterable[memoryview]) -> None:
        with obstore.open_writer(self._store, self.target.key(name), max_concurrency=CONCURRENCY) as writer:
            for chunk in chunks:
                writer.write(chunk)

    why_not: ClassVar[Mapping[str, str]] = {
        "read_samples": "has no datasets",
        "save_to_writer": "goes through memory: see torch.save",
        "load_from_reader": "goes through memory: see torch.load",
        "read_into": "allocates what it returns",
        "storage_writer": "has no storage for distributed checkpoints",
        "storage_reader": "has no storage for distributed checkpoints",
        "lightning_saver": "has no checkpoint plugin",
    }

    @cached_property
    def _store(self) -> S3Store:
        target = self.target
        settings: dict[str, Any] = {"region": target.region}
        if target.endpoint is not None:
            settings |= {"endpoint": target.endpoint, "virtual_hosted_style_request": False}
            settings |= {"client_options": {"allow_http": True}}
        if target.access_key is not None:
            settings |= {"access_key_id": target.access_key, "secret_access_key": target.secret_key}
        return S3Store(target.bucket, **settings)

    def _keys(self, prefix: str, workers: int) -> list[str]:
        if workers:
            self._cannot_fork()
        return [found["path"] for page in obstore.list(self._store, prefix, chunk_size=1000) for found in page]

    def _cannot_fork(self) -> None:
        from benchmarks._peers._peer import CannotDoError

        raise CannotDoError("hangs in a forked worker once its parent has used it")

    def _open_one(self) -> Any:
        store = self._store
        return lambda key: memoryview(obstore.get(store, key).bytes())


PEER = Obstore
