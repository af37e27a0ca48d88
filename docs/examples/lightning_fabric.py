"""Save a training of Fabric to S3 and load it back in place.

python docs/examples/lightning_fabric.py s3://my-bucket/some/run eu-central-1
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning.fabric import Fabric

from s3torch_lightning import S3LightningCheckpoint


def main(uri: str, region: str) -> None:
    """Take one step, save, forget, load."""
    # --8<-- [start:fabric]
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[S3LightningCheckpoint(region=region)])
    # --8<-- [end:fabric]
    module = torch.nn.Linear(4, 1)
    model, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters()))
    fabric.backward(model(torch.ones(2, 4)).sum())
    optimizer.step()

    # --8<-- [start:save]
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "step": 1}
    fabric.save(f"{uri}/step-1.ckpt", state)
    # --8<-- [end:save]
    state["step"] = 0
    # --8<-- [start:load]
    fabric.load(f"{uri}/step-1.ckpt", state)
    # --8<-- [end:load]
    print(f"loaded step {state['step']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
