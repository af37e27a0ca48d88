"""What a run may do in a user's bucket: all of it in one folder, which has to be empty or its own."""

from __future__ import annotations

import json
from collections.abc import Iterable

from benchmarks._target import Target

# What the data under a prefix is; to be counted up when the same name comes to mean other bytes.
_VERSION = 1
_MARKER = "benchmarks.json"
_OUTPUTS = ("saved/", "sink/")


class ForeignDataError(Exception):
    """There are objects under the prefix that are not those of a run."""


def claim(target: Target) -> set[str]:
    """Make a prefix that of a run, before anything else is written.

    Returns:
        The names of the data that is there and complete.

    Raises:
        ForeignDataError: When there are objects and none of them is the marker, or it is one of another version.
    """
    client = target.boto3_client()
    found = client.list_objects_v2(Bucket=target.bucket, Prefix=target.prefix, MaxKeys=1).get("Contents", [])
    if not found:
        mark(target, ())
        return set()
    try:
        marker = json.loads(client.get_object(Bucket=target.bucket, Key=target.key(_MARKER))["Body"].read())
        is_ours = (marker["version"], marker["scale"]) == (_VERSION, target.scale_name)
        complete = set(marker["complete"])
    except (client.exceptions.NoSuchKey, KeyError, TypeError, ValueError):
        raise ForeignDataError(
            f"{target.uri('')} holds objects of others, such as {found[0]['Key']}: name a prefix without any"
        ) from None
    if not is_ours:
        raise ForeignDataError(f"{target.uri('')} holds the data of another version: empty it or name another prefix")
    return complete


def mark(target: Target, complete: Iterable[str]) -> None:
    """Note which data is there and complete: what an interrupted run left is not, and is written again."""
    marker = {"version": _VERSION, "scale": target.scale_name, "complete": sorted(complete)}
    body = json.dumps(marker).encode()
    target.boto3_client().put_object(Bucket=target.bucket, Key=target.key(_MARKER), Body=body)


def remove_outputs(target: Target) -> None:
    """Remove what peers wrote under the prefix, and the parts of what they did not finish."""
    for name in _OUTPUTS:
        remove(target, name)
    client = target.boto3_client()
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=target.bucket, Prefix=target.prefix):
        for found in page.get("Uploads", []):
            client.abort_multipart_upload(Bucket=target.bucket, Key=found["Key"], UploadId=found["UploadId"])


def remove(target: Target, name: str) -> None:
    """Remove all objects whose names begin so.

    Raises:
        OSError: When the store keeps any of them, which it says in an answer with status 200.
    """
    client = target.boto3_client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=target.key(name)):
        keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
        if keys:
            answer = client.delete_objects(Bucket=target.bucket, Delete={"Objects": keys, "Quiet": True})
            for error in answer.get("Errors", []):
                raise OSError(f"s3://{target.bucket}/{error['Key']} stays: {error['Code']}: {error['Message']}")
    client.close()
