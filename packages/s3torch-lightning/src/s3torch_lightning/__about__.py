"""The version of s3torch-lightning, read by the build."""

__version__ = "0.1.0"
