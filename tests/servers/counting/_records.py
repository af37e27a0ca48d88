"""What was asked of the server: counters always, and each request where that is wanted."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RecordedRequest:
    """One request and what became of it.

    Attributes:
        method: Such as `GET`.
        path: The path as sent, percent-encoded.
        raw_query: The query as sent.
        query: The query, decoded.
        headers: By lower-case name.
        operation: S3's name for it.
        bucket: The bucket, or empty.
        key: The exact key, or empty.
        connection: Number of the connection that it came on, from 1.
        started_seconds: When its head had arrived, on the server's monotonic clock.
        status: HTTP status of the answer; None while there is none.
        bytes_received: Of its body.
        bytes_sent: Of the answer's body, as far as the operating system took them.
    """

    method: str
    path: str
    raw_query: str
    query: dict[str, str]
    headers: dict[str, str]
    operation: str
    bucket: str
    key: str
    connection: int
    started_seconds: float = field(default_factory=time.monotonic)
    status: int | None = None
    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass(slots=True)
class Records:
    """Counters of one server process.

    Attributes:
        is_recording: Whether each request is kept too.
        requests: Those kept, in the order of their arrival.
        operations: How many requests there were of each operation.
        statuses: How many answers there were of each status.
        connections: How many connections were accepted.
        bytes_received: Of all bodies of requests.
        bytes_sent: Of all bodies of answers.
        in_flight: How many requests are being answered now.
        most_in_flight: The most that were at once.
    """

    is_recording: bool = True
    requests: list[RecordedRequest] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    connections: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    def clear(self) -> None:
        """Start again; what is in flight stays so."""
        self.requests = []
        self.operations, self.statuses = Counter(), Counter()
        self.connections = self.bytes_received = self.bytes_sent = 0
        self.most_in_flight = self.in_flight

    def begin(self, operation: str) -> None:
        """Count a request that arrives."""
        self.operations[operation] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def end(self) -> None:
        """Count a request that is answered, or whose connection is lost."""
        self.in_flight -= 1

    def counters(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "operations": dict(self.operations),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "connections": self.connections,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
        }
