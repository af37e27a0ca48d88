"""`S3AsyncCheckpoint`: the plugin that lets training go on while a checkpoint is uploaded."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from s3core import S3ClientConfig

from ._checkpoint_io import S3LightningCheckpoint
from ._options import SaveOptions
from ._paths import checkpoint_uri, metadata_uri
from ._snapshot import Snapshot, take_snapshot
from ._uploads import UploadQueue

# How Lightning names the checkpoints of a job that SLURM requeues, and looks for them.
_OF_SLURM = "hpc_ckpt_"


class S3AsyncCheckpoint(S3LightningCheckpoint):
    """Saves checkpoints in the background: training waits for a copy in host memory, not for the network.

    Saves and removals run one after the other, in the order in which they were asked for. A removal whose replacement
    could not be saved is dropped. An error in the background is raised by the next `save_checkpoint`, once that has
    queued its own, or by `teardown`, which the Trainer calls at the end of the training. Call it yourself with Fabric,
    and after what you save when the training has ended, or an error there is only logged. Whatever else happens, also a
    kill in mid-upload, the previous checkpoint stays.

    Args:
        region: AWS region of the bucket; None for the environment's.
        s3client_config: Settings of the client.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        max_in_flight: How many checkpoints may be in host memory, waiting or being uploaded; a further save waits.

    Example:
        >>> plugin = S3AsyncCheckpoint(region="eu-central-1", max_in_flight=1)
        >>> trainer = Trainer(default_root_dir="s3://my-bucket/run", plugins=[plugin])  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        *,
        max_in_flight: int = 2,
    ) -> None:
        if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise ValueError(
                f"max_in_flight is {max_in_flight!r}; it must be a whole number of checkpoints, at least 1"
            )
        super().__init__(region, s3client_config, endpoint)
        self._max_in_flight = max_in_flight
        self._queue = UploadQueue(max_in_flight)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Copy a checkpoint to host memory and queue its upload; wait first while too many are in flight.

        That which Lightning saves when SLURM announces the end of the job has arrived when this returns: the job is
        requeued right after it, and goes on from there.

        Args:
            checkpoint: What the Trainer or Fabric wants saved; it may be changed as soon as this returns.
            path: `s3://bucket/folder/name.ckpt`.
            storage_options: As for `S3LightningCheckpoint`.

        Raises:
            TypeError: The path spells no S3 URI, or an option means nothing here.
            BaseException: What an earlier save or removal raised in the background; this one is queued all the same.
        """
        uri, options = checkpoint_uri(path), SaveOptions.parse(storage_options)
        options.apply(self._settings)  # refuses bad values here, not in the background
        self._uploads.save(uri, lambda: partial(self._upload, take_snapshot(checkpoint), uri, options))
        if uri.rpartition("/")[2].startswith(_OF_SLURM):
            self._uploads.drain()

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Load a checkpoint, after what is in flight has arrived.

        Args:
            path: `s3://bucket/folder/name.ckpt`.
            map_location: As for `S3LightningCheckpoint`.
            weights_only: As for `S3LightningCheckpoint`.

        Raises:
            BaseException: What a save or removal raised in the background.
        """
        self._uploads.drain()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Queue a removal behind the saves before it; it is dropped if one of those fails.

        Args:
            path: `s3://bucket/folder/name.ckpt`.
        """
        uri = checkpoint_uri(path)
        self._uploads.remove(uri, partial(self._remove, uri))

    def remove_shards(self, path: Any) -> None:
        """Queue the removal of a sharded checkpoint behind the save of the object that replaces it.

        Args:
            path: `s3://bucket/folder/name.ckpt`.
        """
        uri = checkpoint_uri(path)
        # Under the name of what makes them a checkpoint: what lies at the URI itself is not touched.
        self._uploads.remove(metadata_uri(uri), partial(self._remove_shards, uri))

    def teardown(self) -> None:
        """Wait until everything has arrived.

        Raises:
            BaseException: What a save or removal raised in the background.
        """
        self._uploads.drain()

    @property
    def _uploads(self) -> UploadQueue:
        if self._queue.pid != os.getpid():  # a forked child: what is in flight is the parent's
            self._queue = UploadQueue(self._max_in_flight)
        return self._queue

    def _upload(self, snapshot: Snapshot, uri: str, options: SaveOptions) -> None:
        self._write(snapshot.restore(), uri, options, progress=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_queue"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._queue = UploadQueue(self._max_in_flight)
