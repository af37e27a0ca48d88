"""What makes a save a checkpoint: nothing is missing, its metadata appears at once, then the old one is removed."""

from __future__ import annotations

import io
import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from s3core import AccessDeniedError, NoSuchKeyError, ObjectExistsError, ObjectInfo, S3Client, S3Exception

from .._address import CheckpointAddress
from .._errors import CheckpointExistsError, CorruptCheckpointError
from .._progress import TransferProgress
from .._threads import run_all
from .._upload import upload
from ._names import METADATA_NAME, is_rank_metadata_key

logger = logging.getLogger(__name__)

METADATA_THREADS = 16
_POLL_SECONDS = 0.1


def missing_items(metadata: Metadata, stored: Mapping[MetadataIndex, Any]) -> list[str]:
    """Find what the metadata describes but no rank has written.

    Args:
        metadata: The global metadata of the plan.
        stored: Where each item was written.

    Returns:
        The missing items, as people read them; empty when all is there.
    """
    missing = []
    for fqn, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            if MetadataIndex(fqn) not in stored:
                missing.append(fqn)
            continue
        missing += [
            f"{fqn} at {tuple(chunk.offsets)}"
            for chunk in entry.chunks
            if MetadataIndex(fqn, chunk.offsets) not in stored
        ]
    return missing


def data_names(metadata: Metadata) -> set[str]:
    """The names of the data objects that a checkpoint's metadata names, relative to the checkpoint."""
    return {info.relative_path for info in (metadata.storage_data or {}).values()}


