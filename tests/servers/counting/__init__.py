"""A small S3 server of our own: it records what is asked, injects faults, and is fast enough to benchmark with."""

from servers.counting._control import send_command
from servers.counting._faults import Fault
from servers.counting._objects import GeneratedObject, GeneratedObjects
from servers.counting._records import RecordedRequest
from servers.counting._server import CountingServer, start_counting_server
from servers.counting._store import Upload

__all__ = [
    # the server
    "CountingServer",
    "start_counting_server",
    "send_command",
    # what it is told
    "Fault",
    "GeneratedObject",
    "GeneratedObjects",
    # what it tells
    "RecordedRequest",
    "Upload",
]
