"""Every feature of the checkpoints, on a prefix of a bucket that this script may write to.

python docs/examples/checkpoints.py s3://my-bucket/some/prefix eu-central-1
"""

# mypy: disable-error-code="attr-defined, union-attr"
# Strict mypy takes nothing that torch.distributed re-exports for public, and async_save may return other than a future.

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3torch_checkpoint import S3Checkpoint
from s3torch_checkpoint.dcp import (
    HexPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
    clean,
    dcp_to_torch,
    keep_last,
    latest,
    torch_to_dcp,
)
from s3torch_checkpoint.safetensors import load_file, load_sharded, safe_open, save_file

model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 2))


def save_and_load(uri: str, region: str) -> None:
    """One object for the whole model."""
    # --8<-- [start:single]
    checkpoint = S3Checkpoint(region)
    checkpoint.save(model.state_dict(), f"{uri}/model.pt")
    model.load_state_dict(checkpoint.load(f"{uri}/model.pt"))
    # --8<-- [end:single]

    # --8<-- [start:torch]
    with checkpoint.writer(f"{uri}/other.pt") as writer:
        torch.save(model.state_dict(), writer)
    with checkpoint.reader(f"{uri}/other.pt") as reader:
        model.load_state_dict(torch.load(reader, weights_only=True))
    # --8<-- [end:torch]

    # --8<-- [start:manage]
    if checkpoint.exists(f"{uri}/other.pt"):
        checkpoint.delete(f"{uri}/other.pt")
    print(checkpoint.list(f"{uri}/model"))
    # --8<-- [end:manage]


def map_a_model(uri: str, region: str, folder: str) -> None:
    """A local copy whose tensors are read from disk as they are used."""
    checkpoint = S3Checkpoint(region)
    # --8<-- [start:mmap]
    state = checkpoint.load(f"{uri}/model.pt", mmap=True, cache_dir=folder)
    # --8<-- [end:mmap]
    print(sum(tensor.numel() for tensor in state.values()))


def save_distributed(uri: str, region: str) -> None:
    """Each rank writes its part; the same code runs in one process and in a thousand."""
    # --8<-- [start:dcp]
    state: dict[str, Any] = {"model": model.state_dict(), "step": 100}
    dcp.save(state, storage_writer=S3StorageWriter(region, f"{uri}/run/step-100"))
    dcp.load(state, storage_reader=S3StorageReader(region, f"{uri}/run/step-100"))
    model.load_state_dict(state["model"])
    # --8<-- [end:dcp]

    # --8<-- [start:async]
    writer = S3StorageWriter(region, f"{uri}/run/step-200")
    future: Any = dcp.async_save({"model": model.state_dict(), "step": 200}, storage_writer=writer)
    # ... train on; the state was copied before async_save returned ...
    future.result()  # raises what went wrong
    # --8<-- [end:async]

    # --8<-- [start:prefixes]
    writer = S3StorageWriter(region, f"{uri}/run/step-300", prefix_strategy=HexPrefixStrategy(epoch_num=3))
    dcp.save(state, storage_writer=writer)
    # --8<-- [end:prefixes]

    # --8<-- [start:replicated]
    reader = S3StorageReader(region, f"{uri}/run/step-300", replicated="node")
    dcp.load(state, storage_reader=reader)
    # --8<-- [end:replicated]


def look_after_them(uri: str, region: str) -> None:
    """Resume from the last checkpoint, and delete what is no longer needed."""
    # --8<-- [start:latest]
    newest = latest(f"{uri}/run", region=region)
    state = {"model": model.state_dict(), "step": 0}
    dcp.load(state, storage_reader=S3StorageReader(region, newest))
    print(f"resuming from {newest} at step {state['step']}")
    # --8<-- [end:latest]

    # --8<-- [start:housekeeping]
    keep_last(f"{uri}/run", 2, region=region)
    clean(f"{uri}/run", region=region)
    # --8<-- [end:housekeeping]


def convert(uri: str, region: str) -> None:
    """From many objects to one, and back."""
    # --8<-- [start:convert]
    dcp_to_torch(f"{uri}/run/step-200", f"{uri}/whole.pt", region=region)
    torch_to_dcp(f"{uri}/whole.pt", f"{uri}/many", region=region)
    # --8<-- [end:convert]


def use_safetensors(uri: str, region: str) -> None:
    """Files that other tools read too, whole or in part."""
    # --8<-- [start:safetensors]
    save_file(model.state_dict(), f"{uri}/hub/model.safetensors", {"format": "pt"}, region=region)
    model.load_state_dict(load_file(f"{uri}/hub/model.safetensors", region=region))
    # --8<-- [end:safetensors]

    # --8<-- [start:slices]
    with safe_open(f"{uri}/hub/model.safetensors", region=region) as file:
        bias = file.get_tensor("0.bias")
        rows = file.get_slice("0.weight")[10:20]  # fetches these ten rows
    # --8<-- [end:slices]
    print(bias.shape, rows.shape)


def load_shards(uri: str, region: str) -> dict[str, torch.Tensor]:
    """Load a model of several files, as Hugging Face's libraries write it."""
    # --8<-- [start:sharded]
    return load_sharded(f"{uri}/hub", region=region)
    # --8<-- [end:sharded]


def main(uri: str, region: str) -> None:
    """Run every part."""
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    save_and_load(uri, region)
    with tempfile.TemporaryDirectory() as folder:
        map_a_model(uri, region, folder)
    save_distributed(uri, region)
    look_after_them(uri, region)
    convert(uri, region)
    use_safetensors(uri, region)
    dist.destroy_process_group()
    print("all parts ran")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
