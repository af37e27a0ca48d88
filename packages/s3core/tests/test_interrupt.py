"""Ctrl-C is seen within a second, whatever is on its way, and the process then ends within another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from s3core import PutObjectStream, S3Client, S3Exception
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
    "copying in parts": (
        "UploadPartCopy",
        "copy_object(client._runtime, Target(bucket, 'data'), Target(bucket, 'new'), most_at_once=6 * 2**20,"
        " part_size=5 * 2**20)",
    ),
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
        from s3core._head import Target
        from s3core._objects import copy_object
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
    is_upload_open = "Upload" in operation
    began = time.monotonic()
    counting_server.faults_clear()
    while process.poll() is None and time.monotonic() - began < 20:
        if is_upload_open:
            counting_server.release()  # the exit waits for the answer, to abort the upload
        time.sleep(0.01)
    # An exit that waits in vain, for ten seconds, leaves the upload behind.
    assert process.poll() is not None
    assert counting_server.uploads() == []
    counting_server.release()


def test_an_interrupt_at_any_instruction_leaves_no_upload(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    """A trace function raises where the interpreter looks for signals: behind calls and jumps back, of ours or of a
    thread's start (https://github.com/python/cpython/blob/3.11/Python/ceval.c, CHECK_EVAL_BREAKER)."""
    output = run_program(
        """
        import dis, random
        LOOKS_BEHIND = {"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}

        def upload(interrupted_at):
            client = make_client(part_size=5 * 2**20, memory_limit=20 * 2**20)  # its threads are yet to start
            seen = 0

            def trace(frame, event, argument):
                code = frame.f_code
                if "s3core" not in code.co_filename and code.co_name != "start":
                    return None
                frame.f_trace_opcodes = True
                looks = False

                def trace_frame(frame, event, argument):
                    nonlocal seen, looks
                    if event == "opcode":
                        if looks:
                            seen += 1
                            if seen == interrupted_at:
                                raise KeyboardInterrupt
                        looks = dis.opname[code.co_code[frame.f_lasti]] in LOOKS_BEHIND
                    return trace_frame

                return trace_frame

            sys.settrace(trace)
            try:
                with client.put_object(bucket, "new") as stream:
                    for _ in range(12):
                        stream.write(bytes(2**20))
            finally:
                sys.settrace(None)
            return seen

        instructions = upload(0)
        client = make_client()
        client.delete_object(bucket, "new")
        interrupted = 0
        for instruction in sorted(random.Random(7).sample(range(1, instructions), 80)):
            try:
                upload(instruction)
            except KeyboardInterrupt:
                interrupted += 1
            sizes = [info.size for page in client.list_objects(bucket) for info in page.object_info]
            assert sizes in ([], [12 * 2**20]), sizes
        print(instructions > 200, interrupted > 40)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert output == "True True\n"
    assert counting_server.uploads() == []


@pytest.mark.parametrize("size", [1000, 6 * MiB, 11 * MiB])
def test_a_write_that_was_interrupted_twice_is_never_completed(
    counting_server: CountingServer, make_client: Callable[..., S3Client], size: int
) -> None:
    """The first interrupt tears the write, the second keeps that from being noted."""
    stream = make_client(counting_server, part_size=5 * MiB).put_object(counting_server.bucket, "key")
    stream.write(b"whole")

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_code.co_name == "_append" and frame.f_locals.get("offset"):
            raise KeyboardInterrupt
        return trace if "s3core" in frame.f_code.co_filename else None

    with mock.patch.object(PutObjectStream, "_fail", side_effect=KeyboardInterrupt) as failing:
        sys.settrace(trace)
        try:
            with pytest.raises(KeyboardInterrupt):
                stream.write(bytes(size))
        finally:
            sys.settrace(None)
    failing.assert_called_once()
    with pytest.raises(S3Exception, match="interrupted"):
        stream.write(b"more")
    with pytest.raises(S3Exception, match="interrupted"):
        stream.close()
    assert counting_server.keys() == []
    assert counting_server.uploads() == []
