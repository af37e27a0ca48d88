"""The compact index: what goes in comes out, in any process, within its memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3core import ObjectInfo
from s3torch_datasets import S3BucketKeyData
from s3torch_datasets._index import IndexBuilder, ObjectIndex
from s3torch_datasets._index_file import map_index, write_index

digests = st.binary(min_size=16, max_size=16).map(bytes.hex)
etags = st.one_of(
    st.none(),
    digests.map('"{}"'.format),
    st.tuples(digests, st.integers(1, 10_000)).map(lambda both: f'"{both[0]}-{both[1]}"'),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    st.sampled_from(['"0123456789abcdef', '0123456789abcdef"']),  # Together they are one.
)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30)
objects = st.builds(
    lambda bucket, key, size, etag, version: S3BucketKeyData(
        bucket, key, None if size is None else ObjectInfo(key, size, etag, version_id=version)
    ),
    st.sampled_from(["one", "two", "three"]),
    keys,
    st.one_of(st.none(), st.integers(0, 5 * 2**40)),
    etags,
    st.one_of(st.none(), st.sampled_from(["v1", "v2"])),
)


@settings(deadline=None)
@given(st.lists(objects))
def test_what_goes_in_comes_out_in_order(rows: list[S3BucketKeyData]) -> None:
    index = ObjectIndex.of(rows)
    assert len(index) == len(rows)
    assert list(index) == rows
    assert list(pickle.loads(pickle.dumps(index))) == rows


@settings(deadline=None)
@given(st.lists(st.lists(objects, max_size=8), max_size=5))
def test_joined_builders_hold_all_rows_in_order(pieces: list[list[S3BucketKeyData]]) -> None:
    joined = IndexBuilder()
    for piece in pieces:
        builder = IndexBuilder()
        builder.extend(piece)
        joined.extend_index(builder)
    assert list(joined.build()) == [one for piece in pieces for one in piece]


@settings(deadline=None, max_examples=30)
@given(st.lists(objects))
def test_a_mapped_file_holds_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[S3BucketKeyData]
) -> None:
    path = tmp_path_factory.mktemp("index") / "rows.index"
    write_index(ObjectIndex.of(rows), str(path))
    mapped = map_index(str(path))
    path.unlink()
    assert list(mapped) == rows


def test_rows_are_found_as_in_a_list() -> None:
    rows = [S3BucketKeyData("bucket", f"key-{number}") for number in range(10)]
    index = ObjectIndex.of(rows)
    assert index[-1] == rows[-1]
    assert index[2:5] == rows[2:5]
    for outside in (10, -11):
        with pytest.raises(IndexError, match="10"):
            index[outside]


def test_the_fingerprint_changes_with_the_objects() -> None:
    rows = [S3BucketKeyData("bucket", f"key-{number}", ObjectInfo(f"key-{number}", 5)) for number in range(10)]
    same = ObjectIndex.of(rows).fingerprint()
    assert ObjectIndex.of(list(rows)).fingerprint() == same
    assert ObjectIndex.of(rows[:-1]).fingerprint() != same
    assert ObjectIndex.of(rows[::-1]).fingerprint() != same
    rows[3] = S3BucketKeyData("bucket", "key-3", ObjectInfo("key-3", 6))
    assert ObjectIndex.of(rows).fingerprint() != same


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"something else entirely")
    with pytest.raises(ValueError, match=str(path)):
        map_index(str(path))


def test_an_index_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    with pytest.raises(FileNotFoundError):
        write_index(ObjectIndex.of([]), str(folder / "index"))
    assert os.listdir(tmp_path) == []


# Not `ru_maxrss`, which begins with that of the process before `exec`: pytest's own peak would hide what is measured.
PEAK = """
def peak_kib():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""

# Peak of a fresh process, less what the imports take: pages of a thousand keys are added as a listing does.
MEASURE = """
import sys
from s3torch_datasets._index import IndexBuilder
rows, fork = int(sys.argv[1]), sys.argv[2] == "fork"
before = peak_kib()
builder = IndexBuilder()
for first in range(0, rows, 1000):
    keys = [f"train/images/class-{row % 997:04}/{row:015}.jpg" for row in range(first, first + 1000)]
    builder.add_rows("bucket", keys, [100_000] * 1000, [f'"{row:032x}"' for row in range(first, first + 1000)])
index = builder.build()
assert len(keys[0]) == 43 and len(index) == rows and index[rows - 1].key == keys[-1]
peak = peak_kib()
if fork:
    import os
    if os.fork() == 0:
        def private():
            with open("/proc/self/smaps_rollup") as lines:
                return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
        at_first = private()
        total = sum(index[row].object_info.size for row in range(0, rows, 7))
        print(private() - at_first, flush=True)
        os._exit(0)
    os.wait()
else:
    print(peak - before)
"""

# The same for a listing in parallel, of pages that a client makes up.
MEASURE_LISTING = """
import sys, types
import tqdm
from s3core import ListObjectResult
from s3torch_datasets import ObjectFilter
from s3torch_datasets._parallel_listing import list_prefix
rows = int(sys.argv[1])
in_folder = rows // 100

class Client:
    s3client_config = types.SimpleNamespace(concurrency=16)

    def list_objects(self, bucket, prefix, delimiter="", *, start_after=None):
        if delimiter:
            yield ListObjectResult([], [], [], [], [], [f"train/images/class-{number:04}/" for number in range(100)])
            return
        begin = 0
        if start_after is not None:  # a folder, or a key in it
            folder, _, name = start_after.rpartition("/")
            begin = int(folder[-4:]) * in_folder + (int(name[:-4]) + 1 if name else 0)
        for first in range(begin, rows, 1000):
            page = range(first, min(first + 1000, rows))
            keys = [f"train/images/class-{row // in_folder:04}/{row % in_folder:015}.jpg" for row in page]
            etags = [f'"{row:032x}"' for row in page]
            yield ListObjectResult(keys, [100_000] * len(page), etags, [""] * len(page), ["STANDARD"] * len(page))

before = peak_kib()
index = list_prefix(Client(), "bucket", "train/images/", ObjectFilter(), lambda count: None).builder.build()
assert len(index) == rows and index[rows - 1].key == f"train/images/class-0099/{in_folder - 1:015}.jpg"
print(peak_kib() - before)
"""


def measure(rows: int, *how: str, script: str = MEASURE) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PEAK + script, str(rows), *how], capture_output=True, text=True, check=True, timeout=250
    )
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_objects_take_less_than_150_megabytes() -> None:
    assert measure(1_000_000, "peak") < 150e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_objects_that_are_listed_in_parallel_take_less_than_150_megabytes() -> None:
    assert measure(1_000_000, script=MEASURE_LISTING) < 150e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_forked_worker_that_reads_the_index_copies_next_to_nothing_of_it() -> None:
    assert measure(300_000, "fork") < 3e6