def read_metadata_object(
    client: S3Client, address: CheckpointAddress, name: str, info: ObjectInfo | None = None
) -> tuple[Metadata, str | None]:
    """Read one metadata object.

    Unpickling runs code that the object names, as torch's own readers do: load checkpoints only from buckets you trust.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        name: Name of the metadata object.
        info: What a HEAD said of it; None where none was sent.

    Returns:
        The metadata, and the ETag of the object it came from.

    Raises:
        NoSuchKeyError: There is no such object.
        CorruptCheckpointError: The object is not the metadata of a checkpoint.
    """
    with client.get_object(address.bucket, address.key(name), object_info=info) as stream:
        data = stream.read_all()
        etag = stream.object_info.etag
    try:
        metadata = pickle.load(io.BytesIO(data))
    except Exception as error:
        raise CorruptCheckpointError(
            f"{address.uri(name)} ({len(data)} bytes) cannot be read as the metadata of a checkpoint: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(metadata, Metadata):
        raise CorruptCheckpointError(
            f"{address.uri(name)} holds a {type(metadata).__name__}, not the metadata of a checkpoint"
        )
    return metadata, etag


def find_metadata(client: S3Client, address: CheckpointAddress, name: str, _stop: object = None) -> ObjectInfo | None:
    """Find one metadata object; None where there is none."""
    return client.find_object(address.bucket, address.key(name))


def rank_metadata_names(client: S3Client, address: CheckpointAddress) -> list[str]:
    """The names of the metadata of ranks that saved on their own, relative to the checkpoint."""
    pages = client.list_objects(address.bucket, address.key("__"), "/")
    return [key.removeprefix(address.base) for page in pages for key in page.keys if is_rank_metadata_key(key)]


class EarlyLook:
    """Looks for what a commit will replace while the data is written, where that costs no time.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        name: Name of the metadata object that the commit will write.
    """

    def __init__(self, client: S3Client, address: CheckpointAddress, name: str) -> None:
        self._look: list[Callable[[Any], Any]] = [partial(find_metadata, client, address, name)]
        if name == METADATA_NAME:
            self._look.append(partial(_find_rank_metadata, client, address))
        self._found_nothing = False
        self._thread = threading.Thread(target=self._run, name="s3torch-checkpoint-look", daemon=True)
        self._thread.start()

    def found_nothing(self) -> bool:
        """Wait for the end of the look; whether there was no checkpoint. False where that could not be told."""
        while self._thread.is_alive():  # in such a way that Ctrl-C ends the wait
            self._thread.join(_POLL_SECONDS)
        return self._found_nothing

    def _run(self) -> None:
        with suppress(Exception):  # the commit looks again, and says what is wrong
            self._found_nothing = not any(run_all(self._look, len(self._look)))


def commit(
    client: S3Client, address: CheckpointAddress, name: str, metadata: Metadata, *, is_likely_first: bool = False
) -> None:
    """Make a save visible by one PUT of its metadata, then delete the data of the checkpoint that it replaced.

    A checkpoint of the whole job also replaces what its ranks saved on their own, which nobody sees beside it.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        name: Name of the metadata object.
        metadata: Complete, with the place of every item.
        is_likely_first: Whether there was no checkpoint a short time ago. Where the store confirms that, there is no
            need to look again, which takes a round trip. (One that knows no such condition may replace a checkpoint
            that came since then; its data stays until `clean()`.)
    """
    if is_likely_first:
        try:
            _put_metadata(client, address, name, metadata, overwrite=False)
            return
        except S3Exception as error:  # there is a checkpoint by now, or the store has something against the condition
            logger.debug("%s is committed again, as one that may replace another: %s", address.uri(), error)
    of_job, of_ranks, alone = _what_is_there(client, address, name)
    _put_metadata(client, address, name, metadata)
    if delete_quietly(client, address, alone):
        of_job |= of_ranks
    delete_quietly(client, address, of_job - data_names(metadata))


def commit_as_first(client: S3Client, address: CheckpointAddress, name: str, metadata: Metadata) -> None:
    """Make a save visible where there is no checkpoint.

    The store refuses it where there is one by then. Not every store does: so look whether another save has replaced it.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        name: Name of the metadata object.
        metadata: Complete, with the place of every item.

    Raises:
        CheckpointExistsError: There is another one. The data of this one stays: an attempt of the PUT that the store
            still works on could yet make it visible.
    """
    try:
        body = _put_metadata(client, address, name, metadata, overwrite=False)
        with client.get_object(address.bucket, address.key(name)) as stream:
            is_ours = stream.read_all() == body
    except ObjectExistsError:
        is_ours = False
    if not is_ours:
        raise CheckpointExistsError(
            f"{address.uri()} was saved by somebody else at the same time, whose checkpoint is in place; choose a path "
            "of its own for each save, and remove what this one has written with clean()"
        )


def _put_metadata(
    client: S3Client, address: CheckpointAddress, name: str, metadata: Metadata, *, overwrite: bool = True
) -> bytes:
    body = pickle.dumps(metadata)
    key = address.key(name)
    with (
        TransferProgress(f"Committing {address.uri()}", len(body), enabled=False) as progress,
        upload(client, address.bucket, key, progress, size_hint=len(body), overwrite=overwrite) as target,
    ):
        target.write(body)
    return body


def _what_is_there(client: S3Client, address: CheckpointAddress, name: str) -> tuple[set[str], set[str], list[str]]:
    """Find what a commit will replace.

    Returns:
        Names of the data of the checkpoint, and of what ranks saved on their own; names of those ranks' metadata.
    """
    look: list[Callable[[Any], Any]] = [partial(_names_before, client, address, name)]
    if name == METADATA_NAME:
        look.append(partial(_find_rank_metadata, client, address))
    of_job, *found = run_all(look, len(look))  # one round trip for both
    alone: list[str] = found[0] if found else []
    tasks = [partial(_names_before, client, address, rank_name) for rank_name in alone]
    return of_job, set().union(*run_all(tasks, METADATA_THREADS)) if tasks else set(), alone


def _find_rank_metadata(client: S3Client, address: CheckpointAddress, _stop: object = None) -> list[str]:
    try:
        return rank_metadata_names(client, address)
    except AccessDeniedError:  # a save needs no permission to list
        return []
    except S3Exception as error:
        logger.warning("What ranks saved on their own at %s before, if anything, stays there: %s", address.uri(), error)
        return []


def _names_before(client: S3Client, address: CheckpointAddress, name: str, _stop: object = None) -> set[str]:
    try:
        # Where there is none, a HEAD takes one round trip of a connection that the upload has left, and a GET 30 ms
        # more in a process that has read nothing yet.
        info = find_metadata(client, address, name)
        if info is None:
            return set()
        metadata, _ = read_metadata_object(client, address, name, info)
        return data_names(metadata)
    except NoSuchKeyError:
        return set()
    except Exception as error:
        # The old checkpoint cannot be read, so it cannot be known what belongs to it; that must not stop the new one.
        logger.warning("The data of the checkpoint replaced at %s stays in the bucket: %s", address.uri(), error)
        return set()


def delete_quietly(client: S3Client, address: CheckpointAddress, names: Iterable[str]) -> bool:
    """Delete objects that no metadata names any more; a failure is logged, because nothing depends on it.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        names: Names of the objects, relative to the checkpoint.

    Returns:
        Whether they are gone.
    """
    keys = sorted(address.key(name) for name in names)
    if not keys:
        return True
    try:
        client.delete_objects(address.bucket, keys)
    except S3Exception as error:
        logger.warning("%d unused objects stay in %s until clean() removes them: %s", len(keys), address.uri(), error)
        return False
    return True
