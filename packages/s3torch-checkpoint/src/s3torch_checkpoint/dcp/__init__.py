"""Distributed Checkpoint on S3: `torch.distributed.checkpoint` writes to a bucket and reads from it."""

from ._convert import dcp_to_torch, torch_to_dcp
from ._file_system import S3FileSystem
from ._housekeeping import CheckpointInfo, clean, delete_checkpoint, keep_last, latest, list_checkpoints
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
    "S3FileSystem",
    # Where each rank's objects lie
    "S3PrefixStrategyBase",
    "DefaultPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "BinaryPrefixStrategy",
    "HexPrefixStrategy",
    # Housekeeping
    "CheckpointInfo",
    "latest",
    "list_checkpoints",
    "keep_last",
    "delete_checkpoint",
    "clean",
    # Conversion
    "dcp_to_torch",
    "torch_to_dcp",
]
