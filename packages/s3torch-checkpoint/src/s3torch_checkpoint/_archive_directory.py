"""The directory of a `torch.save` archive: which members it has, and where the bytes of each one lie.

The bytes of a member follow its local header, whose padding the directory does not tell. `torch.save` writes members
one after the other, each followed by a descriptor, so that the place follows from where the next one begins; whoever
relies on it reads the local header too and compares.
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

END_RECORD = b"PK\x05\x06"
END_RECORD_64 = b"PK\x06\x06"
_ENTRY = struct.Struct("<4s6H3I5H2I")
_ENTRY_SIGNATURE = b"PK\x01\x02"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_STORED = 0
_HAS_DESCRIPTOR = 1 << 3
_IN_EXTRA = 0xFFFFFFFF
_EXTRA_64 = 1
# With and without 64-bit sizes.
_DESCRIPTOR_BYTES = (16, 24)
_ALIGNMENT = 64
_MAX_EXTRA_BYTES = 0xFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member.

    Args:
        name: Its name, with the archive's folder.
        header: Offset of its local header.
        start: Offset of its first byte.
        end: Offset past its last byte.
    """

    name: str
    header: int
    start: int
    end: int

    @property
    def is_storage(self) -> bool:
        """Whether it holds the storage of a tensor: `…/data/0`, `…/data/1`, and so on."""
        folder, _, last = self.name.rpartition("/data/")
        return bool(folder) and last.isdecimal()

    @property
    def is_byte_order(self) -> bool:
        """Whether it names the byte order of the storages."""
        return self.name.endswith("/byteorder")

    @property
    def local_header(self) -> bytes:
        """The local header as far as it tells where the bytes begin: 30 bytes."""
        name_length = len(self.name.encode())
        extra_length = self.start - self.header - _LOCAL_HEADER.size - name_length
        size = min(self.end - self.start, _IN_EXTRA)
        return _LOCAL_HEADER.pack(_LOCAL_SIGNATURE, 0, 0, _STORED, 0, 0, 0, size, size, name_length, extra_length)

    def is_told_by(self, header: bytes) -> bool:
        """Whether the local header, as it is stored, puts the bytes where this member has them."""
        return header[:4] == _LOCAL_SIGNATURE and header[26:30] == self.local_header[26:30]


LOCAL_HEADER_BYTES = _LOCAL_HEADER.size


def directory_start(tail: bytes) -> int | None:
    """Read from the end of an archive where its directory begins; None when this is no archive.

    Args:
        tail: The last bytes of the object.
    """
    end_64 = tail.rfind(END_RECORD_64)
    if end_64 >= 0 and len(tail) >= end_64 + 56:
        return int(struct.unpack_from("<Q", tail, end_64 + 48)[0])
    end = tail.rfind(END_RECORD)
    if end >= 0 and len(tail) >= end + 22:
        return int(struct.unpack_from("<I", tail, end + 16)[0])
    return None


def archive_members(directory: bytes, directory_offset: int) -> list[Member] | None:
    """Find where the bytes of all members lie that have any.

    Args:
        directory: The archive's directory, from its first byte; what follows it may follow.
        directory_offset: Offset of the directory in the object.

    Returns:
        The members, in the order of their offsets; None when the archive is not laid out as `torch.save` does it.
    """
    entries = _entries(directory)
    if entries is None or not entries:
        return None
    entries.sort(key=lambda entry: entry[1])
    ends = [entry[1] for entry in entries[1:]] + [directory_offset]
    members = []
    for (name, header, size, has_descriptor), following in zip(entries, ends, strict=True):
        if size == 0:
            continue
        start = _start(header + _LOCAL_HEADER.size + len(name.encode()), following - size, has_descriptor)
        if start is None:
            return None
        members.append(Member(name, header, start, start + size))
    return members


def _start(lowest: int, highest: int, has_descriptor: bool) -> int | None:
    """The one aligned offset at which a member can begin, given where its name ends and where the next one begins."""
    found = [
        highest - descriptor
        for descriptor in (_DESCRIPTOR_BYTES if has_descriptor else (0,))
        if 0 <= highest - descriptor - lowest <= _MAX_EXTRA_BYTES and (highest - descriptor) % _ALIGNMENT == 0
    ]
    return found[0] if len(found) == 1 else None


def _entries(directory: bytes) -> list[tuple[str, int, int, bool]] | None:
    """Name, offset of the local header, size, and whether a descriptor follows, of each member."""
    entries: list[tuple[str, int, int, bool]] = []
    position = 0
    while directory[position : position + 4] == _ENTRY_SIGNATURE:
        if len(directory) < position + _ENTRY.size:
            return None
        fields: Sequence[int] = _ENTRY.unpack_from(directory, position)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
        position += _ENTRY.size
        name = directory[position : position + name_length]
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        if method != _STORED:
            return None
        large = _extra_64(extra)
        values = []
        for value in (size, packed, header):
            if value == _IN_EXTRA:
                if not large:
                    return None
                value = large.pop(0)
            values.append(value)
        if values[0] != values[1]:
            return None
        entries.append((name.decode("utf-8", "replace"), values[2], values[0], bool(flags & _HAS_DESCRIPTOR)))
    return entries


def _extra_64(extra: bytes) -> list[int]:
    """The 64-bit values of an entry's extra field, in their fixed order: size, packed size, offset."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == _EXTRA_64:
            count = min(length, len(extra) - position - 4) // 8
            return list(struct.unpack_from(f"<{count}Q", extra, position + 4))
        position += 4 + length
    return []
