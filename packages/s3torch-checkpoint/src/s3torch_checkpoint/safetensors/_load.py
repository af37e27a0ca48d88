"""Loads tensors of safetensors files: every range of every file planned together, straight into tensor memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import torch

from s3core import NoSuchKeyError, S3Client, S3ClientConfig

from .._address import CheckpointAddress, parse_object_uri
from .._errors import CorruptCheckpointError, IncompleteCheckpointError
from .._fetch import Piece, fetch_pieces
from .._fetch_plan import Want
from .._progress import TransferProgress
from .._region import Block, contiguous_strides
from .._tensor_pieces import BlockPiece, PlainPiece
from .._threads import run_all
from ._file import SafetensorsFile, open_file
from ._header import TensorEntry, parse_json

INDEX_NAME = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_MAX_KEY_BYTES = 1024
_HEADER_THREADS = 16
# A tensor for a device passes through pinned buffers of this length, so that copies overlap with fetches.
_DEVICE_BLOCK_BYTES = 32 * 2**20


def load_file(
    uri: str,
    device: str | torch.device | int = "cpu",
    keys: Collection[str] | None = None,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Load the tensors of one safetensors file.

    Args:
        uri: `s3://bucket/key` of the file.
        device: Where to put the tensors.
        keys: Names of the tensors to load; None for all. Only their bytes are fetched.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show a progress bar on rank 0 when it takes longer than a second.

    Returns:
        The tensors by name, each with memory of its own.

    Raises:
        CorruptCheckpointError: It is no valid safetensors file.
        KeyError: A name in `keys` is not in the file.
        S3Exception: A transfer failed, or the file was replaced meanwhile.
    """
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    file = open_file(client, uri)
    return load_tensors(client, [(file, select(file, keys))], torch.device(device), f"Loading {uri}", progress)


