"""Ranged GETs on the wire, many of a second: what they have in common is made once."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._address import Address
from ._answer import ranged_get
from ._credentials import Credentials
from ._head import Target
from ._request import headers_of, prepare
from ._signature import Signer, canonical_request, signer_of
from ._wire import get_request

if TYPE_CHECKING:
    from ._runtime import Runtime

# Stand in a template for what differs; none of them can be in a header.
_MARKS = {"\1": "%(path)s", "\2": "%(range)s", "\3": "%(etag)s", "\4": "%(signature)s"}
_PATH, _RANGE, _ETAG, _SIGNATURE = _MARKS
# An ETag that is spelled in a signature as it is sent.
_PLAIN_ETAG = re.compile(r"[!-~]+")


def ranged_get_on_the_wire(
    runtime: Runtime,
    target: Target,
    start: int,
    end: int,
    etag: str | None,
    address: Address,
    keys: Credentials | None,
) -> bytes:
    """Write the request for `[start, end)` of an object, signed.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last byte.
        etag: The ETag that the object must have; None for any.
        address: Where its bucket is.
        keys: What to sign with; None for not at all.

    Raises:
        ValueError: The ETag has a line end.
    """
    if target.version_id is not None or (etag is not None and _PLAIN_ETAG.fullmatch(etag) is None):
        request = ranged_get(runtime, target, start, end, etag)
        path, headers = prepare(request, runtime.settings, address, keys)
        return get_request(path, address.host, headers)
    second, is_conditional = int(time.time()), etag is not None
    place = target.bucket, is_conditional
    template = runtime.get_templates.get(place)
    if template is None or not template.is_of(second, address, keys):
        template = GetTemplate.of(second, runtime, target, is_conditional, address, keys)
        runtime.get_templates[place] = template
    return template.fill(address.target(target.key), f"bytes={start}-{end - 1}", etag or "")


@dataclass(frozen=True, slots=True)
class GetTemplate:
    """The GETs of one bucket in one second, which differ in key, range and ETag.

    Args:
        second: The time, since the epoch.
        address: Where the bucket is.
        keys: What they are signed with.
        wire: The request as it is sent, a format for `%`.
        canonical: The same as it is signed.
        signer: Signs; None where nothing is signed.
    """

    second: int
    address: Address
    keys: Credentials | None
    wire: bytes
    canonical: bytes
    signer: Signer | None

    @classmethod
    def of(
        cls,
        second: int,
        runtime: Runtime,
        target: Target,
        is_conditional: bool,
        address: Address,
        keys: Credentials | None,
    ) -> GetTemplate:
        """Make the template by spelling a request whose parts are marks."""
        request = ranged_get(runtime, target, 0, 1, _ETAG if is_conditional else None)
        headers = {**headers_of(request, runtime.settings), "Range": _RANGE}
        if keys is None:
            return cls(second, address, keys, _format(get_request(_PATH, address.host, headers)), b"", None)
        signer = signer_of(keys, address.region, second)
        headers.update(signer.headers)
        names, canonical = canonical_request("GET", address.host, _PATH, headers)
        headers["Authorization"] = signer.authorization(names, _SIGNATURE)
        wire = get_request(_PATH, address.host, headers)
        return cls(second, address, keys, _format(wire), _format(canonical.encode("latin-1")), signer)

    def is_of(self, second: int, address: Address, keys: Credentials | None) -> bool:
        """Whether a request of this time and place is one of them."""
        return self.second == second and self.address is address and self.keys is keys

    def fill(self, path: str, span: str, etag: str) -> bytes:
        """Write one of them.

        Args:
            path: The path, percent-encoded.
            span: The `Range` header.
            etag: The `If-Match` header.
        """
        parts = {b"path": path.encode(), b"range": span.encode(), b"etag": etag.encode()}
        if self.signer is not None:
            parts[b"signature"] = self.signer.signature(self.canonical % parts).encode()
        return self.wire % parts


def _format(text: bytes) -> bytes:
    """A format for `%` of a text with marks."""
    made = text.replace(b"%", b"%%")
    for mark, field in _MARKS.items():
        made = made.replace(mark.encode(), field.encode())
    return made
