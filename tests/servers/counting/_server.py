"""The counting server as a test sees it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from servers._server import S3Server
from servers._supervised import SupervisedProcess
from servers.counting._control import send_command
from servers.counting._faults import Fault
from servers.counting._objects import GeneratedObjects
from servers.counting._records import RecordedRequest
from servers.counting._settings import Settings
from servers.counting._site import Shape
from servers.counting._store import Store, StoredObject, Upload

_START_TIMEOUT_SECONDS = 120
_WAIT_SECONDS = 0.005
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_NEEDED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class CountingServer(S3Server):
    """A small S3 server of our own that records every request and does as it is told.

    Objects are put and read behind its back, in the directory that it serves: that is not counted.

    Attributes:
        bucket: The bucket that the methods mean when they are not told another.
        root: The directory that it serves.
        control_ports: Of each of its processes.
        others: Its processes after the first.
        ignored_buckets: Requests to them do not count: those of an earlier test may still arrive.
    """

    bucket: str = ""
    root: str = ""
    control_ports: tuple[int, ...] = ()
    is_md5: bool = True
    others: tuple[SupervisedProcess, ...] = field(default=(), repr=False, compare=False)
    ignored_buckets: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    # What it holds.

    def create_bucket(self) -> str:
        """Create an empty bucket of a name never used before, and return the name."""
        bucket = f"bucket-{uuid.uuid4().hex[:16]}"
        self._store.create_bucket(bucket)
        return bucket

    def put(
        self, key: str, data: bytes | memoryview, *, bucket: str | None = None, headers: Mapping[str, str] | None = None
    ) -> str:
        """Put an object.

        Args:
            key: The exact key.
            data: Its bytes.
            bucket: Another bucket than `bucket`.
            headers: To answer with, in lower case, such as `{"x-amz-storage-class": "GLACIER"}`.

        Returns:
            Its ETag, quoted.
        """
        writer = self._store.new_piece()
        writer.write(data)
        piece = writer.finish()
        self._store.put(bucket or self.bucket, StoredObject(key, piece.etag, [piece], dict(headers or {})))
        return piece.etag

    def get(self, key: str, *, bucket: str | None = None) -> bytes:
        """The bytes of an object.

        Raises:
            KeyError: When there is none of that key.
        """
        found = self._store.get(bucket or self.bucket, key)
        if found is None:
            raise KeyError(key)
        return b"".join(found.views(0, found.size))

    def delete(self, key: str, *, bucket: str | None = None) -> None:
        """Delete an object, if there is one."""
        self._store.delete(bucket or self.bucket, key)

    def objects(self, *, bucket: str | None = None) -> dict[str, bytes]:
        """All objects of a bucket, by key, in the order of the keys."""
        found = sorted(self._store.objects(bucket or self.bucket), key=lambda stored: stored.key)
        return {stored.key: b"".join(stored.views(0, stored.size)) for stored in found}

    def keys(self, *, bucket: str | None = None) -> list[str]:
        """All keys of a bucket, in order."""
        return sorted(stored.key for stored in self._store.objects(bucket or self.bucket))

    def uploads(self) -> list[Upload]:
        """The multipart uploads that are neither completed nor aborted, of all buckets."""
        return self._store.uploads()

    # What was asked of it.

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request since the start or `clear()`, in the order of their arrival."""
        found = [RecordedRequest(**values) for answer in self._send("requests") for values in answer]
        counted = (request for request in found if request.bucket not in self.ignored_buckets)
        return sorted(counted, key=lambda request: request.started_seconds)

    def operations(self) -> list[str]:
        """S3's name for each of the requests, in the order of their arrival."""
        return [request.operation for request in self.requests]

    def counters(self) -> dict[str, Any]:
        """The sums of `Records.counters()` over its processes."""
        total: dict[str, Any] = {}
        for counters in self._send("counters"):
            for name, value in counters.items():
                if isinstance(value, dict):
                    total[name] = dict(Counter(total.get(name, {})) + Counter(value))
                else:
                    total[name] = total.get(name, 0) + value
        return total

    def wait_for_requests(self, count: int, timeout_seconds: float = 120, **attributes: Any) -> list[RecordedRequest]:
        """Return once `count` requests of these attributes have arrived, such as `operation="GetObject"`.

        Raises:
            TimeoutError: When they don't within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = [r for r in self.requests if all(getattr(r, name) == value for name, value in attributes.items())]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} requests with {attributes} within {timeout_seconds:g} s")
            time.sleep(_WAIT_SECONDS)

    def clear(self) -> None:
        """Forget the requests so far; objects and faults stay."""
        self._send("clear")

    def reset(self) -> None:
        """Forget everything: requests, faults, objects, uploads and buckets."""
        self._send("reset")
        self._store.clear()

    # What it does wrong.

    def fault(self, **conditions_and_effects: Any) -> None:
        """Add a rule, see `Fault` for its fields; the first rule that a request meets applies.

        ```python
        server.fault(method="GET", key="a", times=2, status=503, code="SlowDown")
        server.fault(operation="UploadPart", skip=3, times=1, cut_upload=1000)
        ```
        """
        fault = Fault(**conditions_and_effects)
        self._send("fault", fault=fault.to_json())

    def expire_credentials(self, access_key: str | None = None) -> None:
        """Refuse every request, or those signed with that access key id, as S3 refuses an expired session token."""
        self.fault(access_key=access_key, status=400, code="ExpiredToken", message="The provided token has expired.")

    def faults_clear(self) -> None:
        """Drop all rules; what is held stays held."""
        self._send("faults_clear")

    def release(self) -> int:
        """Answer all requests that a rule with `hold` holds, and return how many those were."""
        return int(sum(self._send("release")))

    def shape(self, latency_seconds: float = 0.0, pace_bytes_per_second: float | None = None) -> None:
        """Answer every request this late, and move no connection's bytes faster than this."""
        self._send("shape", latency_seconds=latency_seconds, pace_bytes_per_second=pace_bytes_per_second)

    # Its life.

    def with_new_bucket(self, ignored_buckets: frozenset[str] = frozenset()) -> Self:
        """The same server with another, empty `bucket`; stopping it is left to the first."""
        return replace(self, bucket=self.create_bucket(), process=None, others=(), ignored_buckets=ignored_buckets)

    def stop(self) -> None:
        """End the server and remove what it stored."""
        for process in self.others:
            process.stop()
        super().stop()

    @cached_property
    def _store(self) -> Store:
        return Store(Path(self.root), self.is_md5)

    def _send(self, command: str, **arguments: Any) -> list[Any]:
        return [send_command(port, command, **arguments) for port in self.control_ports]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"others": ()}


