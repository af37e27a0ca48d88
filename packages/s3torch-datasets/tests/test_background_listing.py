"""Iterating over a prefix while it is listed: the first samples come early, and nothing else differs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter, methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from listed_pages import LIST, PAGE, hold_page, listings
from s3core import ListObjectResult
from s3torch_datasets import ObjectFilter, S3IterableDataset
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._parallel_listing import list_prefix
from servers import CountingServer

Make = Callable[..., Any]

key = attrgetter("key")
read = methodcaller("read")


def take(iterator: Any, count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]


# What comes, and when


def test_samples_of_a_page_come_while_the_next_one_is_awaited(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    hold_page(counting_server, 2)
    iterator = iter(make_iterable(transform=lambda reader: reader.read().decode()))
    assert take(iterator, PAGE) == names[:PAGE]  # reading ahead does not wait for the next page either
    counting_server.wait_for_requests(2, operation=LIST)
    assert counting_server.release() == 1
    assert list(iterator) == names[PAGE:]
    assert listings(counting_server) == 3
    assert counting_server.operations().count("GetObject") == len(names)


def test_a_loader_has_its_first_batch_after_the_first_page(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    hold_page(counting_server, 2)
    batches = iter(DataLoader(make_iterable(transform=key), batch_size=64))
    assert next(batches) == names[:64]
    counting_server.wait_for_requests(2, operation=LIST)
    counting_server.release()
    assert sum(batches, names[:64]) == names


@pytest.mark.parametrize("world_size", [1, 3, 3000])
def test_ranks_have_every_nth_object(
    make_iterable: Make, names: list[str], world_size: int, counting_server: CountingServer
) -> None:
    for rank in {0, world_size - 1}:
        dataset = make_iterable(transform=key, enable_sharding=True, rank=rank, world_size=world_size)
        first = list(dataset)
        assert first == names[rank::world_size] == list(dataset)
        assert [one.key for one in dataset.index] == names
    assert listings(counting_server) == 3 * len({0, world_size - 1})


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"enable_sharding": True, "rank": 0, "world_size": 2, "shard_remainder": "pad"},
        {"enable_sharding": True, "rank": 0, "world_size": 2, "shard_remainder": "drop_last"},
    ],
)
def test_where_the_number_of_objects_makes_a_difference_all_are_listed_first(
    make_iterable: Make, names: list[str], options: dict[str, Any], counting_server: CountingServer
) -> None:
    iter(make_iterable(transform=key, **options))
    assert listings(counting_server) == 3


def test_what_is_listed_in_parallel_follows_on_the_plain_pages_which_are_kept(
    make_iterable: Make, counting_server: CountingServer
) -> None:
    names = [f"data/{number // 200:03}/{number:05}" for number in range(8 * PAGE)]
    for name in names:
        counting_server.put(name, b"")
    dataset = make_iterable(transform=key)
    assert list(dataset) == names
    requests = [request.query for request in counting_server.requests if request.operation == LIST]
    behind = [query["start-after"] for query in requests if "start-after" in query]
    assert len(behind) > 1
    assert min(behind) == names[4 * PAGE - 1]
    plain = [query for query in requests if "start-after" not in query and "delimiter" not in query]
    assert len([query for query in plain if "continuation-token" in query]) <= 4 + len(behind)
    assert [one.key for one in dataset.index] == names


def test_a_filter_may_leave_out_whole_pages(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    for few in ("*/00999", "*/02*", "*/none"):
        expected = [name for name in names if ObjectFilter(glob=few).accepts_key(name)]
        assert list(make_iterable(transform=key, object_filter=ObjectFilter(glob=few))) == expected


def test_an_empty_prefix_ends_at_once(make_iterable: Make, counting_server: CountingServer) -> None:
    assert list(make_iterable(transform=key)) == []
    assert listings(counting_server) == 1


# One listing


def test_all_uses_of_a_dataset_share_a_listing_that_goes_on(
    make_iterable: Make, names: list[str], counting_server: CountingServer, tmp_path: Path
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    first, second = iter(dataset), iter(dataset)
    assert take(first, 2) == take(second, 2) == names[:2]
    with ThreadPoolExecutor(2) as threads:
        manifest = threads.submit(dataset.save_manifest, tmp_path / "list.jsonl")
        index = threads.submit(lambda: dataset.index)
        counting_server.wait_for_requests(2, operation=LIST)
        counting_server.release()
        assert len(index.result()) == len(names)
        manifest.result()
    assert (tmp_path / "list.jsonl").read_text().count("\n") == len(names)
    assert list(first) == list(second) == names[2:]
    assert list(dataset) == names
    assert listings(counting_server) == 3


def test_workers_take_over_what_the_main_process_listed(
    make_iterable: Make, counting_server: CountingServer, start_method: str
) -> None:
    names = [f"data/{number}" for number in range(6)]
    for name in names:
        counting_server.put(name, b"")
    dataset = make_iterable(transform=key, enable_sharding=True)
    assert list(dataset) == names
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start_method)
    assert sorted(loader) == names
    assert listings(counting_server) == 1


def test_nobody_left_ends_the_listing(make_iterable: Make, counting_server: CountingServer) -> None:
    for number in range(6 * PAGE):
        counting_server.put(f"data/{number:05}", b"")
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    iterator = iter(dataset)
    next(iterator)
    (thread,) = [one for one in threading.enumerate() if one.name == "s3torch-listing"]
    dropped = weakref.ref(dataset)
    del dataset, iterator
    gc.collect()
    assert dropped() is None
    counting_server.wait_for_requests(2, operation=LIST)
    counting_server.release()
    thread.join(60)
    assert not thread.is_alive()
    assert listings(counting_server) < 6


# State


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_state_in_mid_listing_is_the_same_and_resumes(
    make_iterable: Make, names: list[str], world_size: int, counting_server: CountingServer
) -> None:
    options = {"transform": key, "enable_sharding": True, "rank": world_size - 1, "world_size": world_size}
    known = make_iterable(**options)
    assert len(known.index) == len(names)
    following = iter(known)
    hold_page(counting_server, 2)
    dataset = make_iterable(**options)
    iterator = iter(dataset)
    seen = take(iterator, 7)
    assert seen == take(following, 7)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(dataset.state_dict)
        counting_server.wait_for_requests(5, operation=LIST)
        counting_server.release()
        state = waiting.result()
    assert state == known.state_dict()
    resumed = make_iterable(**options)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert seen + rest == names[world_size - 1 :: world_size]
    assert list(iterator) == rest == list(following)
    assert dataset.state_dict() == known.state_dict()


# Errors


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_error_of_a_page_comes_behind_the_objects_before_it(
    make_iterable: Make, names: list[str], on_error: Any, counting_server: CountingServer
) -> None:
    counting_server.fault(operation=LIST, skip=2, status=403, code="AccessDenied")
    dataset = make_iterable(transform=read, on_error=on_error)
    iterator = iter(dataset)
    assert take(iterator, 2 * PAGE) == [name.encode() for name in names[: 2 * PAGE]]
    for _ in range(2):  # no end that looks like a whole epoch
        with pytest.raises(PermissionError, match=counting_server.bucket):
            next(iterator)
    counting_server.faults_clear()
    with pytest.raises(PermissionError):
        dataset.state_dict()  # a new list might be another one
    assert len(list(dataset)) == len(names)
    assert dataset.state_dict()["finished"]


def test_an_error_of_the_first_page_comes_where_the_iteration_starts(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    counting_server.fault(operation=LIST, status=403, code="AccessDenied", times=1)
    dataset = make_iterable(transform=key)
    with pytest.raises(PermissionError, match=counting_server.bucket):
        iter(dataset)
    assert list(dataset) == names


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Python loses an interrupt that arrives during a collection which calls back, as hypothesis makes each do."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_a_wait_within_a_second_and_the_iteration_can_go_on(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    iterator = iter(dataset)
    seen = take(iterator, PAGE)
    for wait in (lambda: next(iterator), dataset.state_dict, lambda: dataset.index):
        began = time.monotonic()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        assert time.monotonic() - began < 1.1
        timer.join()
    counting_server.release()
    assert seen + list(iterator) == names
    assert listings(counting_server) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_fork_in_mid_listing_lists_for_itself(
    make_iterable: Make, names: list[str], counting_server: CountingServer
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    iterator, other = iter(dataset), iter(dataset)
    seen = take(iterator, 3)
    counting_server.wait_for_requests(2, operation=LIST)
    child = os.fork()
    if child == 0:
        is_right = False
        try:
            next(other)
            is_right = seen + list(iterator) == names == list(dataset)
            is_right = is_right and list(other) == names[1:] and other is not iterator
            is_right = is_right and dataset.state_dict()["size"] == len(names)
        finally:
            os._exit(0 if is_right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    counting_server.release()
    assert seen + list(iterator) == names


EXIT = """
import os
from s3torch_datasets import S3IterableDataset
iterator = iter(S3IterableDataset.from_prefix(os.environ["PREFIX"], transform=lambda reader: reader.key))
print(next(iterator), flush=True)
"""


def test_a_listing_does_not_keep_the_interpreter_from_its_end(
    names: list[str], counting_server: CountingServer
) -> None:
    hold_page(counting_server, 2)
    prefix = {"PREFIX": f"s3://{counting_server.bucket}/data/"}
    environment = {**os.environ, **counting_server.environment(), **prefix}
    done = subprocess.run([sys.executable, "-c", EXIT], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{names[0]}\n", "")


def test_a_bar_shows_while_somebody_waits(
    make_iterable: Make, names: list[str], counting_server: CountingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    counting_server.shape(latency_seconds=0.8)
    try:
        for progress in (False, True):
            dataset = make_iterable(transform=key, progress=progress)
            next(iter(dataset))
            dataset.state_dict()
            shown = capsys.readouterr().err
            assert (f"Listing s3://{counting_server.bucket}/data/" in shown) == progress
    finally:
        counting_server.shape()


# Stores that list in no order


class UnorderedClient:
    """A store of pages, which lists them all behind one object that does come after what it is asked to start after."""

    s3client_config = SimpleNamespace(concurrency=2)

    def __init__(self, pages: list[list[str]]) -> None:
        self._pages = pages

    def list_objects(
        self, bucket: str, prefix: str, delimiter: str = "", start_after: str | None = None
    ) -> Iterator[ListObjectResult]:
        if delimiter:
            yield ListObjectResult([], [], [], [], [], ["a/", "b/", "y/", "z/"])
            return
        for page in self._pages if start_after is None else [[f"{start_after}!"], *self._pages]:
            count = len(page)
            yield ListObjectResult(page, [1] * count, [""] * count, [""] * count, ["STANDARD"] * count, [])


@pytest.mark.parametrize("bucket", ["bucket", "bucket--use1-az4--x-s3"])
@pytest.mark.parametrize(
    "pages",
    [
        [["c/1"], ["c/3"], ["c/2"], ["b/1"], ["z/1", "a/1"]],  # the plain pages show it
        [["c/1"], ["c/2"], ["c/3"], ["c/4"], ["z/1", "a/1"]],  # the ranges do
        [["c/1"], [], ["c/3"], ["c/4"], ["a/1"]],
    ],
)
def test_a_store_without_order_is_listed_page_by_page(bucket: str, pages: list[list[str]]) -> None:
    client: Any = UnorderedClient(pages)
    pieces: list[ObjectIndex] = []
    counts: list[int] = []
    found = list_prefix(client, bucket, "", ObjectFilter(), counts.append, pieces.append)
    expected = [name for page in pages for name in page]
    assert [one.key for one in found.builder.build()] == expected
    assert [one.key for piece in pieces for one in piece] == expected
    assert sum(counts) == len(expected) == found.listed


def test_a_named_source_is_no_listing(connection: dict[str, Any], counting_server: CountingServer) -> None:
    uris = [f"s3://{counting_server.bucket}/{number}" for number in range(3)]
    assert list(S3IterableDataset.from_objects(uris, transform=key, **connection)) == ["0", "1", "2"]
    assert counting_server.operations() == []
