"""How much of everything there is: enough to measure, or just enough to see that it works."""

from __future__ import annotations

import math
from dataclasses import dataclass

KB, MIB = 1000, 2**20


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the data.

    Attributes:
        name: `full` or `quick`.
        seconds: How long a workload of many objects goes on at most; a slow peer is cut short; not in a
            `quick` run, which a test expects to do all of its little.
        small_objects: How many objects of 100 kB there are.
        image_objects: How many objects of 3 to 7 MB.
        large_bytes: The one large object, and the upload.
        listed_keys: How many keys are listed.
        tar_shards: How many tar files there are.
        samples_per_shard: How many samples of 100 kB each of them has.
        model_bytes: The checkpoint of one file.
        distributed_bytes: The distributed checkpoint.
        openings: How often the first kilobyte is read.
    """

    name: str
    seconds: float
    small_objects: int
    image_objects: int
    large_bytes: int
    listed_keys: int
    tar_shards: int
    samples_per_shard: int
    model_bytes: int
    distributed_bytes: int
    openings: int

    @property
    def uploaded_keys(self) -> int:
        """How many keys are listed in a bucket to which they have to be uploaded."""
        return min(self.listed_keys, 10_000)

    @property
    def uploaded_bytes(self) -> int:
        """About how much is put into a bucket; peers with a format of their own add a copy of the samples each."""
        samples = self.tar_shards * self.samples_per_shard
        objects = (self.small_objects + samples) * 100 * KB + self.image_objects * 5_000 * KB + self.uploaded_keys * KB
        return objects + self.large_bytes + 2 * self.model_bytes + self.distributed_bytes


FULL = Scale("full", 6.0, 8_000, 240, 1024 * MIB, 1_000_000, 8, 500, 1024 * MIB, 512 * MIB, 100)
QUICK = Scale("quick", math.inf, 256, 12, 64 * MIB, 5_000, 2, 64, 32 * MIB, 16 * MIB, 10)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}
