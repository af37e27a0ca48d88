"""Five places where Lightning itself loses an S3 path, mended as soon as anything of this package serves one.

All are methods without a seam, so that they are wrapped where they are; a path on a local disk goes through unchanged.

1. `ModelCheckpoint` looks for `last` through `os.path.normpath`, which makes `s3:/bucket/key` of `s3://bucket/key`, and
   through the filesystem of the `dirpath` it was given, which is the local one when it was given none. Without this
   `ckpt_path="last"` finds nothing on S3, and the Trainer starts again from nothing.
2. `ModelCheckpoint` asks the filesystem which names are taken. One that is not ours, such as s3fs, knows nothing of an
   upload in the background, whose name would be used again, and its checkpoint overwritten.
3. `ModelCheckpoint` takes a `Path("s3://…")` for a local folder named `s3:`, and the first save, after hours perhaps,
   would be the first to say so.
4. `ModelCheckpoint` spares what it was resumed from, and what lies outside its `dirpath`, on a local disk alone:
   elsewhere top-k removes, as its own, the checkpoints of the training that this one goes on from.
5. The stock sharded strategies bypass the plugin and wrap the path in `Path`: they write to a local folder named `s3:`.
   So do those of DeepSpeed and of XLA's FSDP when they save, for which there is nothing here to take their place.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch.distributed as dist
from fsspec.core import url_to_fs

from ._agreement import from_rank_zero
from ._library import imported_libraries
from ._paths import meant_uri, metadata_uri
from ._uploads import pending_state, wait_for

T = TypeVar("T")

_MARK = "_s3torch_lightning"
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy")
_ONLY_LOCAL = ("DeepSpeedStrategy", "XLAFSDPStrategy")


def repair_imported() -> None:
    """Wrap the methods of each Lightning that is imported by now; once is enough, and more do no harm."""
    for library in imported_libraries():
        if library.trainer in sys.modules:
            model_checkpoint = library.trainer_module("callbacks").ModelCheckpoint
            _wrap(model_checkpoint, "_find_last_checkpoints", _finding_last_on_s3)
            _wrap(model_checkpoint, "file_exists", _counting_uploads)
            _wrap(model_checkpoint, "setup", _refusing_collapsed)
            _wrap(model_checkpoint, "_should_remove_checkpoint", _sparing_on_s3)
            _guard(library.trainer_module("strategies"))
        if library.fabric in sys.modules:
            _guard(library.fabric_module("strategies"))


def _guard(strategies: ModuleType) -> None:
    for name in (*_SHARDED, *_ONLY_LOCAL):
        strategy = getattr(strategies, name, None)
        if strategy is not None:
            # One file of all weights DeepSpeed does load from S3, through the plugin.
            for method in ("save_checkpoint", "load_checkpoint") if name in _SHARDED else ("save_checkpoint",):
                _wrap(strategy, method, functools.partial(_refusing_s3, name))


def _wrap(cls: type, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = cls.__dict__.get(name)
    if original is None or hasattr(original, _MARK):
        return
    wrapped = functools.wraps(original)(wrapper(original))
    setattr(wrapped, _MARK, True)
    setattr(cls, name, wrapped)


def _finding_last_on_s3(original: Callable[..., set[str]]) -> Callable[..., set[str]]:
    def _find_last_checkpoints(self: Any, trainer: Any) -> set[str]:
        folder = str(self._ModelCheckpoint__resolve_ckpt_dir(trainer))
        uri = meant_uri(folder)
        if uri is None:
            return original(self, trainer)

        def look() -> set[str]:
            wait_for(uri)  # the newest may still be under way
            return _last_in(folder, self.CHECKPOINT_NAME_LAST, self.FILE_EXTENSION)

        return _for_all_ranks(trainer, look)

    return _find_last_checkpoints


def _for_all_ranks(trainer: Any, look: Callable[[], T]) -> T:
    """Look once for all ranks of a trainer that has begun before, so that none goes on without the others.

    What is under way is known to rank 0, which saves. Before the first run there is nothing, and mostly no process
    group.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() != trainer.world_size:
        return look()

    def broadcast(outcome: Any) -> Any:
        shared = [outcome]
        device = trainer.strategy.root_device  # That of the process may not be chosen yet.
        dist.broadcast_object_list(shared, src=0, device=device if device.type == "cuda" else None)
        return shared[0]

    return from_rank_zero(look, dist.get_rank() == 0, broadcast)


