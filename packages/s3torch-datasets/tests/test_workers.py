"""Datasets in real worker processes, started in each way, and in two ranks of a job."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from s3torch_datasets import S3IterableDataset, S3MapDataset, S3TarDataset
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]

read = methodcaller("read")  # pickles by its name, as a transform for spawned workers must


def load(dataset: Any, start_method: str, **arguments: Any) -> list[Any]:
    if start_method == "fork" and sys.platform != "linux":
        pytest.skip("s3core names spawn where it has no private copy of the native library")
    arguments = {"batch_size": 4, "num_workers": 2, "collate_fn": list} | arguments
    batches = DataLoader(dataset, multiprocessing_context=start_method, **arguments)
    return [sample for batch in batches for sample in batch]


def key_of(sample: Any) -> str:
    time.sleep(0.002)  # lets another thread go on
    key: str = sample["__key__"] if isinstance(sample, dict) else sample.key
    return key


def put_archives(counting_server: CountingServer, count: int) -> list[str]:
    """Put archives of one sample each, and give their names."""
    names = [f"{number:03}" for number in range(count)]
    for name in names:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(f"{name}.txt"))
        counting_server.put(f"data/{name}.tar", data.getvalue())
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="s3core names spawn where it cannot fork")
@pytest.mark.parametrize("kind", [S3IterableDataset, S3TarDataset])
def test_a_child_that_is_forked_while_a_thread_makes_a_sample_makes_its_own(
    counting_server: CountingServer, connection: dict[str, Any], kind: Any
) -> None:
    put_archives(counting_server, 3)
    is_held, may_go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> bool:
        is_held.set()
        return may_go_on.wait(60)

    dataset = kind.from_prefix(f"s3://{counting_server.bucket}/data/", transform=hold, **connection)
    iterator: Iterator[Any] = iter(dataset)
    thread = threading.Thread(target=next, args=(iterator,))
    thread.start()
    try:
        assert is_held.wait(60)
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)  # ends a child that hangs
                may_go_on.set()
                os._exit(0 if next(iterator) is True else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        may_go_on.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="s3core names spawn where it cannot fork")
@pytest.mark.parametrize("kind", [S3IterableDataset, S3TarDataset])
def test_a_child_that_is_forked_while_a_thread_waits_for_bytes_loses_none(
    counting_server: CountingServer, connection: dict[str, Any], kind: Any
) -> None:
    put_archives(counting_server, 3)

    def name(sample: Any) -> Any:
        return sample["__key__"] if isinstance(sample, dict) else (sample.key, sample.read())

    dataset = kind.from_prefix(f"s3://{counting_server.bucket}/data/", transform=name, **connection)
    expected = list(dataset)
    iterator: Iterator[Any] = iter(dataset)
    counting_server.clear()
    counting_server.fault(key="data/000.tar", times=1, hold=True)
    thread = threading.Thread(target=next, args=(iterator,))
    thread.start()
    try:
        counting_server.wait_for_requests(1, key="data/000.tar")
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)  # ends a child that hangs
                os._exit(0 if list(iterator) == expected else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        counting_server.release()
        thread.join()
    assert list(iterator) == expected[1:]


@pytest.mark.parametrize("kind", [S3IterableDataset, S3TarDataset])
def test_threads_that_share_an_iterator_get_samples_of_their_own(
    counting_server: CountingServer, connection: dict[str, Any], kind: Any
) -> None:
    names = put_archives(counting_server, 60)
    dataset = kind.from_prefix(f"s3://{counting_server.bucket}/data/", transform=key_of, **connection)
    iterator: Iterator[Any] = iter(dataset)
    parts: list[list[str]] = [[], [], [], []]
    threads = [threading.Thread(target=part.extend, args=(iterator,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sample.removeprefix("data/").removesuffix(".tar") for part in parts for sample in part) == names


def test_threads_that_share_an_iterator_may_read_what_they_got(make_iterable: Make, fill: Fill) -> None:
    contents = fill(200, 5)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            iterator: Iterator[Any] = iter(make_iterable())
            samples: list[bytes] = []

            def read_all(iterator: Iterator[Any] = iterator, samples: list[bytes] = samples) -> None:
                while len(samples) < 200 and (reader := next(iterator, None)) is not None:
                    samples.append(reader.read())

            threads = [threading.Thread(target=read_all) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(samples) == sorted(contents)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("make_one", ["make_map", "make_iterable"])
def test_threads_that_need_the_objects_first_list_them_once(
    request: pytest.FixtureRequest, make_one: str, fill: Fill, counting_server: CountingServer
) -> None:
    fill(8)
    dataset = request.getfixturevalue(make_one)()
    lengths: list[int] = []
    counting_server.fault(operation="ListObjectsV2", times=1, hold=True)
    threads = [threading.Thread(target=lambda: lengths.append(len(dataset.index))) for _ in range(4)]
    threads[0].start()
    counting_server.wait_for_requests(1, operation="ListObjectsV2")
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join(0.2)  # they list now, or wait
    counting_server.release()
    for thread in threads:
        thread.join()
    assert lengths == [8] * 4
    assert counting_server.operations().count("ListObjectsV2") == 1


def index_files() -> list[Path]:
    folder = Path(tempfile.gettempdir()) / f"s3torch-datasets-{os.getuid()}"
    return sorted(path for path in folder.glob("*") if f"-{os.getpid()}-" in path.name)


def test_a_map_dataset_is_listed_once_and_read_by_all_workers(
    make_map: Make, fill: Fill, start_method: str, counting_server: CountingServer
) -> None:
    contents = fill(20)
    dataset = make_map(transform=read)
    for _ in range(2):
        assert load(dataset, start_method) == contents
    assert counting_server.operations().count("ListObjectsV2") == 1


@pytest.mark.parametrize("kind", ["make_map", "make_iterable"])
def test_the_main_process_goes_by_the_list_that_workers_made(
    request: pytest.FixtureRequest, kind: str, fill: Fill, start_method: str, counting_server: CountingServer
) -> None:
    contents = fill(20)
    dataset = request.getfixturevalue(kind)(transform=read)
    rows = Subset(dataset, range(5)) if kind == "make_map" else dataset  # nobody asks for the length
    assert load(rows, start_method, num_workers=1) == contents[: len(rows) if kind == "make_map" else None]
    counting_server.put("data/0", b"new")  # it would be the first
    assert next(iter(dataset)) == contents[0]
    assert load(dataset, start_method, num_workers=1) == contents
    assert counting_server.operations().count("ListObjectsV2") == 1


def test_an_iterable_dataset_is_listed_once_for_all_workers_and_epochs(
    make_iterable: Make, fill: Fill, start_method: str, counting_server: CountingServer
) -> None:
    contents = fill(20)
    dataset = make_iterable(transform=read, enable_sharding=True)
    for _ in range(2):
        assert sorted(load(dataset, start_method)) == sorted(contents)
    assert counting_server.operations().count("ListObjectsV2") == 1
    assert counting_server.operations().count("GetObject") == 40


def test_workers_work_after_the_parent_used_the_dataset(
    make_iterable: Make, fill: Fill, start_method: str, counting_server: CountingServer
) -> None:
    contents = fill(20)
    dataset = make_iterable(transform=read, enable_sharding=True)
    iterator = iter(dataset)
    assert next(iterator) == contents[0]  # with look-ahead under way
    assert sorted(load(dataset, start_method)) == sorted(contents)
    assert list(iterator) == contents[1:]
    assert counting_server.operations().count("ListObjectsV2") == 1


def test_every_worker_reads_all_without_sharding(make_iterable: Make, fill: Fill) -> None:
    contents = fill(6)
    assert Counter(load(make_iterable(transform=read), "fork")) == Counter(contents * 2)


def test_index_files_end_with_the_dataset(make_iterable: Make, fill: Fill) -> None:
    fill(6)
    before = index_files()
    dataset = make_iterable(transform=read, enable_sharding=True)
    load(dataset, "fork")
    assert len(index_files()) > len(before)
    del dataset
    assert index_files() == before


@pytest.mark.parametrize(
    ("start_method", "persistent_workers"), [("fork", False), ("fork", True), ("spawn", True), ("forkserver", True)]
)
def test_workers_see_the_epoch_that_is_set_in_the_main_process(
    make_iterable: Make, fill: Fill, start_method: str, persistent_workers: bool
) -> None:
    contents = fill(40)
    dataset = make_iterable(transform=read, enable_sharding=True, shuffle=True, seed=5)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start_method,
        persistent_workers=persistent_workers,
    )
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(list(loader))
        assert sorted(orders[-1]) == sorted(contents)
    assert orders[0] == orders[2] != orders[1]


def test_pinned_memory_and_prefetching_change_nothing(make_map: Make, fill: Fill) -> None:
    contents = fill(12)
    samples = load(make_map(transform=read), "fork", pin_memory=torch.cuda.is_available(), prefetch_factor=3)
    assert samples == contents


def test_the_requests_of_all_workers_together_stay_within_the_bound(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(120)
    counting_server.shape(latency_seconds=0.05)
    try:
        load(make_iterable(transform=read, enable_sharding=True), "fork")
    finally:
        counting_server.shape()
    assert 30 <= counting_server.counters()["most_in_flight"] <= 128


def test_an_error_in_a_worker_is_raised_in_the_main_process_with_the_object(
    make_map: Make, fill: Fill, start_method: str, counting_server: CountingServer
) -> None:
    fill(8)
    dataset = make_map(transform=read)
    len(dataset)
    counting_server.delete("data/00005")
    with pytest.raises(FileNotFoundError, match=r"s3://.*/data/00005"):
        load(dataset, start_method)


def test_readers_can_be_sent_from_a_worker_to_the_main_process(make_map: Make, fill: Fill) -> None:
    contents = fill(5)
    assert [reader.read() for reader in load(make_map(), "fork")] == contents


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_worker_that_is_killed_leaves_the_others_their_dataset(
    connection: dict[str, Any], counting_server: CountingServer, fill: Fill
) -> None:
    fill(5)
    dataset = S3MapDataset.from_prefix(f"s3://{counting_server.bucket}/data/", transform=read, **connection)
    len(dataset)
    child = os.fork()
    if child == 0:
        dataset[0]
        os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert dataset[4] == b"\4" * 5


SPAWNED = """
import os, sys
from operator import attrgetter
import torch.multiprocessing as mp
from torch.utils.data import DataLoader
from s3torch_datasets import S3IterableDataset

