"""`S3StorageReader`: loads a distributed checkpoint, each rank only the bytes that it needs, in parallel."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import IO, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from s3core import NoSuchKeyError, S3Client, S3ClientConfig

from .._address import CheckpointAddress
from .._errors import CorruptCheckpointError, IncompleteCheckpointError, NoCheckpointError
from .._fetch import Piece, fetch_pieces
from .._progress import TransferProgress
from ._commit import read_metadata_object
from ._found_payload import MIN_ITEM_BYTES, EndPiece, end_pieces
from ._load_pieces import ItemReader, LoadPiece, is_opaque_tensor, needed_bytes
from ._names import METADATA_NAME, is_data_name, new_save_id, rank_metadata_name
from ._places import Places
from ._portable_errors import portable_errors
from ._shared_load import load_shared
from ._sharing import Identity, LoadNote, SharePlan, identity_of, plan_sharing
from ._sizes import check_sizes
from ._writer import is_s3_uri


class S3StorageReader(StorageReader):
    """Reads checkpoints of `torch.distributed.checkpoint` from S3: its own, torch's and s3torchconnector's.

    All ranges that a rank needs are planned together and fetched in parallel, straight into the destination tensors
    where those are contiguous CPU tensors of the stored dtype. Of a tensor that is loaded in part, only the rows needed
    are fetched. Tensors that share memory are loaded one after the other, and a planner with a `resolve_tensor` or
    `commit_tensor` of its own gets each tensor resolved, filled and committed before the next one.

    Args:
        region: AWS region of the bucket; None for the environment's.
        path: `s3://bucket/folder` of the checkpoint.
        s3client_config: Settings of the client.
        reader_constructor: Taken because s3torchconnector takes it, and not used: ranges are always planned.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        replicated: Read what several ranks need only once, and pass it on between the ranks: once per job (True or
            `"job"`), or once per machine (`"node"`). It pays where all ranks load the same weights.
        process_group: The group that loads, where it is not the default one; used with `replicated`.
        replicated_timeout_seconds: How long the ranks wait for the slowest of them to read 512 MiB.
        progress: Show a progress bar on rank 0 when reading takes longer than a second.
        _extension_registry: torch's experimental registry of stream transforms; None for torch's default one.

    Example:
        >>> reader = S3StorageReader("eu-central-1", "s3://my-bucket/run/step-100")
        >>> dcp.load({"model": model}, storage_reader=reader)  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: object = None,
        *,
        endpoint: str | None = None,
        replicated: bool | Literal["job", "node"] = False,
        process_group: dist.ProcessGroup | None = None,
        replicated_timeout_seconds: float = 1800.0,
        progress: bool = True,
        _extension_registry: Any | None = None,
    ) -> None:
        super().__init__()
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._address = CheckpointAddress.parse(path)
        if replicated not in (True, False, "job", "node"):
            raise ValueError(f"replicated is {replicated!r}; it must be True, False, 'job' or 'node'")
        self._replicated = replicated
        self._group = process_group
        self._replicated_timeout_seconds = replicated_timeout_seconds
        self._progress = progress
        self._registry = _extension_registry
        self._storage_data: Mapping[Any, Any] = {}
        self._found: dict[Any, Any] = {}
        self._metadata_etag: str | None = None
        self._shared_metadata_error: Exception | None = None
        self._etags: dict[str, str] = {}
        self._load_id = new_save_id()

    @property
    def path(self) -> str:
        """The URI of the checkpoint."""
        return self._address.uri()

    @property
    def checkpoint_id(self) -> str:
        """The URI of the checkpoint."""
        return self._address.uri()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an id is an S3 URI."""
        return is_s3_uri(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Turn to another checkpoint, or to a new load of the same one.

        Args:
            checkpoint_id: The URI of the checkpoint to read; None keeps the last one.
        """
        if checkpoint_id is not None:
            self._address = CheckpointAddress.parse(checkpoint_id)
        self._storage_data = {}
        self._metadata_etag = None
        self._shared_metadata_error = None
        self._load_id = new_save_id()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read what the checkpoint holds and where.

        Args:
            *args: Not used.
            **kwargs: `rank`, to read what that rank saved on its own with `use_collectives=False`.

        Returns:
            The metadata.

        Raises:
            NoCheckpointError: There is nothing at this URI.
            IncompleteCheckpointError: There are objects of a checkpoint that was never committed.
            CorruptCheckpointError: The metadata cannot be read.
        """
        rank = kwargs.get("rank")
        name = METADATA_NAME if rank is None else rank_metadata_name(rank)
        if rank is not None and self._shared_metadata_error is not None:
            raise self._shared_metadata_error
        self._shared_metadata_error = None
        try:
            metadata, etag = read_metadata_object(self._client, self._address, name)
            self._metadata_etag = etag if rank is None else None
            if not isinstance(metadata.storage_data, Mapping):
                raise CorruptCheckpointError(f"{self._address.uri(name)} does not say where its items are stored")
        except NoSuchKeyError as error:
            raise self._absence(name) from error
        except Exception as error:
            # `dcp.load` takes any error for a sign that each rank has saved on its own and asks for that next; what
            # lies there may be another checkpoint than the one that the other ranks load.
            if rank is None:
                self._shared_metadata_error = error
            raise
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a load on this rank.

        Args:
            metadata: What `read_metadata` returned.
            is_coordinator: Whether this rank plans for all.
            *args: Not used.
            **kwargs: Not used.
        """
        self._storage_data = metadata.storage_data
        self._found = {}
        self._etags = {}

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Note which version of the metadata this rank has read, and on which machine it is.

        Args:
            plan: The rank's plan.

        Returns:
            The plan, with the note as its storage data.
        """
        host = f"{socket.gethostname()} {os.environ.get('GROUP_RANK', '')}"
        plan.storage_data = LoadNote(self._metadata_etag, host)
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks have read the same version, and deal out what several of them need.

        Args:
            plans: The plans of all ranks.

        Returns:
            The same plans, each with what it shares.

        Raises:
            CorruptCheckpointError: The checkpoint was replaced while the ranks opened it.
        """
        notes = [plan.storage_data for plan in plans]
        if not all(isinstance(note, LoadNote) for note in notes):
            return plans  # a planner of the user's own has put something else there
        if len({note.metadata_version for note in notes}) > 1:
            raise CorruptCheckpointError(
                f"{self.path} was replaced by a newer checkpoint while the ranks opened it; load it again"
            )
        if self._replicated and len(plans) > 1:
            hosts = [note.host for note in notes] if self._replicated == "node" else None
            shared = plan_sharing(plans, self._storage_data, hosts, new_save_id())
            for plan, note, share_plan in zip(plans, notes, shared, strict=True):
                plan.storage_data = dataclasses.replace(note, share_plan=share_plan)
        return plans

    @portable_errors()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Load the rank's items.

        Args:
            plan: What to load.
            planner: Knows the destinations.

        Returns:
            A future that is done.

        Raises:
            IncompleteCheckpointError: An object that the metadata names is not there.
            ValueError: A tensor is to be loaded into one of another size.
            S3Exception: A range could not be read; destinations may have been filled in part.
        """
        note = plan.storage_data
        share_plan = note.share_plan if isinstance(note, LoadNote) else None
        items = ItemReader(planner, self._decode, self._address.uri)
        try:
            if share_plan is None:
                check_sizes(planner, self.path)
                self._find_payloads(plan.items)
                self._load_alone(plan.items, items)
            else:
                self._load_shared(plan, share_plan, items)
        except NoSuchKeyError as error:
            raise IncompleteCheckpointError(
                f"{self.path} lacks an object that its metadata names; it was deleted, or the checkpoint was replaced "
                f"while it was read: {error}"
            ) from error
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _load_alone(self, todo: Sequence[ReadItem], items: ItemReader) -> None:
        while todo:
            places = Places()
            now: list[ReadItem] = []
            later: list[ReadItem] = []  # what fills the same memory again, as tied weights that were saved apart do
            pieces: list[LoadPiece] = []
            for item in todo:
                info = self._info(item.storage_index)
                destination = items.destination(item, info)
                if isinstance(destination, torch.Tensor) and not places.take(item.dest_index, destination):
                    later.append(item)
                else:
                    now.append(item)
                    pieces += items.pieces(item, info, self._address.key(info.relative_path), destination)
            self._fetch(pieces, now)
            todo = later

    def _load_shared(self, plan: LoadPlan, share_plan: SharePlan, items: ItemReader) -> None:
        shared_identities = set(share_plan.items)
        # What fills the same memory again: the ranks count on it now, so that it is kept until all the rest is there.
        kept: list[tuple[ReadItem, list[torch.Tensor]]] = []

        def make_pieces() -> tuple[list[LoadPiece], dict[Identity, list[LoadPiece]]]:
            check_sizes(items.planner, self.path)  # here, where the other ranks are told of an error
            places = Places()
            alone: list[LoadPiece] = []
            shared: dict[Identity, list[LoadPiece]] = {}
            for item in plan.items:
                info = self._info(item.storage_index)
                key = self._address.key(info.relative_path)
                destination = items.destination(item, info)
                if isinstance(destination, torch.Tensor) and not places.take(item.dest_index, destination):
                    tensors: list[torch.Tensor] = []
                    kept.append((item, tensors))
                    destination = tensors.append
                identity = identity_of(item)
                if identity in shared_identities and identity not in shared:
                    shared[identity] = list(items.pieces(item, info, key, destination, in_blocks=True))
                else:
                    alone += items.pieces(item, info, key, destination)
            return alone, shared

        load_shared(share_plan, make_pieces, self._fetch, self._group, self._replicated_timeout_seconds)
        for item, tensors in kept:
            items.put(item, self._info(item.storage_index), tensors.pop())

    def _fetch(self, pieces: Sequence[Piece], whole_items: Sequence[ReadItem] = ()) -> None:
        allowance: dict[tuple[str, int], int] = {}
        for item in whole_items:
            info = self._info(item.storage_index)
            place = (info.relative_path, info.offset)
            allowance[place] = min(info.length, allowance.get(place, 0) + needed_bytes(item, info))
        total = sum(piece.want.end - piece.want.start for piece in pieces)
        with TransferProgress(f"Loading {self.path}", total, self._progress) as progress:
            # Another save may write an object again: no load mixes two versions.
            self._etags = fetch_pieces(
                self._client,
                self._address.bucket,
                pieces,
                progress,
                allowance_bytes=sum(allowance.values()),
                etags=self._etags,
            )

    def _find_payloads(self, items: Sequence[ReadItem]) -> None:
        """Find where the tensors' bytes lie in large items whose writer did not note it."""
        opaque: dict[Any, Any] = {}
        for item in items:
            info = self._info(item.storage_index)
            if is_opaque_tensor(item, info) and info.length >= MIN_ITEM_BYTES:
                opaque[item.storage_index] = info
        ends: list[EndPiece] = []
        for index, info in opaque.items():
            ends += end_pieces(info, self._address.key(info.relative_path), partial(self._found.__setitem__, index))
        self._fetch(ends)

    def _info(self, index: Any) -> Any:
        if index in self._found:
            return self._found[index]
        try:
            return self._storage_data[index]
        except KeyError:
            raise IncompleteCheckpointError(
                f"{self.path} has no item {index.fqn!r} at offset {index.offset}, which its metadata describes"
            ) from None

    def _decode(self, descriptors: Sequence[str], stream: IO[bytes]) -> IO[bytes]:
        if not descriptors:
            return stream
        registry: Any = self._registry
        if registry is None:
            try:
                from torch.distributed.checkpoint._extension import ExtensionRegistry
            except ImportError as error:
                raise CorruptCheckpointError(
                    f"{self.path} was saved with the stream transforms {list(descriptors)}, "
                    "which this version of torch does not know"
                ) from error
            registry = ExtensionRegistry()
        for extension in registry.from_descriptor_list(descriptors):
            stream = extension.transform_from(stream)
        return stream

    def _absence(self, name: str) -> Exception:
        page = next(iter(self._client.list_objects(self._address.bucket, self._address.base, max_keys=1000)), None)
        keys = page.keys if page is not None else []
        if any(is_data_name(key) for key in keys):
            return IncompleteCheckpointError(
                f"{self.path} holds data of a checkpoint, but no {name}: its save did not finish. Load an earlier "
                "checkpoint; clean() removes this one"
            )
        return NoCheckpointError(f"there is no checkpoint at {self.path}: it has no {name}")
