"""What the writer promises of any upload stream; the streams themselves are tested in s3core."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from s3core import S3Client, S3Exception
from s3torch_datasets import S3Writer
from servers import CountingServer


class Upload:
    def __init__(self) -> None:
        self.data = bytearray()
        self.completed = 0
        self.aborted = 0

    def write(self, data) -> int:
        self.data += memoryview(data).cast("B")
        return memoryview(data).nbytes

    def close(self) -> None:
        self.completed += 1

    def abort(self) -> None:
        self.aborted += 1


@pytest.fixture
def upload() -> Upload:
    return Upload()


def test_a_clean_block_completes_once(upload: Upload) -> None:
    with S3Writer(upload) as writer:
        assert writer.write(b"ab") == 2
        assert writer.write(memoryview(bytearray(b"cd"))) == 2
        assert writer.tell() == 4
    writer.close()
    del writer
    gc.collect()
    assert (bytes(upload.data), upload.completed, upload.aborted) == (b"abcd", 1, 0)


def test_an_exception_in_the_block_aborts_and_passes_on(upload: Upload) -> None:
    def interrupted() -> None:
        with S3Writer(upload) as writer:
            writer.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (upload.completed, upload.aborted) == (0, 1)


def test_a_dropped_writer_never_completes(upload: Upload) -> None:
    writer = S3Writer(upload)
    writer.write(b"half")
    del writer
    gc.collect()
    assert (upload.completed, upload.aborted) == (0, 1)


def test_a_failed_close_aborts_raises_and_is_final(upload: Upload) -> None:
    def fail() -> None:
        raise OSError("no network")

    upload.close = fail  # type: ignore[method-assign]
    writer = S3Writer(upload)
    with pytest.raises(OSError, match="no network"):
        writer.close()
    writer.close()
    assert (upload.completed, upload.aborted) == (0, 1)


def test_close_from_many_threads_completes_once(upload: Upload) -> None:
    writer = S3Writer(upload)
    threads = [threading.Thread(target=writer.close) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert upload.completed == 1


def test_a_second_close_waits_for_the_first(upload: Upload) -> None:
    closing, goes_on, seen = threading.Event(), threading.Event(), []

    def close() -> None:
        closing.set()
        assert goes_on.wait(60)
        upload.completed += 1

    upload.close = close  # type: ignore[method-assign]
    writer = S3Writer(upload)
    first = threading.Thread(target=writer.close)
    first.start()
    assert closing.wait(60)
    second = threading.Thread(target=lambda: (writer.close(), seen.append(upload.completed)))
    second.start()
    assert not seen
    goes_on.set()
    first.join()
    second.join()
    assert seen == [1]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="sends a signal")
def test_a_signals_handler_can_abort_the_writer_that_it_interrupts(upload: Upload) -> None:
    writer = S3Writer(upload)
    upload.close = lambda: signal.raise_signal(signal.SIGUSR1)  # type: ignore[method-assign]
    before = signal.signal(signal.SIGUSR1, lambda number, frame: writer.abort())
    try:
        writer.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert upload.aborted == 0  # too late for it


def test_write_after_close_is_a_value_error(upload: Upload) -> None:
    writer = S3Writer(upload)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"late")
    with pytest.raises(ValueError, match="closed"), writer:
        pass


def test_flush_is_allowed_and_does_nothing(upload: Upload) -> None:
    with S3Writer(upload) as writer:
        writer.flush()
    writer.flush()


def test_it_is_a_write_only_file(upload: Upload) -> None:
    with S3Writer(upload) as writer:
        assert isinstance(writer, io.BufferedIOBase)
        assert (writer.writable(), writer.readable(), writer.seekable()) == (True, False, False)
        assert writer.stream is upload


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_forked_child_can_neither_complete_nor_abort_its_parents_upload(upload: Upload) -> None:
    writer = S3Writer(upload)
    writer.write(b"of the parent")
    with writer._lock:  # as when another thread of the parent is closing it
        child = os.fork()
        if child == 0:
            try:
                writer.write(b"of the child")
                os._exit(1)
            except S3Exception:
                writer.close()  # closed by the refusal
                del writer
                os._exit(upload.completed + upload.aborted)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.close()
    assert (bytes(upload.data), upload.completed, upload.aborted) == (b"of the parent", 1, 0)


@pytest.fixture
def writer_of_large(counting_server: CountingServer, connection: dict[str, Any]) -> Callable[[], S3Writer]:
    client = S3Client(**connection)
    counting_server.put("large", b"old")
    return lambda: S3Writer(client.put_object(counting_server.bucket, "large"))


def test_a_real_upload_is_whole_or_leaves_the_old_object_and_nothing_else(
    counting_server: CountingServer, writer_of_large: Callable[[], S3Writer]
) -> None:
    part = os.urandom(2**20)

    def interrupted() -> None:
        with writer_of_large() as writer:
            for _ in range(30):
                writer.write(part)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    dropped = writer_of_large()
    for _ in range(30):
        dropped.write(part)
    del dropped
    gc.collect()
    deadline = time.monotonic() + 30
    while counting_server.uploads() and time.monotonic() < deadline:
        counting_server.wait_for_requests(1)
    assert counting_server.uploads() == []
    assert counting_server.get("large") == b"old"
    with writer_of_large() as writer:
        for _ in range(30):
            writer.write(part)
        assert writer.tell() == 30 * 2**20
    assert counting_server.get("large") == part * 30
