"""Train a small network on images in a bucket, and keep its checkpoints there.

    hatch run demo
    hatch run demo --uri s3://my-bucket/some/prefix --region eu-central-1

Without `--uri` a local S3 server is started for the run. The images are scikit-learn's 1,797 handwritten digits, each a
PNG object with its label in the key: `digits/train/7/0001.png`.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, NoReturn

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from s3core import S3Client, parse_s3_uri
from s3torch_checkpoint import S3Checkpoint
from s3torch_datasets import S3MapDataset, S3Reader

UPLOADS_AT_ONCE = 16
HELD_OUT_SHARE = 0.2
PIXELS = 8

Loader = DataLoader[tuple[torch.Tensor, int]]


@dataclass(frozen=True)
class Place:
    """Where the run keeps its objects: a prefix of a bucket, and how to reach it."""

    uri: str
    region: str
    endpoint: str | None

    def client(self) -> S3Client:
        return S3Client(self.region, endpoint=self.endpoint)

    def below(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"


# A DataLoader worker that is spawned imports this module to find its transform: it must stand at the top level.
def decode(reader: S3Reader) -> tuple[torch.Tensor, int]:
    """Turn one object into a sample: a float32 image of shape (1, 8, 8) in [0, 1], and its label."""
    with Image.open(reader) as image:
        pixels = np.asarray(image, dtype=np.float32) / 255
    label = int(reader.key.split("/")[-2])
    return torch.from_numpy(pixels).unsqueeze(0), label


class DigitNet(nn.Sequential):
    """Two convolutions and two linear layers: images (n, 1, 8, 8) to logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (PIXELS // 2) ** 2, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, 10),
        )


@contextmanager
def somewhere(uri: str | None, region: str | None, endpoint: str | None) -> Iterator[Place]:
    """Give the bucket that was asked for, or one on a local server that ends with the run."""
    if uri is not None:
        if region is None:
            raise typer.BadParameter(
                "say where the bucket is, for example --region eu-central-1", param_hint="--region"
            )
        parse_s3_uri(uri)
        yield Place(uri, region, endpoint)
        return
    from servers import start_local_server  # only this repository has it

    with start_local_server() as server:
        print(f"Started a local S3 server: {server.name} at {server.endpoint}")
        # The workers of the DataLoader inherit the environment, and with it the credentials.
        os.environ.update(server.environment())
        yield Place(f"s3://{server.create_bucket()}/demo", server.region, server.endpoint)


def digits_as_png(seed: int) -> dict[str, bytes]:
    """Return the key (below the run's prefix) and the PNG file of each digit, split into train and test."""
    digits = load_digits()
    order = random.Random(seed).sample(range(len(digits.images)), len(digits.images))
    held_out = set(order[: round(HELD_OUT_SHARE * len(order))])
    files = {}
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = io.BytesIO()
        Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(file, format="PNG")
        part = "test" if number in held_out else "train"
        files[f"digits/{part}/{label}/{number:04}.png"] = file.getvalue()
    return files


def upload(place: Place, files: dict[str, bytes]) -> None:
    """Put every file below the prefix, several at once."""
    client = place.client()

    def put(name: str) -> None:
        bucket, key = parse_s3_uri(place.below(name))
        with client.put_object(bucket, key, size_hint=len(files[name])) as stream:
            stream.write(files[name])

    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        puts = [pool.submit(put, name) for name in files]
        for done in tqdm(as_completed(puts), total=len(puts), desc="upload", unit="img"):
            done.result()


def make_loader(place: Place, part: str, *, batch_size: int, workers: int, seed: int) -> Loader:
    """Return the batches of one part: images (n, 1, 8, 8), labels (n,)."""
    dataset = S3MapDataset.from_prefix(
        place.below(f"digits/{part}/"), region=place.region, endpoint=place.endpoint, transform=decode
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=part == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def accuracy_of(model: nn.Module, loader: Loader, title: str) -> float:
    """Return the share of images whose label the model finds."""
    right = seen = 0
    model.eval()
    with torch.inference_mode():
        for images, labels in tqdm(loader, desc=title, unit="batch", leave=False):
            right += int((model(images).argmax(1) == labels).sum())
            seen += len(labels)
    return right / seen


def print_bucket(place: Place) -> None:
    """Print what the run has put into the bucket: one line per folder of images and per checkpoint."""
    bucket, prefix = parse_s3_uri(place.below(""))
    sizes: dict[str, list[int]] = defaultdict(list)
    for page in place.client().list_objects(bucket, prefix):
        for key, size in zip(page.keys, page.sizes, strict=True):
            name = key.removeprefix(prefix)
            sizes["/".join(name.split("/")[:2]) + "/…" if name.endswith(".png") else name].append(size)
    table = Table("below " + place.below(""), title="In the bucket")
    table.add_column("objects", justify="right")
    table.add_column("bytes", justify="right")
    for name, group in sorted(sizes.items()):
        table.add_row(name, f"{len(group):,}", f"{sum(group):,}")
    Console().print(table)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader, bar: tqdm[NoReturn]) -> float:
    """Take one step per batch; return the seconds that the first batch was waited for."""
    first_batch_seconds = None
    started = time.perf_counter()
    model.train()
    for images, labels in loader:
        if first_batch_seconds is None:
            first_batch_seconds = time.perf_counter() - started
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
        optimizer.step()
        bar.update(len(labels))
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return first_batch_seconds or 0.0


def main(
    uri: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix to keep everything below; a local server if absent.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="The bucket's region.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible store; AWS if absent.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes of the DataLoader.")] = 2,
    min_accuracy: Annotated[float, typer.Option(help="Fail below this share of right answers.")] = 0.95,
    seed: int = 0,
) -> None:
    """Train on digits streamed from S3, save a checkpoint each epoch, load the last one back and test it."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    with somewhere(uri, region, endpoint) as place:
        files = digits_as_png(seed)
        upload(place, files)

        loader = make_loader(place, "train", batch_size=batch_size, workers=workers, seed=seed)
        held_out = make_loader(place, "test", batch_size=256, workers=workers, seed=seed)
        checkpoint = S3Checkpoint(region=place.region, endpoint=place.endpoint)
        model = DigitNet()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

        image_count = sum("/train/" in name for name in files)
        first_batch_seconds = []
        training_seconds = 0.0
        last_uri = ""
        for epoch in range(1, epochs + 1):
            with tqdm(total=image_count, desc=f"epoch {epoch}/{epochs}", unit="img") as bar:
                epoch_started = time.perf_counter()
                first_batch_seconds.append(train_epoch(model, optimizer, loader, bar))
                training_seconds += time.perf_counter() - epoch_started
            last_uri = place.below(f"checkpoints/epoch-{epoch:03}.pt")
            with checkpoint.writer(last_uri) as writer:
                torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, writer)

        with checkpoint.reader(last_uri) as reader:
            state = torch.load(reader, weights_only=True)
        restored = DigitNet()
        restored.load_state_dict(state["model"])
        accuracy = accuracy_of(restored, held_out, "held out")

        print_bucket(place)
        print(f"loaded back          {last_uri}, epoch {state['epoch']}")
        print(f"held-out accuracy    {accuracy:.1%} of {len(files) - image_count} images")
        print(f"time to first batch  {first_batch_seconds[0]:.2f} s, {workers} workers' start included")
        print(f"training             {epochs * image_count / training_seconds:,.0f} images/s over {epochs} epochs")
        print(f"all of it            {time.perf_counter() - started:.1f} s")
    if accuracy < min_accuracy:
        print(f"error: {accuracy:.1%} right is less than the {min_accuracy:.0%} asked for")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