method = sys.argv[1]

def run(rank, dataset, results):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}  # there is no process group yet
    if method != "none":
        dataset = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method)
    results.put(list(dataset))

if __name__ == "__main__":
    dataset = S3IterableDataset.from_prefix(os.environ["PREFIX"], transform=attrgetter("key"), enable_sharding=True)
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(run, (dataset, results), nprocs=2)
    for _ in range(2):
        print(*results.get())
"""


@pytest.mark.parametrize("method", ["none", "fork", "spawn"])
def test_ranks_that_were_spawned_share_the_objects(
    counting_server: CountingServer, fill: Fill, tmp_path: Path, method: str
) -> None:
    fill(10)
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    environment = {**os.environ, **counting_server.environment(), "PREFIX": f"s3://{counting_server.bucket}/data/"}
    done = subprocess.run(
        [sys.executable, str(script), method], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    shards = sorted(line.split() for line in done.stdout.splitlines())
    assert shards == [[f"data/{number:05}" for number in range(rank, 10, 2)] for rank in range(2)]


JOB = """
import json, os, sys
from operator import attrgetter
import torch.distributed as dist
from torch.utils.data import DataLoader
from s3torch_datasets import S3IterableDataset

method, workers, remainder, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

if __name__ == "__main__":
    # Made before the process group: ranks are read when the iteration starts.
    dataset = S3IterableDataset.from_prefix(
        os.environ["PREFIX"], transform=attrgetter("key"), enable_sharding=True, shuffle=True, seed=3,
        shard_remainder=remainder,
    )
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    kept = os.environ.pop("RANK"), os.environ.pop("WORLD_SIZE")  # the process group is what counts
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=method if workers else None
    )
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(list(loader))
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(epochs, file)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("method", "workers", "remainder"), [("fork", 0, "keep"), ("fork", 2, "pad"), ("spawn", 1, "drop_last")]
)
def test_two_ranks_share_the_objects(
    counting_server: CountingServer, fill: Fill, tmp_path: Path, method: str, workers: int, remainder: str
) -> None:
    fill(21)
    script = tmp_path / "job.py"
    script.write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--tee=3"]
    command.append(f"--log-dir={tmp_path / 'logs'}")
    environment = {
        **os.environ,
        **counting_server.environment(),
        "PREFIX": f"s3://{counting_server.bucket}/data/",
        "OMP_NUM_THREADS": "1",
    }
    counting_server.shape(latency_seconds=1.2)  # long enough for a bar
    try:
        done = subprocess.run(
            [*command, str(script), method, str(workers), remainder, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        counting_server.shape()
    assert done.returncode == 0, done.stderr
    logs = {path.parent.name: path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")}
    assert "Listing s3://" not in logs["1"]
    if workers == 0 or method == "spawn":  # else the worker that lists need not be the first
        assert "Listing s3://" in logs["0"]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    everything = [f"data/{number:05}" for number in range(21)]
    for epoch in (0, 1):
        sizes = sorted(len(ranks[rank][epoch]) for rank in (0, 1))
        seen = Counter(ranks[0][epoch] + ranks[1][epoch])
        assert sizes == {"keep": [10, 11], "pad": [11, 11], "drop_last": [10, 10]}[remainder]
        assert set(seen) <= set(everything)
        assert len(seen) == (20 if remainder == "drop_last" else 21)
    assert ranks[0][0] != ranks[0][1]
