"""`S3Checkpoint`: a model in one object, for `torch.save` and `torch.load`."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import torch
from torch import serialization

from s3core import ObjectChangedError, S3Client, S3ClientConfig, S3Exception, parse_s3_uri
from s3torch_datasets import S3Reader, S3ReaderConstructor, S3ReaderConstructorProtocol, S3Writer, open_reader

from ._address import parse_object_uri
from ._archive_reader import ArchiveReader
from ._cache import cached_copy, default_cache_dir
from ._lasting import LastingMemory
from ._payload_size import estimate_saved_bytes
from ._planned_load import PLANNED_BYTES, NotPlannable, is_plannable, load_planned
from ._progress import TransferProgress
from ._upload import upload


class S3Checkpoint:
    """Saves and loads checkpoints that are one object each.

    Nothing is sent before the first use, and the object pickles. A checkpoint becomes visible only when it is written
    to its end; until then the previous object of that key stays as it was.

    Args:
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        reader_constructor: How `reader` reads; None for `S3ReaderConstructor.streaming()`, which holds 128 MiB of a
            checkpoint beside the tensors that `torch.load` makes of it.

    Example:
        >>> checkpoint = S3Checkpoint(region="eu-central-1")
        >>> checkpoint.save(model.state_dict(), "s3://my-bucket/run/epoch0.pt")  # doctest: +SKIP
        >>> model.load_state_dict(checkpoint.load("s3://my-bucket/run/epoch0.pt"))  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
    ) -> None:
        self._region = region
        self._endpoint = endpoint
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.streaming()

    @property
    def region(self) -> str | None:
        """The region as it was given."""
        return self._region

    @property
    def endpoint(self) -> str | None:
        """The endpoint as it was given."""
        return self._endpoint

    def reader(self, s3_uri: str) -> S3Reader:
        """Open a checkpoint for `torch.load`; `load` is faster and takes less memory.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.

        Returns:
            A binary file that reads from S3; nothing is fetched before it is used.

        Raises:
            ValueError: The URI is malformed or names no object.
        """
        bucket, key = parse_object_uri(s3_uri)
        return open_reader(self._client, bucket, key, self._reader_constructor)

    def writer(self, s3_uri: str) -> S3Writer:
        """Open a checkpoint for `torch.save`.

        Use it in a `with` block: the checkpoint appears in the bucket when the block ends, and not at all when the
        block raises.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.

        Returns:
            A binary file that writes to S3.

        Raises:
            ValueError: The URI is malformed or names no object.
        """
        bucket, key = parse_object_uri(s3_uri)
        return S3Writer(self._client.put_object(bucket, key))

    def save(self, obj: object, s3_uri: str, *, progress: bool = True) -> None:
        """Save an object as `torch.save` does.

        The size of the parts follows from the size of the object, so that a checkpoint of any size up to S3's own
        limit fits. Tensors on the CPU are sent from where they lie, without a copy.

        Args:
            obj: What to save: a state dict, or anything that `torch.save` takes. Leave it as it is meanwhile.
            s3_uri: `s3://bucket/key` of the checkpoint.
            progress: Show a progress bar on rank 0 when it takes longer than a second.

        Raises:
            ValueError: The URI is malformed or names no object.
            S3Exception: It could not be written; what was at this URI before is still there.
        """
        bucket, key = parse_object_uri(s3_uri)
        size = estimate_saved_bytes(obj)
        with (
            TransferProgress(f"Saving {s3_uri}", size or None, progress) as bar,
            upload(self._client, bucket, key, bar, size_hint=size, lasting=LastingMemory(obj)) as file,
        ):
            torch.save(obj, file)  # type: ignore[arg-type]  # it needs `write` and `flush`, and asks for IO[bytes]

    def load(
        self,
        s3_uri: str,
        map_location: Any = None,
        weights_only: bool | None = True,
        mmap: bool = False,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Any:
        """Load an object as `torch.load` does.

        The memory needed is that of the object and a window of 160 MiB. With `mmap=True` the checkpoint is downloaded
        to a local directory first, unless this version of it is there, and its tensors stay on disk until they are
        used.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.
            map_location: Where to put the tensors, as for `torch.load`.
            weights_only: Allow only tensors and plain containers, as for `torch.load`; False runs code that the
                checkpoint names, None is the default of the torch installed.
            mmap: Map a local copy instead of reading it.
            cache_dir: Where local copies are kept; None for `$S3TORCH_CACHE_DIR`, or the user's cache directory.
            progress: Show a progress bar on rank 0 when it takes longer than a second.

        Returns:
            What was saved.

        Raises:
            ValueError: The URI is malformed or names no object.
            NoSuchKeyError: There is no such checkpoint.
            S3Exception: It could not be read to its end, or was replaced meanwhile.
            Exception: Whatever `torch.load` raises of an object that is no checkpoint, with a note that names it.
        """
        try:
            return self._load(s3_uri, map_location, weights_only, mmap, cache_dir, progress)
        except Exception as error:
            if not isinstance(error, S3Exception):  # which says so itself
                error.add_note(f"while {s3_uri} was loaded")
            raise

    def exists(self, s3_uri: str) -> bool:
        """Whether there is an object at a URI.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.

        Raises:
            S3Exception: It cannot be told: no such bucket, no permission, no answer.
        """
        bucket, key = parse_object_uri(s3_uri)
        return self._client.find_object(bucket, key) is not None

    def delete(self, s3_uri: str) -> None:
        """Delete one checkpoint; it is no error when there is none, as S3 itself has it.

        Args:
            s3_uri: `s3://bucket/key` of the checkpoint.
        """
        bucket, key = parse_object_uri(s3_uri)
        self._client.delete_object(bucket, key)

    def list(self, s3_uri: str) -> list[str]:
        """List what begins with a URI.

        Args:
            s3_uri: `s3://bucket/prefix`; the prefix is a plain text prefix, not a folder.

        Returns:
            The URIs of all objects whose key begins with the prefix, in S3's order.
        """
        bucket, prefix = parse_s3_uri(s3_uri)
        pages = self._client.list_objects(bucket, prefix)
        return [f"s3://{bucket}/{key}" for page in pages for key in page.keys]

    def _load(
        self,
        s3_uri: str,
        map_location: Any,
        weights_only: bool | None,
        mmap: bool,
        cache_dir: str | os.PathLike[str] | None,
        progress: bool,
    ) -> Any:
        bucket, key = parse_object_uri(s3_uri)
        if mmap:
            folder = Path(cache_dir) if cache_dir else default_cache_dir()
            path = self._download(bucket, key, folder, progress)
            try:
                return _load_mapped(path, map_location, weights_only)
            except FileNotFoundError:  # another process has just found a newer version, and removed this copy
                path = self._download(bucket, key, folder, progress)
                return _load_mapped(path, map_location, weights_only)
        with (
            TransferProgress(f"Loading {s3_uri}", None, progress) as bar,
            ArchiveReader(self._client, bucket, key, bar) as file,
        ):
            bar.expect(file.size)
            # What holds no more than `weights_only` allows is the same without it; it is soon seen whether it does.
            if file.size > PLANNED_BYTES and is_plannable(map_location):
                try:
                    return load_planned(file, map_location)
                except NotPlannable:
                    file.seek(0)
            return torch.load(
                file,  # type: ignore[arg-type]  # it reads and seeks, and is asked to be IO[bytes]
                map_location=map_location,
                weights_only=weights_only,
                mmap=False,  # torch's own settings can make True the default, which no file on S3 can be
            )

    def _download(self, bucket: str, key: str, cache_dir: Path, progress: bool) -> Path:
        info = self._client.head_object(bucket, key)
        identity = (str(self._endpoint), bucket, key)
        version = f"{info.etag} {info.size} {info.last_modified}"

        def download(file: Any) -> None:
            with (
                TransferProgress(f"Downloading s3://{bucket}/{key}", info.size, progress) as bar,
                self._client.get_object(bucket, key, object_info=info) as stream,
            ):
                for chunk in stream:
                    file.write(chunk)
                    bar.advance(memoryview(chunk).nbytes)
                if info.size and stream.object_info.etag != info.etag:
                    raise ObjectChangedError(f"s3://{bucket}/{key} was replaced while it was loaded; load it again")

        return cached_copy(cache_dir, identity, version, info.size, download)


def _load_mapped(path: Path, map_location: Any, weights_only: bool | None) -> Any:
    """Map a local copy so that what is written to its tensors stays out of the file, which other loads take as well."""
    shared = getattr(mmap, "MAP_SHARED", None)  # not on Windows
    is_shared = shared is not None and serialization.get_default_mmap_options() == shared
    try:
        if is_shared:
            serialization.set_default_mmap_options(mmap.MAP_PRIVATE)
        return torch.load(path, map_location=map_location, weights_only=weights_only, mmap=True)
    finally:
        if is_shared:
            serialization.set_default_mmap_options(mmap.MAP_SHARED)
