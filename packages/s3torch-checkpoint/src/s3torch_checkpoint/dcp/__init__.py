"""Distributed Checkpoint on S3: writer and reader for `torch.distributed.checkpoint`."""

from ._prefix_strategies import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from ._reader import S3StorageReader
from ._writer import S3StorageWriter

__all__ = [
    # Saving and loading
    "S3StorageReader",
    "S3StorageWriter",
    # Where each rank's objects lie
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3PrefixStrategyBase",
]
