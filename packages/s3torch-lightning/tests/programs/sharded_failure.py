"""Two ranks of Fabric save over a checkpoint while permission is lost: both are told, and the old one loads."""

from __future__ import annotations

import sys
from typing import Any

import torch
from _end import end_rank
from lightning.fabric import Fabric

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.4 and 2.5
    from torch.distributed._composable.fsdp import fully_shard

from s3torch_lightning.fabric import S3ModelParallelStrategy

(uri,) = sys.argv[1:]


def main() -> None:
    strategy = S3ModelParallelStrategy(
        lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]),
        data_parallel_size=2,
        tensor_parallel_size=1,
    )
    fabric: Any = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(torch.nn.Linear(4, 4))
    # Six objects go through: the shards, the metadata and its copy, then the next shards; the next metadata does not.
    fabric.save(uri, {"model": model, "step": 1})
    error: BaseException | None = None
    for step in (2, 3):
        try:
            fabric.save(uri, {"model": model, "step": step})
        except BaseException as raised:  # torch's CheckpointException is no Exception
            error = raised
            break
    assert error is not None, "every save went through"
    assert "AccessDenied" in str(error) or "403" in str(error), error
    state = {"model": model, "step": 0}
    fabric.load(uri, state)
    assert state["step"] == 1, state["step"]
    end_rank(fabric.global_rank)


if __name__ == "__main__":
    main()
