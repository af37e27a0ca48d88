"""Every feature of the datasets, on a prefix of a bucket that this script fills and may write to.

python docs/examples/datasets.py s3://my-bucket/some/prefix eu-central-1
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import logging
import tarfile
import tempfile
import time
from operator import methodcaller
from typing import Any

from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3core import ObjectInfo, S3Client, parse_s3_uri
from s3torch_datasets import (
    SKIP,
    ObjectFilter,
    S3BucketKeyData,
    S3ConcatDataset,
    S3IterableDataset,
    S3MapDataset,
    S3Reader,
    S3ReaderConstructor,
    S3TarDataset,
    S3Writer,
    SequentialS3Reader,
    open_reader,
)


# --8<-- [start:transform]
def decode(reader: S3Reader) -> tuple[str, int]:
    """Make a sample of one object: here its name and its size."""
    return reader.key, len(reader.read())


# --8<-- [end:transform]


def fill(uri: str, region: str) -> None:
    """Put 40 small objects and 4 tar shards below a prefix."""
    client = S3Client(region)
    bucket, prefix = parse_s3_uri(f"{uri}/")
    for number in range(40):
        with S3Writer(client.put_object(bucket, f"{prefix}train/{number:03}.bin")) as writer:
            writer.write(bytes([number]) * 1000)
    for shard in range(4):
        # --8<-- [start:write-tar]
        with (
            S3Writer(client.put_object(bucket, f"{prefix}shards/{shard:05}.tar")) as writer,
            tarfile.open(fileobj=writer, mode="w|") as tar,
        ):
            for number in range(10):
                for extension, data in (("txt", f"{shard}-{number}".encode()), ("cls", b"7")):
                    member = tarfile.TarInfo(f"{shard:05}-{number:05}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        # --8<-- [end:write-tar]


def read_by_number(uri: str, region: str) -> None:
    """Map-style: batches of a sampler's choice."""
    # --8<-- [start:map]
    dataset = S3MapDataset.from_prefix(f"{uri}/train/", region=region, transform=decode)
    loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=2)
    for keys, sizes in loader:
        print(len(keys), int(sizes.sum()))
    # --8<-- [end:map]

    # --8<-- [start:concat]
    some = S3MapDataset.from_prefix(f"{uri}/train/00", region=region, transform=decode)
    more = S3MapDataset.from_prefix(f"{uri}/train/01", region=region, transform=decode)
    both = S3ConcatDataset([some, more])
    loader = DataLoader(both, batch_size=16, shuffle=True)
    # --8<-- [end:concat]
    print(len(both), len(loader))


def read_in_order(uri: str, region: str) -> None:
    """Iterable: in order, or shuffled, with the coming objects on their way."""
    # --8<-- [start:iterable]
    dataset = S3IterableDataset.from_prefix(
        f"{uri}/train/", region=region, transform=decode, enable_sharding=True, shuffle=True, seed=17
    )
    loader = DataLoader(dataset, batch_size=8, num_workers=2)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for keys, sizes in loader:
            print(epoch, len(keys), int(sizes.sum()))
    # --8<-- [end:iterable]


def share_among_ranks(uri: str, region: str) -> None:
    """Give every rank as many objects."""
    # --8<-- [start:ranks]
    dataset = S3IterableDataset.from_prefix(
        f"{uri}/train/",
        region=region,
        transform=decode,
        enable_sharding=True,
        shard_remainder="pad",
        rank=1,  # without these two: the rank of torch.distributed
        world_size=3,
    )
    # --8<-- [end:ranks]
    print(len(list(dataset)))  # 14, a third of 40 rounded up


def choose_objects(uri: str, region: str) -> None:
    """What a dataset is made of."""
    bucket, prefix = parse_s3_uri(f"{uri}/")

    # --8<-- [start:objects]
    named = S3MapDataset.from_objects([f"{uri}/train/003.bin", f"{uri}/train/001.bin"], region=region)
    print(named[0].read()[:4])
    # --8<-- [end:objects]

    # --8<-- [start:filter]
    chosen = ObjectFilter(suffix=".bin", glob="*/train/00*", min_size=1, predicate=is_recent)
    dataset = S3MapDataset.from_prefix(uri, region=region, transform=decode, object_filter=chosen)
    # --8<-- [end:filter]
    print(len(dataset))

    # --8<-- [start:own]
    def every_other_object(client: S3Client) -> Any:
        for page in client.list_objects(bucket, f"{prefix}train/"):
            for info in page.object_info[::2]:
                yield S3BucketKeyData(bucket, info.key, info)

    dataset = S3MapDataset(region, every_other_object, transform=decode)
    # --8<-- [end:own]
    print(len(dataset))

    # --8<-- [start:manifest]
    S3MapDataset.from_prefix(f"{uri}/train/", region=region).save_manifest(f"{uri}/train.jsonl")
    dataset = S3MapDataset.from_manifest(f"{uri}/train.jsonl", region=region, transform=decode)
    # --8<-- [end:manifest]
    print(len(dataset))

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/inventory.csv"
        with open(path, "w") as file:
            file.write(f'"{bucket}","{prefix}train/000.bin","1000"\n"{bucket}","{prefix}empty/","0"\n')
        # --8<-- [start:inventory]
        dataset = S3MapDataset.from_manifest(path, columns="Bucket, Key, Size", region=region, transform=decode)
        # --8<-- [end:inventory]
        print(len(dataset), dataset[0])


