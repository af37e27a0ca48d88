"""The version of s3torch-checkpoint, read by the build."""

__version__ = "0.1.0"
