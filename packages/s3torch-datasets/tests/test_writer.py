"""What the writer promises of any upload stream; the streams themselves are tested in s3core."""

from __future__ import annotations

import gc
import io
import threading

import pytest

from s3torch_datasets import S3Writer


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
