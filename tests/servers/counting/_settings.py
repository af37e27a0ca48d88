"""What a server process is told when it starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from servers.counting._objects import GeneratedObjects
from servers.counting._site import Shape


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server process is told.

    Attributes:
        root: Directory of the store.
        port: Port to share with the other processes of the server; 0 for one of its own.
        is_shared: Whether other processes serve the same port.
        is_recording: Whether each request is kept.
        dropped: Prefix of the keys whose bytes are counted and dropped when they are uploaded; None for no key.
        is_md5: Whether ETags are MD5 sums.
        checks_bodies: Whether bodies are compared with the checksums that their requests state.
        kept_pieces: How many files of removed pieces are kept for others.
        shape: How slow it pretends to be.
        generated: Folders of generated objects.
    """

    root: str
    port: int = 0
    is_shared: bool = False
    is_recording: bool = True
    dropped: str | None = None
    is_md5: bool = True
    checks_bodies: bool = False
    kept_pieces: int = 0
    shape: Shape = field(default_factory=Shape)
    generated: tuple[GeneratedObjects, ...] = ()

    def to_json(self) -> str:
        """Its fields, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["shape"] = Shape(**values["shape"])
        values["generated"] = tuple(GeneratedObjects(**folder) for folder in values["generated"])
        return cls(**values)
