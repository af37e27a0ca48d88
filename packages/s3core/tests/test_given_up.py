"""An object that is not closed cleanly: the old one stays, and no upload is left behind."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from interruptions import Interruption, each_interruption, interrupted
from s3core import (
    AccessDeniedError,
    PutObjectStream,
    S3Client,
    S3ClientConfig,
    S3Exception,
    S3TimeoutError,
    _bell,
    _budget,
    _put,
    _stop,
)
from s3core._budget import ByteBudget
from s3core._pool import Pool
from s3core._request import Request
from s3core._stop import Stop
from servers import CountingServer, Listener, S3Server
from servers import wait_until as wait_at_most
from servers._tls import write_certificate

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(1).randbytes(3 * PART + 5)
OLD = b"the old object"

wait_until = partial(wait_at_most, timeout_seconds=60.0)


@pytest.fixture(params=["moto_server", "seaweedfs_server", "ceph_server", "counting_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    """A bucket with an object that must stay, and no upload at the end."""
    bucket = server.create_bucket()
    store = server.boto3_client()
    store.put_object(Bucket=bucket, Key="key", Body=OLD)
    yield bucket
    assert store.get_object(Bucket=bucket, Key="key")["Body"].read() == OLD
    store.close()


def uploads(server: S3Server, bucket: str) -> list[str]:
    store = server.boto3_client()
    found = [upload["UploadId"] for upload in store.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
    store.close()
    return found


@pytest.fixture
def client(server: S3Server, make_client: Callable[..., S3Client]) -> S3Client:
    return make_client(server, part_size=PART, max_attempts=3)


def write_and_raise(stream: PutObjectStream, error: BaseException) -> None:
    stream.write(DATA)
    raise error


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_an_exception_in_the_with_block_leaves_the_old_object(
    server: S3Server, bucket: str, client: S3Client, error: BaseException
) -> None:
    stream = client.put_object(bucket, "key")
    with pytest.raises(type(error)), stream:
        write_and_raise(stream, error)
    assert stream.closed
    wait_until(lambda: uploads(server, bucket) == [])
    assert client._runtime.budget.used == 0


def test_a_stream_that_is_aborted_leaves_the_old_object(server: S3Server, bucket: str, client: S3Client) -> None:
    stream = client.put_object(bucket, "key")
    stream.write(DATA)
    stream.abort()
    assert uploads(server, bucket) == []
    stream.abort()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"more")


def test_a_small_object_that_is_aborted_is_never_sent(server: S3Server, bucket: str, client: S3Client) -> None:
    stream = client.put_object(bucket, "key")
    stream.write(b"small")
    stream.abort()
    stream.close()


def test_a_stream_that_is_dropped_leaves_the_old_object(server: S3Server, bucket: str, client: S3Client) -> None:
    stream = client.put_object(bucket, "key")
    stream.write(DATA)
    del stream
    wait_until(lambda: uploads(server, bucket) == [])
    assert client._runtime.budget.used == 0


def test_a_stream_that_is_dropped_in_a_cycle_leaves_the_old_object(
    server: S3Server, bucket: str, client: S3Client
) -> None:
    cycle: list[Any] = [client.put_object(bucket, "key")]
    cycle[0].write(DATA)
    cycle.append(cycle)
    del cycle
    gc.collect()
    wait_until(lambda: uploads(server, bucket) == [])
    assert client._runtime.budget.used == 0


def test_the_upload_of_another_writer_of_the_key_goes_on(server: S3Server, bucket: str, client: S3Client) -> None:
    other = client.put_object(bucket, "key")
    other.write(DATA)
    stream = client.put_object(bucket, "key")
    stream.write(DATA[::-1])
    stream.abort()
    assert len(uploads(server, bucket)) == 1
    other.close()
    assert client.get_object(bucket, "key").read_all() == DATA
    with client.put_object(bucket, "key") as restored:
        restored.write(OLD)


ENDINGS = {
    "interpreter exit": "pass",
    "an exception": "raise LookupError('mine')",
    "sys.exit": "sys.exit(3)",
    "sys.exit in the with block": "\nwith stream:\n    sys.exit(3)",
    "a thread that still writes": (
        "threading.Thread(target=lambda: [stream.write(data) for _ in range(99)], daemon=True).start()"
    ),
    "a cycle": "stream = [stream]; stream.append(stream)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_of_the_interpreter_leaves_the_old_object(
    server: S3Server, bucket: str, start_program: Callable[..., subprocess.Popen[str]], ending: str
) -> None:
    process = start_program(
        """
        data = bytes(16 * 2**20)
        stream = make_client(part_size=5 * 2**20).put_object(bucket, "key")
        stream.write(data)
        """
        + "".join(f"\n        {line}" for line in ENDINGS[ending].split("\n")),
        server,
        bucket,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 1, 3), errors
    assert "could not be aborted" not in errors
    assert uploads(server, bucket) == []


def test_the_exit_of_the_interpreter_waits_once_for_all_uploads(
    counting_server: CountingServer, start_program: Callable[..., subprocess.Popen[str]]
) -> None:
    counting_server.fault(operation="UploadPart", hold=True)
    process = start_program(
        """
        client = make_client(part_size=5 * 2**20)
        streams = [client.put_object(bucket, f"key{number}") for number in range(6)]
        for stream in streams:
            stream.write(bytes(6 * 2**20))
        """,
        counting_server,
        counting_server.bucket,
    )
    process.communicate(timeout=40)  # ten seconds, and not sixty
    assert process.returncode == 0


def test_the_exit_of_the_interpreter_waits_for_no_thread_that_it_has_stopped(
    counting_server: CountingServer, start_program: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_program(
        """
        import atexit
        must_hold, holds = threading.Event(), threading.Event()
        def stop_thread():
            must_hold.set()
            holds.wait()
        atexit.register(stop_thread)  # before the client's own handler, so that it runs behind that
        # The thread keeps its globals, which must not be those that keep the stream.
        apart = {"must_hold": must_hold, "holds": holds, "sleep": time.sleep}
        exec("def hold(lock):\\n must_hold.wait()\\n with lock:\\n  holds.set()\\n  sleep(60)", apart)
        stream = make_client(part_size=5 * 2**20).put_object(bucket, "key")
        stream.write(bytes(16 * 2**20))
        threading.Thread(target=apart["hold"], args=[stream._upload._lock], daemon=True).start()
        """,
        counting_server,
        counting_server.bucket,
    )
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")
    assert counting_server.uploads() == []


@pytest.mark.parametrize("is_by_library", [False, True])
def test_the_exit_of_the_interpreter_ends_what_is_read_ahead_without_a_word(
    counting_server: CountingServer, start_program: Callable[..., subprocess.Popen[str]], is_by_library: bool
) -> None:
    counting_server.put("key", DATA)
    counting_server.fault(operation="GetObject", pace_bytes_per_second=MiB)
    process = start_program(
        f"""
        from s3core._connections import Connections
        if {is_by_library}:
            Connections.is_understood = False  # as when a store answers in an odd way
        client = make_client()
        info = client.head_object(bucket, "key")
        streams = [client.get_object(bucket, "key", object_info=info, etag=info.etag) for _ in range(4)]
        for stream in streams:
            stream.prefetch()
        sys.stdin.readline()
        """,
        counting_server,
        counting_server.bucket,
    )
    counting_server.wait_for_requests(32, operation="GetObject")
    output, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, output, errors) == (0, "", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_exit_of_a_worker_process_leaves_the_old_object(
    server: S3Server, bucket: str, run_program: Callable[..., str], method: str
) -> None:
    output = run_program(
        f"""
        import multiprocessing
        def work(client, how):
            global stream  # so that it is alive at the exit
            stream = client.put_object(bucket, "key")
            stream.write(bytes(16 * 2**20))
            if how == "raise":
                raise SystemExit(0)
        if __name__ == "__main__":
            client = make_client(part_size=5 * 2**20)
            print(client.head_object(bucket, "key").size)
            context = multiprocessing.get_context({method!r})
            for how in ("return", "raise"):
                process = context.Process(target=work, args=(client, how))
                process.start()
                process.join()
                print(process.exitcode)
        """,
        server,
        bucket,
    )
    assert output.split() == [str(len(OLD)), "0", "0"]
    assert uploads(server, bucket) == []


def test_a_kill_in_the_midst_leaves_the_old_object(
    server: S3Server, bucket: str, start_program: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_program(
        """
        stream = make_client(part_size=5 * 2**20).put_object(bucket, "key")
        for n in range(10_000):
            stream.write(bytes(2**20))
            if n == 20:
                print("going", flush=True)
            if n > 40:
                time.sleep(0.1)
        """,
        server,
        bucket,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


class TestWhileRequestsAreOnTheirWay:
    """The counting server holds them back."""

    @pytest.fixture
    def server(self, counting_server: CountingServer) -> CountingServer:
        return counting_server

    @pytest.fixture
    def stream(self, server: CountingServer, bucket: str, client: S3Client) -> PutObjectStream:
        return client.put_object(bucket, "key")

    def test_parts_that_arrive_late_do_not_outlive_the_abort(
        self, server: CountingServer, bucket: str, stream: PutObjectStream
    ) -> None:
        server.fault(operation="UploadPart", hold=True)
        stream.write(DATA[: 2 * PART + 1])
        server.wait_for_requests(2, operation="UploadPart")
        aborting = threading.Thread(target=stream.abort)
        aborting.start()
        wait_until(lambda: server.release() >= 0 and not aborting.is_alive())
        # One that was still being sent is cut, and looked for afterwards.
        assert [name for name in server.operations() if name != "ListParts"][-1] == "AbortMultipartUpload"
        assert server.uploads() == []

    def test_an_upload_whose_start_is_still_unanswered_is_aborted_when_the_answer_comes(
        self, server: CountingServer, bucket: str, stream: PutObjectStream
    ) -> None:
        server.fault(operation="CreateMultipartUpload", hold=True)
        failures: list[BaseException] = []

        def write() -> None:
            try:
                stream.write(DATA)
            except S3Exception as error:
                failures.append(error)

        writing = threading.Thread(target=write)
        writing.start()
        server.wait_for_requests(1, operation="CreateMultipartUpload")
        aborting = threading.Thread(target=stream.abort)
        aborting.start()
        wait_until(lambda: stream._aborted)
        wait_until(lambda: server.release() >= 0 and not (writing.is_alive() or aborting.is_alive()))
        assert server.uploads() == []
        assert len(failures) == 1
        assert "aborted" in str(failures[0])

    def test_a_completion_that_fails_after_the_interruption_is_followed_by_the_abort(
        self, server: CountingServer, bucket: str, stream: PutObjectStream
    ) -> None:
        stream.write(DATA)
        server.fault(operation="CompleteMultipartUpload", hold=True, status=503, code="SlowDown")
        with pytest.raises(KeyboardInterrupt), _interrupted_when(server, "CompleteMultipartUpload"):
            stream.close()
        wait_until(lambda: server.release() >= 0 and server.uploads() == [])

    def test_an_interrupted_small_object_is_not_sent_again_later(
        self, server: CountingServer, bucket: str, make_client: Callable[..., S3Client]
    ) -> None:
        client = make_client(server, max_concurrency=1)
        stream = client.put_object(bucket, "key")
        stream.write(b"interrupted")
        server.fault(operation="PutObject", hold=True, status=503, code="SlowDown")
        with pytest.raises(KeyboardInterrupt), _interrupted_when(server, "PutObject"):
            stream.close()
        server.faults_clear()
        server.release()
        client.head_object(bucket, "key")  # when the only thread is done with what was interrupted
        assert server.operations().count("PutObject") == 2  # the fixture's and the interrupted one

    def test_an_interrupted_block_ends_at_once_even_if_the_store_is_silent(
        self, server: CountingServer, bucket: str, client: S3Client
    ) -> None:
        server.fault(operation="AbortMultipartUpload", hold=True)
        stream = client.put_object(bucket, "key")
        stream.write(DATA[: PART + 1])
        server.wait_for_requests(1, operation="UploadPart", status=200)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), stream:
            raise KeyboardInterrupt
        assert time.monotonic() - began < 20  # an ordinary exception waits for the abort, for 30 s
        wait_until(lambda: server.release() >= 0 and server.uploads() == [])

    def test_an_abort_that_the_store_refuses_is_told_with_the_remedy(
        self, server: CountingServer, bucket: str, stream: PutObjectStream, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fault(operation="AbortMultipartUpload", status=403, code="AccessDenied")
        stream.write(DATA)
        stream.abort()
        assert "lifecycle rule" in caplog.text
        assert f"s3://{bucket}/key" in caplog.text


class _interrupted_when:  # noqa: N801 (reads as a sentence)
    """Send SIGINT to this process when a request has arrived."""

    def __init__(self, server: CountingServer, operation: str) -> None:
        self._before = server.operations().count(operation)
        self._thread = threading.Thread(target=self._run, args=(server, operation))

    def _run(self, server: CountingServer, operation: str) -> None:
        server.wait_for_requests(self._before + 1, operation=operation)
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._thread.join()


def test_a_small_object_that_waited_for_a_thread_is_not_sent_after_it_was_given_up(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(counting_server, max_concurrency=1)
    counting_server.put("key", b"old")
    counting_server.fault(operation="HeadObject", hold=True)
    with ThreadPoolExecutor(2) as threads:
        try:
            head = threads.submit(client.head_object, counting_server.bucket, "key")  # keeps the only thread
            counting_server.wait_for_requests(1, operation="HeadObject")
            stream = client.put_object(counting_server.bucket, "key")
            stream.write(b"new")
            closing = threads.submit(stream.close)
            wait_until(lambda: stream._is_closing)
            stream._abort(timeout=0.1)
        finally:
            counting_server.release()
        with pytest.raises(S3Exception, match="given up"):
            closing.result()
        head.result()
    assert counting_server.get("key") == b"old"
    assert "PutObject" not in counting_server.operations()


class SlowStore:
    """A store that takes the beginning of the first request's body, and the rest when it may; notes what came whole."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.has_begun, self.goes_on = threading.Event(), threading.Event()
        self.ended = threading.Event()
        self.lengths: list[int] = []
        self._listener = Listener(self._serve, receive_buffer_bytes=64 * 1024)
        self.endpoint = self._listener.url if tls is None else self._listener.url.replace("http:", "https:")

    def close(self) -> None:
        self.goes_on.set()
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            head, _, body = connection.recv(64 * 1024).partition(b"\r\n\r\n")
            length, came = int(head.partition(b"Content-Length: ")[2].split()[0]), len(body)
            self.has_begun.set()
            self.goes_on.wait(60)
            with suppress(OSError):
                while came < length and (data := connection.recv(2**20)):
                    came += len(data)
            if came == length:
                self.lengths.append(length)
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')
            self.ended.set()


