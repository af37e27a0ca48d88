"""Train with Lightning, keep the best checkpoints on S3, and go on from the last one when run again.

python docs/examples/lightning_trainer.py s3://my-bucket/some/run eu-central-1
"""

from __future__ import annotations

import argparse

import torch

# --8<-- [start:imports]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from s3torch_lightning import S3LightningCheckpoint

# --8<-- [end:imports]


class Line(LightningModule):
    """Learns the sum of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        """Return the mean squared error of a batch of shape (n, 4)."""
        loss = torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self) -> torch.utils.data.DataLoader[torch.Tensor]:
        """Return batches of shape (8, 4), float32."""
        return torch.utils.data.DataLoader(torch.rand(64, 4), batch_size=8)  # type: ignore[arg-type]  # a tensor will do


def main(uri: str, region: str) -> None:
    """Train for 16 steps, then go on to 32, as the next run of a job would."""
    best = ""
    for steps in (16, 32):
        # --8<-- [start:trainer]
        checkpoints = ModelCheckpoint(dirpath=uri, monitor="loss", save_top_k=2, save_last=True)
        trainer = Trainer(
            max_steps=steps,
            callbacks=[checkpoints],
            plugins=[S3LightningCheckpoint(region=region)],
            # --8<-- [end:trainer]
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # --8<-- [start:fit]
        trainer.fit(Line(), ckpt_path="last")  # starts anew when there is none
        # --8<-- [end:fit]
        best = checkpoints.best_model_path
        print(f"step {trainer.global_step}: best is {best}")

    # --8<-- [start:load]
    model = Line.load_from_checkpoint(best)
    # --8<-- [end:load]
    print(f"loaded {sum(value.numel() for value in model.parameters())} numbers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
