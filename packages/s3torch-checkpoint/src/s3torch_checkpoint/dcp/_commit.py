"""What makes a save a checkpoint: nothing is missing, its metadata appears at once, then the old one is removed."""

from __future__ import annotations

import io
import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from s3core import (
    AccessDeniedError,
    NoSuchKeyError,
    ObjectExistsError,
    ObjectInfo,
    PreconditionFailedError,
    S3Client,
    S3Exception,
)

from .._address import CheckpointAddress
from .._errors import CheckpointError, CheckpointExistsError, CorruptCheckpointError
from .._threads import run_all
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


def rank_metadata(client: S3Client, address: CheckpointAddress) -> dict[str, str | None]:
    """The keys of the metadata of ranks that saved on their own, with their ETags."""
    pages = client.list_objects(address.bucket, address.key("__"), "/")
    return {info.key: info.etag for page in pages for info in page.object_info if is_rank_metadata_key(info.key)}


def rank_metadata_names(client: S3Client, address: CheckpointAddress) -> list[str]:
    """The names of that metadata, relative to the checkpoint."""
    return [key.removeprefix(address.base) for key in rank_metadata(client, address)]


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
            self._look.append(partial(_listed_rank_metadata, client, address))
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


@dataclass(frozen=True, slots=True)
class _Place:
    """What a commit replaces.

    Args:
        is_known: Whether it is certain what metadata is there.
        etag: Of that metadata; None where there is none.
        of_job: Names of the data of the checkpoint.
        of_ranks: Names of the data that ranks saved on their own.
        alone: Names of those ranks' metadata.
    """

    is_known: bool = True
    etag: str | None = None
    of_job: set[str] = field(default_factory=set)
    of_ranks: set[str] = field(default_factory=set)
    alone: list[str] = field(default_factory=list)

    @property
    def condition(self) -> dict[str, Any]:
        """What has the store refuse to replace anything else: arguments of `put_object`."""
        if not self.is_known:
            return {}
        return {"overwrite": False} if self.etag is None else {"if_match": self.etag}


def commit(
    client: S3Client, address: CheckpointAddress, name: str, metadata: Metadata, *, is_likely_first: bool = False
) -> None:
    """Make a save visible by one PUT of its metadata, then delete the data of the checkpoint that it replaced.

    A checkpoint of the whole job also replaces what its ranks saved on their own, which nobody sees beside it.

    The PUT names what it replaces. Where that is no longer in place, the commit looks again, so that of saves which
    commit at the same moment the last one stays, whole. A store that does not know such a condition gets it without.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        name: Name of the metadata object.
        metadata: Complete, with the place of every item.
        is_likely_first: Whether there was no checkpoint a short time ago. Where the store confirms that, there is no
            need to look again, which takes a round trip. (What ranks saved on their own since then stays, hidden,
            until `clean()`.)

    Raises:
        CheckpointError: Another save has committed after this one, or before it: an answer was lost. Its checkpoint is
            in place, whole.
    """
    place = _Place() if is_likely_first else _what_is_there(client, address, name)
    refused: set[str | None] = set()
    while True:
        condition = {} if place.etag in refused else place.condition
        try:
            _put_metadata(client, address, name, metadata, **condition)
            break
        except S3Exception as error:
            is_lost = isinstance(error, (ObjectExistsError, PreconditionFailedError))
            if is_lost and error.in_doubt:
                # To commit again would be wrong: the other save deletes the data of what it has replaced.
                raise CheckpointError(
                    f"{address.uri(name)} was written by somebody else at the same time, and it is not known whether "
                    "before this save or after it: an answer was lost. That checkpoint is in place; choose a path of "
                    "its own for each save, and remove what this one has written with clean()"
                ) from error
            may_be_condition = is_lost or type(error) in (AccessDeniedError, S3Exception)
            if not condition or error.in_doubt or not may_be_condition:
                raise
            logger.debug("%s is looked at again: %s", address.uri(name), error)
        refused.add(place.etag)
        place = _what_is_there(client, address, name)
    of_job = place.of_job
    if delete_quietly(client, address, place.alone):
        of_job |= place.of_ranks
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
    client: S3Client,
    address: CheckpointAddress,
    name: str,
    metadata: Metadata,
    *,
    overwrite: bool = True,
    if_match: str | None = None,
) -> bytes:
    body = pickle.dumps(metadata)
    key = address.key(name)
    with client.put_object(address.bucket, key, size_hint=len(body), overwrite=overwrite, if_match=if_match) as stream:
        stream.write(body)
    return body


def _what_is_there(client: S3Client, address: CheckpointAddress, name: str) -> _Place:
    """Find what a commit will replace."""
    look: list[Callable[[Any], Any]] = [partial(_metadata_before, client, address, name)]
    if name == METADATA_NAME:
        look.append(partial(_find_rank_metadata, client, address))
    (is_known, etag, of_job), *found = run_all(look, len(look))  # one round trip for both
    alone: list[str] = found[0] if found else []
    tasks = [partial(_metadata_before, client, address, rank_name) for rank_name in alone]
    of_ranks = {name for _, _, names in run_all(tasks, METADATA_THREADS) for name in names} if tasks else set()
    return _Place(is_known, etag, of_job, of_ranks, alone)


def _listed_rank_metadata(client: S3Client, address: CheckpointAddress, _stop: object = None) -> list[str]:
    try:
        return rank_metadata_names(client, address)
    except AccessDeniedError:  # a save needs no permission to list
        return []


def _find_rank_metadata(client: S3Client, address: CheckpointAddress, _stop: object = None) -> list[str]:
    try:
        return _listed_rank_metadata(client, address)
    except S3Exception as error:
        logger.warning("What ranks saved on their own at %s before, if anything, stays there: %s", address.uri(), error)
        return []


def _metadata_before(
    client: S3Client, address: CheckpointAddress, name: str, _stop: object = None
) -> tuple[bool, str | None, set[str]]:
    """Whether it is certain what metadata is there, its ETag, and the names of its data."""
    etag: str | None = None
    try:
        # Where there is none, a HEAD takes one round trip of a connection that the upload has left, and a GET 30 ms
        # more in a process that has read nothing yet.
        info = find_metadata(client, address, name)
        if info is None:
            return True, None, set()
        etag = info.etag
        metadata, etag = read_metadata_object(client, address, name, info)
        return etag is not None, etag, data_names(metadata)
    except NoSuchKeyError:
        return True, None, set()
    except Exception as error:
        # The old checkpoint cannot be read, so it cannot be known what belongs to it; that must not stop the new one.
        logger.warning("The data of the checkpoint replaced at %s stays in the bucket: %s", address.uri(), error)
        return etag is not None, etag, set()


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
