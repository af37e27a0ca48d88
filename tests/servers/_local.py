"""The best local S3 server that this machine can start."""

from __future__ import annotations

from servers._moto import start_moto
from servers._seaweedfs import is_seaweedfs_installed, start_seaweedfs
from servers._server import S3Server


def start_local_server() -> S3Server:
    """Start SeaweedFS where its wheel is installed, and moto where it is not.

    Raises:
        ServerStartError: When it does not start.
    """
    return start_seaweedfs() if is_seaweedfs_installed() else start_moto()