def load_sharded(
    uri: str,
    device: str | torch.device | int = "cpu",
    keys: Collection[str] | None = None,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Load a model that lies in several safetensors files, as Hugging Face's libraries write it.

    Args:
        uri: The folder with `model.safetensors.index.json`, or the URI of an index of another name (`….json`).
        device: Where to put the tensors.
        keys: Names of the tensors to load; None for all. Only their bytes are fetched.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        progress: Show a progress bar on rank 0 when it takes longer than a second.

    Returns:
        The tensors by name, each with memory of its own.

    Raises:
        CorruptCheckpointError: The index or a file is not valid.
        IncompleteCheckpointError: A file that the index names is missing, or lacks a tensor.
        KeyError: A name in `keys` is not in the index.
        S3Exception: A transfer failed, or a file was replaced meanwhile.
    """
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    index_uri = uri if uri.endswith(".json") else CheckpointAddress.parse(uri).uri(INDEX_NAME)
    bucket, index_key = parse_object_uri(index_uri)
    with client.get_object(bucket, index_key, end=_MAX_INDEX_BYTES) as stream:
        weight_map = parse_index(stream.read_all(), index_uri)
    if keys is not None:
        wanted = {keys} if isinstance(keys, str) else set(keys)
        missing = sorted(wanted - weight_map.keys())
        if missing:
            raise KeyError(f"{index_uri} names no tensor {missing[0]!r}")
        weight_map = {name: file for name, file in weight_map.items() if name in wanted}
    folder = CheckpointAddress(bucket, index_key[: index_key.rfind("/") + 1])
    names: dict[str, list[str]] = defaultdict(list)
    for name, file_name in weight_map.items():
        names[folder.uri(file_name)].append(name)
    try:
        files = run_all([partial(_open, client, file_uri) for file_uri in names], _HEADER_THREADS) if names else []
    except NoSuchKeyError as error:
        raise IncompleteCheckpointError(f"{index_uri} names a file that is not there: {error}") from error
    chosen: list[tuple[SafetensorsFile, Sequence[TensorEntry]]] = []
    for file, tensor_names in zip(files, names.values(), strict=True):
        lacking = [name for name in tensor_names if name not in file.header.tensors]
        if lacking:
            raise IncompleteCheckpointError(f"{file.uri} lacks tensor {lacking[0]!r}, which {index_uri} says it holds")
        chosen.append((file, [file.header.tensors[name] for name in tensor_names]))
    return load_tensors(client, chosen, torch.device(device), f"Loading {index_uri}", progress)


def parse_index(text: bytes, uri: str) -> dict[str, str]:
    """Read which tensor lies in which file.

    Args:
        text: The JSON text of the index.
        uri: The index, for the message.

    Returns:
        The file's name of each tensor.

    Raises:
        CorruptCheckpointError: The index is not valid, names a tensor twice, or names a file outside its folder.
    """
    try:
        index = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{uri} is not a valid index: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise CorruptCheckpointError(f"{uri} is not a valid index: it has no weight_map")
    for name, file_name in weight_map.items():
        if not _is_file_name(file_name):
            raise CorruptCheckpointError(
                f"{uri} is not a valid index: it places {name!r} in {file_name!r}, which is no file of its folder"
            )
    return weight_map


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or any(part in ("", ".", "..") for part in name.split("/")):
        return False
    try:
        return len(name.encode()) <= _MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


def select(file: SafetensorsFile, keys: Iterable[str] | None) -> list[TensorEntry]:
    """The entries of the named tensors, or of all.

    Raises:
        KeyError: A name is not in the file.
    """
    tensors = file.header.tensors
    if keys is None:
        return list(tensors.values())
    names = dict.fromkeys([keys] if isinstance(keys, str) else keys)
    for name in names:
        if name not in tensors:
            raise KeyError(f"{file.uri} holds no tensor {name!r}")
    return [tensors[name] for name in names]


def load_tensors(
    client: S3Client,
    chosen: Sequence[tuple[SafetensorsFile, Sequence[TensorEntry]]],
    device: torch.device,
    description: str,
    progress: bool,
) -> dict[str, torch.Tensor]:
    """Fetch tensors of several files of one bucket.

    Args:
        client: Client of the bucket.
        chosen: The files, and what to load from each.
        device: Where to put the tensors.
        description: What the progress bar says.
        progress: Whether to show it.

    Returns:
        The tensors by name.
    """
    tensors: dict[str, torch.Tensor] = {}
    pieces: list[Piece] = []
    etags: dict[str, str] = {}
    for file, entries in chosen:
        if file.etag is not None:
            etags[file.key] = file.etag
        for entry in entries:
            tensor = tensors[entry.name] = torch.empty(entry.shape, dtype=entry.dtype, device=device)
            pieces += tensor_pieces(file.key, entry, tensor)
    total = sum(piece.want.end - piece.want.start for piece in pieces)
    if pieces:
        with TransferProgress(description, total, progress) as bar:
            fetch_pieces(client, chosen[0][0].bucket, pieces, bar, etags=etags)
    return tensors


def tensor_pieces(key: str, entry: TensorEntry, target: torch.Tensor) -> list[Piece]:
    """Give what to fetch for one whole tensor.

    Args:
        key: The object's key.
        entry: The stored tensor.
        target: A contiguous tensor of its shape and dtype, on any device.
    """
    if entry.start == entry.end:
        return []
    if target.device.type == "cpu":
        return [PlainPiece(Want(key, entry.start, entry.end), target, _nothing)]
    flat = target.view(-1)
    step = _DEVICE_BLOCK_BYTES // entry.dtype.itemsize
    pieces: list[Piece] = []
    for first in range(0, flat.numel(), step):
        count = min(step, flat.numel() - first)
        start = entry.start + first * entry.dtype.itemsize
        end = start + count * entry.dtype.itemsize
        block = Block((first,), (count,), start - entry.start, end - entry.start, contiguous_strides((count,)))
        pieces.append(BlockPiece(Want(key, start, end), block, entry.dtype, flat.narrow(0, first, count), _nothing))
    return pieces


def _nothing() -> None: ...


def _open(client: S3Client, uri: str, _stop: object) -> SafetensorsFile:
    return open_file(client, uri)
