"""What the ranks of the torchrun tests do: the steps named by the argument, a JSON list of [step, *arguments].

Rank 0 prints one line per step: its number and "ok", or the error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh

try:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
except ImportError:  # before torch 2.5
    from torch.distributed._tensor import DTensor, Replicate, Shard, distribute_tensor

from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter

ROWS, COLUMNS = 101, 60
LARGE_ROWS = 3000


def full(name: str, seed: int) -> torch.Tensor:
    """The whole of a tensor, the same on every rank."""
    generator = torch.Generator().manual_seed(seed * 100 + len(name))
    rows = LARGE_ROWS if name == "large" else ROWS
    columns = 1000 if name == "large" else COLUMNS
    return torch.randn(rows, columns, generator=generator)


def sharded_state(seed: int | None) -> dict[str, Any]:
    """DTensors split by rows and by columns, plain tensors and objects; all zero where there is no seed."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    placements = {"rows": [Shard(0)], "columns": [Shard(1)], "everywhere": [Replicate()], "large": [Shard(0)]}
    tensors: dict[str, Any] = {}
    for name, placement in placements.items():
        whole = full(name, seed) if seed is not None else torch.zeros_like(full(name, 0))
        tensors[name] = distribute_tensor(whole, mesh, placement)
    tensors["plain"] = full("plain", seed) if seed is not None else torch.zeros(ROWS, COLUMNS)
    return {"model": tensors, "step": seed if seed is not None else -1}


def check(state: dict[str, Any], seed: int) -> None:
    """Every element of what this rank holds is right."""
    for name, tensor in state["model"].items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(whole, full(name, seed)), f"{name} is wrong on rank {dist.get_rank()}"
    assert state["step"] == seed


def save(uri: str, seed: str) -> None:
    dcp.save(sharded_state(int(seed)), storage_writer=S3StorageWriter(None, uri, thread_count=2))


def save_separately(uri: str, seed: str) -> None:
    state = {"mine": full("mine", int(seed) + dist.get_rank())}
    dcp.save(state, storage_writer=S3StorageWriter(None, uri), use_collectives=False)
    target = {"mine": torch.zeros(ROWS, COLUMNS)}
    dcp.load(target, storage_reader=S3StorageReader(None, uri))
    assert torch.equal(target["mine"], state["mine"])


def load(uri: str, seed: str) -> None:
    state = sharded_state(None)
    dcp.load(state, storage_reader=S3StorageReader(None, uri))
    check(state, int(seed))


def load_part(uri: str, seed: str) -> None:
    state = {"model": {"rows": sharded_state(None)["model"]["rows"]}}
    dcp.load(state, storage_reader=S3StorageReader(None, uri))
    assert torch.equal(state["model"]["rows"].full_tensor(), full("rows", int(seed)))


def start_async_save(uri: str, state: dict[str, Any], kind: str) -> Any:
    options: dict[str, Any] = {}
    if kind != "thread":  # the default, and in torch 2.4 the only one
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        options["async_checkpointer_type"] = AsyncCheckpointerType(kind)
    return dcp.async_save(state, storage_writer=S3StorageWriter(None, uri, thread_count=2), **options)


def save_async(uri: str, seed: str, kind: str) -> None:
    state = sharded_state(int(seed))
    future = start_async_save(uri, state, kind)
    for tensor in state["model"].values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    future.result()
    load(uri, seed)


def fsdp(uri: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    def build(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(33, 17), torch.nn.ReLU(), torch.nn.Linear(17, 5))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.ones(2, 33)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return model, optimizer

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model, optimizer = build(1)
    wanted_model, wanted_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": wanted_model, "optimizer": wanted_optimizer}, storage_writer=S3StorageWriter(None, uri))
    other, other_optimizer = build(2)
    got_model, got_optimizer = get_state_dict(other, other_optimizer)
    dcp.load({"model": got_model, "optimizer": got_optimizer}, storage_reader=S3StorageReader(None, uri))
    set_state_dict(other, other_optimizer, model_state_dict=got_model, optim_state_dict=got_optimizer)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.full_tensor(), two.full_tensor())
    assert torch.equal(model(torch.ones(2, 33)), other(torch.ones(2, 33)))


