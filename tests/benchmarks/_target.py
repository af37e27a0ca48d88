"""Where the data of a run lies, and how to reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks._scale import KB, SCALES, Scale
from servers.counting import GeneratedObjects

REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Target:
    """One bucket of one endpoint, under one prefix; goes to the measured processes as JSON.

    Attributes:
        setting: `shaped`, `loopback` or `remote`.
        scale_name: Of its `Scale`.
        bucket: The bucket.
        prefix: Begins every key; empty, or ends with a slash.
        region: The bucket's region.
        endpoint: URL; None for AWS.
        access_key: Access key id; None for what the SDKs find by themselves.
        secret_key: Its secret.
        local_directory: Where the same data lies on the local disk.
        latency_seconds: To the first byte, where the server is shaped.
        pace_bytes_per_second: Of one connection, where the server is shaped.
    """

    setting: str
    scale_name: str
    bucket: str
    prefix: str
    region: str
    endpoint: str | None
    access_key: str | None
    secret_key: str | None
    local_directory: str
    latency_seconds: float = 0.0
    pace_bytes_per_second: float | None = None

    @property
    def scale(self) -> Scale:
        """How much data there is."""
        return SCALES[self.scale_name]

    def key(self, name: str) -> str:
        """The key of a name, under the prefix."""
        return self.prefix + name

    def uri(self, name: str) -> str:
        """The URI of a name, under the prefix."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def folder(self, name: str) -> GeneratedObjects:
        """The generated objects of a name: `small`, `images`, `large` or `listed`."""
        return next(folder for folder in self.folders() if folder.prefix == self.key(f"{name}/"))

    def folders(self) -> list[GeneratedObjects]:
        """All generated objects."""
        scale, bucket = self.scale, self.bucket
        # Uploaded they are few and small: nobody reads them.
        is_remote = self.setting == REMOTE
        listed, largest = (scale.uploaded_keys, 1 * KB) if is_remote else (scale.listed_keys, 200 * KB)
        return [
            GeneratedObjects(bucket, self.key("small/"), scale.small_objects, 100 * KB, 100 * KB),
            GeneratedObjects(bucket, self.key("images/"), scale.image_objects, 3_000 * KB, 7_000 * KB, ".jpg"),
            GeneratedObjects(bucket, self.key("large/"), 1, scale.large_bytes, scale.large_bytes),
            GeneratedObjects(bucket, self.key("listed/"), listed, 1 * KB, largest, ".jpg"),
        ]

    def boto3_client(self, **config: Any) -> Any:
        """A boto3 client of the target."""
        import boto3
        from botocore.config import Config

        style = {} if self.endpoint is None else {"s3": {"addressing_style": "path"}}
        return boto3.client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(**{**style, **config}),
        )

    def environment(self) -> dict[str, str]:
        """Variables by which a library that takes no arguments finds the target."""
        found = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        if self.endpoint is not None:
            found |= {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint}
        if self.access_key is not None and self.secret_key is not None:
            found |= {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
            found |= {"AWS_EC2_METADATA_DISABLED": "true"}
        return found
