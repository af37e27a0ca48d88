"""The settings that `s3://` has in this process: those of the plugin that was made last."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

from s3core import S3Client, S3ClientConfig
from s3torch_checkpoint import S3Checkpoint


@dataclass(frozen=True)
class S3Settings:
    """How to reach S3; nothing is sent, and no client is made, before the first use.

    Args:
        region: AWS region of the buckets; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
    """

    region: str | None = None
    endpoint: str | None = None
    s3client_config: S3ClientConfig | None = None

    @cached_property
    def client(self) -> S3Client:
        """A client of these settings."""
        return S3Client(self.region, endpoint=self.endpoint, s3client_config=self.s3client_config)

    @cached_property
    def checkpoint(self) -> S3Checkpoint:
        """What saves and loads with these settings."""
        return S3Checkpoint(self.region, self.endpoint, self.s3client_config)


_lock = threading.Lock()
_current = S3Settings()


def current_settings() -> S3Settings:
    """The settings of the plugin that was made last, or the environment's when there was none."""
    return _current


def use_settings(settings: S3Settings) -> None:
    """Make settings those of every `s3://` that Lightning looks at from now on.

    Args:
        settings: The settings.
    """
    global _current
    with _lock:
        _current = settings