@pytest.fixture
def slow_store() -> Iterator[SlowStore]:
    store = SlowStore()
    yield store
    store.close()


@pytest.mark.parametrize("size", [2**21, 2**23])
@pytest.mark.parametrize("way", ["abort", "interruption"])
def test_a_small_object_that_is_given_up_while_it_is_sent_never_arrives(
    slow_store: SlowStore, way: str, size: int
) -> None:
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden")
    stream = S3Client("us-east-1", endpoint=slow_store.endpoint, s3client_config=config).put_object("bucket", "key")
    stream.write(bytes(size))

    def give_up() -> None:
        assert slow_store.has_begun.wait(60)
        if way == "abort":
            stream.abort()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=give_up)
    thread.start()
    with pytest.raises(S3Exception if way == "abort" else KeyboardInterrupt):
        stream.close()
    thread.join()
    slow_store.goes_on.set()
    assert slow_store.ended.wait(60)
    assert slow_store.lengths == []


def test_an_object_that_is_given_up_while_it_is_sent_over_tls_is_over_at_once(tmp_path: Path) -> None:
    """And not when `read_timeout` is, until when OpenSSL would try to read, without a pause."""
    certificate, key, authority = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    store = SlowStore(context)
    config = S3ClientConfig(
        access_key_id="id", secret_access_key="hidden", ca_bundle=str(authority), read_timeout=60, max_attempts=1
    )
    stream = S3Client("us-east-1", endpoint=store.endpoint, s3client_config=config).put_object("bucket", "key")
    stream.write(bytes(2**23))
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(stream.close)
        assert store.has_begun.wait(60)
        began = time.monotonic()
        stream.abort()
        with pytest.raises(S3Exception, match="given up"):
            closing.result()
    assert time.monotonic() - began < 20
    store.close()
    assert store.ended.wait(60)
    assert store.lengths == []


