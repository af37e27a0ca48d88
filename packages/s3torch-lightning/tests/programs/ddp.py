"""Two ranks of DDP train, are interrupted, resume from `last`, and end as an uninterrupted training ends."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest
import torch
from _end import end_rank

library, uri, kind = sys.argv[1:]
pl = importlib.import_module(library)
callbacks = importlib.import_module(f"{library}.callbacks")

import s3torch_lightning  # noqa: E402 (after the Lightning that it is to be made for)


class Tiny(pl.LightningModule):
    def __init__(self, fail_at_step: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(4, 1)
        self.fail_at_step = fail_at_step

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.global_step == self.fail_at_step:
            raise RuntimeError("the machine was taken away")
        self.log("score", torch.tensor(100.0 - self.global_step), sync_dist=True)
        return (self.layer(batch) - batch.sum(1, keepdim=True)).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(64.0).reshape(16, 4) / 64, batch_size=2)


def trainer(*callbacks: Any, max_epochs: int = 3, **kwargs: Any) -> Any:
    plugin = getattr(s3torch_lightning, kind)()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(
        max_epochs=max_epochs, devices=2, strategy="ddp", plugins=[plugin], callbacks=list(callbacks), **quiet, **kwargs
    )


def kept(folder: str = uri) -> Any:
    return callbacks.ModelCheckpoint(dirpath=folder, monitor="score", save_top_k=2, save_last=True, filename="{step}")


def main() -> None:
    whole = Tiny()
    trainer(enable_checkpointing=False).fit(whole)
    interrupted = trainer(kept())
    with pytest.raises(RuntimeError, match="taken away"):
        interrupted.fit(Tiny(fail_at_step=10))
    torch.distributed.barrier()
    resumed = Tiny()
    last = trainer(kept())
    last.fit(resumed, ckpt_path="last")
    assert last.global_step == 12, last.global_step
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert last.ckpt_path == f"{uri}/last.ckpt"
    assert os.listdir() == [], os.listdir()
    # The first `last` of all, which rank 0 may still be uploading when rank 1 looks for it.
    again = f"{uri}-again"
    trainer(kept(again), max_epochs=1).fit(Tiny())
    longer = trainer(kept(again), max_epochs=2)
    longer.fit(Tiny(), ckpt_path="last")
    assert longer.ckpt_path == f"{again}/last.ckpt", longer.ckpt_path
    end_rank(last.global_rank)


if __name__ == "__main__":
    main()
