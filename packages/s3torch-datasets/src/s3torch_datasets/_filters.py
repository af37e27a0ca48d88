"""Which objects of a listing belong to a dataset."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from s3core import ObjectInfo
from s3torch_datasets._bucket_key_data import S3BucketKeyData

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html: these must be restored before a GET.
ARCHIVED_STORAGE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


@dataclass(frozen=True)
class ObjectFilter:
    """Chooses objects of a listing or a manifest; an object must meet every condition that is given.

    Args:
        suffix: Ending of the key, or several of which one must fit.
        glob: Shell pattern for the whole key, such as `*.jpg` or `train/*/image?.png`; `*` also matches `/`, and case
            counts.
        min_size: Least size in bytes.
        max_size: Greatest size in bytes.
        predicate: Called with the `ObjectInfo` of each object that meets the rest; a function of a module, so that the
            dataset pickles.
        directory_markers: Keep empty objects whose key ends in `/`, which tools create to show a folder.
        archived: Keep objects in storage classes that must be restored before a read; reading one that was not raises
            `ArchivedObjectError`.

    Example:
        >>> images = ObjectFilter(suffix=(".jpg", ".png"), min_size=1)
    """

    suffix: str | tuple[str, ...] | None = None
    glob: str | None = None
    min_size: int | None = None
    max_size: int | None = None
    predicate: Callable[[ObjectInfo], bool] | None = None
    directory_markers: bool = False
    archived: bool = False
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"min_size must not exceed max_size, got {self.min_size} and {self.max_size}")
        if self.glob is not None:
            object.__setattr__(self, "_pattern", re.compile(fnmatch.translate(self.glob)))

    @property
    def has_no_condition(self) -> bool:
        """Whether it accepts all that are neither directory markers nor archived."""
        conditions = self.suffix, self.glob, self.min_size, self.max_size, self.predicate
        return all(condition is None for condition in conditions)

    def accepts_key(self, key: str) -> bool:
        """Whether the key meets the conditions on keys."""
        if self.suffix is not None and not key.endswith(self.suffix):
            return False
        return self._pattern is None or self._pattern.match(key) is not None

    def accepts(self, one: S3BucketKeyData) -> bool:
        """Whether an object that was named, and not listed, meets every condition that was given.

        Raises:
            ValueError: A condition asks for what is not known of the object.
        """
        if not self.accepts_key(one.key):
            return False
        info = one.object_info
        if info is None:
            if self.min_size is None and self.max_size is None and self.predicate is None:
                return True
            raise ValueError(
                f"{one.uri}: the filter asks for more than the key, which is all that is known of this object; "
                "give S3BucketKeyData an object_info, or use from_prefix"
            )
        return self.accepts_size(info.size) and (self.predicate is None or self.predicate(info))

    def accepts_size(self, size_bytes: int) -> bool:
        """Whether the size meets the conditions on sizes."""
        if self.min_size is not None and size_bytes < self.min_size:
            return False
        return self.max_size is None or size_bytes <= self.max_size


def is_directory_marker(key: str, size_bytes: int) -> bool:
    """Whether an object only stands for a folder."""
    return size_bytes == 0 and key.endswith("/")


def is_archived(storage_class: str | None) -> bool:
    """Whether an object must be restored before it can be read."""
    return storage_class in ARCHIVED_STORAGE_CLASSES
