"""Ctrl-C is seen within a second, whatever is on its way, and the process then ends within another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from servers import CountingServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")

MiB = 2**20

# What is interrupted, and the request that is held then.
WORK = {
    "reading chunks": ("GetObject", "for chunk in client.get_object(bucket, 'data'): pass"),
    "reading all": ("GetObject", "client.get_object(bucket, 'data').read_all()"),
    "reading an odd key": ("GetObject", "client.get_object(bucket, 'odd//data').read_all()"),
    "reading into a buffer": ("GetObject", "client.get_object(bucket, 'data').read_into(bytearray(12 * 2**20))"),
    "reading ranges": ("GetObject", "client.read_ranges([RangeRead(bucket, 'data', 0, bytearray(12 * 2**20))])"),
    "asking for the size": ("GetObject", "client.get_object(bucket, 'data').object_info"),
    "listing": ("ListObjectsV2", "list(client.list_objects(bucket))"),
    "head": ("HeadObject", "client.head_object(bucket, 'data')"),
    "deleting": ("DeleteObject", "client.delete_object(bucket, 'data')"),
    "deleting many": ("DeleteObjects", "client.delete_objects(bucket, ['data'])"),
    "copying": ("CopyObject", "client.copy_object(bucket, 'data', bucket, 'new')"),
    "writing a small object": ("PutObject", "write(10)"),
    "starting an upload": ("CreateMultipartUpload", "write(6 * 2**20)"),
    "uploading": ("UploadPart", "write(200 * 2**20)"),
    "waiting for the last parts": ("UploadPart", "write(6 * 2**20)"),
    "completing": ("CompleteMultipartUpload", "write(6 * 2**20)"),
}


@pytest.mark.parametrize("work", WORK)
def test_ctrl_c_ends_it_within_a_second(
    counting_server: CountingServer, start_program: Callable[..., subprocess.Popen[str]], work: str
) -> None:
    operation, source = WORK[work]
    for key in ("data", "odd//data"):
        counting_server.put(key, bytes(12 * MiB))
    process = start_program(
        f"""
        client = make_client(part_size=5 * 2**20, memory_limit=20 * 2**20)
        def write(size):
            with client.put_object(bucket, "new") as stream:
                for _ in range(0, size, 2**20):
                    stream.write(bytes(min(size, 2**20)))
        list(client.list_objects(bucket))  # what is imported at the first request is there
        client.get_object(bucket, "data", end=10).read_all()
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            {source}
            print("not interrupted", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    counting_server.clear()
    counting_server.fault(operation=operation, hold=True)
    process.stdin.write("go\n")
    process.stdin.flush()
    counting_server.wait_for_requests(1, operation=operation)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - began < 1.2
    is_upload_open = operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
    began = time.monotonic()
    counting_server.faults_clear()
    while process.poll() is None and time.monotonic() - began < 20:
        if is_upload_open:
            counting_server.release()  # the exit waits for the answer, to abort the upload
        time.sleep(0.01)
    assert process.poll() is not None
    assert time.monotonic() - began < (4 if is_upload_open else 1.5)
    assert counting_server.uploads() == []
    counting_server.release()
