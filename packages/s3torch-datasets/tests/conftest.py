"""What the tests of datasets share: a server full of objects, and datasets over it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_all_start_methods
from typing import Any

import pytest

from listed_pages import PAGE
from s3core import S3ClientConfig
from s3torch_datasets import S3IterableDataset, S3MapDataset
from servers import CountingServer

# macOS has no private copy of the native library, so that s3core names spawn there.
START_METHODS = [name for name in get_all_start_methods() if name != "fork" or sys.platform == "linux"]


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each way to start a worker process."""
    return str(request.param)


@pytest.fixture
def config(counting_server: CountingServer) -> S3ClientConfig:
    """Settings of a client for the counting server; the environment names nothing."""
    return S3ClientConfig(
        access_key_id=counting_server.access_key, secret_access_key=counting_server.secret_key, max_attempts=2
    )


@pytest.fixture
def connection(counting_server: CountingServer, config: S3ClientConfig) -> dict[str, Any]:
    """The arguments that make a dataset reach the counting server."""
    return {"region": counting_server.region, "endpoint": counting_server.endpoint, "s3client_config": config}


@pytest.fixture
def fill(counting_server: CountingServer) -> Callable[..., list[bytes]]:
    """Puts `count` objects under `data/`, the n-th `n + 1` times its number as a byte, and returns their bytes."""

    def fill(count: int, size: int | None = None) -> list[bytes]:
        contents = [bytes([number % 256]) * (number + 1 if size is None else size) for number in range(count)]
        for number, data in enumerate(contents):
            counting_server.put(f"data/{number:05}", data)
        return contents

    return fill


@pytest.fixture
def make_iterable(counting_server: CountingServer, connection: dict[str, Any]) -> Callable[..., S3IterableDataset[Any]]:
    """Makes an iterable dataset over `data/`."""
    return partial(S3IterableDataset.from_prefix, f"s3://{counting_server.bucket}/data/", **connection)


@pytest.fixture
def make_map(counting_server: CountingServer, connection: dict[str, Any]) -> Callable[..., S3MapDataset[Any]]:
    """Makes a map dataset over `data/`."""
    return partial(S3MapDataset.from_prefix, f"s3://{counting_server.bucket}/data/", **connection)


@pytest.fixture
def names(counting_server: CountingServer) -> Iterator[list[str]]:
    """Keys of three pages, each of an object of its number."""
    names = [f"data/{number:05}" for number in range(2 * PAGE + 500)]
    for name in names:
        counting_server.put(name, name.encode())
    yield names
    counting_server.release()
