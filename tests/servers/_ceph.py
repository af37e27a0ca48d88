"""Ceph's RADOS Gateway: the independent implementation, which keeps odd keys exactly; from Debian's packages."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from servers._ports import free_ports
from servers._server import S3Server
from servers._supervised import ServerStartError, SupervisedProcess

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_ACCESS_KEY, _SECRET_KEY = "ceph-access-key", "ceph-secret-key"
_START_TIMEOUT_SECONDS = 180


def is_ceph_installed() -> bool:
    """Tell whether all programs of a cluster are here."""
    return all(shutil.which(program) for program in _PROGRAMS)


def start_ceph() -> S3Server:
    """Start a cluster of one monitor, one OSD that stores in memory, and one gateway, on free ports of 127.0.0.1.

    Raises:
        ServerStartError: When it is not installed or does not start.
    """
    if not is_ceph_installed():
        raise ServerStartError("no Ceph here: apt-get install ceph-mon ceph-osd radosgw ceph-common")
    directory = Path(tempfile.mkdtemp(prefix="s3-ceph-"))
    port, first_monitor_port, second_monitor_port = free_ports(3)
    process = SupervisedProcess(
        [
            sys.executable,
            "-m",
            "servers._ceph_main",
            str(directory),
            *map(str, (port, first_monitor_port, second_monitor_port)),
            _ACCESS_KEY,
            _SECRET_KEY,
        ],
        directory,
    )
    process.read_line(_START_TIMEOUT_SECONDS)
    server = S3Server(
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key=_ACCESS_KEY,
        secret_key=_SECRET_KEY,
        name="ceph",
        process=process,
    )
    process.wait_until(server.is_ready, _START_TIMEOUT_SECONDS)
    return server
