"""What the iterable datasets share: epochs, sharding, the shuffled order, and resuming."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from s3core import S3ClientConfig
from s3torch_datasets._background_listing import BackgroundListing
from s3torch_datasets._dataset import GetDatasetObjects, ObjectDataset, T_co
from s3torch_datasets._epoch import SharedEpoch
from s3torch_datasets._options import IterationSettings
from s3torch_datasets._permutation import Permutation
from s3torch_datasets._place import InheritedRank, find_place, find_rank
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._resume import Progress, State, apply_state, check_is_state, is_in_middle, to_state
from s3torch_datasets._shard_rows import ShardRows
from s3torch_datasets._sharding import Place, plan_shard
from s3torch_datasets._spawning import is_spawning


class EpochDataset(ObjectDataset[T_co], IterableDataset[T_co]):
    """An iterable dataset that goes over its objects in epochs.

    Args:
        region: Region of the bucket; None to find it.
        get_dataset_objects: Returns the objects.
        endpoint: Endpoint of an S3-compatible store.
        transform: Makes a sample.
        s3client_config: Settings of the client.
        enable_sharding: Split the objects over ranks and workers.
        reader_constructor: Which reader to make.
        settings: The added options.
    """

    _settings: IterationSettings

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None,
        transform: Callable[..., T_co],
        s3client_config: S3ClientConfig | None,
        enable_sharding: bool,
        reader_constructor: S3ReaderConstructorProtocol | None,
        settings: IterationSettings,
    ) -> None:
        super().__init__(
            region, get_dataset_objects, endpoint, transform, s3client_config, reader_constructor, settings
        )
        settings.check(enable_sharding=enable_sharding)
        self._enable_sharding = enable_sharding
        self._shared = SharedEpoch()
        self._parent_rank: InheritedRank | None = None
        self._progress: Progress | None = None
        self._resume: State | None = None
        self._resume_is_of_worker = False
        self._order_state: State | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration reads."""
        return self._shared.epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, and so its order; persistent workers see it too.

        Call it before each epoch, on every rank with the same number: ranks that were started with one dataset do not
        share it. What was loaded for another epoch, or read of it, is no part of the state any more.
        """
        epoch = int(epoch)
        self._shared.set(epoch)
        if self._resume is not None and self._resume["epoch"] != epoch:
            self._resume = None
        if self._progress is not None and self._progress.epoch != epoch:
            self._progress = None

    def state_dict(self) -> State:
        """Returns where the iteration of this copy stands, exact to the sample.

        Raises:
            RuntimeError: DataLoader workers iterated their copies, and this one was not: only they know.
        """
        if self._shared.was_iterated_in_a_worker and get_worker_info() is None:
            raise RuntimeError(
                "the workers of a DataLoader iterated copies of this dataset, and only they know how far they are; "
                "use torchdata's StatefulDataLoader and its state_dict(), or num_workers=0"
            )
        progress = self._progress
        if progress is not None:
            if progress.listing is not None:
                total = len(progress.listing.wait_for_index())
                progress.shard = plan_shard(total, progress.place, self._settings.shard_remainder)
                progress.listing = None
            return to_state(progress, self._order())
        if self._resume is not None:
            return dict(self._resume)
        return to_state(Progress(self.epoch, *self._plan(len(self.index))), self._order())

    def load_state_dict(self, state_dict: State) -> None:
        """Lets the next iteration go on where a state stands; nothing that was read before is fetched again.

        A state of the end of an epoch changes nothing where `set_epoch` has chosen a later one for the next iteration.

        Raises:
            ValueError: It is no state of this version. A state of the middle of an epoch that does not fit this
                dataset, rank or worker raises when the iteration starts.
        """
        check_is_state(state_dict)
        epoch, in_worker = state_dict["epoch"], get_worker_info() is not None
        if not in_worker:
            # StatefulDataLoader without workers loads a state when an iteration begins, behind `set_epoch`.
            if state_dict["finished"] and self._shared.was_set and epoch < self.epoch:
                return
            self._shared.load(epoch, is_middle=is_in_middle(state_dict))
        self._progress, self._resume, self._resume_is_of_worker = None, state_dict, in_worker

    def __iter__(self) -> Iterator[T_co]:
        """Starts an iteration: what is this rank's and worker's, from the loaded state on if there is one."""
        try:
            return self._start()
        except Exception as error:
            if get_worker_info() is None:
                raise
            # A persistent worker would die of it, and take the message along.
            # https://github.com/pytorch/pytorch/blob/v2.9.0/torch/utils/data/_utils/worker.py (`_ResumeIteration`)
            return map(_raise, [error])

    @abstractmethod
    def _start(self) -> Iterator[T_co]:
        """Starts an iteration by `_begin`; in a worker, its errors are raised in place of the first sample."""

    def _find_listing(self) -> BackgroundListing | None:
        """Returns a listing to iterate over while it goes on, where the number of objects makes no difference."""
        settings = self._settings
        if settings.shuffle or settings.shard_remainder != "keep" or self._resume is not None:
            return None
        return self._follow_listing()

    def _begin(self, listing: BackgroundListing | None = None) -> Progress:
        """Starts an iteration: reads the epoch, the rank and the worker, and takes up a state that was loaded.

        When it fails, that state is taken up by the next one.

        Args:
            listing: What to iterate over, where that is not the index.
        """
        resume, in_worker = self._resume, get_worker_info() is not None
        if in_worker and not self._resume_is_of_worker:
            resume = None  # that of the main process
            if self._shared.middle_was_loaded:
                raise ValueError(
                    f"a state of the middle of epoch {self.epoch} was loaded in the main process, and the workers of a "
                    "DataLoader cannot share it; use torchdata's StatefulDataLoader and its load_state_dict(), or "
                    "num_workers=0"
                )
        epoch = self.epoch if resume is None else resume["epoch"]
        if listing is not None:
            listing.wait_for_first_piece()
        progress = Progress(epoch, *self._plan(0 if listing is not None else len(self.index)), listing=listing)
        if resume is not None:
            apply_state(resume, progress, self._order(), in_worker=in_worker)
        self._progress, self._resume, self._resume_is_of_worker = progress, None, False
        self._shared.mark_iteration(in_worker=in_worker)
        return progress

    def _rows(self, progress: Progress) -> ShardRows:
        shard, settings = progress.shard, self._settings
        return ShardRows(shard, Permutation(shard.total, settings.seed, progress.epoch) if settings.shuffle else None)

    def _plan(self, total: int) -> tuple[Place, Any]:
        place, settings = Place(), self._settings
        if self._enable_sharding:
            place = find_place(settings.rank, settings.world_size, self._parent_rank)
        return place, plan_shard(total, place, settings.shard_remainder)

    def _shows_progress(self) -> bool:
        return super()._shows_progress() and find_rank(self._parent_rank)[0] == 0

    def _order(self) -> State:
        """Returns what the order of the samples depends on besides the epoch."""
        if self._order_state is None:
            settings = self._settings
            self._order_state = {
                "objects": len(self.index),
                "fingerprint": self.index.fingerprint(),
                "shuffle": settings.shuffle,
                "seed": settings.seed,
                "enable_sharding": self._enable_sharding,
                "shard_remainder": settings.shard_remainder,
            }
        return self._order_state

    def __getstate__(self) -> State:
        state = {**super().__getstate__(), "_progress": None}
        if is_spawning():
            # A spawned worker has no process group of its own.
            state["_parent_rank"] = InheritedRank(*find_rank(self._parent_rank))
        return state


def _raise(error: Exception) -> Any:
    raise error
