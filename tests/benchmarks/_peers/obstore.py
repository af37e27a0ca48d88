"""obstore alone, which this project's client is built on; https://developmentseed.org/obstore."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, ClassVar

import obstore
from obstore.store import S3Store

from benchmarks._peers._in_memory import InMemoryCheckpoints
from benchmarks._peers._loading import CONCURRENCY, KeysByIndex, KeysInTurn, batches, in_threads, shuffled
from benchmarks._peers._peer import Bytes, CannotDoError, Digest
from servers.counting import GeneratedObjects

_PART_BYTES = 8 * 2**20


class Obstore(InMemoryCheckpoints):
    """Its synchronous functions, in threads where there are many objects, or ranges of a large one."""

    def iterate(self, folder: GeneratedObjects, workers: int, is_shuffled: bool) -> Iterator[list[Digest]]:
        keys = self._keys(folder.prefix, workers)
        many = in_threads(self._open_one, workers)
        return batches(KeysInTurn(shuffled(keys) if is_shuffled else keys, many), workers)

    def fetch(self, folder: GeneratedObjects, workers: int) -> Iterator[list[Digest]]:
        many = in_threads(self._open_one, workers)
        return batches(KeysByIndex(self._keys(folder.prefix, workers), many), workers, is_shuffled=True)

    def list_keys(self, name: str) -> Iterator[Sequence[tuple[str, int]]]:
        for page in obstore.list(self._store, self.target.key(name), chunk_size=1000):
            yield [(found["path"], found["size"]) for found in page]

    def read(self, name: str) -> Bytes:
        return self.download(name).getbuffer()

    def download(self, name: str) -> io.BytesIO:
        buffer = io.BytesIO(bytes(obstore.head(self._store, self.target.key(name))["size"]))
        self.read_into(name, buffer.getbuffer())
        return buffer

    def read_into(self, name: str, buffer: memoryview) -> None:
        # `get` is one request, whatever the size; and `get_ranges` joins ranges that touch each other.
        key = self.target.key(name)

        def read(start: int) -> None:
            end = min(start + _PART_BYTES, len(buffer))
            buffer[start:end] = memoryview(obstore.get_range(self._store, key, start=start, end=end))

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(read, range(0, len(buffer), _PART_BYTES)))

    def stream(self, name: str) -> Iterator[Bytes]:
        for chunk in obstore.get(self._store, self.target.key(name)).stream(min_chunk_size=2**20):
            yield memoryview(chunk)

    def read_start(self, name: str, size: int) -> Bytes:
        return memoryview(obstore.get_range(self._store, self.target.key(name), start=0, end=size))

    def upload(self, name: str, chunks: Iterable[bytes]) -> None:
        with obstore.open_writer(self._store, self.target.key(name), max_concurrency=CONCURRENCY) as writer:
            for chunk in chunks:
                writer.write(chunk)

    why_not: ClassVar[Mapping[str, str]] = {
        "read_samples": "has no datasets",
        "save_to_writer": "goes through memory: see torch.save",
        "load_from_reader": "goes through memory: see torch.load",
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
            raise CannotDoError("hangs in a forked worker once its parent has used it")
        return [found["path"] for page in obstore.list(self._store, prefix, chunk_size=1000) for found in page]

    def _open_one(self) -> Any:
        store = self._store
        return lambda key: memoryview(obstore.get(store, key).bytes())


PEER = Obstore
