"""One request on its way in, and its answer on its way out."""

from __future__ import annotations

from servers.counting._bodies import Body, ChunkDecoder
from servers.counting._errors import S3Error
from servers.counting._faults import Fault
from servers.counting._messages import Bytes, Request, Response
from servers.counting._records import RecordedRequest


class Exchange:
    """One request on its way in and its answer on its way out."""

    def __init__(
        self,
        request: Request,
        operation: str,
        body: Body,
        record: RecordedRequest | None,
        fault: Fault | None,
        began: float,
        releases: int,
    ) -> None:
        self.request = request
        self.operation = operation
        self.body = body
        self.record = record
        self.fault = fault
        self.began = began
        self.releases = releases
        self.received = 0
        self.response: Response | None = None
        self.sent = 0
        self.left = 0
        self._pieces: list[Bytes] = []
        self._answering: float | None = None
        headers = request.headers
        self.is_last = headers.get("connection", "").lower() == "close"
        self._to_come = int(headers.get("content-length") or 0)
        self._chunks: ChunkDecoder | None = None
        self._inner_chunks: ChunkDecoder | None = None
        write = body.write
        if "aws-chunked" in headers.get("content-encoding", ""):
            self._inner_chunks = ChunkDecoder(write)
            write = self._inner_chunks.feed  # type: ignore[assignment]  # what it returns is of no use here
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunks = ChunkDecoder(write)
        self._write = write

    @property
    def is_received(self) -> bool:
        """Whether the whole body of the request is here."""
        return self._chunks.is_done if self._chunks is not None else self._to_come == 0

    def receive(self, data: Bytes) -> Bytes:
        """Take more of the request's body; return what is behind it."""
        if self._chunks is not None:
            rest = self._chunks.feed(data)
            self.received += len(data) - len(rest)
            return rest
        piece = data if len(data) <= self._to_come else data[: self._to_come]
        self._write(piece)
        self._to_come -= len(piece)
        self.received += len(piece)
        return data[len(piece) :]

    def check_body(self) -> None:
        """Check a body that is here as far as HTTP goes, and take its trailers for headers.

        Raises:
            S3Error: S3's own chunks in it are not all here.
        """
        inner = self._inner_chunks
        if inner is not None:
            size = self.request.headers.get("x-amz-decoded-content-length")
            if not inner.is_done or size not in (None, str(inner.size)):
                raise S3Error(400, "IncompleteBody", f"the body ends after {inner.size} bytes in chunks")
            self.request.headers.update(inner.trailers)

    def limit_body(self) -> None:
        """Set out how much of the body is sent at all."""
        response, fault = self.response, self.fault
        assert response is not None
        self._pieces = list(response.body)
        self.left = sum(map(len, self._pieces))
        for most in (fault.truncate, fault.cut) if fault is not None else ():
            self.left = self.left if most is None else min(self.left, most)

    def answering(self, now: float) -> float:
        """When the answer began."""
        if self._answering is None:
            self._answering = now
        return self._answering

    def take(self, most: int) -> list[Bytes]:
        """The next bytes of the body, at most so many."""
        taken = []
        most = min(most, self.left)
        while most:
            piece = self._pieces[0]
            if len(piece) > most:
                piece, self._pieces[0] = memoryview(piece)[:most], memoryview(piece)[most:]
            else:
                del self._pieces[0]
            taken.append(piece)
            most -= len(piece)
            self.left -= len(piece)
            self.sent += len(piece)
        return taken