def is_recent(info: ObjectInfo) -> bool:
    """Whether an object was written in this century."""
    return info.last_modified is not None and info.last_modified.year > 2000


def go_on_after_a_stop(uri: str, region: str) -> None:
    """Save where an iteration stands, and go on there."""
    # --8<-- [start:resume]
    dataset = S3IterableDataset.from_prefix(f"{uri}/train/", region=region, transform=decode, shuffle=True)
    samples = iter(dataset)
    seen = [next(samples) for _ in range(10)]
    state = dataset.state_dict()  # a small dictionary: keep it in the checkpoint

    again = S3IterableDataset.from_prefix(f"{uri}/train/", region=region, transform=decode, shuffle=True)
    again.load_state_dict(state)
    rest = list(again)  # the 30 others, in the same order, and no request for the first 10
    # --8<-- [end:resume]
    print(len(seen), len(rest))
    assert sorted(seen + rest) == sorted(dataset)


def go_on_with_workers(uri: str, region: str) -> None:
    """The same with worker processes."""

    # --8<-- [start:stateful]
    def make_loader() -> StatefulDataLoader:
        dataset = S3IterableDataset.from_prefix(
            f"{uri}/train/", region=region, transform=decode, enable_sharding=True, shuffle=True
        )
        return StatefulDataLoader(dataset, batch_size=8, num_workers=2)

    loader = make_loader()
    batches = iter(loader)
    seen = [next(batches) for _ in range(2)]
    state = loader.state_dict()

    again = make_loader()
    again.load_state_dict(state)
    rest = list(again)  # the other batches
    # --8<-- [end:stateful]
    keys = [key for keys, _ in seen + rest for key in keys]
    assert len(keys) == len(set(keys)) == 40


def live_with_errors(uri: str, region: str) -> None:
    """Leave out or replace what cannot be read."""
    names = [f"{uri}/train/000.bin", f"{uri}/train/missing.bin"]

    # --8<-- [start:skip]
    dataset = S3IterableDataset.from_objects(names, region=region, transform=decode, on_error="skip")
    print(list(dataset), dataset.skipped)  # one sample, 1
    # --8<-- [end:skip]

    # --8<-- [start:on-error]
    def replace(error: Exception, uri: str) -> Any:
        return ("nothing", 0) if isinstance(error, FileNotFoundError) else SKIP

    dataset = S3IterableDataset.from_objects(names, region=region, transform=decode, on_error=replace)
    # --8<-- [end:on-error]
    print(list(dataset))


def keep_on_disk(uri: str, region: str, folder: str) -> None:
    """Read from S3 in the first epoch, from the disk in the others."""
    # --8<-- [start:cache]
    dataset = S3IterableDataset.from_prefix(
        f"{uri}/train/", region=region, transform=decode, cache_dir=folder, cache_size=50 * 2**30
    )
    # --8<-- [end:cache]
    assert list(dataset) == list(dataset)


def read_shards(uri: str, region: str) -> None:
    """Samples from tar archives."""
    # --8<-- [start:tar]
    dataset = S3TarDataset.from_prefix(
        f"{uri}/shards/", region=region, transform=decode_sample, enable_sharding=True, shuffle=True, shuffle_buffer=500
    )
    for text, label in DataLoader(dataset, batch_size=8, num_workers=2):
        print(text[0], label)
    # --8<-- [end:tar]


def pack(uri: str, region: str) -> None:
    """Write the objects of a prefix into tar archives, in another order than that of their keys."""
    bucket, prefix = parse_s3_uri(f"{uri}/")
    # --8<-- [start:pack]
    client = S3Client(region)
    dataset = S3IterableDataset.from_prefix(f"{uri}/train/", region=region, transform=name_and_bytes, shuffle=True)
    samples = iter(dataset)
    for first in range(0, len(dataset.index), 10_000):
        with (
            S3Writer(client.put_object(bucket, f"{prefix}packed/{first:09}.tar")) as writer,
            tarfile.open(fileobj=writer, mode="w|") as tar,
        ):
            for name, data in itertools.islice(samples, 10_000):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    # --8<-- [end:pack]
    packed = S3TarDataset.from_prefix(f"{uri}/packed/", region=region)
    assert sorted(sample["__key__"] for sample in packed) == [f"{number:03}" for number in range(40)]