def start_counting_server(
    *,
    processes: int = 1,
    latency_seconds: float = 0.0,
    pace_bytes_per_second: float | None = None,
    is_recording: bool = True,
    dropped: str | None = None,
    is_md5: bool = True,
    checks_bodies: bool = False,
    kept_pieces: int = 0,
    generated: Sequence[GeneratedObjects] = (),
) -> CountingServer:
    """Start the counting server on a free port of 127.0.0.1.

    Args:
        processes: How many serve the port. Faults and `shape` are each process's own: a rule with `times=1` hits
            once in each.
        latency_seconds: From the end of a request to the first byte of its answer.
        pace_bytes_per_second: Of one connection, in either direction; None for as fast as it goes.
        is_recording: Whether each request is kept; if not, there are only the counters.
        dropped: Prefix of the keys whose bytes are counted and dropped when they are uploaded, and read back as zeros.
        is_md5: Whether ETags are MD5 sums as on S3, or arbitrary ones that cost nothing.
        checks_bodies: Whether bodies are compared with the checksums that their requests state, as on S3, save those
            that are dropped.
        kept_pieces: How many files of removed pieces are kept for the next ones, in place of fresh memory.
        generated: Folders of objects that are made up as they are read.

    Raises:
        ServerStartError: When it does not start.
    """
    root = Path(tempfile.mkdtemp(prefix="s3-counting-", dir=_storage()))
    shape = Shape(latency_seconds, pace_bytes_per_second)
    settings = Settings(
        str(root / "store"),
        is_shared=processes > 1,
        is_recording=is_recording,
        dropped=dropped,
        is_md5=is_md5,
        checks_bodies=checks_bodies,
        kept_pieces=kept_pieces,
        shape=shape,
        generated=tuple(generated),
    )
    started, control_ports = [], []
    for number in range(processes):
        process = SupervisedProcess(
            [sys.executable, "-m", "servers.counting._main", settings.to_json()],
            root if number == 0 else Path(tempfile.mkdtemp(prefix="s3-counting-")),
        )
        port, control_port = json.loads(process.read_line(_START_TIMEOUT_SECONDS))
        settings = replace(settings, port=port)
        started.append(process)
        control_ports.append(control_port)
    server = CountingServer(
        endpoint=f"http://127.0.0.1:{settings.port}",
        region="us-east-1",
        access_key="counting-access-key",
        secret_key="counting-secret-key",
        name="counting",
        process=started[0],
        root=settings.root,
        control_ports=tuple(control_ports),
        is_md5=is_md5,
        others=tuple(started[1:]),
    )
    return replace(server, bucket=server.create_bucket())


def _storage() -> Path | None:
    """Memory, where there is a file system of it with room enough; else where temporary files are."""
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > _SHARED_MEMORY_NEEDED_BYTES:
        return _SHARED_MEMORY
    return None
