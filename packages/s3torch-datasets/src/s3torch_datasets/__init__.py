"""PyTorch datasets and file-like objects over S3."""

from .__about__ import __version__

__all__ = ["__version__"]
