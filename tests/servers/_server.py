"""What every local S3 server looks like from outside."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, fields
from functools import cache
from types import TracebackType
from typing import Any, Self

from servers._supervised import SupervisedProcess


@cache
def _session() -> Any:
    """One session for all clients: it holds no connection, only the parsed service model, which takes 0.1 s to read."""
    import boto3

    return boto3.session.Session()


@dataclass(frozen=True)
class S3Server:
    """A running local S3 server, and how to reach it.

    Pickles, so that a spawned process can reach it too; the copy does not own the server and its `stop` does nothing.

    Attributes:
        endpoint: Its URL, such as `http://127.0.0.1:8333`.
        region: The region that it signs for.
        access_key: Access key id of a user who may do everything.
        secret_key: The secret of that user.
        name: Which server it is: `moto`, `seaweedfs`, `ceph` or `counting`.
        ca_bundle: File with the certificate to trust, when the endpoint is HTTPS.
        process: The process that serves; None in a copy that does not own it.
    """

    endpoint: str
    region: str
    access_key: str
    secret_key: str
    name: str
    ca_bundle: str | None = None
    process: SupervisedProcess | None = field(default=None, repr=False, compare=False)

    def environment(self) -> dict[str, str]:
        """Variables that point any AWS SDK, and obstore, at this server."""
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if self.ca_bundle is not None:
            variables["AWS_CA_BUNDLE"] = self.ca_bundle
        return variables

    def boto3_client(self, **config: Any) -> Any:
        """Return a plain boto3 S3 client for this server.

        Args:
            **config: Added to the `botocore.config.Config`, such as `read_timeout=5`.
        """
        from botocore.config import Config

        return _session().client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=self.ca_bundle,
            config=Config(**{"s3": {"addressing_style": "path"}, "proxies": {}, **config}),
        )

    def create_bucket(self) -> str:
        """Create an empty bucket of a name never used before, and return the name."""
        bucket = f"bucket-{uuid.uuid4().hex[:16]}"
        client = self.boto3_client()
        try:
            client.create_bucket(Bucket=bucket)
        finally:
            client.close()
        return bucket

    def is_ready(self) -> bool:
        """Tell whether an object can be put and read back."""
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.boto3_client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
        bucket = f"probe-{uuid.uuid4().hex[:16]}"
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="probe", Body=b"ready")
            is_same = bool(client.get_object(Bucket=bucket, Key="probe")["Body"].read() == b"ready")
            client.delete_object(Bucket=bucket, Key="probe")
            client.delete_bucket(Bucket=bucket)
            return is_same
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()

    def stop(self) -> None:
        """End the server and remove what it stored."""
        if self.process is not None:
            self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"process": None}
