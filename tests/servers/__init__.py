"""Local S3 servers for tests, examples, benchmarks and the demo: each starts by itself and ends with its owner."""

from servers._ceph import is_ceph_installed, start_ceph
from servers._listener import Listener
from servers._local import start_local_server
from servers._moto import start_moto
from servers._ports import free_ports
from servers._seaweedfs import is_seaweedfs_installed, start_seaweedfs
from servers._server import S3Server
from servers._supervised import ServerStartError, SupervisedProcess
from servers._waiting import wait_until
from servers.counting import CountingServer, RecordedRequest, start_counting_server

__all__ = [
    # the servers
    "start_ceph",
    "start_counting_server",
    "start_local_server",
    "start_moto",
    "start_seaweedfs",
    "is_ceph_installed",
    "is_seaweedfs_installed",
    # what they return and raise
    "CountingServer",
    "RecordedRequest",
    "S3Server",
    "ServerStartError",
    # for a server of another kind
    "Listener",
    "SupervisedProcess",
    "free_ports",
    "wait_until",
]
