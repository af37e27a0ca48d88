"""The epoch of one dataset in ranks that are started with it, and in the workers of those ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers import CountingServer

Fill = Callable[..., list[bytes]]

SCRIPT = """
import json, os, sys
from operator import attrgetter
import torch.multiprocessing as mp
from torch.utils.data import DataLoader
from s3torch_datasets import S3IterableDataset

what, method, worker_method = sys.argv[1:]

def make(**place):
    return S3IterableDataset.from_prefix(
        os.environ["PREFIX"], transform=attrgetter("key"), enable_sharding=True, shuffle=True, seed=3, **place
    )

def resume(rank, dataset, state, barrier, results):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dataset.set_epoch(1)
    barrier.wait()
    if rank == 0:
        keys = list(dataset)
    barrier.wait()
    if rank == 1:
        dataset.load_state_dict(state)
        keys = list(dataset)
    results.put((rank, [keys]))

def use_workers(rank, dataset, state, barrier, results):
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context=worker_method
    )
    epochs = [list(loader)]  # the workers start before the rank has used the dataset itself
    for epoch in (rank + 1, rank + 2):
        barrier.wait()
        dataset.set_epoch(epoch)
        barrier.wait()
        epochs.append(list(loader))
    results.put((rank, epochs))

def expect(epoch, **place):
    dataset = make(**place)
    dataset.set_epoch(epoch)
    return list(dataset)

if __name__ == "__main__":
    dataset = make()
    list(dataset)
    context = mp.get_context(method)
    results = context.SimpleQueue()
    arguments = (dataset, dataset.state_dict(), context.Barrier(2, timeout=60), results)
    mp.start_processes(globals()[what], arguments, nprocs=2, start_method=method)
    found = dict(results.get() for _ in range(2))
    if what == "resume":
        expected = [[expect(1, rank=rank, world_size=2)] for rank in range(2)]
    else:
        expected = [[expect(epoch) for epoch in (0, rank + 1, rank + 2)] for rank in range(2)]
    print(json.dumps({"found": [found[0], found[1]], "expected": expected, "epoch": dataset.epoch}))
"""


@pytest.fixture
def run_ranks(counting_server: CountingServer, fill: Fill, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Starts two ranks with one dataset, and returns what they read, and what one rank alone would."""

    def run(what: str, method: str, worker_method: str = "") -> dict[str, Any]:
        if "fork" in (method, worker_method) and sys.platform != "linux":
            pytest.skip("s3core names spawn where it has no private copy of the native library")
        fill(20)
        script = tmp_path / "ranks.py"
        script.write_text(SCRIPT)
        environment = {**os.environ, **counting_server.environment(), "PREFIX": f"s3://{counting_server.bucket}/data/"}
        done = subprocess.run(
            [sys.executable, str(script), what, method, worker_method],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_rank_that_begins_takes_no_epoch_from_one_that_resumes(
    run_ranks: Callable[..., dict[str, Any]], method: str
) -> None:
    ranks = run_ranks("resume", method)
    assert ranks["found"] == ranks["expected"]
    assert ranks["epoch"] == 0  # that of the process which started them


@pytest.mark.parametrize(
    ("method", "worker_method"), [("fork", "fork"), ("spawn", "fork"), ("spawn", "spawn"), ("forkserver", "forkserver")]
)
def test_workers_see_the_epoch_that_their_own_rank_sets(
    run_ranks: Callable[..., dict[str, Any]], method: str, worker_method: str
) -> None:
    ranks = run_ranks("use_workers", method, worker_method)
    assert ranks["found"] == ranks["expected"]
