"""What goes wrong in a save or load is an error that says so, and the previous checkpoint stays whole."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.testing._internal.two_tensor import TwoTensor

from held_planner import HeldPlanner
from s3torch_checkpoint import CheckpointError, CorruptCheckpointError, IncompleteCheckpointError, NoCheckpointError
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
from servers.counting import CountingServer
from torch_features import needs_torch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Options = dict[str, Any]
MiB = 2**20


def state(value: float) -> dict[str, Any]:
    return {f"layer.{index}": torch.full((6 * MiB,), value) for index in range(4)}


def load(options: Options, uri: str) -> float:
    target = state(0.0)
    dcp.load(target, storage_reader=S3StorageReader(path=uri, **options))
    values = {float(value) for tensor in target.values() for value in (tensor.min(), tensor.max())}
    assert len(values) == 1
    return values.pop()


class FailingPlanner(DefaultSavePlanner):
    """Raises for one tensor, which some side thread writes."""

    def resolve_data(self, write_item: Any) -> Any:
        if write_item.index.fqn == "layer.2":
            raise RuntimeError(f"failed in {threading.current_thread().name}")
        return super().resolve_data(write_item)


def test_the_error_of_a_side_thread_reaches_the_caller_and_nothing_is_left(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    writer = S3StorageWriter(path=root, **options, thread_count=4)
    dcp.save(state(1.0), storage_writer=writer)
    before = sorted(counting_server.objects())
    with pytest.raises(CheckpointException, match="failed in s3torch-checkpoint-"):
        dcp.save(state(2.0), storage_writer=writer, planner=FailingPlanner())
    assert sorted(counting_server.objects()) == before
    assert counting_server.uploads() == []
    assert load(options, root) == 1.0


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_server_that_refuses_in_the_middle_leaves_the_previous_checkpoint(
    options: Options, root: str, counting_server: CountingServer, operation: str
) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    counting_server.fault(operation=operation, skip=2, status=403, code="AccessDenied")
    with pytest.raises(CheckpointException, match="AccessDenied"):
        dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    assert counting_server.uploads() == []
    assert load(options, root) == 1.0


def test_a_refused_commit_leaves_the_previous_checkpoint(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    counting_server.fault(method="PUT", key="run/.metadata", status=403, code="AccessDenied")
    with pytest.raises(CheckpointException, match=r"\.metadata"):
        dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    assert load(options, root) == 1.0


def test_a_commit_whose_answer_is_lost_leaves_a_whole_checkpoint(
    root: str, counting_server: CountingServer, make_options: Callable[..., Options]
) -> None:
    options = make_options(counting_server, max_attempts=1)
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    counting_server.fault(method="PUT", key="run/.metadata", cut=0)
    with pytest.raises(CheckpointException, match=r"\.metadata"):
        dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    assert load(options, root) == 2.0


def test_a_refused_removal_of_the_old_data_does_not_fail_the_save(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    counting_server.fault(operation="DeleteObjects", status=403, code="AccessDenied")
    dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    assert load(options, root) == 2.0


def test_a_save_over_unreadable_metadata_succeeds(options: Options, root: str, counting_server: CountingServer) -> None:
    counting_server.put("run/.metadata", b"garbage")
    dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    assert load(options, root) == 2.0


class OddError(Exception):
    """Cannot be rebuilt from its arguments, as `pickle` would have it."""

    def __init__(self, layer: str, *, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")


class OddPlanner(DefaultSavePlanner):
    def resolve_data(self, write_item: Any) -> Any:
        raise OddError(write_item.index.fqn, reason="odd on purpose")


def test_an_error_that_does_not_pickle_reaches_the_other_ranks_as_one_that_does(options: Options, root: str) -> None:
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options), planner=OddPlanner())
    failures = pickle.loads(pickle.dumps(caught.value.failures))
    assert str(failures[0][0]).endswith("odd on purpose")


class LosingWriter(S3StorageWriter):
    """Loses one result on its way to the coordinator."""

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, [[result for result in results[0] if result.index != self.lost]])

    lost = MetadataIndex("layer.1", [0])


def test_metadata_that_lacks_a_planned_item_is_not_committed(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    with pytest.raises(CheckpointException, match=r"no rank has written 1 planned items \(layer\.1 at \(0,\)\)"):
        dcp.save(state(1.0), storage_writer=LosingWriter(path=root, **options))
    assert "run/.metadata" not in counting_server.objects()


def test_no_checkpoint_is_told_from_one_that_was_not_finished(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    reader = S3StorageReader(path=root, **options)
    with pytest.raises(NoCheckpointError, match="no checkpoint at"):
        reader.read_metadata()
    counting_server.put("run/__0_0.distcp", b"data")
    with pytest.raises(IncompleteCheckpointError, match="did not finish"):
        reader.read_metadata()
    with pytest.raises(CheckpointException, match="did not finish"):
        load(options, root)


def test_a_missing_data_object_is_named(options: Options, root: str, counting_server: CountingServer) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    key = next(key for key in counting_server.objects() if key.endswith(".distcp"))
    counting_server.delete(key)
    with pytest.raises(CheckpointException, match="lacks an object") as caught:
        load(options, root)
    assert key in str(caught.value)


def test_a_data_object_cut_short_is_an_error(options: Options, root: str, counting_server: CountingServer) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    key = next(key for key in counting_server.objects() if key.endswith(".distcp"))
    counting_server.put(key, counting_server.get(key)[: 5 * MiB])
    with pytest.raises(CheckpointException, match="S3Exception"):
        load(options, root)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04N."])
def test_metadata_that_is_none_is_an_error(
    options: Options, root: str, counting_server: CountingServer, content: bytes
) -> None:
    counting_server.put("run/.metadata", content)
    with pytest.raises(CorruptCheckpointError, match=r"run/\.metadata"):
        S3StorageReader(path=root, **options).read_metadata()


@needs_torch("torch.distributed.checkpoint.save", "use_collectives")
def test_metadata_that_cannot_be_read_is_not_taken_for_absent(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    """`dcp.load` would go on with what a rank saved on its own, which here is older than the checkpoint of all."""
    dcp.save({"a": torch.zeros(10)}, storage_writer=S3StorageWriter(path=root, **options), use_collectives=False)
    alone = counting_server.objects()
    dcp.save({"a": torch.ones(10)}, storage_writer=S3StorageWriter(path=root, **options))
    for key, content in alone.items():
        counting_server.put(key, content)
    reader, target = S3StorageReader(path=root, **options), {"a": torch.full((10,), 2.0)}
    counting_server.fault(operation="GetObject", key="run/.metadata", times=1, status=403, code="AccessDenied")
    with pytest.raises(CheckpointException, match="AccessDenied"):
        dcp.load(target, storage_reader=reader)
    assert target["a"].sum() == 20
    dcp.load(target, storage_reader=reader)
    assert target["a"].sum() == 10


@pytest.mark.parametrize("size", [(11,), (9,), (0,)])
def test_a_target_of_another_size_is_an_error(options: Options, root: str, size: tuple[int, ...]) -> None:
    dcp.save({"model": {"a": torch.ones(10)}}, storage_writer=S3StorageWriter(path=root, **options))
    target = torch.zeros(size)
    with pytest.raises(CheckpointException, match=r"Size mismatch .* for model\.a"):
        dcp.load({"model": {"a": target}}, storage_reader=S3StorageReader(path=root, **options))
    assert not target.any()


class FirstRowsPlanner(DefaultLoadPlanner):
    """Plans in its own way: each tensor is filled as far as it goes."""

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, tensor in self.state_dict.items():
            chunk = ChunkStorageMetadata(torch.Size([0]), tensor.size())
            items += create_read_items_for_chunk_list(name, self.metadata.state_dict_metadata[name], [chunk])  # type: ignore[arg-type, no-untyped-call, unused-ignore]
        return LoadPlan(items)


def test_a_planner_of_the_users_own_may_load_a_part_of_a_tensor(options: Options, root: str) -> None:
    dcp.save({"a": torch.arange(10.0)}, storage_writer=S3StorageWriter(path=root, **options))
    target = torch.zeros(4)
    reader = S3StorageReader(path=root, **options)
    dcp.load({"a": target}, storage_reader=reader, planner=FirstRowsPlanner())
    assert target.tolist() == [0, 1, 2, 3]


class ShortPlanner(DefaultLoadPlanner):
    """Gives a destination that is too short."""

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        return super().resolve_tensor(read_item)[1:]


def test_a_planner_that_gives_a_target_of_another_shape_is_told_the_object(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    dcp.save({"a": torch.ones(10)}, storage_writer=S3StorageWriter(path=root, **options))
    (key,) = (key for key in counting_server.objects() if key.endswith(".distcp"))
    with pytest.raises(CheckpointException, match=re.escape(f"s3://{counting_server.bucket}/{key} has (10,)")):
        dcp.load({"a": torch.zeros(10)}, storage_reader=S3StorageReader(path=root, **options), planner=ShortPlanner())


def test_connections_that_break_are_taken_up_again(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    dcp.save(state(3.0), storage_writer=S3StorageWriter(path=root, **options))
    counting_server.fault(operation="GetObject", skip=2, times=3, cut=100_000)
    assert load(options, root) == 3.0


SAVE_AND_DIE = """
import os, signal, sys, threading, warnings
import torch, torch.distributed.checkpoint as dcp
from s3torch_checkpoint.dcp import S3StorageWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
warnings.simplefilter("ignore")
class Planner(DefaultSavePlanner):
    def resolve_data(self, item):
        if item.index.fqn == "layer.3":
            print("dying", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(item)
state = {f"layer.{index}": torch.full((6 * 2**20,), 2.0) for index in range(4)}
pid = os.fork()
if pid == 0:
    dcp.save(state, storage_writer=S3StorageWriter(None, sys.argv[1], thread_count=2), planner=Planner())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_sigkill_in_the_middle_of_a_save_leaves_the_previous_checkpoint(
    options: Options, root: str, counting_server: CountingServer, run_python: Callable[..., str]
) -> None:
    dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options))
    assert run_python(counting_server, SAVE_AND_DIE, root).split() == ["dying", "-9"]
    assert load(options, root) == 1.0
    dcp.save(state(3.0), storage_writer=S3StorageWriter(path=root, **options))
    assert load(options, root) == 3.0


