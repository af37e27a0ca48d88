"""Two ranks of Fabric save over a checkpoint what rank 0 cannot pickle: both are told, and the old one loads."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from _end import end_rank
from lightning.fabric import Fabric

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.4 and 2.5
    from torch.distributed._composable.fsdp import fully_shard

from s3torch_lightning.fabric import S3ModelParallelStrategy

uri, how = sys.argv[1:]


def main() -> None:
    strategy = S3ModelParallelStrategy(
        lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]),
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=how == "sharded",
    )
    fabric: Any = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(torch.nn.Linear(4, 4))
    fabric.save(uri, {"model": model, "step": 1})
    # Pickling errors of every kind have "pickle" in them, in one case or another.
    with pytest.raises(Exception, match=r"(?i)pickle"):
        fabric.save(uri, {"model": model, "step": lambda: 2})
    state = {"model": model, "step": 0}
    fabric.load(uri, state)
    assert state["step"] == 1, state["step"]
    end_rank(fabric.global_rank)


if __name__ == "__main__":
    main()