# --8<-- [start:pack-transform]
def name_and_bytes(reader: S3Reader) -> tuple[str, bytes]:
    """Make a sample of one object: the last part of its key, and its bytes."""
    return reader.key.rpartition("/")[2], reader.read()


# --8<-- [end:pack-transform]


def measure(uri: str, region: str) -> None:
    """How many samples a second arrive, without the model."""
    dataset = S3IterableDataset.from_prefix(f"{uri}/train/", region=region, transform=decode, enable_sharding=True)
    # --8<-- [start:measure]
    for workers in (0, 2):  # and more, up to the cores
        loader = DataLoader(dataset, batch_size=8, num_workers=workers)
        count, started = 0, time.perf_counter()
        for keys, _ in loader:
            count += len(keys)
        print(f"{workers} workers: {count / (time.perf_counter() - started):.0f} samples/s")
    # --8<-- [end:measure]


# --8<-- [start:tar-transform]
def decode_sample(sample: dict[str, Any]) -> tuple[str, int]:
    """Make a sample of the files `….txt` and `….cls`."""
    return sample["txt"].decode(), int(sample["cls"])


# --8<-- [end:tar-transform]


def choose_readers(uri: str, region: str) -> None:
    """How the bytes of one object are fetched."""
    # --8<-- [start:readers]
    dataset = S3MapDataset.from_prefix(
        f"{uri}/train/",
        region=region,
        transform=read_header,
        reader_constructor=S3ReaderConstructor.range_based(buffer_size=4096),
    )
    # --8<-- [end:readers]
    print(dataset[0])

    # --8<-- [start:readers-large]
    large = S3MapDataset.from_prefix(
        f"{uri}/train/",
        region=region,
        transform=count_lines,
        reader_constructor=S3ReaderConstructor.streaming(window=64 * 2**20),
    )
    # --8<-- [end:readers-large]
    print(large[0])

    client = S3Client(region)
    bucket, prefix = parse_s3_uri(f"{uri}/")
    with S3Writer(client.put_object(bucket, f"{prefix}packed.gz")) as writer:
        writer.write(gzip.compress(b"unpacked"))
    # --8<-- [start:readers-one]
    with open_reader(client, bucket, f"{prefix}packed.gz", S3ReaderConstructor.range_based()) as reader:
        magic = reader.read(2)
    # --8<-- [end:readers-one]
    assert magic == b"\x1f\x8b"
    # --8<-- [start:readers-own]
    packed = S3MapDataset.from_objects(
        f"{uri}/packed.gz", region=region, transform=methodcaller("read"), reader_constructor=unzipped
    )
    # --8<-- [end:readers-own]
    assert packed[0] == b"unpacked"


# --8<-- [start:count-lines]
def count_lines(reader: S3Reader) -> int:
    """Go through an object of any size with 64 MiB of memory."""
    return sum(1 for _ in reader)


# --8<-- [end:count-lines]


# --8<-- [start:unzipped]
def unzipped(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Any:
    """Make a reader that unpacks what it reads."""
    return gzip.GzipFile(fileobj=SequentialS3Reader(bucket, key, get_object_info, get_stream))


# --8<-- [end:unzipped]


# --8<-- [start:read-header]
def read_header(reader: S3Reader) -> bytes:
    """Read the first and the last 16 bytes: two small requests, whatever the size of the object."""
    first = reader.read(16)
    reader.seek(-16, 2)
    return first + reader.read()


# --8<-- [end:read-header]


def main(uri: str, region: str) -> None:
    """Fill the prefix and run every part."""
    logging.basicConfig(level=logging.ERROR)
    fill(uri, region)
    read_by_number(uri, region)
    read_in_order(uri, region)
    share_among_ranks(uri, region)
    choose_objects(uri, region)
    go_on_after_a_stop(uri, region)
    go_on_with_workers(uri, region)
    live_with_errors(uri, region)
    with tempfile.TemporaryDirectory() as folder:
        keep_on_disk(uri, region, folder)
    read_shards(uri, region)
    pack(uri, region)
    measure(uri, region)
    choose_readers(uri, region)
    print("all parts ran")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="s3://bucket/prefix to write below")
    parser.add_argument("region", help="the bucket's region")
    arguments = parser.parse_args()
    main(arguments.uri.rstrip("/"), arguments.region)
