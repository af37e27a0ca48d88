"""Finds the committed checkpoints under a URI, and deletes old ones and what failed saves have left behind."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from s3core import AccessDeniedError, NoSuchKeyError, ObjectChangedError, ObjectInfo, S3Client, S3ClientConfig

from .._address import CheckpointAddress
from .._checks import check_count
from .._errors import NoCheckpointError
from .._threads import run_all
from ._commit import METADATA_THREADS, data_names, find_metadata, rank_metadata, read_metadata_object
from ._names import METADATA_NAME, is_data_name, is_metadata_key, is_rank_metadata_key

logger = logging.getLogger(__name__)

# A save whose data lies there uncommitted for this long has failed: the first object of a save waits for its last.
_MIN_AGE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint.

    Args:
        uri: Where it lies, without a `/` at its end.
        committed_at: When its metadata was written.
    """

    uri: str
    committed_at: datetime


def list_checkpoints(
    uri: str | os.PathLike[str],
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> list[CheckpointInfo]:
    """List the committed checkpoints directly under a URI; one that is still being saved, or failed, is not there.

    Args:
        uri: `s3://bucket/run`, which holds `step-100/`, `step-200/`, …
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.

    Returns:
        The checkpoints, the oldest commit first; by the numbers in their names where the store's clock says the same.
    """
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    found = _find_checkpoints(client, CheckpointAddress.parse(uri))
    return [CheckpointInfo(address.uri(), _committed_at(info)) for address, info in found]


def latest(
    uri: str | os.PathLike[str],
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> str:
    """Find the checkpoint that was committed last.

    Args:
        uri: `s3://bucket/run`, which holds the checkpoints.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.

    Returns:
        Its URI.

    Raises:
        NoCheckpointError: There is none.
    """
    found = list_checkpoints(uri, region=region, endpoint=endpoint, s3client_config=s3client_config)
    if not found:
        raise NoCheckpointError(f"there is no committed checkpoint under {os.fspath(uri)}")
    return found[-1].uri


def keep_last(
    uri: str | os.PathLike[str],
    n: int,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> list[str]:
    """Delete all committed checkpoints under a URI but the last ones.

    The metadata goes first, so that a checkpoint is either whole or, to every reader, not there. Objects that are not
    a checkpoint's own are left alone, and so is a checkpoint that was saved again meanwhile.

    Args:
        uri: `s3://bucket/run`, which holds the checkpoints.
        n: How many to keep, at least 1.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.

    Returns:
        The URIs of the checkpoints that were deleted.

    Raises:
        ValueError: `n` is not a whole number of at least 1.
        S3Exception: Something could not be read or deleted. Call it again, and `clean` for the data of a checkpoint
            whose metadata is deleted already.
    """
    check_count("n", n)
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    doomed = _find_checkpoints(client, CheckpointAddress.parse(uri))[:-n]
    return [address.uri() for address, info in doomed if _delete_checkpoint(client, address, info)]


def delete_checkpoint(
    uri: str | os.PathLike[str],
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> None:
    """Delete one committed checkpoint, or those that ranks saved there on their own; it is no error when there is none.

    As by `keep_last`, the metadata goes first, and objects that are not the checkpoint's own are left alone; so is one
    that is saved in its place meanwhile.

    Args:
        uri: `s3://bucket/run/step-100`, the checkpoint.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.

    Raises:
        CorruptCheckpointError: Its metadata cannot be read, so that it cannot be known what it names; nothing is
            deleted.
        S3Exception: Something could not be read or deleted. `clean` deletes the data of a checkpoint whose metadata is
            deleted already.
    """
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    address = CheckpointAddress.parse(uri)
    _delete_checkpoint(client, address, find_metadata(client, address, METADATA_NAME))


def clean(
    uri: str | os.PathLike[str],
    *,
    min_age_seconds: float = _MIN_AGE_SECONDS,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> list[str]:
    """Delete the data objects under a URI that no checkpoint's metadata names: what failed saves have left.

    What ranks saved on their own counts for nothing beside a checkpoint of the whole job, which hides it.

    Args:
        uri: A checkpoint, or what holds checkpoints at any depth.
        min_age_seconds: Leave younger objects alone: they may belong to a save that is still going on. 0 is right only
            when there is none.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.

    Returns:
        The URIs of the objects that were deleted.

    Raises:
        CorruptCheckpointError: Some metadata cannot be read, so that it cannot be known what it names; nothing is
            deleted.
        AccessDeniedError: The folders above the URI, whose metadata may name what lies there, may not be listed;
            nothing is deleted.
    """
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    address = CheckpointAddress.parse(uri)
    # The data is listed before the metadata is read: what is committed in between is named by the time it is asked.
    oldest = datetime.now(UTC) - timedelta(seconds=min_age_seconds)
    candidates = {
        info.key for info in _infos(client, address) if is_data_name(info.key) and _is_written_by(oldest, info)
    }
    if not candidates:
        return []
    metadata = {info.key: info for info in _infos(client, address) if is_metadata_key(info.key)}
    hidden = sorted(
        key
        for key, info in metadata.items()
        if is_rank_metadata_key(key)
        and key[: key.rfind("/") + 1] + METADATA_NAME in metadata
        and _is_written_by(oldest, info)
    )
    orphans = candidates.difference(*_named_keys(client, address.bucket, metadata.keys() - set(hidden)).values())
    if orphans:  # the URI may be that of a folder of a checkpoint's
        above = _named_keys(client, address.bucket, _metadata_above(client, address))
        orphans.difference_update(*above.values())
    client.delete_objects(address.bucket, hidden)
    client.delete_objects(address.bucket, sorted(orphans))
    return [f"s3://{address.bucket}/{key}" for key in (*hidden, *sorted(orphans))]


def _infos(client: S3Client, address: CheckpointAddress) -> Iterator[ObjectInfo]:
    return (info for page in client.list_objects(address.bucket, address.base) for info in page.object_info)


def _is_written_by(moment: datetime, info: ObjectInfo) -> bool:
    return info.last_modified is not None and info.last_modified <= moment


def _find_checkpoints(client: S3Client, address: CheckpointAddress) -> list[tuple[CheckpointAddress, ObjectInfo]]:
    """The committed checkpoints directly under an address and their metadata objects, the oldest commit first."""
    folders = [
        CheckpointAddress(address.bucket, prefix)
        for page in client.list_objects(address.bucket, address.base, "/")
        for prefix in page.common_prefixes
    ]
    tasks = [partial(find_metadata, client, folder, METADATA_NAME) for folder in folders]
    infos = run_all(tasks, METADATA_THREADS)
    found = [(folder, info) for folder, info in zip(folders, infos, strict=True) if info is not None]
    return sorted(found, key=lambda one: (_committed_at(one[1]), _natural(one[0].uri())))


def _committed_at(info: ObjectInfo) -> datetime:
    return info.last_modified or datetime.min.replace(tzinfo=UTC)


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sort `step-9` before `step-10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text)]


def _delete_checkpoint(client: S3Client, address: CheckpointAddress, info: ObjectInfo | None) -> bool:
    """Delete a checkpoint and what ranks saved on their own, unless it is no longer the one that was found.

    Args:
        client: Client of the bucket.
        address: The checkpoint.
        info: Its metadata object; None where there is none of the whole job.

    Returns:
        Whether it is gone; False for another one in its place, which stays.
    """
    names: set[str] = set()
    if info is not None:
        try:
            metadata, _ = read_metadata_object(client, address, METADATA_NAME, info)
        except NoSuchKeyError:  # deleted since the listing, as where every rank keeps house
            return True
        except ObjectChangedError:
            return False
        names = data_names(metadata)
    before = rank_metadata(client, address)
    named = _named_keys(client, address.bucket, before)
    now = find_metadata(client, address, METADATA_NAME)
    if now is not None and (info is None or now.etag != info.etag):
        return False
    after = rank_metadata(client, address) if before else {}
    of_ranks = [key for key, etag in before.items() if after.get(key) == etag]  # a rank may have saved again
    client.delete_objects(address.bucket, of_ranks)  # or they would come to light
    if info is not None:
        client.delete_object(address.bucket, address.key(METADATA_NAME))
    data = {address.key(name) for name in names}.union(*(named[key] for key in of_ranks))
    client.delete_objects(address.bucket, sorted(data))
    return True


def _metadata_above(client: S3Client, address: CheckpointAddress) -> list[str]:
    """The keys of all metadata in the folders that hold a URI."""
    base = address.base
    folders = ["", *(base[: index + 1] for index, char in enumerate(base[:-1]) if char == "/")] if base else []
    try:
        pages = [
            page
            for folder in folders
            for name in (METADATA_NAME, "__")
            for page in client.list_objects(address.bucket, folder + name, "/")
        ]
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"nothing under {address.uri()} was deleted: a checkpoint in a folder above it may name what lies there, "
            f"and these may not be listed; clean it with credentials that may list the whole bucket: {error}"
        ) from error
    return [key for page in pages for key in page.keys if is_metadata_key(key)]


def _named_keys(client: S3Client, bucket: str, metadata_keys: Iterable[str]) -> dict[str, set[str]]:
    """The keys of all data objects that some metadata names, by the key of the metadata."""

    def names_of(key: str, _stop: object) -> set[str]:
        base, _, name = key.rpartition("/")
        address = CheckpointAddress(bucket, base + "/" if base or key.startswith("/") else "")
        try:
            metadata, _ = read_metadata_object(client, address, name)
        except NoSuchKeyError:  # deleted since the listing
            return set()
        return {address.key(data) for data in data_names(metadata)}

    keys = list(metadata_keys)
    found = run_all([partial(names_of, key) for key in keys], METADATA_THREADS) if keys else []
    return dict(zip(keys, found, strict=True))
