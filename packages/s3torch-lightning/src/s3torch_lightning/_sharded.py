"""A sharded checkpoint at a URI: the shards and Lightning's own part of it, committed together by one PUT."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed.checkpoint.state_dict_loader as dcp_loading
import torch.distributed.checkpoint.state_dict_saver as dcp_saving
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata

from s3core import AccessDeniedError, parse_s3_uri
from s3torch_checkpoint import CorruptCheckpointError
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter, delete_checkpoint

from ._paths import metadata_uri
from ._registration import forget_listings
from ._settings import S3Settings

# Lightning keeps what is no shard (loops, callbacks, the user's own) in a file beside the shards, which a crash between
# the two would leave to another save. Here it is an item of the checkpoint, and the file is a copy for stock readers.
META_ITEM = "lightning_meta"
META_NAME = "meta.pt"


def pickled_meta(meta: Mapping[str, Any]) -> bytes:
    """What is not sharded, as `torch.save` writes it.

    Args:
        meta: It, by name.

    Raises:
        Exception: It cannot be pickled.
    """
    buffer = io.BytesIO()
    torch.save(dict(meta), buffer)
    return buffer.getvalue()


class ShardedCheckpoint:
    """One sharded checkpoint; all ranks call its methods together, and all that one of these reads is of one save.

    Args:
        settings: How to reach S3.
        uri: `s3://bucket/folder`.
        progress: Show a progress bar on rank 0 when a transfer takes longer than a second.
    """

    def __init__(self, settings: S3Settings, uri: str, *, progress: bool = True) -> None:
        self.uri = uri.rstrip("/")
        self._settings = settings
        self._progress = progress
        self._save_ids: set[str | None] = set()

    def exists(self) -> bool:
        """Whether a sharded checkpoint was committed here, and no object of the same name after it; for one rank.

        The plugin saves one object without a look at what lies below its name. S3 tells the time in whole seconds;
        within one, the shards count as the younger.
        """
        shards = self._settings.client.find_object(*parse_s3_uri(metadata_uri(self.uri)))
        if shards is None:
            return False
        try:
            whole = self._settings.client.find_object(*parse_s3_uri(self.uri))
        except AccessDeniedError:  # the answer for what is not there, to whoever may read but not list
            return True
        if whole is None or whole.last_modified is None or shards.last_modified is None:
            return True
        return whole.last_modified <= shards.last_modified

    def require(self) -> None:
        """Say what is wrong when there is none; for one rank to ask.

        Raises:
            NoCheckpointError: There is nothing at this URI.
            IncompleteCheckpointError: There are objects of a checkpoint that was never committed.
        """
        self.reader().read_metadata()

    def save(self, state: dict[str, Any], meta: bytes | None) -> None:
        """Write and commit; the checkpoint that was here stays until then.

        Args:
            state: What is sharded: models and optimizers.
            meta: On rank 0 what is not, from `pickled_meta`; None on the others.

        Raises:
            Exception: Some rank could not write; nothing was committed.
        """
        state = dict(state)
        if meta is not None:
            state[META_ITEM] = meta
        writer = S3StorageWriter(
            self._settings.region,
            self.uri,
            endpoint=self._settings.endpoint,
            s3client_config=self._settings.s3client_config,
            progress=self._progress,
        )
        dcp_saving.save(state, storage_writer=writer)

    def tidy(self, meta: bytes) -> None:
        """After a save, on one rank: write the copy for stock readers, and remove an object of the same name.

        Args:
            meta: What `save` was given.
        """
        copy = f"{self.uri}/{META_NAME}"
        with self._settings.checkpoint.writer(copy) as writer:
            writer.write(meta)
        self._settings.client.delete_object(*parse_s3_uri(self.uri))
        forget_listings(copy)

    def remove(self) -> None:
        """On one rank: delete the shards and Lightning's own part, and nothing else that lies below their name.

        Raises:
            CorruptCheckpointError: The metadata cannot be read, so that it cannot be known what it names; all stays.
        """
        try:
            delete_checkpoint(
                self.uri,
                region=self._settings.region,
                endpoint=self._settings.endpoint,
                s3client_config=self._settings.s3client_config,
            )
            self._settings.checkpoint.delete(f"{self.uri}/{META_NAME}")
        finally:
            forget_listings(metadata_uri(self.uri))

    def load(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Read shards into place.

        Args:
            state: What is wanted; its tensors are filled.
            strict: Refuse a checkpoint that lacks some of it.

        Raises:
            RuntimeError: The checkpoint lacks an item.
            CheckpointException: A rank could not read, or the checkpoint was replaced since the first `load`.
        """
        planner = None if strict else DefaultLoadPlanner(allow_partial_load=True)
        dcp_loading.load(state, storage_reader=self.reader(), planner=planner)

    def load_meta(self, *, weights_only: bool | None) -> dict[str, Any]:
        """Read what is not sharded.

        Args:
            weights_only: As for `torch.load`.
        """
        reader = self.reader()
        if META_ITEM in reader.read_metadata().state_dict_metadata:
            state: dict[str, Any] = {META_ITEM: b""}
            dcp_loading.load(state, storage_reader=reader)
            data = io.BytesIO(state[META_ITEM])
            meta: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=weights_only)
            return meta
        meta = self._settings.checkpoint.load(
            f"{self.uri}/{META_NAME}",
            map_location="cpu",
            weights_only=weights_only,
            progress=False,
        )
        return meta

    def reader(self) -> S3StorageReader:
        """A reader of this checkpoint, for torch's own loading functions too; it refuses another save than the first.

        A model, its optimizers and the rest are read one after the other, and each time the metadata is read anew.
        """
        return _ReaderOfOneSave(
            self._save_ids,
            self._settings.region,
            self.uri,
            endpoint=self._settings.endpoint,
            s3client_config=self._settings.s3client_config,
            progress=self._progress,
        )


class _ReaderOfOneSave(S3StorageReader):
    def __init__(self, save_ids: set[str | None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._save_ids = save_ids

    # Not `read_metadata`, whose errors torch takes for a sign that each rank has saved on its own.
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._save_ids.add(getattr(metadata.storage_meta, "save_id", None))
        if len(self._save_ids) > 1:
            raise CorruptCheckpointError(
                f"{self.path} was replaced by a newer checkpoint while it was loaded, and a part of the older one is "
                "in place; load it again"
            )
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