def load_replicated(uri: str, seed: str, scope: str) -> None:
    plain = {name: torch.zeros_like(full(name, 0)) for name in ("everywhere", "large", "plain")}
    plain["rows"] = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    plain["columns"] = torch.zeros(COLUMNS, ROWS).t()
    state: dict[str, Any] = {"model": plain, "step": -1}
    if scope == "node":
        os.environ["GROUP_RANK"] = str(dist.get_rank() // 2)
    dcp.load(state, storage_reader=S3StorageReader(None, uri, replicated=scope))
    for name, tensor in plain.items():
        assert torch.equal(tensor.float(), full(name, int(seed))), f"{name} is wrong on rank {dist.get_rank()}"
    assert state["step"] == int(seed)


def load_replicated_in_groups(uri: str, seed: str) -> None:
    """Two groups load at the same time, and the ranks of each need different parts."""
    half = dist.get_world_size() // 2
    groups = [dist.new_group(list(range(half))), dist.new_group(list(range(half, 2 * half)))]
    group = groups[dist.get_rank() // half]
    names = ("large", "plain") if dist.get_rank(group) == 0 else ("everywhere", "large", "rows")
    state: dict[str, Any] = {"model": {name: torch.zeros_like(full(name, 0)) for name in names}, "step": -1}
    reader = S3StorageReader(None, uri, replicated=True, process_group=group)
    dcp.load(state, storage_reader=reader, process_group=group)
    check(state, int(seed))


def load_replicated_into_the_same_memory(uri: str, seed: str) -> None:
    """Of tied weights that were saved apart, the last one stays on every rank."""
    tied = torch.zeros(ROWS, COLUMNS)
    state = {"model": {"everywhere": tied, "large": torch.zeros(LARGE_ROWS, 1000), "plain": tied}}
    dcp.load(state, storage_reader=S3StorageReader(None, uri, replicated=True))
    for name in ("large", "plain"):
        assert torch.equal(state["model"][name], full(name, int(seed))), f"{name} is wrong on rank {dist.get_rank()}"


class OneBufferPlanner(DefaultLoadPlanner):
    """Gives the same memory for every tensor, and copies it out when it is filled."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = torch.zeros(LARGE_ROWS * 1000)

    def resolve_tensor(self, read_item: Any) -> Any:
        place = super().resolve_tensor(read_item)
        return self._buffer[: place.numel()].view(place.shape)

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        super().resolve_tensor(read_item).copy_(tensor)


def load_replicated_through_one_buffer(uri: str, seed: str) -> None:
    state = {"model": {name: torch.zeros_like(full(name, 0)) for name in ("everywhere", "large", "plain", "columns")}}
    dcp.load(state, storage_reader=S3StorageReader(None, uri, replicated=True), planner=OneBufferPlanner())
    for name, tensor in state["model"].items():
        assert torch.equal(tensor, full(name, int(seed))), f"{name} is wrong on rank {dist.get_rank()}"


class FailingSavePlanner(DefaultSavePlanner):
    """Raises on the last rank, in the middle of writing."""

    def resolve_data(self, write_item: Any) -> Any:
        if dist.get_rank() == dist.get_world_size() - 1 and write_item.index.fqn == "model.rows":
            raise RuntimeError("the planner failed on purpose")
        return super().resolve_data(write_item)


class FailingLoadPlanner(DefaultLoadPlanner):
    """Raises on the last rank, where the second argument says."""

    where = ""

    def finish_plan(self, plan: Any) -> Any:
        self._fail("finish")
        return super().finish_plan(plan)

    def resolve_tensor(self, read_item: Any) -> Any:
        self._fail("resolve")
        return super().resolve_tensor(read_item)

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        self._fail("commit")

    def _fail(self, where: str) -> None:
        if self.where == where and dist.get_rank() == dist.get_world_size() - 1:
            raise RuntimeError("the planner failed on purpose")


def fail_to_save(uri: str, seed: str) -> None:
    with pytest.raises(CheckpointException, match="on purpose"):
        dcp.save(sharded_state(int(seed)), storage_writer=S3StorageWriter(None, uri), planner=FailingSavePlanner())


def be_refused(uri: str, seed: str) -> None:
    with pytest.raises(CheckpointException, match="AccessDenied"):
        dcp.save(sharded_state(int(seed)), storage_writer=S3StorageWriter(None, uri))


def be_refused_async(uri: str, seed: str, kind: str) -> None:
    future = start_async_save(uri, sharded_state(int(seed)), kind)
    with pytest.raises(BaseException, match="AccessDenied"):
        future.result()


class OddError(Exception):
    """Cannot be rebuilt from its arguments, as `pickle` would have it."""

    def __init__(self, name: str, *, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


class OddSavePlanner(DefaultSavePlanner):
    """Raises on the last rank what cannot be passed on to the others."""

    def resolve_data(self, write_item: Any) -> Any:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise OddError(write_item.index.fqn, reason="on purpose")
        return super().resolve_data(write_item)


def fail_oddly(uri: str, seed: str) -> None:
    with pytest.raises(CheckpointException, match="on purpose"):
        dcp.save(sharded_state(int(seed)), storage_writer=S3StorageWriter(None, uri), planner=OddSavePlanner())


def fail_to_load_replicated(uri: str, where: str) -> None:
    planner = FailingLoadPlanner()
    planner.where = where
    state: dict[str, Any] = {"model": {"large": torch.zeros_like(full("large", 0))}, "step": -1}
    reader = S3StorageReader(None, uri, replicated=True, replicated_timeout_seconds=3)
    with pytest.raises(CheckpointException, match="on purpose"):
        dcp.load(state, storage_reader=reader, planner=planner)


class KilledPlanner(DefaultSavePlanner):
    """Ends one rank by SIGKILL in the middle of writing."""

    victim = 0

    def resolve_data(self, write_item: Any) -> Any:
        if dist.get_rank() == self.victim and write_item.index.fqn == "model.rows":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(write_item)


def save_and_die(uri: str, seed: str, victim: str) -> None:
    planner = KilledPlanner()
    planner.victim = int(victim)
    dcp.save(sharded_state(int(seed)), storage_writer=S3StorageWriter(None, uri), planner=planner)


def run_step(step: list[str]) -> str:
    try:
        globals()[step[0]](*step[1:])
    except Exception as error:
        return f"rank {dist.get_rank()}: {type(error).__name__}: {error}"
    except CheckpointException as error:  # no Exception, but a BaseException
        return f"rank {dist.get_rank()}: {error}"
    return "ok"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("cpu:gloo")
    for number, step in enumerate(json.loads(sys.argv[1])):
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, run_step(step))
        if dist.get_rank() == 0:
            outcome = next((outcome for outcome in outcomes if outcome != "ok"), "ok")
            print(json.dumps([number, outcome]), flush=True)
    # Never freed: to free it, torch 2.4 joins its threads and keeps the GIL, for which one of them may still wait.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    dist.destroy_process_group()
