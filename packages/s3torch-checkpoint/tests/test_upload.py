"""One upload: whole at a clean end of its block, and absent at any other."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from s3core import S3Client
from s3torch_checkpoint._progress import TransferProgress
from s3torch_checkpoint._threads import StoppedError
from s3torch_checkpoint._upload import upload
from servers.counting import CountingServer

MiB = 2**20


def test_an_error_that_somebody_caught_on_its_way_still_gives_the_upload_up(
    options: dict[str, Any], counting_server: CountingServer
) -> None:
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])

    def write_and_go_on() -> None:
        with (
            TransferProgress("", None, enabled=False) as progress,
            upload(client, counting_server.bucket, "a", progress) as file,
        ):
            file.write(b"the first half")
            try:
                file.write("no bytes")
            except TypeError:
                pass

    with pytest.raises(TypeError, match="bytes-like"):
        write_and_go_on()
    assert counting_server.objects() == {}


class StoppingProgress(TransferProgress):
    """Sets `stop` at the first bytes that are counted."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__("", None, enabled=False)
        self._stop = stop

    def advance(self, length: int) -> None:
        super().advance(length)
        self._stop.set()


@pytest.mark.parametrize("copy", [True, False])
def test_an_upload_is_given_up_in_the_midst_of_a_large_tensor(
    options: dict[str, Any], counting_server: CountingServer, copy: bool
) -> None:
    client = S3Client(options["region"], endpoint=options["endpoint"], s3client_config=options["s3client_config"])
    stop, data = threading.Event(), memoryview(bytearray(256 * MiB))
    with (
        pytest.raises(StoppedError),
        StoppingProgress(stop) as progress,
        upload(client, counting_server.bucket, "a", progress, size_hint=len(data), stop=stop) as file,
    ):
        file.write(data, copy=copy)
    assert progress.done_bytes <= 64 * MiB
    assert counting_server.objects() == {}
    assert counting_server.uploads() == []
