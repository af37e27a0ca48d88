"""How datasets are driven: the same `DataLoader` for every peer, and datasets for peers that have none."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks._peers._peer import Bytes, Digest, digest

BATCH_SIZE = 64
# Requests in flight, of all workers together, for every peer that lets its user choose: as many as ours has without
# being told. A test compares it with `S3ClientConfig().concurrency`, whose import would add to a peer's memory.
CONCURRENCY = 128

# Makes, in the process that reads, a function from keys to their bytes, in order and as they are taken.
OpenMany: TypeAlias = Callable[[], Callable[[Sequence[str]], Iterable[Bytes]]]


def batches(dataset: Dataset[Any], workers: int, is_shuffled: bool = False) -> Iterator[list[Digest]]:
    """All samples of a dataset in batches."""
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=is_shuffled or None, num_workers=workers, collate_fn=list)
    yield from loader


def share_of_concurrency(workers: int) -> int:
    """Requests that each of so many workers may have in flight."""
    return max(1, CONCURRENCY // max(workers, 1))


def in_threads(open_one: Callable[[], Callable[[str], Bytes]], workers: int) -> OpenMany:
    """Read many objects with a function that reads one, in as many threads as there may be requests in flight."""
    threads = share_of_concurrency(workers)

    def open_many() -> Callable[[Sequence[str]], Iterable[Bytes]]:
        read, pool = open_one(), ThreadPoolExecutor(threads)
        # Twice as many: those that have come and wait to be taken keep no thread from the next.
        return partial(read_ahead, lambda key: pool.submit(read, key), 2 * threads)

    return open_many


def read_ahead(submit: Callable[[str], Future[Any]], most: int, keys: Sequence[str]) -> Iterator[Bytes]:
    """The bytes of many objects in order, of which so many at most are asked for before they are taken."""
    ahead: deque[Future[Any]] = deque()
    for key in keys:
        ahead.append(submit(key))
        if len(ahead) == most:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


class KeysInTurn(IterableDataset[Digest]):
    """What users write who have a client and a list of keys: each worker its share, many at once."""

    def __init__(self, keys: Sequence[str], open_many: OpenMany) -> None:
        self._keys = keys
        self._open_many = open_many

    def __iter__(self) -> Iterator[Digest]:
        worker = get_worker_info()
        keys = self._keys if worker is None else self._keys[worker.id :: worker.num_workers]
        read = self._open_many()
        for key, data in zip(keys, read(keys), strict=True):
            yield digest(key, data)


class KeysByIndex(Dataset[Digest]):
    """The same, map-style, a batch at once."""

    def __init__(self, keys: Sequence[str], open_many: OpenMany) -> None:
        self._keys = keys
        self._open_many = open_many
        self._read: Callable[[Sequence[str]], Iterable[Bytes]] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Digest:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Digest]:
        if self._read is None:  # in the worker, not before it is forked
            self._read = self._open_many()
        keys = [self._keys[index] for index in indices]
        return [digest(key, data) for key, data in zip(keys, self._read(keys), strict=True)]


def shuffled(keys: Sequence[str]) -> list[str]:
    """The keys in another order, the same each time."""
    return random.Random(0).sample(keys, len(keys))