def _last_in(folder: str, start: str, end: str) -> set[str]:
    """The newest checkpoint of a folder whose name starts and ends so; one or none."""
    filesystem, _ = url_to_fs(folder)
    filesystem.invalidate_cache()  # s3fs remembers listings, and the newest may be newer
    if not filesystem.exists(folder):
        return set()
    found = [
        (saved_at, _version(name), name)
        for entry in filesystem.ls(folder, detail=True)
        if (name := os.path.basename(entry["name"].rstrip("/"))).startswith(start)
        and name.endswith(end)
        and (saved_at := _saved_at(filesystem, entry)) is not None
    ]
    # Only the newest: S3 counts whole seconds, and of equal times the Trainer would take any.
    return {f"{folder.rstrip('/')}/{max(found)[2]}"} if found else set()


def _saved_at(filesystem: Any, entry: dict[str, Any]) -> datetime | None:
    """When the checkpoint of an entry was complete; None for shards whose save never finished."""
    if entry["type"] != "file":
        try:
            entry = filesystem.info(metadata_uri(entry["name"]))  # written last, and removed first
        except FileNotFoundError:
            return None
    return entry.get("LastModified") or datetime.fromtimestamp(0, UTC)


def _version(name: str) -> int:
    """The number that `ModelCheckpoint` gives a name that is taken: 2 of `last-v2.ckpt`, 0 of `last.ckpt`."""
    match = re.search(r"-v(\d+)\.", name)
    return int(match[1]) if match else 0


def _counting_uploads(original: Callable[..., bool]) -> Callable[..., bool]:
    def file_exists(self: Any, filepath: Any, trainer: Any) -> bool:
        pending = pending_state(str(filepath))
        if pending is None:
            return original(self, filepath, trainer)
        # The original all the same, for it goes on to agree with the other ranks, in a way of its own in each version.
        filesystem, self._fs = self._fs, SimpleNamespace(exists=lambda path: pending)
        try:
            return original(self, filepath, trainer)
        finally:
            self._fs = filesystem

    return file_exists


def _refusing_collapsed(original: Callable[..., None]) -> Callable[..., None]:
    def setup(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        meant = meant_uri(self.dirpath)
        if meant is not None and meant != self.dirpath:
            raise TypeError(
                f"ModelCheckpoint would save to the local folder {str(self.dirpath)!r}: a Path took one of the slashes "
                f"of its dirpath or of default_root_dir; pass that as a str, which leads to {meant!r}"
            )

    return setup


def _sparing_on_s3(original: Callable[..., bool]) -> Callable[..., bool]:
    def _should_remove_checkpoint(self: Any, trainer: Any, previous: str, current: str) -> bool:
        if not original(self, trainer, previous, current):
            return False
        uri = meant_uri(previous)
        if uri is None:
            return True
        resumed_from = meant_uri(trainer.ckpt_path)
        is_own = uri.startswith(f"{str(self.dirpath).rstrip('/')}/")
        return is_own and (resumed_from is None or uri != resumed_from.rstrip("/"))

    return _should_remove_checkpoint


def _refusing_s3(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    remedy = (
        f"Use S3{name} from s3torch_lightning (s3torch_lightning.fabric for Fabric), which takes the same arguments"
        if name in _SHARDED
        else "Save to a local disk, and copy from there"
    )

    # Trainer: save_checkpoint(checkpoint, filepath), load_checkpoint(checkpoint_path); Fabric: (path, …) for both.
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        for value in (*args[:2], *(kwargs.get(each) for each in ("path", "filepath", "checkpoint_path"))):
            uri = meant_uri(value)
            if uri is not None:
                raise TypeError(f"{name} cannot use {uri}: it takes every path for one on the local disk. {remedy}")
        return original(self, *args, **kwargs)

    return checked
