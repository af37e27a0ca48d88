"""What all connections of a server process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from servers.counting._faults import FaultRules
from servers.counting._operations import S3Service
from servers.counting._records import Records


@dataclass(slots=True)
class Shape:
    """How slow the network pretends to be.

    Attributes:
        latency_seconds: From the end of a request to the first byte of its answer.
        pace_bytes_per_second: Of one connection, in either direction; None for as fast as it goes.
    """

    latency_seconds: float = 0.0
    pace_bytes_per_second: float | None = None


@dataclass(slots=True)
class Site:
    """The objects, the counters and the rules.

    `releases` counts how often what is held was released: a request whose head arrived before is held no more.
    """

    service: S3Service
    shape: Shape = field(default_factory=Shape)
    records: Records = field(default_factory=Records)
    faults: FaultRules = field(default_factory=FaultRules)
    held: list[Callable[[], None]] = field(default_factory=list)
    releases: int = 0
