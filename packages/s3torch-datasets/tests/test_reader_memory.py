"""What the readers hold, in a process of its own over a real server, and in a forked child."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from s3torch_datasets import S3IterableDataset, S3ReaderConstructor
from servers import CountingServer

MiB = 2**20
RUNTIME_MIB = 48  # threads and buffers of the client, whatever is read

MEASURE = """
import os, sys
from s3torch_datasets import S3IterableDataset, S3ReaderConstructor
uri, endpoint, constructor, use = sys.argv[1:]
small, reader = S3IterableDataset.from_objects(
    [uri + ".small", uri],
    region="us-east-1",
    endpoint=endpoint,
    reader_constructor=eval(f"S3ReaderConstructor.{constructor}"),
)
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
small.read()  # the client is there
before = peak()
exec(use)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("constructor", "use", "held_mib"),
    [
        ("range_based()", "reader.seek(0); data = reader.read(); assert len(data) == 100 * 2**20", 100),
        ("sequential()", "assert len(reader.read(1000)) == 1000", 0),
        ("sequential()", "reader.seek(-1, 2); assert reader.read() == b'x'", 100),
        ("sequential()", "b = bytearray(2**20)\nwhile reader.readinto(b): pass", 100),
        ("streaming(window=16 * 2**20)", "while reader.read(2**20): pass", 16),
    ],
)
def test_a_reader_holds_no_more_than_it_says(
    counting_server: CountingServer, constructor: str, use: str, held_mib: int
) -> None:
    counting_server.put("large", b"x" * (100 * MiB))
    counting_server.put("large.small", b"x")
    uri = f"s3://{counting_server.bucket}/large"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, uri, counting_server.endpoint, constructor, use],
        env=os.environ | counting_server.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < held_mib + RUNTIME_MIB


@pytest.mark.parametrize(
    "constructor",
    [
        S3ReaderConstructor.sequential(),
        S3ReaderConstructor.range_based(),
        S3ReaderConstructor.streaming(window=8 * MiB),
    ],
    ids=["sequential", "range_based", "streaming"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_reader_goes_on_in_a_forked_child_and_in_its_parent(
    counting_server: CountingServer, connection: dict[str, Any], constructor: Any
) -> None:
    data = os.urandom(20 * MiB)
    counting_server.put("large", data)
    uri = f"s3://{counting_server.bucket}/large"
    (reader,) = S3IterableDataset.from_objects(uri, reader_constructor=constructor, **connection)
    assert reader.read(1000) == data[:1000]
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if reader.read() == data[1000:] else 1)
        finally:
            os._exit(2)  # whatever was raised, this is not pytest's process
    assert reader.read(5 * MiB) == data[1000 : 5 * MiB + 1000]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.read() == data[5 * MiB + 1000 :]
