"""Train with Lightning while checkpoints are uploaded in the background.

python docs/examples/lightning_async.py s3://my-bucket/some/run eu-central-1
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from s3torch_lightning import S3AsyncCheckpoint


def main(uri: str, region: str) -> None:
    """Save after every step, and wait for the uploads only at the end."""
    # --8<-- [start:plugin]
    plugin = S3AsyncCheckpoint(region=region, max_in_flight=2)
    # --8<-- [end:plugin]
    trainer = Trainer(
        max_steps=6,
        callbacks=[ModelCheckpoint(dirpath=uri, every_n_train_steps=1, save_last=True)],
        plugins=[plugin],
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    loaded = plugin.load_checkpoint(f"{uri}/last.ckpt")
    print(f"saved step {loaded['global_step']}, {torch.numel(loaded['state_dict']['layer.weight'])} weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
