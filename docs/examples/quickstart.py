"""Read a bucket's objects through a DataLoader, and keep a checkpoint in the same bucket.

python docs/examples/quickstart.py s3://my-bucket/some/prefix eu-central-1
"""

from __future__ import annotations

import argparse

# --8<-- [start:imports]
import torch
from torch.utils.data import DataLoader

from s3core import S3Client, parse_s3_uri
from s3torch_checkpoint import S3Checkpoint
from s3torch_datasets import S3MapDataset, S3Reader

# --8<-- [end:imports]


# --8<-- [start:transform]
def to_tensor(reader: S3Reader) -> torch.Tensor:
    """Make a sample, a uint8 tensor of shape (size,), of one object."""
    return torch.frombuffer(bytearray(reader.read()), dtype=torch.uint8)


# --8<-- [end:transform]


def put_samples(uri: str, region: str, count: int) -> None:
    """Put objects of 64 bytes below a prefix, for the rest to read."""
    # --8<-- [start:client]
    client = S3Client(region)
    bucket, prefix = parse_s3_uri(f"{uri}/")
    for number in range(count):
        with client.put_object(bucket, f"{prefix}samples/{number:03}.bin") as stream:
            stream.write(bytes([number]) * 64)
    # --8<-- [end:client]


def main(uri: str, region: str) -> None:
    """Put samples, read them in batches, save a model and load it back."""
    put_samples(uri, region, count=20)

    # --8<-- [start:dataset]
    dataset = S3MapDataset.from_prefix(f"{uri}/samples/", region=region, transform=to_tensor)
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2)
    for batch in loader:
        print(batch.shape, batch.dtype)  # torch.Size([8, 64]) torch.uint8
    # --8<-- [end:dataset]

    model = torch.nn.Linear(64, 1)
    # --8<-- [start:checkpoint]
    checkpoint = S3Checkpoint(region=region)
    with checkpoint.writer(f"{uri}/model.pt") as writer:
        torch.save(model.state_dict(), writer)

    with checkpoint.reader(f"{uri}/model.pt") as reader:
        model.load_state_dict(torch.load(reader, weights_only=True))
    # --8<-- [end:checkpoint]
    print(f"loaded {uri}/model.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
