"""The names of a checkpoint's objects: what each is, and which save wrote it, so that no other writes there."""

from __future__ import annotations

import re
import uuid

METADATA_NAME = ".metadata"
SUFFIX = ".distcp"

# __{rank}_{file}.{id of the save}.distcp, below any prefix; torch and s3torchconnector write the same without the id.
_DATA = re.compile(r"(?:.*/)?[^/]*\.distcp", re.DOTALL)
_RANK_METADATA = re.compile(r"__\d+\.metadata")


def new_save_id() -> str:
    """An id that no other save has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def data_name(prefix: str, file_index: int, save_id: str) -> str:
    """The name of one data object.

    Args:
        prefix: What the prefix strategy gave for the rank.
        file_index: Number of the file within its rank.
        save_id: The id that this rank uses for this save, and never again.
    """
    return f"{prefix}{file_index}.{save_id}{SUFFIX}"


def rank_metadata_name(rank: int) -> str:
    """The metadata's name of a rank that saved on its own (`use_collectives=False`)."""
    return f"__{rank}{METADATA_NAME}"


def is_data_name(name: str) -> bool:
    """Whether a key or name is that of a checkpoint's data object, by its suffix."""
    return _DATA.fullmatch(name) is not None


def is_metadata_key(key: str) -> bool:
    """Whether a key is that of a checkpoint's metadata, of the whole job or of one rank."""
    return key.rpartition("/")[2] == METADATA_NAME or is_rank_metadata_key(key)


def is_rank_metadata_key(key: str) -> bool:
    """Whether a key is that of the metadata of a rank that saved on its own."""
    return _RANK_METADATA.fullmatch(key.rpartition("/")[2]) is not None