@pytest.mark.parametrize("paths", [("step-1", "step-2"), ("last", "last")], ids=["two paths", "one path"])
def test_saves_of_one_writer_may_overlap(
    options: Options, root: str, counting_server: CountingServer, paths: tuple[str, str]
) -> None:
    writer = S3StorageWriter(path=root, **options)
    first, second = (f"{root}/{path}" for path in paths)
    planner = HeldPlanner()
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(dcp.save, state(1.0), checkpoint_id=first, storage_writer=writer, planner=planner)
        try:
            assert planner.is_held.wait(60)
            dcp.save(state(2.0), checkpoint_id=second, storage_writer=writer)
            assert load(options, second) == 2.0
        finally:
            planner.may_go_on.set()
        saving.result()
    assert load(options, first) == 1.0
    if first != second:
        assert load(options, second) == 2.0
    assert len([key for key in counting_server.objects() if not key.endswith(".metadata")]) == 4 * len(set(paths))
    assert counting_server.uploads() == []


def test_saves_with_cached_plans_that_overlap_commit_each_its_own(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    if "enable_plan_caching" not in signature(DefaultSavePlanner).parameters:
        pytest.skip("this version of torch has no plan caching")

    def save(name: str, value: float) -> Any:
        writer = S3StorageWriter(path=f"{root}/{name}", **options)
        return dcp.save(
            {"cached": torch.full((10,), value)},
            storage_writer=writer,
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )

    for name in ("first", "second"):
        save(name, 0.0)
    counting_server.clear()
    counting_server.fault(method="HEAD", key="run/first/.metadata", times=1, hold=True)
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(save, "first", 1.0)
        try:
            counting_server.wait_for_requests(1, timeout_seconds=60, key="run/first/.metadata")
            assert save("second", 2.0).storage_meta.checkpoint_id == f"{root}/second"
        finally:
            counting_server.release()
        assert saving.result().storage_meta.checkpoint_id == f"{root}/first"
    for name, value in (("first", 1.0), ("second", 2.0)):
        target = {"cached": torch.zeros(10)}
        dcp.load(target, storage_reader=S3StorageReader(path=f"{root}/{name}", **options))
        assert (target["cached"] == value).all()


def test_a_checkpoint_that_appears_during_a_save_is_not_replaced_and_no_data_is_left(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    planner = HeldPlanner()
    with ThreadPoolExecutor(1) as thread:
        writer = S3StorageWriter(path=root, **options, overwrite=False)
        saving = thread.submit(dcp.save, state(1.0), storage_writer=writer, planner=planner)
        try:
            assert planner.is_held.wait(60)
            dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
            before = sorted(counting_server.objects())
        finally:
            planner.may_go_on.set()
        with pytest.raises(CheckpointException, match="overwrite=False"):
            saving.result()
    assert sorted(counting_server.objects()) == before
    assert load(options, root) == 2.0


def metadata_of_another(options: Options, root: str, server: CountingServer) -> bytes:
    """The metadata of a checkpoint of 2.0 whose data is there, and which is not committed yet."""
    dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
    metadata = server.get("run/.metadata")
    server.delete("run/.metadata")
    return metadata


def test_a_checkpoint_that_replaces_one_that_may_replace_none_is_an_error(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    """Both saves have looked before either commits, to a store that knows no condition."""
    other = metadata_of_another(options, root, counting_server)
    counting_server.fault(method="PUT", key="run/.metadata", times=1, replace_with=other)
    with pytest.raises(CheckpointException, match="saved by somebody else at the same time"):
        dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options, overwrite=False))
    assert load(options, root) == 2.0


def test_of_saves_that_commit_at_the_same_moment_one_stays_and_the_others_raise(options: Options, root: str) -> None:
    planners = [HeldPlanner() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        saves = [
            threads.submit(
                dcp.save,
                state(float(number)),
                storage_writer=S3StorageWriter(path=root, **options, overwrite=False),
                planner=planner,
            )
            for number, planner in enumerate(planners)
        ]
        try:
            assert all(planner.is_held.wait(60) for planner in planners)
        finally:
            for planner in planners:
                planner.may_go_on.set()
        errors = [saving.exception() for saving in saves]
    (winner,) = [number for number, error in enumerate(errors) if error is None]
    assert all("holds a checkpoint" in str(e) or "at the same time" in str(e) for e in errors if e is not None)
    assert load(options, root) == float(winner)


def test_a_save_that_finds_another_when_it_commits_leaves_it_in_place(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    """The other one commits after this one has looked for the last time."""
    other = metadata_of_another(options, root, counting_server)
    # The answer to the last look is from before the other one's commit.
    counting_server.fault(method="HEAD", key="run/.metadata", skip=1, times=1, replace_with=other)
    with pytest.raises(CheckpointException, match="saved by somebody else at the same time"):
        dcp.save(state(1.0), storage_writer=S3StorageWriter(path=root, **options, overwrite=False))
    assert counting_server.get("run/.metadata") == other
    assert load(options, root) == 2.0


@needs_torch("torch.distributed.checkpoint.save", "use_collectives")
def test_a_checkpoint_of_the_whole_job_that_appears_during_the_save_of_a_rank_alone_is_an_error(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    planner = HeldPlanner()
    with ThreadPoolExecutor(1) as thread:
        writer = S3StorageWriter(path=root, **options)
        saving = thread.submit(dcp.save, state(1.0), storage_writer=writer, planner=planner, use_collectives=False)
        try:
            assert planner.is_held.wait(60)
            dcp.save(state(2.0), storage_writer=S3StorageWriter(path=root, **options))
            before = sorted(counting_server.objects())
        finally:
            planner.may_go_on.set()
        with pytest.raises(CheckpointError, match="would hide"):
            saving.result()
    assert sorted(counting_server.objects()) == before
    assert load(options, root) == 2.0


class ScratchPlanner(DefaultSavePlanner):
    """Gives every tensor in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = torch.empty(6 * MiB)

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        return self._scratch.copy_(data) if isinstance(data, torch.Tensor) else data


def test_a_planner_may_give_every_tensor_in_the_same_memory(options: Options, root: str) -> None:
    saved = {f"layer.{index}": torch.full((6 * MiB,), float(index)) for index in range(4)}
    writer = S3StorageWriter(path=root, **options, thread_count=1)
    dcp.save(saved, storage_writer=writer, planner=ScratchPlanner())
    loaded = state(-1.0)
    dcp.load(loaded, storage_reader=S3StorageReader(path=root, **options))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


@needs_torch("torch.serialization.safe_globals")
def test_tensors_that_wrap_others_are_saved_and_loaded(options: Options, root: str) -> None:
    def wrapped(value: float) -> dict[str, Any]:
        return {"w": TwoTensor(torch.full((4, 4), value), torch.full((4, 4), value + 1))}

    dcp.save(wrapped(1.0), storage_writer=S3StorageWriter(path=root, **options))
    loaded = wrapped(0.0)
    with torch.serialization.safe_globals([TwoTensor]):
        dcp.load(loaded, storage_reader=S3StorageReader(path=root, **options))
    assert (loaded["w"].a == 1).all()
    assert (loaded["w"].b == 2).all()

    dcp.save({"w": torch.full((4, 4), 3.0)}, storage_writer=S3StorageWriter(path=root, **options))
    dcp.load(loaded, storage_reader=S3StorageReader(path=root, **options))
    assert (loaded["w"].a == 3).all()
    assert (loaded["w"].b == 3).all()
