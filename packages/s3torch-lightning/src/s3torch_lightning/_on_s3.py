"""What the four sharded strategies share: where a path leads, and who writes, reads and reports for the others."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from s3core import S3ClientConfig, parse_s3_uri

from ._agreement import from_rank_zero, sendable
from ._checkpoint_io import S3LightningCheckpoint
from ._paths import checkpoint_uri, meant_uri
from ._registration import forget_listings
from ._repairs import repair_imported
from ._settings import S3Settings, current_settings
from ._sharded import ShardedCheckpoint, pickled_meta

T = TypeVar("T")

_CHUNK_BYTES = 8 * 2**20


class OnS3:
    """Saves and loads on S3 for a strategy that is mixed with it; paths on a local disk are left to the strategy.

    Args:
        *args: As for the strategy.
        region: AWS region of the bucket; None for the plugin's, or the environment's.
        endpoint: URL of an S3-compatible store; None for the plugin's, for AWS, or the environment's.
        s3client_config: Settings of the client; None for the plugin's.
        **kwargs: As for the strategy.
    """

    # Of the strategies that this is mixed with.
    broadcast: Callable[..., Any]
    is_global_zero: bool
    local_rank: int

    def __init__(
        self,
        *args: Any,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        repair_imported()
        own = S3Settings(region, endpoint, s3client_config)
        # Without settings of its own, the strategy has those of the plugin, which may be made after it.
        self._own_plugin = S3LightningCheckpoint(region, s3client_config, endpoint) if own != S3Settings() else None

    @property
    def _plugin(self) -> S3LightningCheckpoint:
        """The strategy's own plugin, or the Trainer's, or one with the settings of the plugin made last."""
        given: Any = getattr(self, "_checkpoint_io", None)
        while given is not None and not isinstance(given, S3LightningCheckpoint):
            given = getattr(given, "checkpoint_io", None)  # wrapped, as by AsyncCheckpointIO
        if self._own_plugin is None and given is None:
            settings = current_settings()
            self._own_plugin = S3LightningCheckpoint(settings.region, settings.s3client_config, settings.endpoint)
        plugin = self._own_plugin or given
        assert plugin is not None
        return plugin

    def _common_uri(self, path: Any) -> str | None:
        """The URI that rank 0 means, for all ranks, without a `/` at its end; None for a path on the local disk."""

        def read() -> str | None:
            uri = meant_uri(path)
            return None if uri is None else checkpoint_uri(uri).rstrip("/")

        return self._on_rank_zero(read)

    def _folder(self, uri: str) -> ShardedCheckpoint:
        return ShardedCheckpoint(self._plugin.settings, uri)

    def _save_shards(self, state: dict[str, Any], meta: Mapping[str, Any], uri: str) -> None:
        self._finish_background()
        folder = self._folder(uri)
        pickled: list[bytes] = []
        # First, for in the midst of the save an error of rank 0 alone would leave the others waiting.
        self._on_rank_zero(lambda: pickled.append(pickled_meta(meta)))
        folder.save(state, pickled[0] if self.is_global_zero else None)
        self._on_rank_zero(lambda: folder.tidy(pickled[0]))

    def _is_sharded(self, uri: str) -> bool:
        """Whether a checkpoint is sharded or one object; where both lie, the younger is meant.

        Raises:
            FileNotFoundError: There is neither.
        """
        self._finish_background()

        def look() -> bool:
            folder = self._folder(uri)
            if folder.exists():
                return True
            if self._plugin.settings.checkpoint.exists(uri):
                return False
            folder.require()
            return True

        return self._on_rank_zero(look)

    def _finish_background(self) -> None:
        """Wait for a plugin that works in the background: it may have yet to remove, or write, this very name."""
        self._on_rank_zero(self._plugin.teardown)

    def _on_rank_zero(self, work: Callable[[], T]) -> T:
        """Do something on rank 0, and give its result, or its error, to all ranks: none is left waiting."""
        return from_rank_zero(work, self.is_global_zero, self.broadcast)

    @contextmanager
    def _local_path(self) -> Iterator[Path]:
        """A path on each node's local disk for one file, the same for all ranks, which is gone afterwards."""
        name = self.broadcast(f"s3torch-lightning-{uuid.uuid4().hex}.ckpt" if self.is_global_zero else None)
        path = Path(tempfile.gettempdir()) / name
        try:
            yield path
        finally:
            if self.local_rank == 0:
                path.unlink(missing_ok=True)

    @contextmanager
    def _downloaded(self, uri: str) -> Iterator[Path]:
        """One object as a file on each node's local disk, for as long as the block lasts."""
        with self._local_path() as path:
            error: Exception | None = None
            if self.local_rank == 0:
                try:
                    self._download(uri, path)
                except Exception as raised:
                    error = sendable(raised)
            self._raise_first(error)
            yield path
            self._raise_first(None)  # no node deletes the file before all its ranks have read it

    def _download(self, uri: str, path: Path) -> None:
        bucket, key = parse_s3_uri(uri)
        with self._plugin.settings.client.get_object(bucket, key) as stream, open(path, "wb") as file:
            for chunk in stream:
                file.write(chunk)

    def _upload(self, path: Path, uri: str) -> None:
        bucket, key = parse_s3_uri(uri)
        size = os.stat(path).st_size
        stream = self._plugin.settings.client.put_object(bucket, key, size_hint=size or None)
        with stream, open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                stream.write(chunk)
        forget_listings(uri)

    def _raise_first(self, error: Exception | None) -> None:
        """Raise on all ranks what any of them has met."""
        errors = [error]
        if dist.is_available() and dist.is_initialized():
            errors = [None] * dist.get_world_size()
            dist.all_gather_object(errors, error)
        first = next((each for each in errors if each is not None), None)
        if first is not None:
            raise first
