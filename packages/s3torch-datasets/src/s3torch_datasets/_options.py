"""Every option that the datasets add to the compatible arguments, with its default and its bounds."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict, get_args

from s3torch_datasets._errors import OnError, check_on_error
from s3torch_datasets._filters import ObjectFilter
from s3torch_datasets._sharding import Place, ShardRemainder

DEFAULT_CACHE_SIZE_BYTES = 100 * 2**30


class ReadOptions(TypedDict, total=False):
    """Keyword arguments of every dataset.

    Attributes:
        object_filter: Which objects of a prefix, a manifest or `get_dataset_objects` belong to the dataset; None
            leaves out directory markers and archived objects of a prefix.
        progress: Whether rank 0 shows a bar when listing takes longer than a second; True by default.
        on_error: What to do when an object cannot be read or transformed: "raise" (default), "skip" with a count and a
            log line, or a callable `(error, uri)` that returns the sample to use instead, or `SKIP`.
        cache_dir: Folder of a disk cache that all processes of the node share; None (default) for none.
        cache_size: Most bytes in that folder; 100 GiB by default.
    """

    object_filter: ObjectFilter | None
    progress: bool
    on_error: OnError
    cache_dir: str | os.PathLike[str] | None
    cache_size: int


class IterationOptions(ReadOptions, total=False):
    """Keyword arguments of the iterable datasets, besides those of `ReadOptions`.

    Attributes:
        shuffle: Read the objects in another order each epoch (see `set_epoch`); False by default.
        seed: Chooses the orders; 0 by default. It must be the same in all ranks.
        rank: Number of this rank, with `enable_sharding`; None (default) for that of `torch.distributed`.
        world_size: Number of ranks, with `enable_sharding`; None (default) for that of `torch.distributed`.
        shard_remainder: What becomes of the objects that do not divide by the number of ranks: "keep" (default) gives
            some ranks one more, "drop_last" leaves them out, "pad" repeats some, so that all ranks have as many.
        shuffle_buffer: For `S3TarDataset` with `shuffle`: number of samples of which the next one is drawn; 1000 by
            default, 0 to shuffle the shards only.
    """

    shuffle: bool
    seed: int
    rank: int | None
    world_size: int | None
    shard_remainder: ShardRemainder
    shuffle_buffer: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """`ReadOptions`, resolved."""

    object_filter: ObjectFilter | None = None
    progress: bool = True
    on_error: OnError = "raise"
    cache_dir: str | os.PathLike[str] | None = None
    cache_size: int = DEFAULT_CACHE_SIZE_BYTES

    @classmethod
    def of(cls, options: Mapping[str, Any], owner: type) -> Self:
        """Resolves options.

        Raises:
            TypeError: The owner has no such option.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
                raise TypeError(f"{owner.__name__} has no option {name}; {hint}")
        return cls(**options)

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if self.object_filter is not None and not isinstance(self.object_filter, ObjectFilter):
            raise TypeError(f"object_filter must be an ObjectFilter, got a {type(self.object_filter).__name__}")
        if self.cache_size <= 0:
            raise ValueError(f"cache_size must be a positive number of bytes, got {self.cache_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSettings(ReadSettings):
    """`IterationOptions`, resolved."""

    shuffle: bool = False
    seed: int = 0
    rank: int | None = None
    world_size: int | None = None
    shard_remainder: ShardRemainder = "keep"
    shuffle_buffer: int | None = None

    def __post_init__(self) -> None:
        ReadSettings.__post_init__(self)
        for name in ("seed", "rank", "world_size", "shuffle_buffer"):
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            try:
                number = operator.index(value)  # NumPy's overflow, and torch.load refuses a state that holds one
            except TypeError:
                raise TypeError(f"{name} must be an int, got {value!r}") from None
            object.__setattr__(self, name, number)

    def check(self, *, enable_sharding: bool) -> None:
        """Raises ValueError for options that do not fit together."""
        if self.shuffle_buffer is not None and self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must be 0 or a positive number of samples, got {self.shuffle_buffer}")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError(f"give rank and world_size together, got rank={self.rank}, world_size={self.world_size}")
        if self.rank is not None and self.world_size is not None:
            Place(self.rank, self.world_size)
        if self.shard_remainder not in get_args(ShardRemainder):
            raise ValueError(f"shard_remainder must be one of {get_args(ShardRemainder)}, got {self.shard_remainder!r}")
        if not enable_sharding and (self.rank is not None or self.shard_remainder != "keep"):
            raise ValueError("rank, world_size and shard_remainder mean something only with enable_sharding=True")
