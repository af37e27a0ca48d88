"""Saving and resuming an iteration, exact to the sample, alone and in StatefulDataLoader's workers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._object_source import ObjectSource
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]

# torchdata calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

read = methodcaller("read")
key = attrgetter("key")


def read_key(reader: Any) -> str:
    """Reads, so that those behind are read ahead."""
    reader.read()
    return str(reader.key)


def take(iterator: Any, count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 15), shuffle=st.booleans(), epoch=st.integers(0, 3), world=st.integers(1, 3))
def test_resuming_at_any_step_equals_the_uninterrupted_run(
    make_iterable: Make, fill: Fill, step: int, shuffle: bool, epoch: int, world: int
) -> None:
    fill(15)
    options = {"transform": key, "shuffle": shuffle, "enable_sharding": True, "rank": world - 1, "world_size": world}
    first, second = make_iterable(**options), make_iterable(**options)
    first.set_epoch(epoch)
    whole = list(first)
    step = min(step, len(whole))
    iterator = iter(first)
    head = take(iterator, step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + list(second) == whole
    assert list(second) == whole  # the epoch after starts at the beginning


def test_resuming_fetches_nothing_twice(make_iterable: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(30)
    first, second = make_iterable(transform=read), make_iterable(transform=read)
    iterator = iter(first)
    take(iterator, 20)
    state = first.state_dict()
    counting_server.wait_for_requests(30, operation="GetObject")  # those ahead too: dropping the iterator ends the rest
    del iterator
    second.load_state_dict(state)
    len(second.index)
    counting_server.clear()
    assert list(second) == contents[20:]
    assert sorted(r.key for r in counting_server.requests) == [f"data/{number:05}" for number in range(20, 30)]


def test_an_iteration_goes_on_at_the_object_that_was_interrupted(make_iterable: Make, fill: Fill) -> None:
    contents = fill(9)
    interrupts = [KeyboardInterrupt]  # as Ctrl-C may in the midst of a read

    def read_or_stop(reader: Any) -> bytes:
        if reader.key == "data/00004" and interrupts:
            raise interrupts.pop()
        return bytes(reader.read())

    dataset, other = make_iterable(transform=read_or_stop), make_iterable(transform=read)
    iterator = iter(dataset)
    seen: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(iterator)
    other.load_state_dict(dataset.state_dict())
    assert seen + list(other) == contents
    assert seen + list(iterator) == contents


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("call", [1, 2, 150])
@pytest.mark.parametrize(
    "interrupted", [(ObjectSource, "prefetch"), (ObjectIndex, "__getitem__")], ids=lambda it: it[1]
)
def test_ctrl_c_in_the_midst_of_reading_ahead_loses_no_sample(
    make_iterable: Make,
    fill: Fill,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: tuple[type, str],
    call: int,
    shuffle: bool,
) -> None:
    fill(200)
    dataset, other = (make_iterable(transform=read_key, shuffle=shuffle) for _ in range(2))
    whole = list(other)
    len(dataset.index)
    original = getattr(*interrupted)
    calls = itertools.count(1)

    def interrupted_once(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    iterator = iter(dataset)
    seen: list[str] = []
    monkeypatch.setattr(*interrupted, interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        seen.extend(iterator)
    state = dataset.state_dict()
    assert (state["position"], state["finished"]) == (len(seen), False)
    other.load_state_dict(state)
    assert seen + list(other) == whole
    assert seen + list(iterator) == whole
    assert dataset.state_dict()["finished"]


def test_an_iteration_that_was_closed_is_over_and_can_be_resumed(make_iterable: Make, fill: Fill) -> None:
    contents = fill(9)
    dataset, other = make_iterable(transform=read), make_iterable(transform=read)
    iterator = iter(dataset)
    seen = take(iterator, 4)
    iterator.close()
    assert list(iterator) == []
    other.load_state_dict(dataset.state_dict())
    assert seen + list(other) == contents


def test_a_state_before_the_first_sample_starts_at_the_first(make_iterable: Make, fill: Fill) -> None:
    fill(3)
    dataset, other = make_iterable(transform=key), make_iterable(transform=key)
    other.load_state_dict(dataset.state_dict())
    assert len(list(other)) == 3


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_state_of_an_empty_share_starts_at_the_first_of_one_that_is_not(
    make_iterable: Make, fill: Fill, is_shared: bool
) -> None:
    if is_shared:
        fill(3)
        dataset = make_iterable(transform=key, enable_sharding=True, rank=3, world_size=4)
    else:
        dataset = make_iterable(transform=key)
    state = dataset.state_dict()
    assert state["size"] == 0
    fill(3)
    other = make_iterable(transform=key)
    other.load_state_dict(state)
    assert len(list(other)) == 3


def test_a_state_after_the_last_sample_ends_the_epoch_and_then_starts_the_next(make_iterable: Make, fill: Fill) -> None:
    fill(3)
    dataset, other = make_iterable(transform=key), make_iterable(transform=key)
    iterator = iter(dataset)
    take(iterator, 3)
    other.load_state_dict(dataset.state_dict())
    assert list(other) == []
    assert len(list(other)) == 3
    assert list(iterator) == []
    other.load_state_dict(dataset.state_dict())  # now of the end of the loop
    assert len(list(other)) == 3


def test_the_epoch_is_part_of_the_state(make_iterable: Make, fill: Fill) -> None:
    fill(20)
    dataset, other = (make_iterable(transform=key, shuffle=True) for _ in range(2))
    dataset.set_epoch(4)
    iterator = iter(dataset)
    take(iterator, 5)
    other.load_state_dict(dataset.state_dict())
    assert other.epoch == 4
    other.set_epoch(4)  # as a training loop does that goes on with this epoch
    assert list(other) == list(iterator)


def test_setting_another_epoch_drops_a_loaded_state(make_iterable: Make, fill: Fill) -> None:
    fill(20)
    dataset, other = (make_iterable(transform=key, shuffle=True) for _ in range(2))
    iterator = iter(dataset)
    take(iterator, 5)
    other.load_state_dict(dataset.state_dict())
    other.set_epoch(1)
    assert len(list(other)) == 20


@pytest.mark.parametrize("count", [3, 20, 21])
def test_the_state_after_setting_another_epoch_is_its_beginning(make_iterable: Make, fill: Fill, count: int) -> None:
    fill(20)
    dataset, other = (make_iterable(transform=key, shuffle=True) for _ in range(2))
    list(itertools.islice(dataset, count))
    dataset.set_epoch(1)
    other.load_state_dict(dataset.state_dict())
    assert other.epoch == 1
    assert list(other) == list(dataset)


def test_a_loaded_state_outlasts_an_iteration_that_cannot_start(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(20)
    dataset, other = (make_iterable(transform=key, shuffle=True) for _ in range(2))
    iterator = iter(dataset)
    take(iterator, 5)
    state = dataset.state_dict()
    other.load_state_dict(state)
    counting_server.fault(operation="ListObjectsV2", status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        iter(other)
    counting_server.faults_clear()
    assert other.state_dict() == state
    assert list(other) == list(iterator)


def test_a_state_that_does_not_fit_is_refused_every_time(make_iterable: Make, fill: Fill) -> None:
    fill(20)
    dataset, other = (make_iterable(transform=key, shuffle=True, seed=seed) for seed in range(2))
    take(iter(dataset), 5)
    other.load_state_dict(dataset.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match="seed"):
            iter(other)
    other.set_epoch(1)
    assert len(list(other)) == 20


def test_skipped_objects_are_counted_as_done(make_iterable: Make, fill: Fill, counting_server: CountingServer) -> None:
    contents = fill(6)
    dataset, other = (make_iterable(transform=read, on_error="skip") for _ in range(2))
    assert len(dataset.index) == len(other.index) == 6
    counting_server.delete("data/00001")
    iterator = iter(dataset)
    assert take(iterator, 2) == [contents[0], contents[2]]
    other.load_state_dict(dataset.state_dict())
    assert list(other) == contents[3:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "seed"),
        ({"shuffle": False}, "shuffle"),
        ({"rank": 1}, "rank 1"),
        ({"world_size": 3}, "of 3"),
        ({"shard_remainder": "pad"}, "shard_remainder"),
    ],
)
def test_another_order_or_layout_in_mid_epoch_is_a_clear_error(
    make_iterable: Make, fill: Fill, change: dict[str, Any], message: str
) -> None:
    fill(20)
    options: dict[str, Any] = {
        "transform": key,
        "shuffle": True,
        "enable_sharding": True,
        "rank": 0,
        "world_size": 2,
    }
    dataset, other = make_iterable(**options), make_iterable(**(options | change))
    iterator = iter(dataset)
    take(iterator, 3)
    state = dataset.state_dict()
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        iter(other)
    list(iterator)
    other.load_state_dict(dataset.state_dict())  # at the end of the epoch anything goes
    assert list(other)


def test_other_objects_in_mid_epoch_are_a_clear_error(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    fill(5)
    dataset = make_iterable(transform=key)
    take(iter(dataset), 2)
    counting_server.put("data/more", b"")
    other = make_iterable(transform=key)
    other.load_state_dict(dataset.state_dict())
    with pytest.raises(ValueError, match="objects=5"):
        iter(other)


@pytest.mark.parametrize("state", [{}, {"version": 99}, None, 5])
def test_what_is_no_state_is_refused(make_iterable: Make, state: Any) -> None:
    with pytest.raises(ValueError, match="not a state"):
        make_iterable().load_state_dict(state)


def test_the_main_copy_does_not_say_0_when_workers_iterated(make_iterable: Make, fill: Fill) -> None:
    fill(12)
    dataset = make_iterable(transform=key, enable_sharding=True)
    assert dataset.state_dict()["position"] == 0  # nobody iterated yet
    take(iter(dataset), 1)  # a look at the first sample, whose state must not stand for the workers'
    assert dataset.state_dict()["position"] == 1
    iterator = iter(DataLoader(dataset, batch_size=2, num_workers=2))
    take(iterator, 2)
    with pytest.raises(RuntimeError, match="StatefulDataLoader"):
        dataset.state_dict()
    list(iterator)
    take(iter(dataset), 3)
    assert dataset.state_dict()["position"] == 3


@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("step", [0, 1, 5, 11, 12])
def test_stateful_workers_resume_exactly(make_iterable: Make, fill: Fill, step: int, persistent_workers: bool) -> None:
    fill(36)

    def make_loader() -> StatefulDataLoader:
        dataset = make_iterable(transform=key, enable_sharding=True, shuffle=True, seed=1)
        dataset.set_epoch(2)
        return StatefulDataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=persistent_workers)

    loader = make_loader()
    whole = list(loader)
    assert len(whole) == 12
    loader = make_loader()
    iterator = iter(loader)
    head = take(iterator, step)
    state = loader.state_dict()
    list(iterator)
    resumed = make_loader()
    resumed.load_state_dict(state)
    assert head + list(resumed) == whole
    assert list(resumed) == whole


def test_a_stateful_loader_without_workers_resumes_exactly(make_iterable: Make, fill: Fill) -> None:
    fill(20)
    make_loader = lambda: StatefulDataLoader(make_iterable(transform=key, shuffle=True), batch_size=3)  # noqa: E731
    whole = list(make_loader())
    loader = make_loader()
    iterator = iter(loader)
    head = take(iterator, 3)
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert head + list(resumed) == whole
    assert list(resumed) == whole


def test_the_end_of_an_epoch_can_go_on_with_another_number_of_workers(make_iterable: Make, fill: Fill) -> None:
    fill(12)
    dataset, other = (make_iterable(transform=key, enable_sharding=True) for _ in range(2))
    assert len(list(dataset)) == 12
    other.load_state_dict(dataset.state_dict())
    assert len(list(DataLoader(other, batch_size=None, num_workers=2))) == 12


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_state_of_mid_epoch_in_the_main_process_is_refused_by_plain_workers(
    make_iterable: Make, fill: Fill, persistent_workers: bool
) -> None:
    fill(12)
    dataset, other = (make_iterable(transform=key) for _ in range(2))
    take(iter(dataset), 5)
    loader = DataLoader(other, batch_size=None, num_workers=1, persistent_workers=persistent_workers)
    assert len(list(loader)) == 12
    other.load_state_dict(dataset.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match="StatefulDataLoader"):
            list(loader)
    assert other.state_dict() == dataset.state_dict()
    other.set_epoch(1)
    assert len(list(loader)) == 12


def make_stateful(make_iterable: Make, *, ranks: int = 1, workers: int = 2, transform: Any = key) -> StatefulDataLoader:
    dataset = make_iterable(
        transform=transform, enable_sharding=True, shuffle=True, seed=1, rank=ranks - 1, world_size=ranks
    )
    return StatefulDataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=list)


def test_stateful_workers_fetch_nothing_twice_when_they_resume(
    make_iterable: Make, fill: Fill, counting_server: CountingServer
) -> None:
    contents = fill(36)
    loader = make_stateful(make_iterable, transform=read)
    iterator = iter(loader)
    head = take(iterator, 5)
    state = loader.state_dict()
    list(iterator)
    resumed = make_stateful(make_iterable, transform=read)
    resumed.load_state_dict(state)
    counting_server.clear()
    rest = list(resumed)
    assert sorted(sample for batch in head + rest for sample in batch) == sorted(contents)
    assert counting_server.operations().count("GetObject") == 36 - 5 * 3


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_stateful_workers_may_have_another_number_of_ranks_from_the_end_of_an_epoch_on(
    make_iterable: Make, fill: Fill, before: int, after: int
) -> None:
    fill(36)
    loader = make_stateful(make_iterable, ranks=before)
    assert sum(map(len, loader)) == 36 // before
    resumed = make_stateful(make_iterable, ranks=after)
    resumed.load_state_dict(loader.state_dict())
    assert sum(map(len, resumed)) == 36 // after
    iterator = iter(loader)
    take(iterator, 2)
    resumed = make_stateful(make_iterable, ranks=after)
    resumed.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=f"of rank {before - 1} of {before}.*this is rank {after - 1} of {after}"):
        list(resumed)
    list(iterator)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_that_is_set_follows_the_finished_one_that_is_loaded(
    make_iterable: Make, fill: Fill, workers: int
) -> None:
    fill(36)
    loader, resumed = (make_stateful(make_iterable, workers=workers) for _ in range(2))
    list(loader)
    resumed.load_state_dict(loader.state_dict())
    for epoch in (1, 2):
        loader.dataset.set_epoch(epoch)
        resumed.dataset.set_epoch(epoch)
        assert list(resumed) == list(loader)
        assert resumed.dataset.epoch == epoch


def test_a_finished_epoch_that_is_loaded_after_later_ones_begins_again(make_iterable: Make, fill: Fill) -> None:
    fill(20)
    dataset = make_iterable(transform=key, shuffle=True)
    first = list(dataset)
    state = dataset.state_dict()
    dataset.set_epoch(1)
    assert list(dataset) != first
    dataset.load_state_dict(state)
    assert list(dataset) == first


def test_another_number_of_stateful_workers_begins_with_the_next_epoch(make_iterable: Make, fill: Fill) -> None:
    fill(36)
    loaders = [make_stateful(make_iterable, workers=workers) for workers in (0, 1, 2)]
    for loader in loaders:
        loader.dataset.set_epoch(1)
    seen = [[sample for batch in loader for sample in batch] for loader in loaders]
    assert len(seen[0]) == 36
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(seen[2])
