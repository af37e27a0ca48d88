"""`S3LightningCheckpoint`: the plugin through which Lightning saves, loads and removes checkpoints on S3."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from s3core import NoSuchKeyError, S3ClientConfig, parse_s3_uri
from s3torch_checkpoint import estimate_saved_bytes
from s3torch_datasets import S3Writer

from ._files import FirstErrorFile
from ._library import find_library, imported_libraries
from ._options import SaveOptions
from ._paths import checkpoint_uri, metadata_uri
from ._registration import forget_listings, register_filesystem
from ._repairs import repair_imported
from ._settings import S3Settings, use_settings

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO
else:
    CheckpointIO = find_library().fabric_module("plugins").CheckpointIO

logger = logging.getLogger(__name__)


class S3LightningCheckpoint(CheckpointIO):
    """Saves and loads the checkpoints of a Trainer or a Fabric on S3.

    A checkpoint becomes visible only once it is written to its end; until then, and for ever if writing fails, the
    previous one of that name stays as it was. Making the plugin makes its settings those of `s3://` in this process.

    Args:
        region: AWS region of the bucket; None for the environment's.
        s3client_config: Settings of the client.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        progress: Show a progress bar on rank 0 when a transfer takes longer than a second.

    Example:
        >>> plugin = S3LightningCheckpoint(region="eu-central-1")
        >>> trainer = Trainer(default_root_dir="s3://my-bucket/run", plugins=[plugin])  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        *,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self._settings = S3Settings(region, endpoint, s3client_config)
        self._settings.client  # noqa: B018 (refuses bad settings here, and sends nothing)
        self._progress = progress
        self._install()

    @property
    def settings(self) -> S3Settings:
        """How the plugin reaches S3."""
        return self._settings

    @property
    def region(self) -> str | None:
        """The region as it was given."""
        return self._settings.region

    @property
    def endpoint(self) -> str | None:
        """The endpoint as it was given."""
        return self._settings.endpoint

    @property
    def s3client_config(self) -> S3ClientConfig | None:
        """The settings of the client as they were given."""
        return self._settings.s3client_config

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint as `torch.save` does.

        Args:
            checkpoint: What the Trainer or Fabric wants saved.
            path: `s3://bucket/folder/name.ckpt`.
            storage_options: What this one object is written with: `storage_class`, `metadata` (a mapping of texts) and
                the `sse…` settings of `S3ClientConfig`.

        Raises:
            TypeError: The path spells no S3 URI, or an option means nothing here.
            S3Exception: It could not be written; what was at this path before is still there.
        """
        uri = checkpoint_uri(path)
        self._write(checkpoint, uri, SaveOptions.parse(storage_options), self._progress)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Load a checkpoint as `torch.load` does.

        Args:
            path: `s3://bucket/folder/name.ckpt`.
            map_location: Where to put the tensors; None for the CPU, which is Lightning's default.
            weights_only: Allow only tensors and plain containers; None for the default of the Lightning installed
                (False before 2.6, then torch's own).

        Returns:
            What was saved.

        Raises:
            TypeError: The path spells no S3 URI.
            NoSuchKeyError: There is no such checkpoint, or it is a sharded one, which only the sharded strategies load.
        """
        uri = checkpoint_uri(path)
        if weights_only is None:
            weights_only = default_weights_only()
        try:
            return self._settings.checkpoint.load(
                uri,
                map_location="cpu" if map_location is None else map_location,
                weights_only=weights_only,
                progress=self._progress,
            )
        except NoSuchKeyError:
            if self._settings.checkpoint.exists(metadata_uri(uri)):
                raise NoSuchKeyError(
                    f"{uri} is a sharded checkpoint; load it with S3FSDPStrategy or S3ModelParallelStrategy"
                ) from None
            raise

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, one object or a sharded one, and nothing else. Harmless when there is none.

        Args:
            path: `s3://bucket/folder/name.ckpt`.

        Raises:
            TypeError: The path spells no S3 URI.
            ValueError: The path is a whole bucket.
            CorruptCheckpointError: The metadata of a sharded one cannot be read, and its shards stay.
            S3Exception: It could not be removed.
        """
        self._remove(checkpoint_uri(path))

    def teardown(self) -> None:
        """Do nothing: connections are shared, and need no end."""

    def _write(self, checkpoint: Any, uri: str, options: SaveOptions, progress: bool) -> None:
        settings = options.apply(self._settings)
        try:
            if options.metadata is None:
                settings.checkpoint.save(checkpoint, uri, progress=progress)
            else:
                self._write_with_metadata(checkpoint, uri, settings, options.metadata)
        finally:
            forget_listings(uri)

    def _write_with_metadata(
        self, checkpoint: Any, uri: str, settings: S3Settings, metadata: Mapping[str, str]
    ) -> None:
        bucket, key = parse_s3_uri(uri)
        size = estimate_saved_bytes(checkpoint)
        with S3Writer(settings.client.put_object(bucket, key, size_hint=size, metadata=metadata)) as writer:
            file = FirstErrorFile(writer)
            try:
                torch.save(checkpoint, file)  # type: ignore[arg-type]  # it needs `write` and `flush`
            except BaseException:
                if file.error is not None:
                    raise file.error from None
                raise
            finally:
                file.error = None  # torch's archive writer refers to the file, and the error to that, for ever

    def remove_shards(self, path: Any) -> None:
        """Remove a sharded checkpoint, but not the object of the same name: that has replaced it.

        Args:
            path: `s3://bucket/folder/name.ckpt`.
        """
        self._remove_shards(checkpoint_uri(path))

    def _remove(self, uri: str) -> None:
        try:
            self._settings.checkpoint.delete(uri)
        finally:
            forget_listings(uri)
        self._remove_shards(uri)
        logger.debug("removed %s", uri)

    def _remove_shards(self, uri: str) -> None:
        if self._settings.checkpoint.exists(metadata_uri(uri)):
            from ._sharded import ShardedCheckpoint  # here, for not every torch has what distributed checkpoints need

            ShardedCheckpoint(self._settings, uri).remove()

    def _install(self) -> None:
        """Make the plugin known to whichever Lightning is there, and `s3://` to fsspec."""
        use_settings(self._settings)
        if not register_filesystem():
            logger.info(
                "s3:// in fsspec is served by another package (s3fs?): Lightning asks that one, with its own settings, "
                "which checkpoints exist; s3torch_lightning.register_filesystem(replace=True) changes it"
            )
        for library in imported_libraries():
            # `lightning` and `pytorch_lightning` check plugins against classes of their own.
            library.fabric_module("plugins").CheckpointIO.register(S3LightningCheckpoint)
        repair_imported()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._install()  # in a process started by spawn


def default_weights_only() -> bool | None:
    """What the installed Lightning passes to `torch.load` when nobody says: False before 2.6, then None."""
    load = find_library().fabric_module("utilities.cloud_io")._load
    default: bool | None = inspect.signature(load).parameters["weights_only"].default
    return default
