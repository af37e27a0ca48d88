"""The libraries that are measured, one module each; see `Peer` for what they are asked."""

from __future__ import annotations

import importlib

from benchmarks._peers._peer import IS_THOROUGH, Bytes, CannotDoError, Digest, Peer, digest
from benchmarks._target import Target

# In the order of the report.
NAMES = (
    "ours",
    "s3torchconnector",
    "boto3",
    "obstore",
    "s3fs",
    "smart_open",
    "webdataset",
    "mosaicml_streaming",
    "litdata",
    "runai_model_streamer",
    "local_disk",
)
MAIN_PEER = "s3torchconnector"  # the library that ours stands in for

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def load_peer(name: str, target: Target) -> Peer:
    """Make a peer for a target.

    Args:
        name: One of `NAMES`; or `ours` with a setting of its client, as in `ours part_size=16MiB`.
        target: Where the data is.

    Raises:
        CannotDoError: When its library is not installed.
    """
    library, setting = library_of(name), name.partition(" ")[2]
    try:
        module = importlib.import_module(f"benchmarks._peers.{library}")
    except ImportError as error:
        raise CannotDoError(f"not installed: {error}") from error
    peer: Peer = module.PEER(target, **parse_setting(setting)) if setting else module.PEER(target)
    return peer


def library_of(name: str) -> str:
    """The library of a peer's name, which a setting may follow."""
    return name.partition(" ")[0]


def parse_setting(text: str) -> dict[str, int]:
    """The field and the number of a text such as `part_size=16MiB`.

    Raises:
        ValueError: It is not of that form.
    """
    field, _, value = text.partition("=")
    number, unit = (value[:-3], _UNITS[value[-3:]]) if value[-3:] in _UNITS else (value, 1)
    return {field: int(number) * unit}


__all__ = [
    "IS_THOROUGH",
    "NAMES",
    "Bytes",
    "CannotDoError",
    "Digest",
    "Peer",
    "digest",
    "library_of",
    "load_peer",
    "parse_setting",
]
