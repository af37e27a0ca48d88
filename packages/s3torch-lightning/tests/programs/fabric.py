"""The ranks of Fabric save a sharded model and load it, sharded and as one object, strictly and not.

Two ranks on CPU; or two that share one GPU, over gloo since NCCL wants one for each; or one rank on a GPU, over NCCL.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _end import end_rank
from torch.distributed.fsdp import FullyShardedDataParallel

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.4 and 2.5
    from torch.distributed._composable.fsdp import fully_shard

library, uri, strategy_name, place, *ways = sys.argv[1:]
RANKS = 1 if place == "gpu" else 2
Fabric = importlib.import_module(library).Fabric

import s3torch_lightning.fabric as strategies  # noqa: E402 (after the Lightning that it is to be made for)
from s3torch_lightning import S3AsyncCheckpoint  # noqa: E402

IS_FSDP1 = strategy_name == "S3FSDPStrategy"


def parallelize(module: Any, mesh: Any) -> Any:
    for each in (module[0], module[2], module):
        fully_shard(each, mesh=mesh["data_parallel"])
    return module


def make(how: str) -> tuple[Any, Any, Any]:
    if IS_FSDP1:
        one_gpu = {"parallel_devices": [torch.device("cuda", 0)] * 2, "process_group_backend": "gloo"}
        strategy = strategies.S3FSDPStrategy(state_dict_type=how, **(one_gpu if place == "shared-gpu" else {}))
    else:
        strategy = strategies.S3ModelParallelStrategy(
            parallelize, data_parallel_size=RANKS, tensor_parallel_size=1, save_distributed_checkpoint=how == "sharded"
        )
    # The settings may come from a plugin, which the stock strategies refuse.
    plugins = [S3AsyncCheckpoint()] if how == "sharded" else []
    where = {"accelerator": "cpu", "devices": 2} if place == "cpu" else {"accelerator": "gpu", "devices": 1}
    fabric = Fabric(**where, strategy=strategy, plugins=plugins)
    fabric.launch()
    return fabric, *fresh(fabric)


def fresh(fabric: Any) -> tuple[Any, Any]:
    torch.manual_seed(fresh.seed)
    fresh.seed += 1
    module: Any = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
    if IS_FSDP1 and place == "cpu":  # wrapped here, because the strategy itself asks FSDP for a GPU
        module = FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        return module, optimizer
    model = fabric.setup_module(module)
    return model, fabric.setup_optimizers(torch.optim.Adam(model.parameters(), lr=0.05))


fresh.seed = 1  # type: ignore[attr-defined]


def step(fabric: Any, model: Any, optimizer: Any) -> None:
    loss = model(fabric.to_device(torch.arange(8.0).reshape(2, 4) + fabric.global_rank)).pow(2).mean()
    fabric.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def weights(model: Any) -> list[torch.Tensor]:
    if IS_FSDP1:
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            return [value.detach().clone() for value in model.parameters()]
    return [value.full_tensor().detach().clone() for value in model.parameters()]


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(*pair) for pair in zip(weights(first), weights(second), strict=True))


def main() -> None:
    for how in ways:
        fabric, model, optimizer = make(how)
        step(fabric, model, optimizer)
        state = {"model": model, "optimizer": optimizer, "epoch": 3, "seen": [1, 2]}
        fabric.save(f"{uri}/{how}", state)
        assert how == "full" or fabric.global_rank or state["epoch"] == 3

        # A removal in the background is done before its name is used again.
        if fabric.global_rank == 0:
            fabric.strategy.checkpoint_io.remove_checkpoint(f"{uri}/{how}")
        fabric.save(f"{uri}/{how}", state)
        fabric.strategy.checkpoint_io.teardown()
        fabric.barrier()

        other, other_optimizer = fresh(fabric)
        assert not same(model, other)
        target = {"model": other, "optimizer": other_optimizer, "epoch": 0}
        # A path that went through pathlib is taken for the URI that it was.
        remainder = fabric.load(Path(f"{uri}/{how}"), target)
        assert same(model, other)
        assert target["epoch"] == 3
        assert remainder["seen"] == [1, 2], remainder
        step(fabric, model, optimizer)
        step(fabric, other, other_optimizer)
        assert same(model, other), "the optimizer's state was lost"

        with pytest.raises(KeyError, match="absent"):
            fabric.load(f"{uri}/{how}", {"model": other, "absent": 1})
        relaxed = {"model": other, "absent": 1}
        fabric.load(f"{uri}/{how}", relaxed, strict=False)
        assert relaxed["absent"] == 1
        with pytest.raises(ValueError, match="model"):
            fabric.save(f"{uri}/none", {"epoch": 3})
        with pytest.raises(FileNotFoundError, match=f"{uri}/none"):
            fabric.load(f"{uri}/none", {"model": other})
        # The same name again, the other way: what was there before goes once the new one is there.
        fabric.save(f"{uri}/both/", {"model": model, "how": how})
        loaded = {"model": other, "how": ""}
        fabric.load(f"{uri}/both", loaded)
        assert loaded["how"] == how
    assert os.listdir() == [], os.listdir()
    end_rank(fabric.global_rank)


if __name__ == "__main__":
    main()
