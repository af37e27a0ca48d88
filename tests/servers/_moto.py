"""moto's S3 server: everywhere within a second, checks no signatures, forgives much."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from servers._server import S3Server
from servers._supervised import SupervisedProcess

_START_TIMEOUT_SECONDS = 120


def start_moto() -> S3Server:
    """Start moto's S3 server on a free port of 127.0.0.1.

    It runs in a process of its own: moto keeps its buckets in globals, which two servers in one process would share.

    Raises:
        ServerStartError: When it does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="s3-moto-"))
    process = SupervisedProcess([sys.executable, "-m", "servers._moto_main"], directory)
    port = int(process.read_line(_START_TIMEOUT_SECONDS))
    return S3Server(
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key="moto-access-key",
        secret_key="moto-secret-key",
        name="moto",
        process=process,
    )