def test_what_was_sent_in_vain_is_not_read_later(slow_store: SlowStore) -> None:
    """The system has all of it, and would send it for minutes."""
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", read_timeout=0.3, max_attempts=1)
    stream = S3Client("us-east-1", endpoint=slow_store.endpoint, s3client_config=config).put_object("bucket", "key")
    stream.write(bytes(2**21))
    with pytest.raises(S3TimeoutError):
        stream.close()
    slow_store.goes_on.set()
    assert slow_store.ended.wait(60)
    assert slow_store.lengths == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it lives as long as a child has it")
@pytest.mark.parametrize("way", ["timeout", "abort"])
def test_what_was_sent_in_vain_is_not_read_later_where_a_child_has_the_connection_too(
    slow_store: SlowStore, start_program: Callable[..., subprocess.Popen[str]], way: str
) -> None:
    process = start_program(
        f"""
        config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", read_timeout=3.0, max_attempts=1)
        client = S3Client("us-east-1", endpoint={slow_store.endpoint!r}, s3client_config=config)
        stream = client.put_object("bucket", "key")
        stream.write(bytes(2**21))
        def interfere():
            sys.stdin.readline()
            if not os.fork():
                sys.stdin.readline()
                os._exit(0)
            if {way!r} == "abort":
                stream.abort()
        thread = threading.Thread(target=interfere)
        thread.start()
        try:
            stream.close()
        except S3Exception as error:
            print(type(error).__name__)
        """
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert slow_store.has_begun.wait(60)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == ("S3TimeoutError\n" if way == "timeout" else "S3Exception\n")
    slow_store.goes_on.set()
    assert slow_store.ended.wait(60)
    assert slow_store.lengths == []


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse the connection that waits here")
@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_what_waits_for_a_connection_is_not_sent_after_it_was_given_up(method: str) -> None:
    store = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = store.getsockname()
    first = socket.create_connection(address)  # The system takes no other until this one is accepted.
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", connect_timeout=30.0)
    client = S3Client("us-east-1", endpoint=f"http://127.0.0.1:{address[1]}", s3client_config=config)
    stop = Stop()
    request = Request(method, "bucket", "key", body=b"" if method == "PUT" else None, stop=stop)
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(client._runtime.rest.try_change, request)
        wait_until(lambda: bool(stop._exchanges))
        time.sleep(0.2)
        stop.set()
        stop.finish()
        with store.accept()[0], store.accept()[0] as connection:
            connection.settimeout(60)
            assert connection.recv(1) == b""
        with pytest.raises(S3Exception, match="given up"):
            sending.result()
    first.close()
    store.close()


@pytest.mark.parametrize("change", ["put", "copy", "delete", "delete many"])
def test_nothing_is_changed_after_an_interruption(
    counting_server: CountingServer, make_client: Callable[..., S3Client], change: str
) -> None:
    client, bucket = make_client(counting_server, max_attempts=100), counting_server.bucket
    counting_server.put("key", b"old")
    stream = client.put_object(bucket, "key")
    stream.write(b"new")
    changes: dict[str, tuple[str, Callable[[], None]]] = {
        "put": ("PutObject", stream.close),
        "copy": ("CopyObject", lambda: client.copy_object(bucket, "key", bucket, "other")),
        "delete": ("DeleteObject", lambda: client.delete_object(bucket, "key")),
        "delete many": ("DeleteObjects", lambda: client.delete_objects(bucket, ["key"])),
    }
    operation, make = changes[change]
    counting_server.fault(operation=operation, status=503)
    with pytest.raises(KeyboardInterrupt), _interrupted_when(counting_server, operation):
        make()
    counting_server.faults_clear()
    time.sleep(1)
    assert counting_server.keys() == ["key"]
    assert counting_server.get("key") == b"old"


def test_nothing_is_deleted_after_an_error(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    client, bucket = make_client(counting_server, max_attempts=100), counting_server.bucket
    counting_server.put("key", b"old")
    counting_server.fault(operation="DeleteObjects", times=1, delay_seconds=0.5, status=403, code="AccessDenied")
    counting_server.fault(operation="DeleteObjects", status=503)
    with pytest.raises(AccessDeniedError):
        client.delete_objects(bucket, ["key", *map(str, range(999)), "key"])  # one request each
    counting_server.faults_clear()
    time.sleep(1)
    assert counting_server.keys() == ["key"]


class _ClosedBeforeALine:
    """Have a stream closed, as by a signal's handler that minds no error, before the n-th line of `_put.py`.

    Args:
        stream: The stream.
        at: Which line, counted from the beginning of the block.
    """

    def __init__(self, stream: PutObjectStream, at: int) -> None:
        self._stream = stream
        self.left = at

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != _put.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                with suppress(Exception):
                    self._stream.close()
        return self._trace


def _write_closed_before_a_line(client: S3Client, bucket: str, key: str, data: bytes, at: int) -> tuple[bool, bool]:
    """Say whether the line came, and whether no error did."""
    stream = client.put_object(bucket, key)
    closing = _ClosedBeforeALine(stream, at)
    try:
        with stream:
            stream.write(b"head ")
            with closing:
                stream.write(data)
    except (S3Exception, ValueError):
        return closing.left <= 0, False
    return closing.left <= 0, True


@pytest.mark.parametrize("size", [1000, PART + 100_000])
def test_a_stream_that_a_handler_closes_within_a_write_is_whole_or_an_error(
    counting_server: CountingServer, make_client: Callable[..., S3Client], size: int
) -> None:
    client, data = make_client(counting_server, part_size=PART), DATA[:size]
    outcomes = set()
    for at in itertools.count(1):
        came, is_whole = _write_closed_before_a_line(client, counting_server.bucket, f"key-{at}", data, at)
        outcomes.add(is_whole)
        assert not is_whole or counting_server.get(f"key-{at}") == b"head " + data
        gc.collect()
        wait_until(lambda: not counting_server.uploads())
        if not came:
            break
    assert at > 20
    assert outcomes == {True, False}


class _Taking(Interruption):
    """A signal whose handler takes bytes of a budget, as by reading, and gives them back."""

    budget: ByteBudget

    def strike(self) -> None:
        other = object()
        self.budget.try_take(other, 1)
        self.budget.give_back(other)


def test_a_handler_of_a_signal_may_take_bytes_of_the_budget_that_it_interrupts() -> None:
    for at in itertools.count(1):
        handler, budget, holder = _Taking([_budget], at), ByteBudget(100), object()
        handler.budget = budget
        with interrupted(handler):
            for _ in range(3):
                budget.try_take(holder, 10)
                budget.give_back(holder)
        assert budget.used == 0
        if not handler.came:
            break
    assert at > 10


def test_a_stop_works_after_an_interruption_at_any_instruction() -> None:
    def end(stop: Stop) -> None:
        stop.set()
        stop.wait(0.001)

    for interruption in each_interruption(_stop, _bell, threading):
        stop = Stop()
        with suppress(KeyboardInterrupt), interrupted(interruption):
            stop.wait(0.001)
            end(stop)
        again = threading.Thread(target=end, args=(stop,), daemon=True)
        again.start()
        again.join(60)
        assert not again.is_alive()
        assert stop.is_set()


class _Alarmed:
    """Have a signal's handler call something in this thread when a request has arrived.

    Args:
        server: The server.
        operation: The request's.
        call: What to call.
    """

    def __init__(self, server: CountingServer, operation: str, call: Callable[[], None]) -> None:
        self._server = server
        self._operation = operation
        self._call = call
        self.error: Exception | None = None
        self.seconds = -1.0

    def __enter__(self) -> _Alarmed:
        self._before = signal.signal(signal.SIGUSR1, self._handle)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _run(self) -> None:
        self._server.wait_for_requests(1, operation=self._operation)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)
        self._server.release()

    def _handle(self, number: int, frame: object) -> None:
        began = time.monotonic()
        try:
            self._call()
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - began


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
@pytest.mark.parametrize("way", ["abort", "close", "write"])
@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload", "PutObject"])
def test_a_handler_of_a_signal_may_use_the_upload_that_it_interrupts(
    counting_server: CountingServer, make_client: Callable[..., S3Client], operation: str, way: str
) -> None:
    client = make_client(counting_server, part_size=PART, max_concurrency=2)
    counting_server.put("key", OLD)
    counting_server.fault(operation=operation, hold=True)
    data = bytes(DATA[:100]) if operation == "PutObject" else bytearray(DATA)
    stream = client.put_object(counting_server.bucket, "key")
    calls = {"abort": stream.abort, "close": stream.close, "write": lambda: stream.write(b"more")}
    outcome: Exception | None = None
    with _Alarmed(counting_server, operation, calls[way]) as alarmed:  # type: ignore[arg-type]
        try:
            stream.write(data)
            stream.close()
        except Exception as error:
            outcome = error
    assert 0 <= alarmed.seconds < 20
    assert (alarmed.error is None) == (way == "abort")
    stream.abort()
    stored = counting_server.get("key")
    if operation == "PutObject" and way == "abort":
        # Its answer is not waited for long; without one nothing is known.
        assert stored == data if outcome is None else stored in (data, OLD)
        assert outcome is None or "the store has done it all the same" in str(outcome)
    else:
        # In mid-write it is given up; a request that makes the object visible, and was sent, decides by itself.
        assert stored == (OLD if operation == "UploadPart" else data)
        assert (outcome is None) == (operation != "UploadPart")
    assert counting_server.uploads() == []
    assert client._runtime.budget.used == 0


def test_an_abort_that_takes_long_holds_no_other_request_up() -> None:
    pool, may_end, has_begun = Pool(8), threading.Event(), threading.Event()

    def take_long() -> None:
        has_begun.set()
        may_end.wait(60)

    pool.submit(int).result(10)
    time.sleep(0.1)
    pool.run_soon(take_long)
    assert has_begun.wait(10)
    try:
        assert pool.submit(int).result(10) == 0
    finally:
        may_end.set()


def put(client: S3Client, bucket: str) -> None:
    with client.put_object(bucket, "new") as stream:
        stream.write(bytearray(DATA))


@pytest.mark.skipif(os.name == "nt", reason="its threads start otherwise")
def test_an_interruption_within_the_waiting_for_threads_is_none_of_a_lock(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    for number, interruption in enumerate(each_interruption(threading, _bell)):
        # Like no other, so that its threads are started.
        client = make_client(counting_server, part_size=PART, max_concurrency=2, user_agent_suffix=f"{number}")
        with suppress(KeyboardInterrupt), interrupted(interruption):
            put(client, counting_server.bucket)
    wait_until(lambda: counting_server.uploads() == [])
