"""The disk cache: no GET for what is there, never a wrong byte, never an error of its own."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from s3core import ObjectChangedError, ObjectInfo
from s3torch_datasets import S3IterableDataset, S3MapDataset, S3ReaderConstructor
from s3torch_datasets._disk_cache import DiskCache
from s3torch_datasets._shared_listing import try_lock
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]

read = methodcaller("read")


@pytest.fixture(params=["make_map", "make_iterable"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    found = request.getfixturevalue(request.param)
    return lambda **arguments: found(**({"transform": read, "cache_dir": tmp_path / "cache"} | arguments))


def epoch(dataset: Any, **arguments: Any) -> list[bytes]:
    return [sample for batch in DataLoader(dataset, batch_size=8, collate_fn=list, **arguments) for sample in batch]


def gets(server: CountingServer) -> int:
    return server.operations().count("GetObject")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_the_second_epoch_sends_no_get(make: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(20)
    dataset = make()
    assert epoch(dataset) == contents
    assert gets(counting_server) == 20
    assert epoch(dataset) == contents
    assert epoch(make()) == contents  # another dataset, as another process would make it
    assert gets(counting_server) == 20


def test_workers_share_the_cache(make: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(20)
    dataset = make()
    for _ in range(2):
        assert set(epoch(dataset, num_workers=2)) == set(contents)
    assert gets(counting_server) <= 40
    counting_server.clear()
    assert set(epoch(dataset, num_workers=2)) == set(contents)
    assert gets(counting_server) == 0


@pytest.mark.parametrize(
    "constructor",
    [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.streaming()],
)
def test_every_reader_uses_the_cache(make: Make, fill: Fill, counting_server: CountingServer, constructor: Any) -> None:
    contents = fill(10)
    for _ in range(2):
        assert epoch(make(reader_constructor=constructor)) == contents
    assert gets(counting_server) == 10


def read_in_pieces(reader: Any) -> bytes:
    start = reader.read(3)
    rest = bytearray(5000)
    return bytes(start + rest[: reader.readinto(rest)])


def test_an_object_that_is_read_piece_by_piece_is_cached_when_it_was_read_to_its_end(
    make: Make, fill: Fill, counting_server: CountingServer
) -> None:
    contents = fill(10, size=4000)
    for _ in range(2):
        assert epoch(make(transform=read_in_pieces)) == contents
    assert gets(counting_server) == 10


@pytest.mark.parametrize("transform", [read, read_in_pieces, b"".join], ids=["whole", "pieces", "lines"])
@pytest.mark.parametrize(
    "constructor",
    [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.streaming()],
)
def test_empty_objects_are_cached_too(
    make: Make, fill: Fill, counting_server: CountingServer, constructor: Any, transform: Any
) -> None:
    fill(3, size=0)
    dataset = make(reader_constructor=constructor, transform=transform)
    assert epoch(dataset) == [b""] * 3
    counting_server.clear()
    assert epoch(dataset) == [b""] * 3
    assert gets(counting_server) == 0


def test_nothing_is_fetched_of_an_empty_object_whose_size_suffices(
    make: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(3, size=0)
    assert epoch(make(transform=b"".join)) == [b""] * 3
    assert gets(counting_server) == 0


def test_an_object_that_is_read_in_part_leaves_nothing(make: Make, fill: Fill, tmp_path: Path) -> None:
    fill(2, size=9 * 2**20)
    assert epoch(make(transform=methodcaller("read", 10))) == [bytes([n]) * 10 for n in range(2)]
    assert files(tmp_path / "cache") == []


def test_a_replaced_object_is_fetched_anew(make: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(3)
    assert epoch(make()) == contents
    counting_server.put("data/00001", b"new")
    assert epoch(make()) == [contents[0], b"new", contents[2]]


def test_an_object_that_was_replaced_since_the_listing_is_refused_and_not_kept(
    make: Make, fill: Fill, counting_server: CountingServer, tmp_path: Path
) -> None:
    fill(1, size=5)
    dataset = make()
    len(dataset.index)
    counting_server.put("data/00000", b"other")
    for _ in range(2):
        with pytest.raises(ObjectChangedError, match="00000"):
            epoch(dataset)
    assert files(tmp_path / "cache") == []


def test_what_is_there_of_the_listed_object_is_read_after_its_replacement(
    make: Make, fill: Fill, counting_server: CountingServer
) -> None:
    contents = fill(1, size=5)
    dataset = make()
    assert epoch(dataset) == contents
    counting_server.put("data/00000", b"other")
    assert epoch(dataset) == contents
    assert epoch(make()) == [b"other"]


def test_named_objects_are_cached_too(
    fill: Fill, connection: dict[str, Any], counting_server: CountingServer, tmp_path: Path
) -> None:
    contents = fill(5)
    uris = [f"s3://{counting_server.bucket}/data/{number:05}" for number in range(5)]
    for _ in range(2):
        dataset = S3IterableDataset.from_objects(uris, transform=read, cache_dir=tmp_path / "c", **connection)
        assert list(dataset) == contents
        assert list(dataset) == contents
    assert gets(counting_server) == 5
    gone = S3IterableDataset.from_objects(
        [*uris[:1], uris[0] + "x"], transform=read, cache_dir=tmp_path / "c", **connection
    )
    iterator = iter(gone)
    assert next(iterator) == contents[0]
    with pytest.raises(FileNotFoundError, match="00000x"):
        next(iterator)


@pytest.mark.parametrize("size", ["", ",1"], ids=["keys", "keys and sizes"])
def test_objects_of_a_list_without_etags_are_cached_too(
    counting_server: CountingServer, connection: dict[str, Any], tmp_path: Path, size: str
) -> None:
    counting_server.put("one", b"1")
    manifest = tmp_path / "objects.csv"
    manifest.write_text(f"{counting_server.bucket},one{size}\n")
    dataset = S3MapDataset.from_manifest(manifest, transform=read, cache_dir=tmp_path / "c", **connection)
    assert [dataset[0] for _ in range(3)] == [b"1"] * 3
    assert counting_server.operations() == ["HeadObject", "GetObject"]


def test_the_oldest_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000, None)
    infos = [ObjectInfo(f"key-{number}", 100, f'"{number}"') for number in range(30)]
    for number, info in enumerate(infos):
        file = cache.begin("bucket", info)
        assert file is not None
        file.write(bytes(100))
        os.utime(cache.path_of("bucket", info), (number, number))
        if number >= 3:  # in use all the time
            descriptor = cache.open("bucket", infos[3])
            assert descriptor is not None
            os.close(descriptor)
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 1000
    assert cache.open("bucket", infos[0]) is None
    descriptor = cache.open("bucket", infos[-1])
    assert descriptor is not None
    os.close(descriptor)


def test_an_object_beyond_the_whole_cache_is_not_kept(make: Make, fill: Fill, tmp_path: Path) -> None:
    contents = fill(3, size=500)
    assert epoch(make(cache_size=400)) == contents
    assert files(tmp_path / "cache") == []


def test_a_file_that_was_cut_short_is_fetched_anew(make: Make, fill: Fill, tmp_path: Path) -> None:
    contents = fill(3, size=500)
    assert epoch(make()) == contents
    for path in files(tmp_path / "cache"):
        os.truncate(path, 10)
    assert epoch(make()) == contents


def test_a_folder_that_cannot_be_made_means_no_cache_and_one_warning(
    make: Make, fill: Fill, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = fill(5)
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "s3torch_datasets"):
        assert epoch(make(cache_dir=tmp_path / "file" / "cache")) == contents
    assert len(caplog.records) == 1


FULL = """
import logging, os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # a write past this fails as on a full disk
from s3core import ObjectChangedError, ObjectInfo
from s3torch_datasets._disk_cache import DiskCache
logging.basicConfig()
cache = DiskCache(sys.argv[1], 10**6, None)
for number in range(3):
    file = cache.begin("bucket", ObjectInfo(f"key-{number}", 1000, '"e"'))
    if file is not None:
        file.write(bytes(1000))
