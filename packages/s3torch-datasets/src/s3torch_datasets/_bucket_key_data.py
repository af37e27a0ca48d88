"""What a dataset is a list of."""

from __future__ import annotations

from dataclasses import dataclass

from s3core import ObjectInfo


@dataclass(frozen=True, slots=True)
class S3BucketKeyData:
    """One object of a dataset, as `get_dataset_objects` yields it.

    Args:
        bucket: Bucket of the object.
        key: Exact key of the object.
        object_info: What a listing told of it. With an ETag or a version in it no request is needed to learn the size,
            and a read of an object that was replaced since raises. A size alone is taken for a guess.
    """

    bucket: str
    key: str
    object_info: ObjectInfo | None = None

    @property
    def uri(self) -> str:
        """The object as `s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"
