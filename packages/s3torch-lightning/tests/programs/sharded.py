"""The ranks of a Trainer train a sharded model, resume from `last`, and load it in every way.

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

library, uri, strategy_name, how, *more = sys.argv[1:]
place, precision = more or ("cpu", "32-true")
RANKS = 1 if place == "gpu" else 2
STEPS = 32 // RANKS
pl = importlib.import_module(library)
callbacks = importlib.import_module(f"{library}.callbacks")

import s3torch_lightning  # noqa: E402 (after the Lightning that it is to be made for)


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))

    def configure_model(self) -> None:
        if strategy_name.endswith("ModelParallelStrategy"):
            mesh = self.device_mesh["data_parallel"]
            for module in (self.net[0], self.net[2], self.net):
                fully_shard(module, mesh=mesh)
        elif place == "cpu" and not isinstance(self.net, FullyShardedDataParallel):
            # Wrapped here, because the strategy itself asks FSDP for a GPU.
            self.net = FullyShardedDataParallel(self.net, device_id=torch.device("cpu"), use_orig_params=True)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("score", torch.tensor(100.0 - self.global_step, device=self.device), sync_dist=True)
        return (self.net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()

    def test_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("tested", self.net(batch).sum(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.trainer.model.parameters(), lr=0.05)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(64.0).reshape(16, 4) / 64, batch_size=2)

    test_dataloader = train_dataloader


def strategy() -> Any:
    kind = getattr(s3torch_lightning, strategy_name)
    if strategy_name.endswith("FSDPStrategy"):
        one_gpu = {"parallel_devices": [torch.device("cuda", 0)] * 2, "process_group_backend": "gloo"}
        return kind(state_dict_type=how, **(one_gpu if place == "shared-gpu" else {}))
    return kind(data_parallel_size=RANKS, tensor_parallel_size=1, save_distributed_checkpoint=how == "sharded")


def trainer(epochs: int, other: Any = None) -> Any:
    checkpoint = callbacks.ModelCheckpoint(
        dirpath=uri, monitor="score", save_top_k=2, save_last=True, filename="{step}"
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    where = {"accelerator": "cpu", "devices": 2} if place == "cpu" else {"accelerator": "gpu", "devices": 1}
    where["precision"] = precision
    # With one rank on a GPU, fully_shard looks at the version of a tensor, which those of inference mode do not have.
    where["inference_mode"] = place != "gpu"
    return pl.Trainer(max_epochs=epochs, strategy=other or strategy(), callbacks=[checkpoint], **where, **quiet)


def weights(trainer: Any) -> list[torch.Tensor]:
    if strategy_name.endswith("FSDPStrategy"):
        with FullyShardedDataParallel.summon_full_params(trainer.model, writeback=False):
            return [value.detach().clone() for value in trainer.model.parameters()]
    return [value.full_tensor().detach().clone() for value in trainer.model.parameters()]


class Weights(pl.Callback):
    """Keeps the weights as they are at the end of a stage, before the strategy takes the model apart."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.kept = weights(trainer)

    on_test_end = on_train_end


class Refused(pl.Callback):
    """Saves where nothing can be saved, which each rank is told."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        with pytest.raises(FileNotFoundError, match="no-such-bucket"):
            trainer.save_checkpoint("s3://no-such-bucket/model.ckpt")


def main() -> None:
    if strategy_name == "S3ModelParallelStrategy":
        # Lightning's own strategy would write to a local folder `s3:`.
        stock = importlib.import_module(f"{library}.strategies").ModelParallelStrategy(RANKS, 1)
        with pytest.raises(TypeError, match=r"ModelParallelStrategy cannot use s3://.* Use S3ModelParallelStrategy"):
            trainer(1, stock).fit(Tiny())
        assert os.listdir() == [], os.listdir()

    whole, end = trainer(4), Weights()
    whole.callbacks.append(end)
    whole.fit(Tiny())
    first = trainer(2)
    first.fit(Tiny())
    resumed, again = trainer(4), Weights()
    resumed.callbacks += [again, *([Refused()] if how == "full" else [])]
    resumed.fit(Tiny(), ckpt_path=Path(f"{uri}/last-v1.ckpt") if how == "sharded" else "last")
    assert resumed.global_step == STEPS, resumed.global_step
    assert all(torch.equal(*pair) for pair in zip(end.kept, again.kept, strict=True))

    tester, loaded = trainer(4), Weights()
    tester.callbacks.append(loaded)
    tester.test(Tiny(), ckpt_path=f"{uri}/step={STEPS}.ckpt")
    assert all(torch.equal(*pair) for pair in zip(end.kept, loaded.kept, strict=True))
    with pytest.raises(FileNotFoundError, match=f"{uri}/none.ckpt"):
        trainer(4).test(Tiny(), ckpt_path=f"{uri}/none.ckpt")
    assert os.listdir() == [], os.listdir()
    end_rank(resumed.global_rank)


if __name__ == "__main__":
    main()
