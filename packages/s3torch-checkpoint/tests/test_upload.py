"""One upload: whole at a clean end of its block, and absent at any other."""

from __future__ import annotations

from typing import Any

import pytest

from s3core import S3Client
from s3torch_checkpoint._progress import TransferProgress
from s3torch_checkpoint._upload import upload
from servers.counting import CountingServer


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
