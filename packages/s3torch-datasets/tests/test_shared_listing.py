"""A listing that several processes need: one makes it, the others iterate over its pieces meanwhile."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from listed_pages import LIST, PAGE, hold_page, listings
from s3core import S3Exception
from s3torch_datasets import S3BucketKeyData, _piece_file
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._piece_file import PieceReader, PieceWriter
from s3torch_datasets._shared_listing import make_once
from servers import CountingServer

Make = Callable[..., Any]

key = attrgetter("key")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers list for themselves there")


# Datasets


def test_all_workers_have_their_first_batch_after_the_first_page(
    make_iterable: Make, names: list[str], counting_server: CountingServer, start_method: str
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key, enable_sharding=True)
    batches = iter(DataLoader(dataset, 50, num_workers=2, collate_fn=list, multiprocessing_context=start_method))
    seen = [next(batches) for _ in range(4)]
    assert seen == [names[worker + 100 * turn : 100 * turn + 100 : 2] for turn in range(2) for worker in range(2)]
    counting_server.wait_for_requests(2, operation=LIST)
    assert counting_server.release() == 1
    rest = [name for batch in batches for name in batch]
    assert sorted(sum(seen, rest)) == names
    assert listings(counting_server) == 3
    assert sorted(dataset.index[row].key for row in range(len(dataset.index))) == names  # by the file
    assert listings(counting_server) == 3


@pytest.fixture
def in_child() -> Iterator[Callable[..., Any]]:
    """Starts a forked process that calls something, and kills it in the end."""
    processes = []

    def start(call: Callable[..., Any], *arguments: Any) -> Any:
        process = multiprocessing.get_context("fork").Process(target=call, args=arguments, daemon=True)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_when_the_process_that_lists_is_killed_another_one_does(
    make_iterable: Make, names: list[str], counting_server: CountingServer, in_child: Callable[..., Any]
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    process = in_child(list, dataset)
    counting_server.wait_for_requests(2, operation=LIST)
    iterator = iter(dataset)
    seen = [next(iterator) for _ in range(PAGE)]
    assert listings(counting_server) == 2  # nothing but the other's
    process.kill()
    assert seen + list(iterator) == names
    assert listings(counting_server) == 2 + 3


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_an_error_of_the_process_that_lists_is_its_own(
    make_iterable: Make, names: list[str], counting_server: CountingServer, in_child: Callable[..., Any]
) -> None:
    hold_page(counting_server, 2)
    counting_server.fault(operation=LIST, skip=1, times=1, status=403, code="AccessDenied")  # of those not held
    dataset = make_iterable(transform=key)
    errors = multiprocessing.get_context("fork").SimpleQueue()

    def iterate() -> None:
        try:
            list(dataset)
        except S3Exception as error:
            errors.put(type(error).__name__)

    in_child(iterate)
    counting_server.wait_for_requests(2, operation=LIST)
    iterator = iter(dataset)
    seen = [next(iterator) for _ in range(PAGE)]
    counting_server.release()
    assert errors.get() == "AccessDeniedError"
    assert seen + list(iterator) == names


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_who_waits_and_is_not_wanted_any_more_stops(
    make_iterable: Make, names: list[str], counting_server: CountingServer, in_child: Callable[..., Any]
) -> None:
    hold_page(counting_server, 2)
    dataset = make_iterable(transform=key)
    in_child(list, dataset)
    counting_server.wait_for_requests(2, operation=LIST)
    assert next(iter(dataset)) == names[0]
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "s3torch-listing")
    del dataset
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


# Making it once


def index_of(*numbers: int) -> ObjectIndex:
    return ObjectIndex.of(S3BucketKeyData("bucket", str(number)) for number in numbers)


def keys_of(pieces: list[ObjectIndex]) -> list[str]:
    return [piece[row].key for piece in pieces for row in range(len(piece))]


def test_who_waits_is_told_what_who_makes_it_finds(tmp_path: Path) -> None:
    """Two threads stand for two processes: a lock of `flock` belongs to the open file."""
    first_was_told, may_go_on = threading.Event(), threading.Event()
    made: list[ObjectIndex] = []
    counts: dict[str, list[int]] = {"one": [], "other": []}
    pieces: dict[str, list[ObjectIndex]] = {"one": [], "other": []}

    def make(on_listed: Callable[[int], None], on_piece: Callable[[ObjectIndex], None]) -> ObjectIndex:
        on_listed(3)
        on_piece(index_of(0, 1))
        on_listed(2)
        on_piece(index_of())
        on_piece(index_of(2))
        first_was_told.set()
        assert may_go_on.wait(30)
        return index_of(0, 1, 2, 3)

    def keep(index: ObjectIndex) -> ObjectIndex:
        made.append(index)
        return index

    def on_piece(name: str, piece: ObjectIndex) -> None:
        pieces[name].append(piece)
        if name == "other" and keys_of(pieces[name]) == ["0", "1", "2"]:
            may_go_on.set()

    def run(name: str) -> ObjectIndex:
        find_made = lambda: made[0] if made else None  # noqa: E731
        path = str(tmp_path / "index")
        return make_once(path, make, find_made, keep, counts[name].append, partial(on_piece, name))

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(run, "one")
        assert first_was_told.wait(30)
        other = pool.submit(run, "other")
        assert one.result(30) is other.result(30)
    assert counts["one"] == [3, 2]
    assert [count for count in counts["other"] if count] == [3, 2]
    assert keys_of(pieces["one"]) == keys_of(pieces["other"]) == ["0", "1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["index.lock"]


# The file of pieces


def test_pieces_can_be_read_wherever_a_write_was_cut_in_two(tmp_path: Path) -> None:
    writer = PieceWriter(str(tmp_path / "whole"))
    writer.write(7)
    writer.write(0, index_of(1, 2))
    writer.write(-7)
    writer.write(0, index_of())
    whole = (tmp_path / "whole").read_bytes()
    writer.close()
    path = tmp_path / "cut"
    for cut in range(len(whole) + 1):
        reader = PieceReader(str(path))
        assert reader.read() == []
        frames = []
        with path.open("wb", buffering=0) as file:
            for start, end in pairwise([0, cut, len(whole)]):
                file.write(whole[start:end])
                frames += reader.read()
        reader.close()
        path.unlink()
        assert [(count, None if piece is None else keys_of([piece])) for count, piece in frames] == [
            (7, None),
            (0, ["1", "2"]),
            (-7, None),
            (0, []),
        ]


def test_what_a_killed_process_left_is_replaced_and_can_be_read_on(tmp_path: Path) -> None:
    path = str(tmp_path / "pieces")
    killed = PieceWriter(path)
    killed.write(0, index_of(*range(100)))
    early, late = PieceReader(path), PieceReader(path)
    assert len(early.read()) == 1
    writer = PieceWriter(path)
    writer.write(0, index_of(1))
    assert early.read() == []
    assert keys_of([piece for _, piece in late.read() if piece is not None]) == ["1"]
    writer.close()
    assert not os.path.exists(path)
    for one in (killed, early, late):
        one.close()


def test_the_file_of_pieces_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_piece_file, "_MOST_BYTES", 1000)
    path = tmp_path / "pieces"
    writer, reader = PieceWriter(str(path)), PieceReader(str(path))
    for number in range(1000):
        writer.write(0, index_of(number))
    assert path.stat().st_size < 2000
    found = keys_of([piece for _, piece in reader.read() if piece is not None])
    assert found == [str(number) for number in range(len(found))]
    assert found
    writer.close()
    reader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_without_room_for_pieces_nothing_else_fails(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from s3torch_datasets import S3BucketKeyData, _piece_file
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._piece_file import PieceWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
writer = PieceWriter(sys.argv[1])
writer.write(1)
writer.write(0, ObjectIndex.of([S3BucketKeyData("bucket", "key")]))
writer.write(0, ObjectIndex.of([]))
writer.close()
"""
    for path in (tmp_path / "pieces", tmp_path / "no folder" / "pieces"):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert not path.exists()
