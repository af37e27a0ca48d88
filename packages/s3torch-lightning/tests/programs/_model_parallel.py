"""Two ranks of Fabric that share a model."""

from __future__ import annotations

from typing import Any

from lightning.fabric import Fabric

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.4 and 2.5
    from torch.distributed._composable.fsdp import fully_shard

from s3torch_lightning.fabric import S3ModelParallelStrategy


def launch_two_ranks(**options: Any) -> Any:
    """Start the ranks; in each of them this returns its Fabric.

    Args:
        **options: More of the strategy's.
    """
    strategy = S3ModelParallelStrategy(
        lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]),
        data_parallel_size=2,
        tensor_parallel_size=1,
        **options,
    )
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    return fabric
