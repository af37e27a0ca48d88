"""The list of named objects in processes that are spawned with the dataset: shared, and there as long as they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from s3torch_datasets import ObjectFilter, S3ConcatDataset, S3IterableDataset, S3MapDataset
from servers import CountingServer

ROWS = 20_000  # of which the list is long enough for a file
URIS = [f"s3://bucket/{'k' * 50}/{row}" for row in range(ROWS)]

key = attrgetter("key")
read = methodcaller("read")

SCRIPT = """
import json, multiprocessing, sys
from operator import attrgetter
from torch.utils.data import DataLoader
from s3torch_datasets import ObjectFilter, S3IterableDataset, S3MapDataset

what, method, *options = sys.argv[1:]

def make(rows):
    uris = (f"s3://bucket/train/images/class-{row % 997:04}/{row:015}.jpg" for row in range(rows))
    options_of_dataset = {"object_filter": ObjectFilter(suffix="0.jpg")} if "filter" in options else {}
    return S3IterableDataset.from_objects(uris, region="us-east-1", transform=attrgetter("key"), **options_of_dataset)

def anonymous_kib():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

def report_memory(dataset, results):
    total = sum(len(one.key) for one in dataset.index)
    results.put((anonymous_kib(), total))

def read_by_workers(dataset, results):
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method)
    results.put(list(loader))

if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    found = []
    for rows in (1000, 200_000) if what == "report_memory" else (20_000,):
        process = context.Process(target=globals()[what], args=(make(rows), results))
        process.start()  # which drops its arguments, and with them the dataset
        found.append(results.get())
        process.join()
    print(json.dumps(found))
"""

SPAWNING = pytest.mark.parametrize("method", ["spawn", "forkserver"])


def run(script: Path, *arguments: str) -> Any:
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@SPAWNING
def test_a_spawned_process_has_no_list_of_its_own(tmp_path: Path, method: str) -> None:
    (few_kib, few), (many_kib, many) = run(tmp_path / "spawned.py", "report_memory", method)
    assert (few, many) == (1000 * 43, 200_000 * 43)
    assert many_kib - few_kib < 3000  # of 15 MB


@pytest.mark.parametrize("options", [[], ["filter"]])
@SPAWNING
def test_the_list_outlasts_the_dataset_that_was_spawned_with_and_reaches_the_workers(
    tmp_path: Path, method: str, options: list[str]
) -> None:
    rows = range(0, ROWS, 10 if options else 1)
    keys = [f"train/images/class-{row % 997:04}/{row:015}.jpg" for row in rows]
    assert run(tmp_path / "spawned.py", "read_by_workers", method, *options) == [keys]


def test_named_objects_are_read_by_workers_however_they_start(
    fill: Callable[..., list[bytes]], counting_server: CountingServer, connection: dict[str, Any], start_method: str
) -> None:
    contents = fill(6)
    uris = [f"s3://{counting_server.bucket}/data/{number:05}" for number in range(6)]
    dataset = S3IterableDataset.from_objects(uris, transform=read, **connection)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start_method)
    for _ in range(2):
        assert sorted(loader) == sorted(contents * 2)
    assert list(dataset) == contents


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_ends_with_the_dataset(connection: dict[str, Any]) -> None:
    def files() -> set[str]:
        links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if os.path.lexists(entry)]
        return {link for link in links if link.startswith(tempfile.gettempdir()) and link.endswith("(deleted)")}

    before = files()
    dataset = S3IterableDataset.from_objects(URIS, transform=key, **connection)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert len(list(loader)) == ROWS
    assert len(files() - before) == 1
    del dataset, loader
    assert files() == before


def test_without_room_for_a_file_each_process_has_its_own_list(
    connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = S3IterableDataset.from_objects(
        URIS, transform=key, object_filter=ObjectFilter(suffix="/19999"), **connection
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert list(loader) == [f"{'k' * 50}/19999"]
    assert "cannot share the list of 20000 objects" in caplog.text


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_many_short_lists_take_no_file_each(connection: dict[str, Any], method: str) -> None:
    """The fork server takes some 250 open files for a process."""
    parts = [S3MapDataset.from_objects(f"s3://bucket/{number}", transform=key, **connection) for number in range(300)]
    loader = DataLoader(S3ConcatDataset(parts), batch_size=None, num_workers=1, multiprocessing_context=method)
    assert list(loader) == [str(number) for number in range(300)]
