"""`S3StorageWriter`: saves a distributed checkpoint so that it is there as a whole, or not at all."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from s3core import S3Client, S3ClientConfig

from .._address import CheckpointAddress
from .._checks import check_count
from .._errors import CheckpointError, CheckpointExistsError, IncompleteCheckpointError
from .._progress import TransferProgress
from .._threads import run_all
from .._upload import upload
from . import _staging
from ._commit import (
    EarlyLook,
    commit,
    commit_as_first,
    delete_quietly,
    find_metadata,
    missing_items,
    rank_metadata_names,
)
from ._names import METADATA_NAME, data_name, new_save_id, rank_metadata_name
from ._portable_errors import portable_errors
from ._prefix_strategies import DefaultPrefixStrategy, S3PrefixStrategyBase
from ._save_items import FilePlan, ItemWriter, deal_items, stored_size

# Below this many bytes a further file costs more in requests than it brings in parallel work.
_MIN_FILE_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class _Save:
    """One save: what stays as it is when the writer is turned to the next one.

    Args:
        address: The checkpoint.
        id: What the names of its data objects end with; no other save has it.
        is_coordinator: Whether this rank commits.
        rank: The rank, for the versions of torch that tell it.
        use_collectives: Whether the ranks save together.
    """

    address: CheckpointAddress
    id: str
    is_coordinator: bool = True
    rank: int | None = None
    use_collectives: bool = True

    @property
    def commits(self) -> bool:
        """Whether this rank writes metadata."""
        return self.is_coordinator or not self.use_collectives

    @property
    def metadata_name(self) -> str:
        """Name of the metadata that makes the save visible."""
        return METADATA_NAME if self.use_collectives or self.rank is None else rank_metadata_name(self.rank)


class _Thread(threading.local):
    """What a writer does in one thread: `async_save` runs the whole of a save in a thread of its own.

    Args:
        address: What the next save of the thread is of; None for the writer's own.
        save: The one that it has begun last.
        look: Tells, where this rank commits, whether there was a checkpoint when that save wrote its data.
    """

    address: CheckpointAddress | None = None
    save: _Save | None = None
    look: EarlyLook | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Thread, ()


class S3StorageWriter(StorageWriter):
    """Writes checkpoints of `torch.distributed.checkpoint` to S3.

    Each save writes its data under names that no other save uses, and becomes visible by one PUT of `.metadata` once
    every rank has written everything. Until then, and for ever if any rank fails, the previous checkpoint at `path`
    stays whole and readable; only after the commit are its objects deleted.

    The writer pickles, so that it works with the process executor of `async_save`. Several saves may be on their way at
    a time, each in a thread of its own, as `async_save` has them; of those to one path the last to commit stays.

    Args:
        region: AWS region of the bucket; None for the environment's.
        path: `s3://bucket/folder` of the checkpoint.
        s3client_config: Settings of the client.
        prefix_strategy: Where each rank's objects lie; None for one folder.
        thread_count: How many files each rank writes at once, where it has enough data.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        overwrite: False refuses to replace a checkpoint that lies at `path`. Of two saves that commit at the same
            moment one raises; where a store does not know the condition for that (`If-None-Match`), mostly.
        single_file_per_rank: False gives every tensor an object of its own.
        progress: Show a progress bar on rank 0 when writing takes longer than a second.
        _extensions: torch's experimental stream transforms, such as its zstandard compression.

    Example:
        >>> writer = S3StorageWriter("eu-central-1", "s3://my-bucket/run/step-100")
        >>> dcp.save({"model": model}, storage_writer=writer)  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 4,
        *,
        endpoint: str | None = None,
        overwrite: bool = True,
        single_file_per_rank: bool = True,
        progress: bool = True,
        _extensions: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        check_count("thread_count", thread_count)
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._address = CheckpointAddress.parse(path)
        self._prefix_strategy = prefix_strategy or DefaultPrefixStrategy()
        self._thread_count = thread_count
        self._overwrite = overwrite
        self._single_file_per_rank = single_file_per_rank
        self._progress = progress
        self._extensions = tuple(_extensions or ())
        self._thread = _Thread()
        self._save = _Save(self._address, new_save_id())  # The one that was begun last, in any thread.

    @property
    def path(self) -> str:
        """The URI of the checkpoint."""
        return self._address.uri()

    @property
    def checkpoint_id(self) -> str:
        """The URI of the checkpoint."""
        return self._address.uri()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an id is an S3 URI."""
        return is_s3_uri(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Turn to another checkpoint, or to a new save of the same one.

        Args:
            checkpoint_id: The URI of the checkpoint to write; None keeps the last one.
        """
        if checkpoint_id is not None:
            self._address = CheckpointAddress.parse(checkpoint_id)
        self._thread.address = self._address
        self._thread.save = None

    def storage_meta(self) -> StorageMeta:
        """What the checkpoint's metadata says about this save."""
        save = self._current
        return StorageMeta(checkpoint_id=save.address.uri(), save_id=save.id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save on this rank.

        Args:
            is_coordinator: Whether this rank commits.
            *args: Not used.
            **kwargs: `rank` and `use_collectives`, from the versions of torch that pass them.
        """
        # `dcp.save` calls `reset` only with a checkpoint_id, and with cached plans the planner hands back an earlier
        # plan. The id is therefore made here, on each rank, for each save: no name is ever written twice.
        address, self._thread.address = self._thread.address or self._address, None
        self._thread.look = None
        self._save = self._thread.save = _Save(
            address, new_save_id(), is_coordinator, kwargs.get("rank"), kwargs.get("use_collectives", True)
        )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuse what must not be overwritten, before anything is written.

        Args:
            plan: The rank's plan.

        Returns:
            The same plan.

        Raises:
            CheckpointExistsError: There is a checkpoint, and `overwrite` is False.
            CheckpointError: The ranks save on their own, under a checkpoint of all of them that would hide theirs.
        """
        save = self._current
        if save.commits:
            self._check_place(save)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell each rank its number, for the versions of torch that do not.

        Args:
            plans: The plans of all ranks.

        Returns:
            The same plans, with the rank's number as their storage data.
        """
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    @portable_errors()
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the rank's items into several objects at once.

        Args:
            plan: What to write.
            planner: Resolves items to tensors and bytes; called from several threads, as torch's own writer does.

        Returns:
            A future that is done: where each item lies.

        Raises:
            BaseException: Whatever the first failing thread raised; what this rank wrote is deleted again.
        """
        save = self._current
        rank = save.rank if save.rank is not None else plan.storage_data
        prefix = self._prefix_strategy(rank if isinstance(rank, int) else 0)
        files = self._plan_files(save, plan, prefix)
        items = ItemWriter(planner, self._extensions)
        total = sum(file.size_hint for file in files)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch.
            # The threads copy from the device on streams of their own, which do not wait for the caller's.
            torch.cuda.synchronize()
        if save.commits and self._overwrite:
            self._thread.look = EarlyLook(self._client, save.address, save.metadata_name)
        try:
            with TransferProgress(f"Saving {save.address.uri()}", total, self._progress) as progress:
                tasks = [partial(self._write_file, save, file, items, progress) for file in files]
                written = run_all(tasks, self._thread_count)
        except Exception:
            delete_quietly(self._client, save.address, [file.name for file in files])
            raise
        results = [result for of_file in written for result in of_file]
        if len(results) != len(plan.items):
            raise CheckpointError(
                f"{len(plan.items)} items were to be written to {save.address.uri()}, but {len(results)} were"
            )
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the save: by one PUT it replaces the checkpoint before it, which is deleted after that.

        Args:
            metadata: The global metadata of the plan.
            results: What each rank wrote.

        Raises:
            IncompleteCheckpointError: A planned item was not written; nothing is committed.
            CheckpointError: Somebody else committed a checkpoint here that must not be replaced, or that would hide
                this one.
        """
        save, look = self._current, self._thread.look
        self._thread.look = None
        stored = {result.index: result.storage_data for of_rank in results for result in of_rank}
        missing = missing_items(metadata, stored)
        try:
            if missing:
                shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
                raise IncompleteCheckpointError(
                    f"the save to {save.address.uri()} was not committed: no rank has written {len(missing)} planned "
                    f"items ({shown})"
                )
            self._check_place(save)
        except CheckpointError:
            delete_quietly(self._client, save.address, {info.relative_path for info in stored.values()})
            raise
        # With cached plans, torch gives all saves of one plan the same object: what is committed is a copy of its own.
        committed = copy.copy(metadata)
        committed.storage_data = stored
        committed.storage_meta = self.storage_meta()
        version = getattr(filesystem, "CURRENT_DCP_VERSION", None)
        if version is not None:
            committed.version = version
        if self._overwrite:
            is_likely_first = look is not None and look.found_nothing()
            commit(self._client, save.address, save.metadata_name, committed, is_likely_first=is_likely_first)
        else:
            commit_as_first(self._client, save.address, save.metadata_name, committed)
        vars(metadata).update(vars(committed))  # `dcp.save` returns it

    if _staging.IS_NEEDED:
        # What torch asks a writer for that copies by itself what an `async_save` is to save.
        _synchronize_after_execute = False
        should_synchronize_after_execute = False

        def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
            """Copy what is to be saved, so that training may go on."""
            return _staging.stage(state_dict)

        def synchronize_staging(self) -> None:
            """Do nothing: the copy is whole when `stage` returns."""

    @property
    def _current(self) -> _Save:
        """The save of this thread, else the one that was begun last."""
        return self._thread.save or self._save

    def _check_place(self, save: _Save) -> None:
        name = save.metadata_name
        if not self._overwrite and (
            self._exists(save, name) or (name == METADATA_NAME and rank_metadata_names(self._client, save.address))
        ):
            raise CheckpointExistsError(
                f"{save.address.uri()} holds a checkpoint and overwrite=False; choose another path, or delete it first"
            )
        if name != METADATA_NAME and self._exists(save, METADATA_NAME):
            raise CheckpointError(
                f"{save.address.uri()} holds a checkpoint saved by all ranks together, which would hide one saved with "
                "use_collectives=False; choose another path, or delete it first"
            )

    def _exists(self, save: _Save, name: str) -> bool:
        return find_metadata(self._client, save.address, name) is not None

    def _plan_files(self, save: _Save, plan: SavePlan, prefix: str) -> list[FilePlan]:
        if self._single_file_per_rank:
            total = sum(map(stored_size, plan.items))
            dealt = deal_items(plan.items, min(self._thread_count, 1 + total // _MIN_FILE_BYTES))
        else:
            dealt = [[item] for item in plan.items]
        return [
            FilePlan(data_name(prefix, index, save.id), items, sum(map(stored_size, items)))
            for index, items in enumerate(dealt)
        ]

    def _write_file(
        self, save: _Save, file: FilePlan, items: ItemWriter, progress: TransferProgress, stop: threading.Event
    ) -> list[WriteResult]:
        bucket, key = save.address.bucket, save.address.key(file.name)
        with upload(self._client, bucket, key, progress, size_hint=file.size_hint, stop=stop) as target:
            results = [items.write(target, file.name, item) for item in file.items]
        return results


def is_s3_uri(checkpoint_id: str | os.PathLike[str]) -> bool:
    """Whether an id is an S3 URI, judged by its scheme."""
    return str(checkpoint_id).startswith("s3://")
