"""Distributed checkpoints of two ranks: saved, loaded, and loaded in another sharding.

What torch has for them is imported when it is used: it takes 50 MB, which other workloads should not seem to take.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks._bucket import remove
from benchmarks._data import is_same_state, make_state
from benchmarks._meter import Meter
from benchmarks._peers import CannotDoError, Peer
from benchmarks._workloads._workload import Workload, check, is_thorough, names_below, read_back

RANKS = 2


def _save(peer: Peer, meter: Meter) -> None:
    name = f"saved/{type(peer).__name__}/{time.time_ns()}"
    try:
        _measure(partial(_save_rank, peer, name), meter, peer)
        if is_thorough(peer):
            _check_saved(peer, name)
    finally:
        # Each save has a name of its own, and what a server keeps in memory would add up. What stays in a bucket is
        # told at the end of the run.
        with contextlib.suppress(OSError):
            remove(peer.target, f"{name}/")


def _load(peer: Peer, meter: Meter, *, dim: int) -> None:
    _measure(
        partial(_load_rank, peer.storage_reader, "distributed", peer.target.scale.distributed_bytes, dim), meter, peer
    )


def _save_rank(peer: Peer, name: str, meter: Meter) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    state = sharded_state(peer.target.scale.distributed_bytes, 0)
    writer = peer.storage_writer(name)
    dist.barrier()
    meter.start()
    save(state, storage_writer=writer)
    meter.stop()


def _check_saved(peer: Peer, name: str) -> None:
    """Load a checkpoint with torch's own reader, which knows nothing of the peer."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    with tempfile.TemporaryDirectory(prefix="bench-distributed-") as directory:
        for written in names_below(peer, f"{name}/"):
            Path(directory, Path(written).name).write_bytes(read_back(peer, written))
        _in_ranks(partial(_load_rank, FileSystemReader, directory, peer.target.scale.distributed_bytes, 0))


def _load_rank(make_reader: Callable[[str], Any], name: str, size: int, dim: int, meter: Meter) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    expected = sharded_state(size, dim)
    state: dict[str, Any] = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    reader = make_reader(name)
    dist.barrier()
    meter.start()
    load(state, storage_reader=reader)
    meter.stop()
    local = [{key: tensor.to_local() for key, tensor in found.items()} for found in (state, expected)]
    check(is_same_state(*local), "other tensors came")


def sharded_state(size: int, dim: int) -> dict[str, Any]:
    """A model of `size` bytes in all, of which each rank has its share along `dim`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {}
    for key, tensor in make_state(size).items():
        whole = tensor.reshape(-1, 1024)
        local = whole.chunk(mesh.size(), dim)[mesh.get_rank()].contiguous()
        state[key] = DTensor.from_local(
            local, mesh, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride()
        )
    return state


def write_distributed(size: int) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint as torch itself writes it with two ranks."""
    with tempfile.TemporaryDirectory(prefix="bench-distributed-") as directory:
        _in_ranks(partial(_write_rank, size, directory))
        for path in sorted(Path(directory).iterdir(), reverse=True):  # .metadata last
            yield f"distributed/{path.name}", path.read_bytes()


def _write_rank(size: int, directory: str, meter: Meter) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(sharded_state(size, 0), storage_writer=FileSystemWriter(directory, sync_files=False))


def _measure(work: Callable[[Meter], None], meter: Meter, peer: Peer) -> None:
    meter.start()
    meters = _in_ranks(work)
    meter.stop()
    meter.seconds = max(one.seconds for one in meters)
    meter.cpu_seconds = sum(one.cpu_seconds for one in meters)
    meter.peak_rss_bytes = sum(one.peak_rss_bytes for one in meters)
    meter.needed_bytes = peer.target.scale.distributed_bytes


def _in_ranks(work: Callable[[Meter], None]) -> list[Meter]:
    """Run a piece of work in two processes of one group, and return what each measured."""
    context = multiprocessing.get_context("fork")  # before anything was done here that a fork would harm
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as directory:
        results = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank, args=[rank, Path(directory, "group"), work, theirs])
            process.start()
            theirs.close()
            results.append((process, ours))
        found = []
        for process, ours in results:
            with contextlib.suppress(EOFError):  # it died; its status says how
                found.append(ours.recv())
            process.join()
    for error in found:
        if isinstance(error, BaseException):
            raise error
    check(len(found) == RANKS, f"ranks ended with {[process.exitcode for process, _ in results]}")
    return found


def _rank(rank: int, group: Path, work: Callable[[Meter], None], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=RANKS)
        meter = Meter()
        work(meter)
        results.send(meter)
    except CannotDoError as error:
        results.send(error)
    except BaseException as error:
        results.send(RuntimeError(f"rank {rank}: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)  # without a word of the process group about its other members


WORKLOADS = [
    Workload("dcp-save", "distributed checkpoint, 2 ranks, saved", "MB", "storage_writer", _save),
    Workload(
        "dcp-load",
        "distributed checkpoint, 2 ranks, loaded",
        "MB",
        "storage_reader",
        partial(_load, dim=0),
        ("distributed",),
    ),
    Workload(
        "dcp-reshard",
        "distributed checkpoint, loaded in another sharding",
        "MB",
        "storage_reader",
        partial(_load, dim=1),
        ("distributed",),
    ),
]
