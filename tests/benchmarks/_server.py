"""The local servers of a run: one that behaves like S3 inside a region, one as fast as the machine."""

from __future__ import annotations

import os
from dataclasses import replace

from benchmarks._scale import Scale
from benchmarks._target import Target
from servers.counting import CountingServer, start_counting_server

# "30 ms to the first byte and about 90 MB/s per connection are typical inside a region": design of this project, and
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html
LATENCY_SECONDS = 0.030
PACE_BYTES_PER_SECOND = 90e6

SETTINGS = ("shaped", "loopback")

_BUCKET = "bench"
# So many that the server does not hold the client up, and leaves it half of the machine.
_PROCESSES = max(2, (os.cpu_count() or 2) // 2)
_DROPPED = "sink/"
_KEPT_PIECES = 160  # A checkpoint of 1 GiB in parts of 8 MiB, and some.


def start(setting: str, scale: Scale, local_directory: str) -> tuple[CountingServer, Target]:
    """Start the server of a setting.

    Raises:
        ServerStartError: When it does not start.
    """
    is_shaped = setting == "shaped"
    plan = Target(
        setting=setting,
        scale_name=scale.name,
        bucket=_BUCKET,
        prefix="",
        region="us-east-1",
        endpoint="",
        access_key="bench-access-key",
        secret_key="bench-secret-key",
        local_directory=local_directory,
        latency_seconds=LATENCY_SECONDS if is_shaped else 0.0,
        pace_bytes_per_second=PACE_BYTES_PER_SECOND if is_shaped else None,
    )
    server = start_counting_server(
        processes=_PROCESSES,
        latency_seconds=plan.latency_seconds,
        pace_bytes_per_second=plan.pace_bytes_per_second,
        is_recording=False,
        is_md5=False,
        kept_pieces=_KEPT_PIECES,
        dropped=_DROPPED,
        generated=plan.folders(),
    )
    return server, replace(plan, endpoint=server.endpoint)
