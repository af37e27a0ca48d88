"""Train on several ranks, so that a job that was stopped goes on with the batch after its last checkpoint.

torchrun --nproc-per-node 2 docs/examples/resume.py s3://my-bucket/some/prefix eu-central-1
"""

from __future__ import annotations

import argparse
import pickle
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader

from s3core import S3Client, parse_s3_uri
from s3torch_checkpoint import NoCheckpointError
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter, latest
from s3torch_datasets import S3IterableDataset, S3Reader

EPOCHS = 2
OBJECTS = 32
STEPS_BETWEEN_CHECKPOINTS = 2


def put_samples(uri: str, region: str) -> None:
    """Put objects of 64 bytes below a prefix."""
    client = S3Client(region)
    bucket, prefix = parse_s3_uri(f"{uri}/")
    for number in range(OBJECTS):
        with client.put_object(bucket, f"{prefix}train/{number:02}.bin") as stream:
            stream.write(bytes([number]) * 64)


# --8<-- [start:transform]
def to_sample(reader: S3Reader) -> tuple[str, torch.Tensor]:
    """Make a sample of one object: its key, and a float32 tensor of shape (64,)."""
    return reader.key, torch.frombuffer(bytearray(reader.read()), dtype=torch.uint8).float() / 255


# --8<-- [end:transform]


def find_newest(uri: str, region: str) -> str | None:
    """Return the URI of the last checkpoint, or None before the first one."""
    # --8<-- [start:newest]
    try:
        return latest(f"{uri}/checkpoints", region=region)
    except NoCheckpointError:
        return None
    # --8<-- [end:newest]


def tell(epoch: int, step: int, keys: list[str], last_step: int | None) -> None:
    """Print which objects a step has seen, and end there if the job is to be stopped there."""
    print(f"epoch {epoch} step {step}: {' '.join(key[-6:-4] for key in keys)}", flush=True)
    if step == last_step:
        sys.exit()


def main(uri: str, region: str, last_step: int | None) -> None:
    """Train for two epochs, or until a step at which the job is stopped."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    newest = find_newest(uri, region)
    if rank == 0 and newest is None:
        put_samples(uri, region)
    dist.barrier()

    # --8<-- [start:make]
    dataset = S3IterableDataset.from_prefix(
        f"{uri}/train/",
        region=region,
        transform=to_sample,
        enable_sharding=True,
        shuffle=True,
        shard_remainder="drop_last",  # as many steps on every rank
    )
    loader = StatefulDataLoader(dataset, batch_size=4, num_workers=1)
    model = DistributedDataParallel(torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    epoch = step = 0
    # --8<-- [end:make]

    # --8<-- [start:state]
    def job_state(loader_state: bytes) -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        # What stands under a name of this rank's own is saved and loaded by this rank alone.
        return {"model": weights, "optimizer": moments, "epoch": epoch, "step": step, f"loader-{rank}": loader_state}

    # --8<-- [end:state]

    # --8<-- [start:load]
    if newest is not None:
        state = job_state(b"")
        dcp.load(state, storage_reader=S3StorageReader(region, newest))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        loader.load_state_dict(pickle.loads(state[f"loader-{rank}"]))
        epoch, step = state["epoch"], state["step"]
        print(f"rank {rank} goes on after step {step} of {newest}")
    # --8<-- [end:load]

    # --8<-- [start:train]
    while epoch < EPOCHS:
        dataset.set_epoch(epoch)
        for keys, images in loader:
            optimizer.zero_grad()
            model(images).sum().backward()
            optimizer.step()
            step += 1
            if step % STEPS_BETWEEN_CHECKPOINTS == 0:
                writer = S3StorageWriter(region, f"{uri}/checkpoints/step-{step}")
                dcp.save(job_state(pickle.dumps(loader.state_dict())), storage_writer=writer)
            tell(epoch, step, keys, last_step)
        epoch += 1
    # --8<-- [end:train]
    print(f"rank {rank} is done")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    parser.add_argument("last_step", type=int, nargs="?", help="stop after this step; train to the end if absent")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region, arguments.last_step)
