"""Where an iteration stands, as a plain dictionary, and the checks that it fits the dataset that goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from s3torch_datasets._background_listing import BackgroundListing
from s3torch_datasets._sharding import Place, Shard

_VERSION = 1

State = dict[str, Any]


@dataclass(slots=True)
class Progress:
    """How far one iteration of one copy of a dataset is.

    Args:
        epoch: The epoch that is iterated.
        place: The rank and worker that iterates.
        shard: The positions it iterates over.
        position: Number of positions that are done with.
        finished: Whether the iteration ended.
        detail: What else is needed to go on, from a state that was loaded; empty between positions.
        describe: Returns the detail of this moment.
        listing: What finds the objects while they are iterated over; the size of the shard is not known before its end.
    """

    epoch: int
    place: Place
    shard: Shard
    position: int = 0
    finished: bool = False
    detail: State = field(default_factory=dict)
    describe: Callable[[], State] = dict
    listing: BackgroundListing | None = None


def to_state(progress: Progress, order: State) -> State:
    """Returns the state to save.

    Args:
        progress: Where the iteration stands.
        order: What the order of positions depends on besides the epoch.
    """
    place = progress.place
    return {
        "version": _VERSION,
        "epoch": progress.epoch,
        "position": progress.position,
        "size": progress.shard.size,
        "finished": progress.finished,
        "rank": place.rank,
        "world_size": place.world_size,
        "worker": place.worker,
        "num_workers": place.num_workers,
        "order": dict(order),
        "detail": progress.describe(),
    }


def check_is_state(state: State) -> None:
    """Raises ValueError where a state is none, or of another version."""
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError(f"not a state of this version of the dataset: {state!r}")


def apply_state(state: State, progress: Progress, order: State, *, in_worker: bool) -> None:
    """Sets a fresh iteration to where a state stands.

    At the end of an epoch a state fits any number of ranks and workers. A worker's state at the end yields nothing,
    since its StatefulDataLoader goes on with the other workers of that epoch; in the main process the next
    epoch begins.

    Args:
        state: A saved state.
        progress: The iteration that begins.
        order: What the order of positions depends on in this dataset.
        in_worker: Whether this is a worker process of a DataLoader.

    Raises:
        ValueError: The state is of the middle of an epoch, and does not fit this dataset, rank or worker.
    """
    if _is_at_end(state) and (in_worker or not state["finished"]):
        progress.position = progress.shard.size
    elif is_in_middle(state):
        _check_middle(state, progress, order)
        progress.position = state["position"]
        progress.detail = dict(state["detail"])


def is_in_middle(state: State) -> bool:
    """Whether a state is of the middle of an epoch."""
    return not _is_at_start(state) and not _is_at_end(state)


def _is_at_start(state: State) -> bool:
    return state["position"] == 0 and not state["detail"]


def _is_at_end(state: State) -> bool:
    # An empty share that was not iterated over is at its start: where it is not empty any more, there is what to read.
    return state["finished"] or (0 < state["position"] == state["size"] and not state["detail"])


def _check_middle(state: State, progress: Progress, order: State) -> None:
    where = f"cannot go on in the middle of epoch {state['epoch']}"
    for name, value in order.items():
        saved_value = state["order"].get(name)
        if saved_value != value:
            raise ValueError(
                f"{where}: the state was saved with {name}={saved_value!r}, this dataset has {name}={value!r}; make "
                "the dataset with the same objects and options, or load a state of the end of an epoch"
            )
    place = progress.place
    saved = Place(state["rank"], state["world_size"], state["worker"], state["num_workers"])
    if saved != place:
        raise ValueError(
            f"{where}: the state is of rank {saved.rank} of {saved.world_size}, worker {saved.worker} of "
            f"{saved.num_workers}; this is rank {place.rank} of {place.world_size}, worker {place.worker} of "
            f"{place.num_workers}. Go on with as many ranks and workers (torchdata's StatefulDataLoader keeps the "
            "state of each worker), or change them at the end of an epoch"
        )
