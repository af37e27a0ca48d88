"""The index that processes share: where the folder for its file is not as it should be, too."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._pid_namespace import find_pid_namespace
from s3torch_datasets._shared_index import SharedIndex
from s3torch_datasets._shared_listing import try_lock
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]

read = methodcaller("read")  # pickles by its name, as a transform for spawned workers must


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def load(dataset: Any, start_method: str) -> list[Any]:
    batches = DataLoader(dataset, 4, num_workers=2, collate_fn=list, multiprocessing_context=start_method)
    return [sample for batch in batches for sample in batch]


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all filesystems such as know no locks."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.usefixtures("without_locks")
def test_forked_workers_find_their_objects_on_a_filesystem_without_locks(make_iterable: Make, fill: Fill) -> None:
    contents = fill(20)
    assert sorted(load(make_iterable(transform=read, enable_sharding=True), "fork")) == sorted(contents)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("without_locks")
def test_a_lock_that_cannot_be_had_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_lock(str(path)) as is_mine:
        assert is_mine
        assert path.exists()
    folder = "/proc/self/fd"
    assert str(path.resolve()) not in [os.path.realpath(f"{folder}/{name}") for name in os.listdir(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_forked_workers_find_their_objects_on_a_filesystem_that_maps_no_files(
    make_iterable: Make, fill: Fill, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_file = mmap.mmap

    def refuse(descriptor: int, *arguments: Any, **options: Any) -> mmap.mmap:
        if descriptor >= 0 and os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(temporary)):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return map_file(descriptor, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", refuse)
    contents = fill(20)
    assert sorted(load(make_iterable(transform=read, enable_sharding=True), "fork")) == sorted(contents)


@pytest.mark.parametrize("kind", ["make_map", "make_iterable"])
def test_spawned_workers_take_the_index_along_where_no_file_can_hold_it(
    request: pytest.FixtureRequest, kind: str, fill: Fill, temporary: Path, counting_server: CountingServer
) -> None:
    contents = fill(20)
    (temporary / f"s3torch-datasets-{os.getuid()}").write_text("in the way of the folder")
    dataset = request.getfixturevalue(kind)(transform=read)
    assert len(dataset.index) == 20
    assert sorted(set(load(dataset, "spawn"))) == sorted(contents)
    assert counting_server.operations().count("ListObjectsV2") == 1


@pytest.fixture(scope="module")
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


@pytest.mark.parametrize("ending", ["index", "index.lock", "index.pieces", "index.7.tmp"])
@pytest.mark.parametrize(
    ("is_of_here", "lives", "days", "stays"),
    [
        (True, False, 2, False),
        (True, False, 0.5, True),
        (True, True, 90, True),
        (False, False, 2, True),
        (False, False, 90, False),
    ],
    ids=["left behind", "recent", "of a living process", "of another machine", "of a machine long gone"],
)
def test_only_what_killed_processes_left_behind_is_removed(
    temporary: Path, dead_pid: int, ending: str, is_of_here: bool, lives: bool, days: float, stays: bool
) -> None:
    folder = temporary / f"s3torch-datasets-{os.getuid()}"
    folder.mkdir(0o700)
    namespace = find_pid_namespace() if is_of_here else "0" * 12
    file = folder / f"{namespace}-{os.getpid() if lives else dead_pid}-0123.{ending}"
    file.touch()
    os.utime(file, (time.time() - days * 86400,) * 2)
    SharedIndex().get(lambda: ObjectIndex.of([]))
    assert file.exists() == stays


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_name_of_a_file_tells_where_its_process_is(make_iterable: Make, fill: Fill, temporary: Path) -> None:
    fill(6)
    dataset = make_iterable(transform=read, enable_sharding=True)
    load(dataset, "fork")
    names = [path.name for path in temporary.glob("s3torch-datasets-*/*")]
    assert names
    assert all(name.startswith(f"{find_pid_namespace()}-{os.getpid()}-") for name in names)


def test_a_process_in_another_namespace_has_another_name() -> None:
    code = "from s3torch_datasets._pid_namespace import find_pid_namespace as find; print(find())"
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert here.stdout.strip() == find_pid_namespace()
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c", code]
    try:
        there = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespace can be made here")
    assert there.stdout.strip() != find_pid_namespace()