print(sum(len(names) for _, _, names in os.walk(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_without_room_means_no_cache_and_one_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["0"]
    assert done.stderr.count("WARNING") == 1
    assert os.strerror(errno.EFBIG) in done.stderr


KILLED = """
import os, signal, sys
from s3core import ObjectChangedError, ObjectInfo
from s3torch_datasets._disk_cache import DiskCache
file = DiskCache(sys.argv[1], 10**6, None).begin("bucket", ObjectInfo("key", 1000, '"e"'))
file.write(bytes(500))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_leaves_no_half_object(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    info = ObjectInfo("key", 1000, '"e"')
    cache = DiskCache(tmp_path, 1000, None)
    assert cache.open("bucket", info) is None
    (left,) = files(tmp_path)
    os.utime(left, (0, 0))  # long ago
    file = cache.begin("bucket", info)
    assert file is not None
    file.write(bytes(1000))
    assert files(tmp_path) == [Path(cache.path_of("bucket", info))]


def test_a_file_that_was_taken_for_a_stale_one_is_given_up_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, 10_000, None)
    one, other = (ObjectInfo(name, 1000, '"e"') for name in ("one", "other"))
    file = cache.begin("bucket", one)
    assert file is not None
    file.write(bytes(500))
    (unfinished,) = files(tmp_path)
    unfinished.unlink()
    file.write(bytes(500))
    assert files(tmp_path) == []
    file = cache.begin("bucket", other)
    assert file is not None
    file.write(bytes(1000))
    assert files(tmp_path) == [Path(cache.path_of("bucket", other))]
    assert caplog.records == []


def test_two_stores_do_not_mix(tmp_path: Path) -> None:
    info = ObjectInfo("key", 4, '"e"')
    file = DiskCache(tmp_path, 1000, "http://one").begin("bucket", info)
    assert file is not None
    file.write(b"data")
    assert DiskCache(tmp_path, 1000, "http://two").open("bucket", info) is None


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("en/text.txt", "ab/notes.tmp", "size", "lock", "0123456789.bin")]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
        os.utime(other, (0, 0))  # older than anything in the cache
    cache = DiskCache(tmp_path, 300, None)
    for number in range(10):
        file = cache.begin("bucket", ObjectInfo(f"key-{number}", 100, '"e"'))
        assert file is not None
        file.write(bytes(100))
    assert [other.read_text() for other in others] == ["mine"] * len(others)


SHARED = """
import os, random, sys
from s3core import ObjectChangedError, ObjectInfo
from s3torch_datasets._disk_cache import DiskCache

def use(seed):
    order = random.Random(seed)
    cache = DiskCache(sys.argv[1], 20_000, None)
    hits = 0
    for _ in range(300):
        number = order.randrange(60)
        info, data = ObjectInfo(f"key-{number}", 1000, '"e"'), bytes([number]) * 1000
        descriptor = cache.open("bucket", info)
        if descriptor is None:
            file = cache.begin("bucket", info)
            file.write(data[:400])
            file.write(data[400:])
        else:
            hits += 1
            assert os.read(descriptor, 2000) == data
            os.close(descriptor)
    assert hits

children = []
for seed in range(6):
    child = os.fork()
    if child == 0:
        try:
            use(seed)
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_many_processes_share_a_folder_and_keep_its_bound(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    kept = files(tmp_path)
    assert [path for path in kept if path.suffix == ".tmp"] == []
    assert 10 <= len(kept) <= 20


FROZEN = """
import logging, resource, signal, sys
from operator import methodcaller
from s3torch_datasets import S3IterableDataset
logging.basicConfig()
dataset = S3IterableDataset.from_prefix(
    sys.argv[1],
    region="us-east-1",
    endpoint=sys.argv[3],
    transform=methodcaller("read"),
    cache_dir=sys.argv[2],
)
len(dataset.index)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no byte can be written any more
for _ in range(2):
    assert list(dataset) == [bytes([number]) * 500 for number in range(10)]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_that_cannot_be_written_any_more_still_gives_what_it_has(
    make_iterable: Make, fill: Fill, counting_server: CountingServer, tmp_path: Path
) -> None:
    fill(6, size=500)
    assert len(list(make_iterable(transform=read, cache_dir=tmp_path))) == 6
    fill(10, size=500)
    counting_server.clear()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FROZEN,
            f"s3://{counting_server.bucket}/data/",
            str(tmp_path),
            counting_server.endpoint,
        ],
        env=os.environ | counting_server.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING") == 1
    assert gets(counting_server) == 2 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_child_leaves_a_file_to_its_parent(tmp_path: Path) -> None:
    info = ObjectInfo("key", 1000, '"e"')
    cache = DiskCache(tmp_path, 10_000, None)
    file = cache.begin("bucket", info)
    assert file is not None
    file.write(b"a" * 400)
    child = os.fork()
    if child == 0:
        try:
            file.write(b"b" * 600)
            file.discard()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    file.write(b"c" * 600)
    descriptor = cache.open("bucket", info)
    assert descriptor is not None
    assert os.read(descriptor, 2000) == b"a" * 400 + b"c" * 600
    os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("of_index", [False, True], ids=["cache", "index"])
def test_a_child_that_was_forked_meanwhile_keeps_no_lock(tmp_path: Path, of_index: bool) -> None:
    import fcntl

    lock = try_lock(str(tmp_path / "lock")) if of_index else DiskCache(tmp_path, 1000, None).locked()
    read_end, write_end = os.pipe()
    with lock:
        child = os.fork()
        if child == 0:
            try:
                os.close(write_end)
                os.read(read_end, 1)  # until the parent is done
            finally:
                os._exit(0)
    try:
        (path,) = tmp_path.iterdir()
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(child, 0)
