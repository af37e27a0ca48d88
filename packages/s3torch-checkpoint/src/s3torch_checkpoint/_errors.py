"""What can be wrong with a checkpoint, apart from what can be wrong with S3."""

from __future__ import annotations

from s3core import S3Exception


class CheckpointError(S3Exception):
    """Something is wrong with a checkpoint; the message names it and says what to do."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at this URI."""


class IncompleteCheckpointError(CheckpointError, FileNotFoundError):
    """There are objects of a checkpoint at this URI, but not all: its save never finished, or some were deleted."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """A checkpoint lies at this URI and was not to be overwritten."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """The objects of a checkpoint contradict each other, or are not what they should be."""
