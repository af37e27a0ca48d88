"""Train a model that is sharded over two ranks (FSDP2), each of which writes its shards to S3.

python docs/examples/lightning_sharded.py s3://my-bucket/some/run eu-central-1
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.distributed.fsdp import fully_shard

from s3torch_lightning import S3ModelParallelStrategy


class Sharded(BoringModel):
    """A model whose layer is sharded over the ranks."""

    def configure_model(self) -> None:
        """Shard the layer over the data-parallel ranks."""
        assert self.device_mesh is not None
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]  # it returns schedulers too
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main(uri: str, region: str) -> None:
    """Train for two steps, then go on to four from what the ranks have written."""
    for steps in (2, 4):
        # --8<-- [start:strategy]
        strategy = S3ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, region=region)
        trainer = Trainer(
            devices=2,
            strategy=strategy,
            callbacks=[ModelCheckpoint(dirpath=uri, every_n_train_steps=1, save_last=True)],
            # --8<-- [end:strategy]
            max_steps=steps,
            accelerator="cpu",
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Sharded(), ckpt_path="last")
        print(f"rank {trainer.global_rank} is at step {trainer.global_step}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
