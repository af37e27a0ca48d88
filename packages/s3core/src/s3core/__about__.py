"""The version of s3core, read by the build."""

__version__ = "0.1.0"
