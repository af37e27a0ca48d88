"""PyTorch checkpoints on S3: one object for `torch.save`, many for Distributed Checkpoint; old or new, never broken."""

from s3core import S3ClientConfig, S3Exception

from .__about__ import __version__
from ._checkpoint import S3Checkpoint
from ._errors import (
    CheckpointError,
    CheckpointExistsError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    NoCheckpointError,
)
from ._payload_size import estimate_saved_bytes

__all__ = [
    # Checkpoints of one object
    "S3Checkpoint",
    "estimate_saved_bytes",
    # Settings
    "S3ClientConfig",
    # Errors
    "S3Exception",
    "CheckpointError",
    "CheckpointExistsError",
    "CorruptCheckpointError",
    "IncompleteCheckpointError",
    "NoCheckpointError",
    # Version
    "__version__",
]
