"""webdataset, samples in tar files; https://webdataset.github.io/webdataset."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import boto3  # noqa: F401  # of the target's client: not to be imported while the clock runs
import webdataset

from benchmarks._peers._loading import BATCH_SIZE
from benchmarks._peers._peer import Digest, Peer, digest


class WebDataset(Peer):
    """Each shard through a pipe from curl, which its documentation gives for HTTP; the URLs are presigned."""

    def read_samples(self, workers: int) -> Iterator[list[Digest]]:
        client = self.target.boto3_client()
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self.target.bucket, Prefix=self.target.key("tar/")
        )
        keys = [found["Key"] for page in pages for found in page["Contents"]]
        urls = [client.generate_presigned_url("get_object", {"Bucket": self.target.bucket, "Key": key}) for key in keys]
        shards = [f"pipe:curl --silent --fail --location {shlex.quote(url)}" for url in urls]
        dataset = webdataset.WebDataset(shards, shardshuffle=False).map(_digest)
        yield from webdataset.WebLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=list)

    why_not: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("iterate", "fetch", "read", "stream", "load"), "reads samples from tar files only"
    )


def _digest(sample: dict[str, Any]) -> Digest:
    return digest(f"{sample['__key__']}.bin", sample["bin"])


PEER = WebDataset
