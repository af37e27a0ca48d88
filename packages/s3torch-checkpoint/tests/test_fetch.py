"""Carrying out a fetch plan: once it has raised, nothing is written to the caller's memory any more."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from interruptions import each_interruption, interrupted
from s3core import S3Client
from s3torch_checkpoint import _fetch
from s3torch_checkpoint._fetch import fetch_pieces
from s3torch_checkpoint._fetch_plan import Want
from s3torch_checkpoint._progress import TransferProgress
from servers.counting import CountingServer

MiB = 2**20


class BufferPiece:
    """Bytes for a buffer of its own."""

    def __init__(self, want: Want, error: BaseException | None = None) -> None:
        self.want = want
        self.memory_bytes = want.end - want.start
        self.data = bytearray(self.memory_bytes)
        self._error = error

    def open(self) -> memoryview:
        return memoryview(self.data)

    def finish(self) -> None:
        if self._error is not None:
            raise self._error


def test_an_error_ends_the_transfers_before_it_is_raised(
    options: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put("a", b"x" * 4 * MiB)
    counting_server.fault(operation="GetObject", skip=1, delay_seconds=0.3)
    first = BufferPiece(Want("a", 0, 2 * MiB), RuntimeError("on purpose"))
    pieces = [first, BufferPiece(Want("a", 2 * MiB, 4 * MiB))]
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    with TransferProgress("", None, enabled=False) as progress, pytest.raises(RuntimeError, match="on purpose"):
        fetch_pieces(client, counting_server.bucket, pieces, progress, window_bytes=2 * MiB)
    before = bytes(pieces[1].data)
    time.sleep(0.5)
    assert bytes(first.data) == b"x" * 2 * MiB
    assert bytes(pieces[1].data) == before


def test_nothing_is_written_after_ctrl_c_however_late_the_answer_comes(
    options: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put("early", b"x" * 100)
    counting_server.put("late", b"y" * 100)
    counting_server.fault(operation="GetObject", key="late", hold=True)
    late = BufferPiece(Want("late", 0, 100))
    pieces = [BufferPiece(Want("early", 0, 100), KeyboardInterrupt()), late]
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    with TransferProgress("", None, enabled=False) as progress, pytest.raises(KeyboardInterrupt):
        fetch_pieces(client, counting_server.bucket, pieces, progress)
    left = [thread for thread in threading.enumerate() if thread.name == "s3torch-checkpoint-load"]
    counting_server.release()
    for thread in left:
        thread.join(60)
    assert late.data == bytes(100)


def test_nothing_is_written_after_an_interruption_at_any_instruction(
    options: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put("a", b"x" * 1000)
    counting_server.fault(operation="GetObject", delay_seconds=0.02)
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    with TransferProgress("", None, enabled=False) as progress:
        for interruption in each_interruption(_fetch, threading):
            piece = BufferPiece(Want("a", 0, 1000))
            # In a condition of `threading` it becomes an error about its lock.
            with suppress(KeyboardInterrupt, RuntimeError), interrupted(interruption):
                fetch_pieces(client, counting_server.bucket, [piece], progress)
            if interruption.came:
                before = bytes(piece.data)
                time.sleep(0.05)
                assert bytes(piece.data) == before
            else:
                assert bytes(piece.data) == b"x" * 1000


def test_a_piece_is_finished_while_others_are_still_on_their_way(
    options: dict[str, Any], counting_server: CountingServer
) -> None:
    counting_server.put("early", b"x" * 100)
    counting_server.put("late", b"y" * 100)
    counting_server.fault(operation="GetObject", key="late", times=1, delay_seconds=0.5)
    late, seen = BufferPiece(Want("late", 0, 100)), list[bytes]()

    class EarlyPiece(BufferPiece):
        def finish(self) -> None:
            seen.append(bytes(late.data))

    pieces = [EarlyPiece(Want("early", 0, 100)), late]
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    with TransferProgress("", None, enabled=False) as progress:
        etags = fetch_pieces(client, counting_server.bucket, pieces, progress)
    assert seen == [bytes(100)]
    assert late.data == b"y" * 100
    assert etags == {key: client.head_object(counting_server.bucket, key).etag for key in ("early", "late")}
