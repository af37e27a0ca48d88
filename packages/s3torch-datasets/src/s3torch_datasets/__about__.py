"""The version of s3torch-datasets, read by the build."""

__version__ = "0.1.0"
