"""One S3 client for training jobs: list, read, write, copy and delete, without torch."""

from .__about__ import __version__

__all__ = ["__version__"]
