"""`storage_options` of a save: what one checkpoint is written with that the others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from s3core import S3ClientConfig

from ._settings import S3Settings

# Each is a setting of the client that one save may have for itself.
_OF_THE_CONFIG = ("storage_class", "sse", "sse_kms_key_id", "sse_bucket_key_enabled", "sse_customer_key")


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How one checkpoint is written.

    Args:
        config: Settings of the client that this save alone has.
        metadata: User metadata of the object.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None

    @classmethod
    def parse(cls, storage_options: object) -> SaveOptions:
        """Read the `storage_options` of `Trainer.save_checkpoint`.

        Args:
            storage_options: None, or a mapping with `storage_class`, `metadata` and the `sse…` settings of
                `S3ClientConfig`.

        Raises:
            TypeError: It is no mapping, or holds an option that means nothing here.
        """
        if storage_options is None:
            return cls()
        known = ("metadata", *_OF_THE_CONFIG)
        if not isinstance(storage_options, Mapping):
            raise TypeError(
                f"storage_options is a {type(storage_options).__name__}; it must be a mapping with any of "
                + ", ".join(known)
            )
        unknown = [name for name in storage_options if name not in known]
        if unknown:
            raise TypeError(
                f"storage_options[{unknown[0]!r}] means nothing for a checkpoint on S3; allowed are "
                + ", ".join(known)
                + " (region, endpoint and all else belong to the plugin)"
            )
        metadata = storage_options.get("metadata")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(
                f"storage_options['metadata'] is a {type(metadata).__name__}; it must be a mapping of texts"
            )
        for name, value in (metadata or {}).items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"storage_options['metadata'] has {name!r}: {value!r}; both must be texts")
        config = {name: value for name, value in storage_options.items() if name in _OF_THE_CONFIG}
        return cls(config, metadata)

    def apply(self, settings: S3Settings) -> S3Settings:
        """The settings with these options in them.

        Args:
            settings: Those of the plugin.

        Raises:
            ConfigError: A value cannot work.
        """
        if not self.config:
            return settings
        config = dataclasses.replace(settings.s3client_config or S3ClientConfig(), **self.config)
        return S3Settings(settings.region, settings.endpoint, config)
